"""The planner on hand-written scenarios of a few units: who is copied when, where to, and what leaves."""

from __future__ import annotations

import numpy as np
import pytest

from dali.policies.assign.fixed import AllCPU, AllGPU
from dali.policies.cache.base import Cache
from dali.policies.cache.classic import LRU, Belady
from dali.policies.cache.fixed import Static
from dali.policies.core.state import STAGING
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import NEVER, Capacity, CopyKind, InputError, LayerStep, Shape, Status
from dali.testing.worlds import cost_model

DEMAND, PREFETCH, SWAP = CopyKind.DEMAND, CopyKind.PREFETCH, CopyKind.SWAP


class Hints:
    """Hints at (layer, unit) pairs by the layer that runs."""

    source, ahead = None, 1

    def __init__(self, **by_layer):
        self.by_layer = by_layer

    def reset(self, shape, capacity, rng):
        pass

    def rank(self, view):
        return np.array(self.by_layer.get(f"after_{view.layer}", []), np.int32).reshape(-1, 2)


class OnGPU(AllGPU):
    """The same units of every layer on the GPU."""

    def __init__(self, *units):
        self.units = list(units)

    def reset(self, shape, capacity, rng):
        self._on_gpu = np.zeros(shape.units, np.bool_)
        self._on_gpu[self.units] = True


class Scripted(Cache):
    """Starts with given keys, admits nothing, swaps what `pairs` holds at the end of a layer step."""

    def __init__(self, *keys, scope="layer"):
        super().__init__(scope)
        self.keys = keys
        self.pairs: list[tuple[int, int]] = []

    def initial(self):
        return np.array(self.keys, np.int32)

    def admit(self, view, unit):
        return False

    def victim(self, view, unit, candidates):
        raise AssertionError("nothing was admitted")

    def swaps(self, view):
        pairs, self.pairs = self.pairs, []
        return np.array(pairs, np.int32).reshape(-1, 2)


def make(cache=None, hints=None, assignment=None, layers=2, units=4, slots=2, staging=2, sizes=None, swaps_first=False):
    """A planner of 2 layers of 4 units, one slot a layer and 2 staging slots, all units on the GPU."""
    cache = cache or Static(fill="empty")
    shape = Shape(layers, units, np.ones(layers, np.int64) if sizes is None else np.array(sizes))
    capacity = (
        Capacity.in_units(slots, cache.scope, layers)
        if sizes is None
        else Capacity.in_bytes(slots, cache.scope, shape.unit_bytes)
    )
    policy = Policy("test", assignment or AllGPU(), hints or NoPrefetch(), cache, staging, swaps_first)
    return Planner(policy, shape, capacity, cost_model(layers), log=True)


def step(layer, workload, number=0, **others):
    return LayerStep(number, layer, 8, np.array(workload, np.int32), **others)


def ask(planner):
    """The next copy, not landed."""
    copy = planner.next_copy()
    return None if copy is None else (copy.kind, copy.layer, copy.unit)


def fetch(planner):
    """The next copy, landed at once."""
    copy = planner.next_copy()
    if copy is None:
        return None
    planner.landed(copy)
    return copy.kind, copy.layer, copy.unit


def finish(planner, plan):
    """Copy what is needed, compute, end; the demand copies it took."""
    copies = 0
    for unit in plan.gpu.tolist():
        while planner.view.here[unit] != Status.RESIDENT:
            assert fetch(planner)[0] == DEMAND
            copies += 1
        planner.computed(unit)
    planner.end()
    return copies


def play(planner, layer, workload, **others):
    """A layer step without anything in between; its number of demand copies."""
    return finish(planner, planner.begin(step(layer, workload, **others)))


def status(planner, layer, unit):
    return Status(int(planner.view.status[layer, unit]))


def kept(planner):
    """Keys in capacity slots."""
    s = planner.state
    return sorted(s.owner[(s.group != STAGING) & (s.owner >= 0)].tolist())


def hinted(copy_landed, **options):
    """A planner whose layer 0 is over and that issued a hint at unit 2 of layer 1, and that copy."""
    planner = make(hints=Hints(after_0=[(1, 2)]), **options)
    planner.begin(step(0, [0, 0, 0, 0]))
    copy = planner.next_copy()
    assert (copy.kind, copy.layer, copy.unit) == (PREFETCH, 1, 2)
    if copy_landed:
        planner.landed(copy)
    planner.end()
    return planner, copy


# ---- hints ---------------------------------------------------------------------------------------------


