"""Kernels that turn token routing into workloads, and the two sources of workloads that call them.

A source answers for one step at a time, by expert: slices are added by `Workload`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dali.policies.columns import DECODE, PREFILL
from dali.policies.core.jit import kernel
from dali.policies.types import NEVER, Ints
from dali.traces.expert_ids import Ids, predictor_name
from dali.traces.trace import Trace

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]

# Half precision to float32 by its bits, because kernels know no half-precision type.
_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


@kernel
def count(ids: Ids, starts: Rows, low: int, high: int, workload: Ints) -> None:
    """Add to workload [L, E] the tokens start + low .. start + high - 1 of every start."""
    experts = workload.shape[1]
    for start in starts:
        for token in range(start + low, start + high):
            for layer in range(ids.shape[1]):
                for k in range(ids.shape[2]):
                    expert = ids[token, layer, k]
                    if expert < experts:
                        workload[layer, expert] += 1


@kernel
def count_ordered(
    ids: Ids, starts: Rows, low: int, high: int, last: bool, workload: Ints, order: Ints, active: Ints
) -> None:
    """As `count`; also order [L, E] and active [L]: the active experts of a layer by first or last appearance."""
    layers, slots, experts = ids.shape[1], ids.shape[2], workload.shape[1]
    # Last appearances are the first ones on the way back, turned around.
    for b in range(starts.size):
        start = starts[starts.size - 1 - b if last else b]
        for i in range(low, high):
            token = start + (low + high - 1 - i if last else i)
            for layer in range(layers):
                for k in range(slots):
                    expert = ids[token, layer, slots - 1 - k if last else k]
                    if expert < experts:
                        if workload[layer, expert] == 0:
                            order[layer, active[layer]] = expert
                            active[layer] += 1
                        workload[layer, expert] += 1
    if last:
        for layer in range(layers):
            order[layer, : active[layer]] = order[layer, : active[layer]][::-1].copy()


@kernel
def add_weights(
    ids: Ids, bits: NDArray[np.uint16], half: Scores, starts: Rows, low: int, high: int, scores: Scores
) -> None:
    """Add to scores [L, E] the router weights (as bits of half-precision numbers) of the same tokens."""
    experts = scores.shape[1]
    for start in starts:
        for token in range(start + low, start + high):
            for layer in range(ids.shape[1]):
                for k in range(ids.shape[2]):
                    expert = ids[token, layer, k]
                    if expert < experts:
                        scores[layer, expert] += half[bits[token, layer, k]]


@kernel
def step_back(workload: Ints, step: int, next_use: Ints) -> Ints:
    """Next uses of the active experts in row order, from next_use [L, E] after `step`; then sets them to `step`."""
    found = np.empty(np.count_nonzero(workload), np.int32)
    n = 0
    for layer in range(workload.shape[0]):
        for expert in range(workload.shape[1]):
            if workload[layer, expert] > 0:
                found[n] = next_use[layer, expert]
                next_use[layer, expert] = step
                n += 1
    return found


@kernel
def step_forward(workload: Ints, found: Ints, next_use: Ints) -> None:
    """Undo `step_back`: make next_use [L, E] hold what comes after the step whose workload this is."""
    n = 0
    for layer in range(workload.shape[0]):
        for expert in range(workload.shape[1]):
            if workload[layer, expert] > 0:
                next_use[layer, expert] = found[n]
                n += 1


class Source(Protocol):
    """Where a `Workload` gets its steps from; L layers, E experts."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(number of steps, L, E)."""

    def about(self, step: int) -> tuple[str, int, int, float]:
        """(phase, tokens, sequences, mean number of positions that a token attends to)."""

    def workload(self, step: int) -> Ints:
        """int32 [L, E], a new array."""

    def ordered(self, step: int, last: bool) -> tuple[Ints, Ints | None, Ints | None]:
        """Workload, order and active as `count_ordered` has them; None where only counts are known."""

    def predicted(self, step: int, source: str, ahead: int) -> Ints:
        """int32 [L, E], workload predicted for each layer from `ahead` layers before."""

    def scores(self, step: int) -> Scores:
        """float32 [L, E], router weights averaged over the tokens."""


