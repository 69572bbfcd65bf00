"""Cache by gain: what stays is what saves most time, wherever in the model it is.

A resident unit saves its layer step the difference between its CPU job and its GPU job, whenever it is active.  What
that will be is estimated from the tokens that were routed to the unit, recent ones counting more.
"""

from __future__ import annotations

import numpy as np

from dali.policies.cache.base import ScoreCache
from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed
from dali.policies.core.state import NONE, RESIDENT, STAGING, STAY, evict, keep_staged, unpack
from dali.policies.types import Bools, Capacity, Floats, InputError, Ints, Shape
from dali.policies.view import LayerView

UNKNOWN = -2  # in `bottom`: to be looked up


@kernel
def expected_saving(rate: float, cpu: Floats, gpu: Floats) -> float:
    """Seconds that a resident unit saves a layer step, if it gets `rate` tokens on average.

    With less than one token a step the unit is taken to be active in that share of the steps, with one token; with
    more it is active in each, and costs are linear between whole numbers of tokens.
    """
    tokens = min(max(rate, 1.0), cpu.size - 1.0)
    below = min(int(tokens), cpu.size - 2)
    above = tokens - below
    saved = (1.0 - above) * (cpu[below] - gpu[below]) + above * (cpu[below + 1] - gpu[below + 1])
    saving: float = min(rate, 1.0) * max(0.0, saved)
    return saving


@kernel
def fold_in(
    counts: Floats,
    totals: Floats,
    score: Floats,
    layer: int,
    workload: Ints,
    tokens: int,
    kept: float,
    cpu: Floats,
    gpu: Floats,
) -> None:
    """Add a layer step to the decayed token counts [K] and totals [L]; the layer's scores follow."""
    base = layer * workload.size
    totals[layer] = kept * totals[layer] + tokens
    for unit in range(workload.size):
        counts[base + unit] = kept * counts[base + unit] + workload[unit]
        score[base + unit] = expected_saving(tokens * counts[base + unit] / totals[layer], cpu, gpu)


@kernel
def _bottom_of(raw: Packed, layer: int, score: Floats, taken: Bools) -> int:
    """The lowest scored key of a layer that may leave, ties to the lower one, or NONE."""
    s = unpack(raw)
    found = NONE
    for key in range(layer * s.units, (layer + 1) * s.units):
        if s.status[key] != RESIDENT or s.pinned[key] or taken[key] or s.group[s.slot[key]] == STAGING:
            continue
        if found == NONE or score[key] < score[found]:
            found = key
    return found


@kernel
def next_victim(raw: Packed, layer: int, score: Floats, bottom: Ints, taken: Bools) -> int:
    """The same over all layers that share slots with `layer`.

    `bottom` [L] keeps the answer of each layer for as long as it holds: only the running layer's scores change, and
    only units of the running layer come to stay.
    """
    s = unpack(raw)
    shared = s.empty_count.size < s.layers
    found = NONE
    for other in range(s.layers):
        if not shared and other != layer:
            continue
        key = bottom[other]
        if key >= 0 and (taken[key] or s.status[key] != RESIDENT or s.group[s.slot[key]] == STAGING):
            key = UNKNOWN
        if key == UNKNOWN:
            key = bottom[other] = _bottom_of(raw, other, score, taken)
        if key != NONE and (found == NONE or score[key] < score[found]):
            found = key
    return found