def test_hint_that_landed_before_its_layer_is_a_hit():
    planner, _ = hinted(copy_landed=True)
    plan = planner.begin(step(1, [0, 3, 1, 0]))
    assert (plan.gpu.tolist(), plan.to_copy) == ([2, 1], 1)  # resident before the heavier one that is to copy
    assert [planner.n.hits, planner.n.late, planner.n.in_staging] == [1, 0, 1]
    assert finish(planner, plan) == 1
    assert status(planner, 1, 2) == Status.ABSENT  # nothing keeps it
    assert planner.n.reusable_count == 2


def test_hint_that_lands_during_its_layer_needs_no_second_copy():
    planner, copy = hinted(copy_landed=False)
    plan = planner.begin(step(1, [0, 0, 1, 0]))
    assert (plan.gpu.tolist(), plan.to_copy) == ([2], 0)
    assert [planner.n.hits, planner.n.late, planner.n.in_staging] == [0, 1, 1]
    assert planner.next_copy() is None
    planner.landed(copy)
    assert status(planner, 1, 2) == Status.RESIDENT
    assert finish(planner, plan) == 0
    assert planner.n.reusable_count == 2


def test_hint_that_lands_after_its_layer_is_released_at_once():
    planner, copy = hinted(copy_landed=False, assignment=AllCPU())
    play(planner, 1, [0, 0, 1, 0])
    assert status(planner, 1, 2) == Status.LANDING
    assert planner.n.reusable_count == 1
    planner.landed(copy)
    assert status(planner, 1, 2) == Status.ABSENT
    assert planner.n.reusable_count == 2


def test_mispredicted_hint_is_released_at_begin():
    planner, _ = hinted(copy_landed=True)
    planner.begin(step(1, [1, 0, 0, 0]))
    assert status(planner, 1, 2) == Status.ABSENT
    assert planner.n.reusable_count == 2


def test_mispredicted_hint_still_landing_is_released_when_it_lands():
    planner, copy = hinted(copy_landed=False)
    plan = planner.begin(step(1, [1, 0, 0, 0]))
    assert status(planner, 1, 2) == Status.LANDING
    finish(planner, plan)
    planner.landed(copy)
    assert status(planner, 1, 2) == Status.ABSENT
    assert planner.n.reusable_count == 2


def test_mispredicted_hint_still_landing_serves_the_next_step():
    planner, copy = hinted(copy_landed=False)
    play(planner, 1, [1, 0, 0, 0])
    plan = planner.begin(step(1, [0, 0, 1, 0], number=1))
    assert (plan.gpu.tolist(), plan.to_copy) == ([2], 0)
    planner.landed(copy)
    assert status(planner, 1, 2) == Status.RESIDENT
    assert finish(planner, plan) == 0


def test_hint_for_a_later_layer_outlives_the_layers_between():
    planner = make(hints=Hints(after_0=[(2, 1)]), layers=3, slots=3)
    plan = planner.begin(step(0, [1, 0, 0, 0]))
    assert fetch(planner) == (DEMAND, 0, 0)
    assert fetch(planner) is None  # of two staging slots one is in use and one is reserved
    planner.computed(0)
    assert fetch(planner) == (PREFETCH, 2, 1)
    planner.end()
    assert plan.to_copy == 1
    assert play(planner, 1, [1, 1, 1, 1]) == 4
    assert play(planner, 2, [0, 1, 0, 0]) == 0


def test_hints_are_dropped_when_the_next_layer_begins():
    planner = make(hints=Hints(after_0=[(1, 2)]))
    play(planner, 0, [0, 0, 0, 0])
    planner.begin(step(1, [0, 0, 0, 0]))
    assert ask(planner) is None


def test_hints_at_units_that_are_not_absent_are_skipped():
    planner = make(Scripted(4, 1), Hints(after_0=[(1, 0), (1, 3), (1, 3), (1, 2)]), staging=4)
    planner.begin(step(0, [0, 0, 0, 0]))
    assert ask(planner) == (PREFETCH, 1, 3)  # (1, 0) is resident
    assert ask(planner) == (PREFETCH, 1, 2)  # the second (1, 3) is landing
    assert ask(planner) is None


