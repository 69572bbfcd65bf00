"""DALI's workload-aware cache (arXiv 2602.03495, Algorithm 2)."""

from __future__ import annotations

import numpy as np

from dali.policies.cache.base import NO_PAIRS, ScoreCache
from dali.policies.cache.placing import lowest
from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed
from dali.policies.core.state import LANDING, stays, unpack
from dali.policies.require import require_count
from dali.policies.types import Capacity, Floats, Ints, Shape
from dali.policies.view import LayerView


@kernel
def _add(score: Floats, base: int, workload: Ints) -> None:
    for unit in range(workload.size):
        score[base + unit] += workload[unit]


@kernel
def _exchange(raw: Packed, layer: int, score: Floats, count: int, pairs: Ints, out: Ints) -> int:
    """Pair the highest scores that are not in the layer's group with the lowest that are, while it pays."""
    s = unpack(raw)
    group = s.group_of[layer]
    outgoing = lowest(raw, layer, score, count, True, out)
    first = layer * s.units if s.empty_count.size == s.layers else 0
    last = first + s.units if s.empty_count.size == s.layers else s.status.size
    n = 0
    for key in range(first, last):
        if stays(raw, key, group) or s.status[key] == LANDING:
            continue  # stays already, or is on its way
        if n == outgoing and (n == 0 or score[key] <= score[pairs[n - 1, 0]]):
            continue
        i = n if n < outgoing else n - 1
        while i > 0 and score[pairs[i - 1, 0]] < score[key]:
            pairs[i, 0] = pairs[i - 1, 0]
            i -= 1
        pairs[i, 0] = key
        n = min(n + 1, outgoing)
    kept = 0
    while kept < n and score[pairs[kept, 0]] > score[out[kept]]:
        pairs[kept, 1] = out[kept]
        kept += 1
    return kept


class WorkloadAware(ScoreCache):
    """DALI's cache (arXiv 2602.03495): s += w each step; every `w_size` steps exchange `u_size` units, then s = 0.

    Tumbling window.  Where the text is open: the first exchange comes after `w_size` steps; a pair whose
    incoming score is not higher than the outgoing one is skipped; ties go to the lower id.  Exchanged
    units are not pinned, so units of the layer step that just ended may leave.  With scope "global" the
    exchange is over all layers, after the last layer of the step.
    """

    ENTRY = "never"

    def __init__(self, scope: str = "layer", fill: str = "random", w_size: int = 4, u_size: int = 1) -> None:
        super().__init__(scope, fill)
        self.w_size = require_count("cache.w_size", w_size)
        self.u_size = require_count("cache.u_size", u_size)

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        super().reset(shape, capacity, rng)
        self._most = min(self.u_size, self.score.size)
        self._pairs = np.zeros((self._most, 2), np.int32)
        self._outgoing = np.zeros(self._most, np.int32)
        self._steps = [0] * shape.layers

    def observe(self, view: LayerView) -> None:
        """Add the step's workload."""
        _add(self.score, view.layer * view.shape.units, view.workload)
        self._steps[view.layer] += 1

    def swaps(self, view: LayerView) -> Ints:
        """The window's pairs, if this layer step ends one."""
        if self.scope == "global" and view.layer != view.shape.layers - 1:
            return NO_PAIRS
        if self._steps[view.layer] % self.w_size:
            return NO_PAIRS
        count = _exchange(view.raw, view.layer, self.score, self._most, self._pairs, self._outgoing)
        if self.scope == "global":
            self.score[:] = 0.0
        else:
            self.score.reshape(view.shape.layers, -1)[view.layer] = 0.0
        return self._pairs[:count]
