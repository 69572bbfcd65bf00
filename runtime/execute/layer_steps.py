"""What the planner is told of each layer step: from the model's own routing, or from a trace that replaces it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.policies.planner import Annotations
from dali.policies.types import Floats, InputError, Ints, LayerStep
from dali.traces.expert_ids import id_type, none_id
from dali.traces.sources import add_weights, count_ordered
from dali.traces.step import Step
from dali.traces.trace import Trace
from dali.traces.workload import Workload

_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
_START = np.zeros(1, np.int64)


class Chooser(Protocol):
    """What a prefetch policy's source has to be on a live model: `runtime.predict.predictors.Predictor` is one.

    ahead  how many layers ahead it goes
    """

    ahead: int

    def choose(self, layer: int, h: int, x: Tensor) -> Tensor:
        """Ids [N, K] predicted for layer + h from x [N, hidden], what the router of `layer` reads; on x's device."""


class Routed(NamedTuple):
    """The routing of one layer step on the host.

    ids      uint8 or uint16 [N, K], as traces keep them
    weights  float32 [N, K]
    order    int64 [n], choices (token * K + place) sorted by expert
    starts   int64 [E + 1], where those of each expert begin in `order`
    """

    ids: NDArray[Any]
    weights: NDArray[np.float32]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def of_units(self, units: Sequence[int], slices: int) -> tuple[NDArray[np.int64], list[int]]:
        """Choices of the units one after the other, and how many each has; unit e * slices + s is of expert e."""
        starts = self.starts.tolist()
        spans = [(starts[unit // slices], starts[unit // slices + 1]) for unit in units]
        return np.concatenate([self.order[low:high] for low, high in spans]), [high - low for low, high in spans]


def routed(ids: Ints, weights: NDArray[np.float32], experts: int) -> Routed:
    """Sort the choices of a layer step; ids of no expert (dropped tokens) are left out."""
    kind = id_type(experts)
    named = np.where((ids >= 0) & (ids < experts), ids, np.iinfo(kind).max).astype(kind)
    flat = named.reshape(-1)
    order = np.argsort(flat, kind="stable").astype(np.int64)
    starts = np.searchsorted(flat[order], np.arange(experts + 1)).astype(np.int64)
    return Routed(named, weights, order, starts)


class LiveSteps:
    """Layer steps from the model's own routing, annotated as `asked` says."""

    def __init__(self, asked: Annotations, experts: int, slices: int) -> None:
        self._asked, self._experts, self._slices = asked, experts, slices

    def layer_step(self, step: int, layer: int, routing: Routed, predicted: Ints | None) -> LayerStep:
        """One layer step; predicted int32 [H, E]."""
        ids = routing.ids[:, None, :]
        workload, order = np.zeros((1, self._experts), np.int32), np.zeros((1, self._experts), np.int32)
        active = np.zeros(1, np.int32)
        # The kernels that make layer steps from traces: the same routing gives the same numbers, to the last bit.
        count_ordered(ids, _START, 0, len(ids), True, workload, order, active)
        scores = None
        if self._asked["router_scores"]:
            scores = np.zeros((1, self._experts), np.float32)
            half = routing.weights.astype(np.float16)[:, None, :]
            add_weights(ids, half.view(np.uint16), _HALF, _START, 0, len(ids), scores)
            scores = self._spread(scores[0] / np.float32(len(ids)))
        return LayerStep(
            step,
            layer,
            len(ids),
            self._spread(workload[0]),
            None if predicted is None else self._spread(predicted),
            scores,
            None,
            self._units(order[0, : active[0]]) if self._asked["order"] else None,
        )

    def _spread(self, by_expert: NDArray[Any]) -> NDArray[Any]:
        return by_expert if self._slices == 1 else np.repeat(by_expert, self._slices, axis=-1)

    def _units(self, experts: Ints) -> Ints:
        first = np.repeat(experts * np.int32(self._slices), self._slices)
        return first + np.tile(np.arange(self._slices, dtype=np.int32), experts.size)


class ForcedRouting:
    """Recorded routing in place of the router's, so that a machine can be timed on it whatever the weights are.

    trace   ids and weights (1/K each where it has none) that replace the router's for each token
    batch, prompt, generate, chunk, sequences, seed   which of its tokens, as in `Workload.from_trace`

    Forward passes must be those of the workload: `prompt` tokens of each sequence (in chunks), then one token each;
    it starts again when a forward pass does not continue the one before.  Annotations are the trace's: its
    predictors, and what only the future tells.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        batch: int,
        prompt: int,
        generate: int,
        chunk: int | None = None,
        sequences: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.trace = trace
        self._cut: dict[str, Any] = {
            "batch": batch,
            "prompt": prompt,
            "generate": generate,
            "chunk": chunk,
            "sequences": sequences,
            "seed": seed,
        }
        self.workload(1)

    def workload(self, slices: int) -> Workload:
        """The workload that forward passes have to follow."""
        return Workload.from_trace(self.trace, slices=slices, **self._cut)


class ForcedSteps:
    """Layer steps of a `ForcedRouting`, and the ids and weights for the model."""

    def __init__(self, forced: ForcedRouting, asked: Annotations, slices: int, device: torch.device) -> None:
        self._trace, self._asked, self._device = forced.trace, asked, device
        self._workload = forced.workload(slices)
        self._firsts = [int(forced.trace.starts[s]) + offset for s, offset in self._workload.sequences]
        # Raises InputError here, before anything is moved, if the trace lacks what the policies ask for.
        self._steps: Iterator[Step] = self._workload.steps(**asked)
        self._at = 0
        self._step: Step | None = None
        self._ids = self._weights = torch.zeros(0)

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest step."""
        return self._workload.max_tokens

    def begin(self, tokens: int, fresh: bool) -> int:
        """Go on to the next step, or to the first if `fresh`; its number.  InputError if it has other tokens."""
        if fresh:
            self._steps, self._at = self._workload.steps(**self._asked), 0
        step = next(self._steps, None)
        if step is None or step.tokens != tokens:
            expected = "no further one" if step is None else f"{step.tokens} in step {step.index}"
            raise InputError(f"routing: found a forward pass of {tokens} tokens, expected {expected}")
        width = step.tokens // step.sequences
        rows = np.concatenate([np.arange(first + self._at, first + self._at + width) for first in self._firsts])
        self._at += width
        self._step = step
        self._place(rows)
        return step.index

    def layer_step(self, layer: int) -> LayerStep:
        """One layer of the running step."""
        assert self._step is not None
        return self._step.layer_step(layer)

    def choices(self, layer: int) -> tuple[Tensor, Tensor]:
        """Ids int32 [N, K], -1 where there is none, and weights float32 [N, K] of the running step."""
        return self._ids[:, layer], self._weights[:, layer]

    def _place(self, rows: NDArray[np.int64]) -> None:
        """Bring a step's routing to the device, so that a layer step finds it there as it would a router's."""
        trace = self._trace
        found = trace.experts[rows]
        ids = np.where(found == none_id(found), -1, found.astype(np.int32))
        if trace.weights is None:
            weights: Floats | NDArray[np.float32] = np.full(ids.shape, 1 / trace.top_k, np.float32)
        else:
            weights = trace.weights[rows].astype(np.float32)
        self._ids = torch.from_numpy(ids).to(self._device)
        self._weights = torch.from_numpy(weights).to(self._device)