def test_hints_leave_room_for_demand_copies():
    # Staging 2: one slot is reserved, 5: two.
    for staging, issued in ((2, 1), (3, 1), (4, 2), (5, 3)):
        planner = make(hints=Hints(after_0=[(1, 0), (1, 1), (1, 2), (1, 3)]), staging=staging)
        plan = planner.begin(step(0, [0, 0, 0, 0]))
        for unit in range(issued):
            assert ask(planner) == (PREFETCH, 1, unit)
        assert ask(planner) is None
        finish(planner, plan)
        # Even with every hint still under way the next layer gets through.
        planner.begin(step(0, [1, 1, 0, 0], number=1))
        assert fetch(planner) == (DEMAND, 0, 0)
        planner.computed(0)
        assert fetch(planner) == (DEMAND, 0, 1)


# ---- staging and what stays ------------------------------------------------------------------------------


def test_demand_copy_waits_until_a_kernel_is_done():
    planner = make()
    plan = planner.begin(step(0, [3, 2, 1, 0]))
    assert plan.gpu.tolist() == [0, 1, 2]
    first = planner.next_copy()
    assert ask(planner) == (DEMAND, 0, 1)
    assert ask(planner) is None
    planner.landed(first)
    assert ask(planner) is None  # landed, not computed
    planner.computed(0)
    third = planner.next_copy()
    assert (third.unit, third.slot) == (2, first.slot)
    assert status(planner, 0, 0) == Status.ABSENT


def test_blocked_demand_copy_lets_nothing_pass():
    planner = make(hints=Hints(after_0=[(1, 0)]), staging=2)
    planner.begin(step(0, [3, 2, 1, 0]))
    first, second = planner.next_copy(), planner.next_copy()
    planner.landed(first)
    planner.landed(second)
    assert ask(planner) is None
    planner.computed(0)
    assert fetch(planner) == (DEMAND, 0, 2)
    assert ask(planner) is None  # no slot: unit 1 is not computed
    planner.computed(1)
    assert ask(planner) is None  # the one free slot is reserved
    planner.computed(2)
    assert ask(planner) == (PREFETCH, 1, 0)


def test_staged_unit_is_kept_without_a_copy():
    planner, _ = hinted(copy_landed=True, cache=LRU(fill="empty"))
    assert play(planner, 1, [0, 0, 1, 0]) == 0
    assert kept(planner) == [6]  # layer 1, unit 2
    assert planner.n.reusable_count == 2  # the empty capacity slot took its place
    assert ask(planner) is None
    assert play(planner, 1, [0, 0, 1, 0], number=1) == 0


def test_staged_unit_takes_the_place_of_the_least_recently_used():
    planner = make(LRU(fill="empty"), Hints(after_0=[(1, 2)]))
    assert play(planner, 1, [0, 1, 0, 0]) == 1
    planner.begin(step(0, [0, 0, 0, 0]))
    assert fetch(planner) == (PREFETCH, 1, 2)
    planner.end()
    assert play(planner, 1, [0, 0, 1, 0], number=1) == 0
    assert kept(planner) == [6]
    assert status(planner, 1, 1) == Status.ABSENT


def test_staged_unit_run_by_the_cpu_is_kept_too():
    planner, _ = hinted(copy_landed=True, cache=LRU(fill="empty"), assignment=AllCPU())
    play(planner, 1, [0, 0, 1, 0])
    assert kept(planner) == [6]
    assert planner.n.reusable_count == 2


def test_working_set_larger_than_memory():
    # One slot, three units a step: the one used last takes it, the two others pass through staging; it is used last
    # again each time, so it keeps the slot and each step hits once.
    planner = make(LRU(fill="empty"), layers=1, slots=1)
    assert play(planner, 0, [1, 1, 1, 0]) == 3
    assert kept(planner) == [2]
    for number in range(1, 4):
        assert play(planner, 0, [1, 1, 1, 0], number=number) == 2
        assert planner.n.hits == 1
        assert kept(planner) == [2]
    # Once unit 2 is inactive the one of the others that is used last takes its place, and not the heavier one.
    assert play(planner, 0, [2, 1, 0, 0], number=4) == 2
    assert kept(planner) == [1]


def test_demand_copies_that_stay_evict_when_they_are_issued():
    planner = make(LRU(fill="empty"), layers=1, slots=1)
    play(planner, 0, [1, 0, 0, 0])
    plan = planner.begin(step(0, [0, 1, 0, 0], number=1))
    assert status(planner, 0, 0) == Status.RESIDENT  # binding late: nothing has left yet
    assert ask(planner) == (DEMAND, 0, 1)
    assert status(planner, 0, 0) == Status.ABSENT
    assert plan.gpu.tolist() == [1]


