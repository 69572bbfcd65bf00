"""Steps of a published benchmark as a `Workload`: so many tokens at such a depth, with synthetic routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from dali.policies.types import Ints
from dali.traces.profiles import PROFILES
from dali.traces.sources import Rows, Scores, count, count_ordered
from dali.traces.synthetic import generate
from dali.traces.trace import Trace
from dali.traces.workload import Workload

# Tokens of routing that are drawn.  A larger step counts them more often: nearly every expert is active by then.
POOL = 1024
STREAMS = 8
# Tokens between places of one text that stand for texts of their own.
APART = 61
SEED = 14


@dataclass(frozen=True)
class TimedStep:
    """One forward pass.

    phase    of `policies.columns.PHASES`
    tokens   of all sequences together; context: mean number of positions that one of them attends to
    """

    phase: str
    tokens: int
    sequences: int
    context: float


@dataclass(frozen=True)
class TimedSource:
    """Where the steps get their routing from: tokens of a trace, one after the other, and then from its start again.

    A step takes the same number of tokens from each of its sequences.  Where they are more than the trace has, all
    of it counts as often as that takes.
    """

    trace: Trace
    steps: Sequence[TimedStep]

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `traces.sources.Source`."""
        return len(self.steps), self.trace.layers, self.trace.experts_count

    def about(self, step: int) -> tuple[str, int, int, float]:
        """See `traces.sources.Source`."""
        each = self.steps[step]
        return each.phase, each.tokens, each.sequences, each.context

    def workload(self, step: int) -> Ints:
        """See `traces.sources.Source`."""
        starts, taken, times = self._taken(step)
        workload = np.zeros(self.shape[1:], np.int32)
        count(self.trace.experts, starts, 0, taken, workload)
        return _scaled(workload, times)

    def ordered(self, step: int, last: bool) -> tuple[Ints, Ints | None, Ints | None]:
        """See `traces.sources.Source`."""
        starts, taken, times = self._taken(step)
        workload = np.zeros(self.shape[1:], np.int32)
        order, active = np.empty_like(workload), np.zeros(self.trace.layers, np.int32)
        count_ordered(self.trace.experts, starts, 0, taken, last, workload, order, active)
        return _scaled(workload, times), order, active

    def predicted(self, step: int, source: str, ahead: int) -> Ints:
        """See `traces.sources.Source`."""
        raise ValueError(f"steps hold no predictor {source}")

    def scores(self, step: int) -> Scores:
        """See `traces.sources.Source`."""
        return (self.workload(step) / (self.steps[step].tokens * self.trace.top_k)).astype(np.float32)

    def _taken(self, step: int) -> tuple[Rows, int, float]:
        """First row of each sequence's tokens, how many there are, and how often one counts.

        Sequences beyond the trace's are the same ones at another place.
        """
        each = self.steps[step]
        wanted = max(1, each.tokens // each.sequences)
        before = sum(max(1, one.tokens // one.sequences) for one in self.steps[:step])
        length = int(np.diff(self.trace.starts).min())
        taken = min(wanted, length)
        turns, own = np.divmod(np.arange(each.sequences), self.trace.sequences)
        places = (before + APART * turns) % (length - taken + 1)
        return self.trace.starts[own] + places, taken, wanted / taken


def _scaled(workload: Ints, times: float) -> Ints:
    if times == 1:
        return workload
    scaled: Ints = np.ceil(workload * times).astype(np.int32)
    return scaled


def as_workload(trace: Trace, steps: Sequence[TimedStep]) -> Workload:
    """The steps as a workload."""
    return Workload(TimedSource(trace, steps), trace.metadata, 1, f"{trace.metadata.model}: {len(steps)} steps")


def routing(layers: int, experts: int, top_k: int, prefill: bool) -> Trace:
    """Routing for prefill, one long text, or for decode, a text for each of `STREAMS` sequences."""
    return _synthetic(layers, experts, top_k, 1, POOL) if prefill else _synthetic(layers, experts, top_k, STREAMS, 256)


def calibration(layers: int, experts: int, top_k: int) -> Trace:
    """Routing of another text, for what has to be known of the experts' popularity in advance."""
    return _synthetic(layers, experts, top_k, 1, POOL // 2, SEED + 1)


@lru_cache(maxsize=64)
def _synthetic(layers: int, experts: int, top_k: int, sequences: int, tokens: int, seed: int = SEED) -> Trace:
    """Routing of a model of this shape: by the profile fitted to it, or by one that is fitted to another model."""
    fitted = [each for each in PROFILES.values() if (each.layers, each.experts, each.top_k) == (layers, experts, top_k)]
    profile = fitted[0] if fitted else replace(PROFILES["qwen3_30b_a3b"], name="resized")
    shaped = replace(profile, layers=layers, experts=experts, top_k=top_k, residual_recall=(), gate_recall=())
    return generate(shaped, sequences, 0, tokens, seed)
