"""The cache policies compared: each is its score.

The oracle gets annotated input (`next_use`), no driver of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policies.cache import NO_PAIRS, ScoreCache, lowest
from policies.checks import require_count
from policies.jit import Packed, kernel
from policies.state import LANDING, stays, unpack
from policies.types import NEVER, Capacity, Floats, InputError, Ints, LayerView, Shape


class Static(ScoreCache):
    """Nothing ever moves: what is resident at the start stays (Fiddler, KTransformers)."""

    ENTRY = "never"
    fixed = True

    def __init__(self, scope: str = "layer", fill: str = "popular") -> None:
        super().__init__(scope, fill)


class WholeLayers(ScoreCache):
    """The last layers whole, the others not at all (llama.cpp `-ncmoe N`, N = the layers that do not fit).

    Slots that do not make a whole layer stay empty.
    """

    ENTRY = "never"
    fixed = True

    def __init__(self) -> None:
        super().__init__("global", "empty")

    def initial(self) -> Ints:
        """Keys of the last layers."""
        taken = np.cumsum(self.capacity.size[::-1]) * self.shape.units
        layers = int(np.searchsorted(taken, self.capacity.room[0], side="right"))
        keys = self.shape.layers * self.shape.units
        return np.arange(keys - layers * self.shape.units, keys, dtype=np.int32)


@kernel
def _touch(score: Floats, base: int, active: Ints, clock: int) -> int:
    for unit in active:
        clock += 1
        score[base + unit] = clock
    return clock


class LRU(ScoreCache):
    """Evict the least recently used; within one layer step, the order of last use counts."""

    needs_order = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        super().reset(shape, capacity, rng)
        self.clock = 0

    def observe(self, view: LayerView) -> None:
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
    workload.
    """

    def observe(self, view: LayerView) -> None:
        """Count the active units."""
        self.clock = _use(self.score, view.layer * view.shape.units, view.active, self.clock)


@kernel
def _mrs(score: Floats, base: int, scores: NDArray[np.float32], active: Ints, alpha: float, spread: int) -> None:
    top = min(spread * active.size, scores.size)
    cut = np.sort(scores)[scores.size - top] if top > 0 else np.float32(np.inf)
    for unit in range(scores.size):
        kept = scores[unit] if scores[unit] >= cut else np.float32(0.0)
        score[base + unit] = alpha * kept + (1 - alpha) * score[base + unit]


class MRS(ScoreCache):
    """HybriMoE's minus-recent-score (arXiv 2504.05897): S = a TopP(s) + (1 - a) S, evict the lowest.

    s are the router's scores of the layer, TopP keeps the `spread` x (active units) highest of them.
    A trace that recorded the top-k weights only has no others to keep.
    """

    needs_router_scores = True

    def __init__(self, scope: str = "layer", fill: str = "random", alpha: float = 0.5, spread: int = 2) -> None:
        super().__init__(scope, fill)
        if not isinstance(alpha, int | float) or not 0 < alpha <= 1:
            raise InputError(f"cache.alpha: found {alpha!r}, expected a share above 0 and at most 1")
        self.alpha = alpha
        self.spread = require_count("cache.spread", spread)

    def observe(self, view: LayerView) -> None:
        """Fold this step's router scores in."""
        if view.router_scores is None:
            raise ValueError("MRS: the driver gave no router_scores")
        base = view.layer * view.shape.units
        _mrs(self.score, base, view.router_scores, view.active, self.alpha, self.spread)


@kernel
def _add(score: Floats, base: int, workload: Ints) -> None:
    for unit in range(workload.size):
        score[base + unit] += workload[unit]


@kernel
def _exchange(raw: Packed, layer: int, score: Floats, count: int, pairs: Ints, out: Ints) -> int:
    """Pair the highest scores that are not in the layer's group with the lowest that are, while it pays."""
    s = unpack(raw)
    units = s.status.size // s.group_of.size
    group = s.group_of[layer]
    outgoing = lowest(raw, layer, score, count, True, out)
    first = layer * units if s.empty_count.size == s.group_of.size else 0
    last = first + units if s.empty_count.size == s.group_of.size else s.status.size
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