def test_one_pool_over_all_layers():
    planner = make(LRU("global", "empty"))
    assert play(planner, 0, [1, 1, 0, 0]) == 2
    assert kept(planner) == [0, 1]
    assert play(planner, 1, [0, 0, 0, 1]) == 1  # layer 1 takes the slot of layer 0's least recently used unit
    assert kept(planner) == [1, 7]
    assert play(planner, 0, [0, 1, 1, 0], number=1) == 1  # unit 1 is pinned: layer 1's unit leaves
    assert kept(planner) == [1, 2]


def test_large_unit_needs_several_victims():
    # 4 bytes; units of layer 0 take 1, of layer 1 three.
    planner = make(LRU("global", "empty"), slots=4, sizes=[1, 3])
    assert play(planner, 0, [1, 1, 1, 1], order=np.array([2, 0, 3, 1], np.int32)) == 4
    assert kept(planner) == [0, 1, 2, 3]
    plan = planner.begin(step(1, [0, 1, 0, 0]))
    assert fetch(planner) == (DEMAND, 1, 1)
    assert kept(planner) == [1, 5]  # 2, 0 and 3 left, the least recently used
    assert planner.state.room.tolist() == [0]
    assert finish(planner, plan) == 0
    # A small one: unit 1 (the older) leaves room enough; the next needs the large one's place, and 2 bytes stay free.
    assert play(planner, 0, [0, 0, 1, 0], number=1) == 1
    assert kept(planner) == [2, 5]
    assert play(planner, 0, [1, 0, 1, 0], number=2) == 1
    assert kept(planner) == [0, 2]
    assert planner.state.room.tolist() == [2]


def test_unit_larger_than_all_that_may_leave_passes_through_staging():
    # 4 bytes: two units of layer 0 (2 bytes) are active and used after the third, so nothing may leave for it.
    planner = make(LRU("global", "empty"), slots=4, sizes=[2, 3])
    play(planner, 0, [1, 1, 0, 0])
    assert play(planner, 0, [1, 1, 1, 0], number=1, order=np.array([2, 0, 1], np.int32)) == 1
    assert kept(planner) == [0, 1]
    # A unit of 3 bytes takes both their places; 1 byte is left, too little for either.
    play(planner, 1, [1, 0, 0, 0])
    assert kept(planner) == [4]
    assert planner.state.room.tolist() == [1]


def test_room_left_by_a_victim_is_not_used_before_it_has_left():
    # 4 bytes, full: a unit of layer 1 (3 bytes, never used again) and unit 2 of layer 0 (1 byte, used at once).
    def uses(*when):
        return np.array(when, np.int32)

    planner = make(Belady("global", "empty"), slots=4, sizes=[1, 3])
    play(planner, 1, [1, 0, 0, 0], next_use=uses(NEVER, NEVER, NEVER, NEVER))
    play(planner, 0, [0, 0, 1, 0], number=1, next_use=uses(5, 3, 2, NEVER))
    assert kept(planner) == [2, 4]
    # Unit 1 is used sooner than unit 0 and chooses first: the large unit leaves for it.  Unit 0 is heavier and copied
    # first, when that has not happened yet: it must not count on the 2 bytes that will be left.
    plan = planner.begin(step(0, [5, 1, 0, 0], number=2, next_use=uses(5, 3, 4, NEVER)))
    assert plan.gpu.tolist() == [0, 1]
    for unit in (0, 1):
        assert fetch(planner) == (DEMAND, 0, unit)
        assert planner.state.room[0] >= 0
        planner.computed(unit)
    planner.end()
    assert kept(planner) == [0, 1, 2]  # unit 0 was staged and stays after all
    assert planner.state.room.tolist() == [1]


def test_layers_without_a_slot():
    planner = make(LRU(), layers=3, slots=1)  # all of it belongs to layer 0
    assert len(kept(planner)) == 1
    assert play(planner, 2, [1, 1, 1, 1]) == 4
    assert play(planner, 2, [1, 1, 1, 1], number=1) == 4


# ---- swaps -----------------------------------------------------------------------------------------------


def test_swap_waits_for_an_idle_link():
    cache = Scripted(0, 4)
    planner = make(cache, Hints(after_1=[(0, 3)]))
    cache.pairs = [(1, 0)]
    play(planner, 0, [0, 0, 0, 0])
    assert status(planner, 0, 0) == Status.RESIDENT
    planner.begin(step(1, [0, 1, 0, 0]))
    assert fetch(planner) == (DEMAND, 1, 1)
    planner.computed(1)
    assert fetch(planner) == (PREFETCH, 0, 3)
    assert ask(planner) == (SWAP, 0, 1)
    assert status(planner, 0, 0) == Status.ABSENT
    assert kept(planner) == [1, 4]


