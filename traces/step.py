"""One forward pass of a workload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dali.policies.types import Ints, LayerStep
from dali.traces.sources import Scores

Number = TypeVar("Number", np.int32, np.float32)


@dataclass(slots=True)
class Step:
    """One forward pass of the batch.  L layers, U units, H layers ahead.

    phase          "prefill" or "decode"
    tokens         tokens of the whole batch; `sequences` of them run together
    context        mean number of positions that a token attends to, itself included
    workload       int32 [L, U]
    predicted      int32 [L, H, U], row (l, h) = workload predicted for layer l + 1 + h from layer l; zero
                   beyond the last layer
    router_scores  float32 [L, U], router weight of each unit averaged over the tokens
    next_use       int32 [L, U], next step in which that layer uses each unit, `policies.types.NEVER` if none
    order, active  int32 [L, U] and [L]: the first active[l] entries of order[l] are the active units by
                   first or last appearance (tokens in batch order, slots in order)
    """

    index: int
    phase: str
    tokens: int
    sequences: int
    context: float
    workload: Ints
    predicted: Ints | None = None
    router_scores: Scores | None = None
    next_use: Ints | None = None
    order: Ints | None = None
    active: Ints | None = None

    def layer_step(self, layer: int) -> LayerStep:
        """What the planner is told of one layer of this step; its arrays are views of this step's."""
        return LayerStep(
            self.index,
            layer,
            self.tokens,
            self.workload[layer],
            None if self.predicted is None else self.predicted[layer],
            None if self.router_scores is None else self.router_scores[layer],
            None if self.next_use is None else self.next_use[layer],
            None if self.order is None or self.active is None else self.order[layer, : self.active[layer]],
        )
