"""Recency, frequency and the offline optimum."""

from __future__ import annotations

import numpy as np

from dali.policies.cache.base import ScoreCache
from dali.policies.cache.counted import CountedFirst
from dali.policies.core.jit import kernel
from dali.policies.types import NEVER, Capacity, Floats, Ints, Shape
from dali.policies.view import LayerView


@kernel
def _touch(score: Floats, base: int, active: Ints, clock: int) -> int:
    for unit in active:
        clock += 1
        score[base + unit] = clock
    return clock


class LRU(CountedFirst):
    """Evict the least recently used; within one layer step, the order of last use counts.

    Where a layer step uses more units than there are slots, those that it used last stay.
    """

    needs_order = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        super().reset(shape, capacity, rng)
        self.clock = 0

    def count(self, view: LayerView) -> None:
        """Stamp the active units."""
        self.clock = _touch(self.score, view.layer * view.shape.units, view.active, self.clock)


ONE_USE = float(2**32)  # one use outweighs any recency: LFU's score is uses * 2^32 + clock


@kernel
def _use(score: Floats, base: int, active: Ints, clock: int) -> int:
    for unit in active:
        clock += 1
        uses = np.floor(score[base + unit] / ONE_USE)
        score[base + unit] = (uses + 1.0) * ONE_USE + clock
    return clock


class LFU(LRU):
    """Evict the least frequently used, of these the least recently used.

    Uses are counted whether or not the unit was resident; a layer step uses a unit once, whatever its
    workload.  A unit that is copied stays however seldom it was used; only where a layer step uses more units than
    there are slots do its own units compete by their uses.
    """

    def count(self, view: LayerView) -> None:
        """Add a use to the active units."""
        self.clock = _use(self.score, view.layer * view.shape.units, view.active, self.clock)


@kernel
def _next_uses(score: Floats, entry: Floats, layer: int, layers: int, next_use: Ints, never: int) -> None:
    base = layer * next_use.size
    for unit in range(next_use.size):
        when = next_use[unit]
        entry[unit] = -np.inf if when == never else -(np.float64(when) * layers + layer)
        score[base + unit] = entry[unit]


class Belady(ScoreCache):
    """Keep what is used soonest: from an empty start and for units of equal size the fewest misses.

    A unit enters only if it is used again sooner than the victim, which may be a unit of the same layer
    step: the two change places when that has ended.  This is optimal among caches that take in only what
    is looked up (swaps may bring in anything), and as long as staging holds what is to change places:
    `sim.replay` sees to that, a simulation has the slots it has.
    """

    ENTRY = "scored"
    OWN_VICTIMS = True
    needs_next_use = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        super().reset(shape, capacity, rng)
        self._entry = np.zeros(shape.units)

    def entry(self, view: LayerView) -> Floats:
        """Minus the next use of each unit; also brings the layer's scores up to date."""
        if view.next_use is None:
            raise ValueError("Belady: the driver gave no next_use")
        _next_uses(self.score, self._entry, view.layer, view.shape.layers, view.next_use, NEVER)
        return self._entry