def test_swaps_first():
    cache = Scripted(0, 4)
    planner = make(cache, Hints(after_1=[(0, 3)]), swaps_first=True)
    cache.pairs = [(1, 0)]
    play(planner, 0, [0, 0, 0, 0])
    planner.begin(step(1, [0, 1, 0, 0]))
    assert fetch(planner) == (DEMAND, 1, 1)
    planner.computed(1)
    assert fetch(planner) == (SWAP, 0, 1)
    assert ask(planner) == (PREFETCH, 0, 3)


def test_swap_of_a_staged_unit_needs_no_copy():
    cache = Scripted(4)
    planner, _ = hinted(copy_landed=True, cache=cache)
    cache.pairs = [(6, 4)]
    assert play(planner, 1, [1, 0, 1, 0]) == 0
    assert ask(planner) is None
    assert kept(planner) == [6]
    assert planner.n.reusable_count == 2


def test_swap_not_issued_before_its_layer_begins_again_is_dropped():
    cache = Scripted(0)
    planner = make(cache)
    cache.pairs = [(1, 0)]
    play(planner, 0, [0, 0, 0, 0])
    play(planner, 0, [0, 0, 0, 0], number=1)
    assert ask(planner) is None
    assert kept(planner) == [0]


def test_swap_of_an_active_unit_across_layers_is_dropped():
    # The pool holds keys 0 and 4; key 0 shall make room for key 5, but its layer begins first.
    cache = Scripted(0, 4, scope="global")
    planner = make(cache)
    cache.pairs = [(5, 0)]
    play(planner, 1, [0, 0, 0, 0])
    planner.begin(step(0, [1, 0, 0, 0], number=1))
    assert ask(planner) is None
    assert kept(planner) == [0, 4]


def test_swap_whose_unit_came_as_a_hint_is_dropped():
    cache = Scripted(0)
    planner = make(cache, Hints(after_1=[(0, 1)]))
    cache.pairs = [(1, 0)]
    play(planner, 0, [0, 0, 0, 0])
    planner.begin(step(1, [0, 0, 0, 0]))
    assert ask(planner) == (PREFETCH, 0, 1)
    assert ask(planner) is None
    assert kept(planner) == [0]


def test_second_swap_for_the_same_place_is_dropped():
    cache = Scripted(0)
    planner = make(cache)
    cache.pairs = [(1, 0), (2, 0)]
    play(planner, 0, [0, 0, 0, 0])
    assert ask(planner) == (SWAP, 0, 1)
    assert ask(planner) is None
    assert kept(planner) == [1]


def test_swap_that_would_not_fit_is_dropped():
    # A pool of 4 bytes, full with a unit of 1 byte and one of 3: the small one's place does not hold a large one.
    cache = Scripted(0, 4, scope="global")
    planner = make(cache, slots=4, sizes=[1, 3])
    cache.pairs = [(5, 0), (1, 4)]
    play(planner, 0, [0, 0, 0, 0])
    assert ask(planner) == (SWAP, 0, 1)
    assert ask(planner) is None
    assert kept(planner) == [0, 1]
    assert planner.state.room.tolist() == [2]


# ---- the plan ----------------------------------------------------------------------------------------------


def test_plan_order():
    planner = make(Scripted(1, 3, 5), Hints(after_0=[(1, 4)]), OnGPU(0, 1, 2, 3, 4, 5), layers=2, units=8, slots=6)
    # Residents of layer 1: none but the hint, which is landing.
    planner.begin(step(0, [0] * 8))
    assert ask(planner) == (PREFETCH, 1, 4)
    planner.end()
    plan = planner.begin(step(0, [2, 1, 5, 1, 0, 3, 4, 4], number=1))
    # resident 5 (3), 1 (1), 3 (1); to copy 2 (5), 0 (2); CPU 6 (4), 7 (4)
    assert (plan.gpu.tolist(), plan.to_copy, plan.cpu.tolist()) == ([5, 1, 3, 2, 0], 2, [6, 7])
    assert plan.overlap
    finish(planner, plan)
    plan = planner.begin(step(1, [1, 1, 9, 0, 1, 0, 0, 0], number=1))
    assert (plan.gpu.tolist(), plan.to_copy) == ([4, 2, 0, 1], 3)


def test_layer_step_without_tokens():
    planner = make()
    plan = planner.begin(step(0, [0, 0, 0, 0]))
    assert (plan.gpu.size, plan.cpu.size, plan.to_copy) == (0, 0, 0)
    assert planner.next_copy() is None
    planner.end()