@kernel
def _make_room(
    raw: Packed,
    layer: int,
    score: Floats,
    bottom: Ints,
    taken: Bools,
    enter: Ints,
    to: Ints,
    first: Ints,
    count: Ints,
    victims: Ints,
) -> None:
    """Which of the units `enter` stay (`to`), each once victims[first : first + count] left; highest score first."""
    s = unpack(raw)
    base = layer * s.units
    need = s.size[layer]
    room = s.room[s.group_of[layer]]
    bottom[layer] = UNKNOWN
    done = np.zeros(enter.size, np.bool_)
    used = 0
    for _ in range(enter.size):
        i = NONE
        for j in range(enter.size):
            if not done[j] and (i == NONE or score[base + enter[j]] > score[base + enter[i]]):
                i = j
        done[i] = True
        last = used
        while room < need:
            key = next_victim(raw, layer, score, bottom, taken)
            if key == NONE or score[key] >= score[base + enter[i]]:
                break
            taken[key] = True
            victims[last] = key
            room += s.size[key // s.units]
            last += 1
        if room < need:
            for key in victims[used:last]:
                taken[key] = False
                bottom[key // s.units] = UNKNOWN
                room -= s.size[key // s.units]
            to[i] = STAGING
            continue
        to[i] = STAY
        first[i] = used
        count[i] = last - used
        # Units are copied in another order than they enter in: what their victims leave beyond need stays free.
        room = room - need if last == used else 0
        used = last
    for key in victims[:used]:
        taken[key] = False
    bottom[layer] = UNKNOWN


@kernel
def _place(raw: Packed, layer: int, score: Floats, bottom: Ints, taken: Bools) -> None:
    s = unpack(raw)
    n = s.n.to_copy
    _make_room(raw, layer, score, bottom, taken, s.demand[:n], s.demand_to, s.victim_first, s.victim_count, s.victims)


@kernel
def _settle(raw: Packed, layer: int, score: Floats, bottom: Ints, taken: Bools) -> None:
    s = unpack(raw)
    base = layer * s.units
    staged = np.empty(s.staged.size, np.int32)
    n = 0
    for slot in s.staged:
        key = s.owner[slot]
        if key != NONE and s.pinned[key] and s.status[key] == RESIDENT:
            staged[n] = key - base
            n += 1
    to = np.empty(n, np.int32)
    first = np.empty(n, np.int32)
    count = np.empty(n, np.int32)
    # Every demand copy of this layer step is issued: its list of victims may be used again.
    _make_room(raw, layer, score, bottom, taken, staged[:n], to, first, count, s.victims)
    for i in range(n):
        if to[i] == STAY:
            for key in s.victims[first[i] : first[i] + count[i]]:
                evict(raw, key)
            keep_staged(raw, base + staged[i])


class SavingCache(ScoreCache):
    """Keep the units that are expected to save the most time.

    The rate of a unit is the tokens it got over the tokens of those layer steps, both sums decayed by `kept` a step,
    times the tokens of the step now; `expected_saving` turns it into seconds.  A step weighs as much as it has
    tokens: a prompt tells more than one token.  Router scores are not needed.  What was copied, on demand or
    ahead, stays if it saves more than what has to leave for it; nothing is copied only to be kept.

    With scope "global" layers compete for slots unit by unit: a slot is worth the same in each where no exchange pays.
    A layer that has not run yet gives up nothing.
    """

    ENTRY = "scored"

    def __init__(self, scope: str = "global", fill: str = "random", kept: float = 0.95) -> None:
        super().__init__(scope, fill)
        if not isinstance(kept, int | float) or not 0 <= kept < 1:
            raise InputError(f"cache.kept: found {kept!r}, expected a share from 0 to below 1")
        self.kept = kept

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh, without a victim."""
        super().reset(shape, capacity, rng)
        self.score[:] = np.inf
        self._counts: Floats = np.zeros(self.score.size)
        self._totals: Floats = np.zeros(shape.layers)
        self._bottom: Ints = np.full(shape.layers, UNKNOWN, np.int32)
        self._taken: Bools = np.zeros(self.score.size, np.bool_)
        self._counted = (-1, -1)

    def entry(self, view: LayerView) -> Floats:
        """Float64 [U], expected savings, the running layer step counted."""
        self._count(view)
        base = view.layer * view.shape.units
        return self.score[base : base + view.shape.units]

    def observe(self, view: LayerView) -> None:
        """Count the layer step, if it asked for no room and so is not counted yet."""
        self._count(view)

    def place(self, view: LayerView) -> None:
        """`Cache.place`, compiled."""
        self._count(view)
        _place(view.raw, view.layer, self.score, self._bottom, self._taken)

    def settle(self, view: LayerView) -> None:
        """`Cache.settle`, compiled."""
        self._count(view)
        _settle(view.raw, view.layer, self.score, self._bottom, self._taken)

    def _count(self, view: LayerView) -> None:
        """Count each layer step once, whether a copy asks for room at its begin or nothing does until its end."""
        if self._counted != (view.step, view.layer):
            self._counted = (view.step, view.layer)
            cost = view.cost
            fold_in(
                self._counts,
                self._totals,
                self.score,
                view.layer,
                view.workload,
                view.tokens,
                self.kept,
                cost.cpu,
                cost.gpu,
            )