@dataclass(frozen=True)
class TokenSource:
    """Tokens of a trace: every start gives `bounds[s]` to `bounds[s + 1]` tokens after it to step s.

    starts  int64 [B], first token of each sequence of the batch
    bounds  int64 [n_steps + 1], rising from 0
    prompt  tokens of a sequence that count as its prompt
    """

    trace: Trace
    starts: Rows
    bounds: Rows
    prompt: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Source.shape`."""
        return int(self.bounds.size) - 1, self.trace.layers, self.trace.experts_count

    def about(self, step: int) -> tuple[str, int, int, float]:
        """See `Source.about`."""
        low, high = self._span(step)
        batch = int(self.starts.size)
        return PREFILL if high <= self.prompt else DECODE, batch * (high - low), batch, (low + 1 + high) / 2

    def workload(self, step: int) -> Ints:
        """See `Source.workload`."""
        return self._count(self.trace.experts, step)

    def ordered(self, step: int, last: bool) -> tuple[Ints, Ints | None, Ints | None]:
        """See `Source.ordered`."""
        workload, active = self._zeros(), np.zeros(self.trace.layers, np.int32)
        order = np.empty_like(workload)
        count_ordered(self.trace.experts, self.starts, *self._span(step), last, workload, order, active)
        return workload, order, active

    def predicted(self, step: int, source: str, ahead: int) -> Ints:
        """See `Source.predicted`."""
        return self._count(self.trace.predicted[predictor_name(source, ahead)], step)

    def scores(self, step: int) -> Scores:
        """See `Source.scores`."""
        _, tokens, _, _ = self.about(step)
        weights = self.trace.weights
        if weights is None:
            return (self.workload(step) / (tokens * self.trace.top_k)).astype(np.float32)
        scores = np.zeros(self.shape[1:], np.float32)
        add_weights(self.trace.experts, weights.view(np.uint16), _HALF, self.starts, *self._span(step), scores)
        scores /= tokens
        return scores

    def _span(self, step: int) -> tuple[int, int]:
        return int(self.bounds[step]), int(self.bounds[step + 1])

    def _zeros(self) -> Ints:
        return np.zeros(self.shape[1:], np.int32)

    def _count(self, ids: Ids, step: int) -> Ints:
        workload = self._zeros()
        count(ids, self.starts, *self._span(step), workload)
        return workload


@dataclass(frozen=True)
class CountSource:
    """Workloads known only as counts: every step is a prefill of its own.

    counts     int32 [n_steps, L, E]
    tokens     int32 [n_steps], tokens of each step
    sequences  int32 [n_steps], sequences that they came from
    top_k      experts of a token
    """

    counts: Ints
    tokens: Ints
    sequences: Ints
    top_k: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Source.shape`."""
        steps, layers, experts = self.counts.shape
        return steps, layers, experts

    def about(self, step: int) -> tuple[str, int, int, float]:
        """See `Source.about`."""
        tokens, sequences = int(self.tokens[step]), int(self.sequences[step])
        return PREFILL, tokens, sequences, (tokens / sequences + 1) / 2

    def workload(self, step: int) -> Ints:
        """See `Source.workload`."""
        workload: Ints = self.counts[step].copy()
        return workload

    def ordered(self, step: int, last: bool) -> tuple[Ints, Ints | None, Ints | None]:
        """See `Source.ordered`."""
        return self.workload(step), None, None

    def predicted(self, step: int, source: str, ahead: int) -> Ints:
        """See `Source.predicted`."""
        raise ValueError(f"counts hold no predictor {source}")

    def scores(self, step: int) -> Scores:
        """See `Source.scores`."""
        return (self.workload(step) / (int(self.tokens[step]) * self.top_k)).astype(np.float32)


def next_uses(source: Source) -> tuple[Ints, list[Ints]]:
    """First use of each expert, int32 [L, E], and by step what `step_forward` needs (4 bytes an active expert)."""
    n_steps, layers, experts = source.shape
    next_use = np.full((layers, experts), NEVER, np.int32)
    found = [step_back(source.workload(step), step, next_use) for step in reversed(range(n_steps))]
    return next_use, found[::-1]