def test_believed_times_of_inactive_units_are_zero():
    planner = make()
    planner.begin(step(0, [3, 0, 1, 0]))
    # CPU: 1 s a token, GPU: 0.25 s a job, copy: 2 s
    assert planner.view.cpu_time.tolist() == [3, 0, 1, 0]
    assert planner.view.gpu_time.tolist() == [0.25, 0, 0.25, 0]
    assert planner.view.copy_time == 2
    assert planner.slots == 4


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        step(2, [1, 0, 0, 0]),
        step(-1, [1, 0, 0, 0]),
        step(0, [1, 0, 0]),
        step(0, [[1, 0, 0, 0]]),
        step(0, [1, -1, 0, 0]),
        step(0, [1, 0, 0, 41]),  # the cost model covers 40
        step(0, [1, 1, 0, 0], order=np.array([0], np.int32)),
        step(0, [1, 1, 0, 0], order=np.array([0, 0], np.int32)),
        step(0, [1, 1, 0, 0], order=np.array([0, 2], np.int32)),
        step(0, [1, 1, 0, 0], order=np.array([0, 4], np.int32)),
        step(0, [1, 1, 0, 0], order=np.array([0, -1], np.int32)),
        step(0, [1, 1, 0, 0], order=np.array([0, 1, 2], np.int32)),
    ],
)
def test_bad_layer_step_is_refused(bad):
    with pytest.raises(InputError, match="layer step") as caught:
        make().begin(bad)
    assert "\n" not in str(caught.value)


def test_largest_workload_covered():
    planner = make()
    assert planner.begin(step(0, [40, 0, 0, 0])).gpu.tolist() == [0]
    planner.check_tokens(40)
    with pytest.raises(InputError, match="up to 40 tokens, found 41"):
        planner.check_tokens(41)


def test_parts_that_do_not_fit_are_refused():
    policy = Policy("test", AllGPU(), NoPrefetch(), Static(fill="empty"))
    shape = Shape(2, 4, np.ones(2, np.int64))
    with pytest.raises(InputError, match="copy times of 3 layers, expected 2"):
        Planner(policy, shape, Capacity.in_units(2, "layer", 2), cost_model(3))
    with pytest.raises(InputError, match="cache capacity: found 3 layers, expected 2"):
        Planner(policy, shape, Capacity.in_units(3, "layer", 3), cost_model(2))
    with pytest.raises(InputError, match="policy test: found staging 1, expected at least 2"):
        Policy("test", AllGPU(), NoPrefetch(), Static(), staging=1)


@pytest.mark.parametrize("keys", [(0, 0), (0, 1), (8,), (-1,)], ids=["twice", "no room", "beyond", "below"])
def test_wrong_initial_keys_name_the_policy(keys):
    with pytest.raises(ValueError, match=r"Scripted\.initial"):
        make(Scripted(*keys))


@pytest.mark.parametrize("pair", [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_wrong_hint_names_the_policy(pair):
    with pytest.raises(ValueError, match=r"Hints\.rank"):
        make(hints=Hints(after_0=[pair])).begin(step(0, [0, 0, 0, 0]))


@pytest.mark.parametrize("pair", [(1, 2), (1, 4), (8, 0), (-1, 0), (1, 8), (1, -1)])
def test_wrong_swap_names_the_policy(pair):
    # Keys 0 and 4 are resident: 2 is absent, 4 is in another layer's slots, 8 and -1 are no keys.
    cache = Scripted(0, 4)
    planner = make(cache)
    planner.begin(step(0, [0, 0, 0, 0]))
    cache.pairs = [pair]
    with pytest.raises(ValueError, match=r"Scripted\.swaps"):
        planner.end()


def test_assignment_of_another_size_names_the_policy():
    assignment = AllGPU()
    planner = make(assignment=assignment)
    assignment._on_gpu = np.ones(3, np.bool_)
    with pytest.raises(ValueError, match=r"AllGPU\.assign"):
        planner.begin(step(0, [1, 0, 0, 0]))


def test_victim_that_is_no_candidate_names_the_policy():
    class Stubborn(Scripted):
        def admit(self, view, unit):
            return True

        def victim(self, view, unit, candidates):
            return 7

    planner = make(Stubborn(0, 4))
    with pytest.raises(ValueError, match=r"Stubborn\.victim: key 7"):
        planner.begin(step(0, [0, 1, 0, 0]))
