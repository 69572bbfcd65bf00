"""Policies that a policy under test is paired with: ours, and some that answer as drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dali.policies.assign.fixed import AllGPU
from dali.policies.assign.greedy import Greedy
from dali.policies.cache.base import Cache
from dali.policies.cache.classic import LRU
from dali.policies.cache.fixed import Static
from dali.policies.cache.workload import WorkloadAware
from dali.policies.core.state import RESIDENT
from dali.policies.prefetch.predicted import OraclePrefetch
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Bools, Capacity, Ints, Shape
from dali.policies.view import LayerView

Makers = Mapping[str, Sequence[Callable[[], Any]]]


class RandomAssignment:
    """Any assignment is a legal one."""

    overlap = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        self.rng, self.units = rng, shape.units

    def assign(self, view: LayerView) -> Bools:
        """As drawn."""
        return self.rng.random(self.units) < 0.6


class AnyHints:
    """Hints at any layer, the running one included, at what is not absent, and twice at the same unit."""

    source: str | None = None
    ahead: int = 1

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        self.rng, self.shape = rng, shape

    def rank(self, view: LayerView) -> Ints:
        """As drawn."""
        drawn = self.rng.integers((0, 0), (self.shape.layers, self.shape.units), (5, 2))
        return np.concatenate([drawn, drawn[:2]])[: self.shape.layers * self.shape.units].astype(np.int32)


class Whim(Cache):
    """Admits, evicts and swaps as drawn."""

    def admit(self, view: LayerView, unit: int) -> bool:
        """Mostly."""
        return bool(self.rng.random() < 0.7)

    def victim(self, view: LayerView, unit: int, candidates: Ints) -> int | None:
        """Mostly one of them."""
        return None if self.rng.random() < 0.2 else int(self.rng.choice(candidates))

    def swaps(self, view: LayerView) -> Ints:
        """Up to three; what comes in may be resident, staged or landing: then nothing happens."""
        state, group = view.state, self.capacity.group_of[view.layer]
        here = np.flatnonzero(state.status == RESIDENT)
        outgoing = here[state.group[state.slot[here]] == group]
        first = 0 if self.scope == "global" else view.layer * self.shape.units
        last = self.shape.layers * self.shape.units if self.scope == "global" else first + self.shape.units
        count = int(self.rng.integers(0, min(4, outgoing.size) + 1))
        incoming = self.rng.integers(first, last, count)
        return np.stack([incoming, self.rng.choice(outgoing, count, replace=False)], 1).astype(np.int32)


PARTNERS: Makers = {
    "assignment": (AllGPU, Greedy, RandomAssignment),
    "prefetch": (NoPrefetch, AnyHints, lambda: OraclePrefetch(3, ahead=2, recall=0.6)),
    "cache": (LRU, Static, WorkloadAware, Whim, lambda: Whim("global")),
}
