"""Each cache policy's definition, step by step by hand; memory and what is resident at the start."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.assign.fixed import AllCPU, AllGPU
from dali.policies.cache.classic import LFU, LRU, Belady
from dali.policies.cache.fixed import Static, WholeLayers
from dali.policies.cache.mrs import MRS
from dali.policies.cache.workload import WorkloadAware
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import NEVER, Capacity, CopyKind, InputError, LayerStep, Shape
from dali.testing.worlds import cost_model

FOUR = [[0.4, 0.3, 0.2, 0.1]]  # popularity of four units: "popular" fills units 0, 1, ...


def make(cache, slots, popularity=FOUR, assignment=None):
    """A planner of a model with the shape of `popularity` [L, U], all units of one size."""
    popularity = np.array(popularity)
    layers, units = popularity.shape
    shape = Shape(layers, units, np.ones(layers, np.int64), popularity)
    policy = Policy("test", assignment or AllGPU(), NoPrefetch(), cache)
    return Planner(policy, shape, Capacity.in_units(slots, cache.scope, layers), cost_model(layers))


def play(planner, workload, layer=0, step=0, **annotations):
    """One layer step with every copy made at once: the copies, those after its end included."""
    workload = np.array(workload, np.int32)
    annotations = {
        name: np.array(value, np.float32 if name == "router_scores" else np.int32)
        for name, value in annotations.items()
    }
    plan = planner.begin(LayerStep(step, layer, 1, workload, **annotations))
    copies = []
    for unit in plan.gpu.tolist():
        while planner.view.here[unit] == 0:
            copies.append(planner.next_copy())
            planner.landed(copies[-1])
        planner.computed(unit)
    planner.end()
    while (copy := planner.next_copy()) is not None:
        copies.append(copy)
        planner.landed(copy)
    return copies


def resident(planner):
    return np.flatnonzero(planner.state.status == 2).tolist()


def one(unit, units=4):
    workload = [0] * units
    workload[unit] = 1
    return workload


# ---- memory --------------------------------------------------------------------------------------------


def test_capacity_in_units_is_shared_evenly_or_pooled():
    # 7 slots over 3 layers: 3, 2, 2
    assert Capacity.in_units(7, "layer", 3).slots.tolist() == [3, 2, 2]
    assert Capacity.in_units(2, "layer", 3).slots.tolist() == [1, 1, 0]
    pooled = Capacity.in_units(7, "global", 3)
    assert (pooled.slots.tolist(), pooled.group_of.tolist(), pooled.total) == ([7], [0, 0, 0], 7)


def test_capacity_in_bytes():
    # 20 bytes over 2 layers: 10 each; units of 3 and 4 bytes: 3 and 2 slots
    split = Capacity.in_bytes(20, "layer", np.array([3, 4]))
    assert (split.room.tolist(), split.slots.tolist()) == ([10, 10], [3, 2])
    # pooled: at most 20 // 3 = 6 units, if all are of the smaller size
    pooled = Capacity.in_bytes(20, "global", np.array([3, 4]))
    assert (pooled.room.tolist(), pooled.slots.tolist()) == ([20], [6])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_no_capacity_at_all(scope):
    for none in (Capacity.in_units(0, scope, 2), Capacity.in_bytes(0, scope, np.array([3, 4]))):
        assert (none.total, none.room.sum()) == (0, 0)


@pytest.mark.parametrize(
    "make_capacity",
    [
        lambda: Capacity.in_units(-1, "layer", 2),
        lambda: Capacity.in_units(-1, "global", 2),
        lambda: Capacity.in_bytes(2, "global", np.array([3, 4])),
        lambda: Capacity.in_bytes(4, "layer", np.array([3, 4])),
    ],
)
def test_capacity_without_room_for_a_unit(make_capacity):
    with pytest.raises(InputError, match="expected room for a unit"):
        make_capacity()


# ---- what is there at the start -------------------------------------------------------------------------


def test_static_keeps_the_most_popular_and_never_moves():
    planner = make(Static(), 2, [[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    # One slot a layer: unit 1 of layer 0, and of equals the lowest, key 4 = unit 0 of layer 1.
    assert resident(planner) == [1, 4]
    for step in range(6):
        copies = play(planner, [1, 1, 1, 1], layer=step % 2, step=step // 2)
        assert [copy.kind for copy in copies] == [CopyKind.DEMAND] * 3
        assert resident(planner) == [1, 4]


def test_static_over_all_layers_ranks_the_whole_model():
    # The three highest of both rows: .7, .4, .3; layer 0 gets two of them.
    planner = make(Static("global"), 3, [[0.0, 0.3, 0.7], [0.4, 0.35 - 0.1, 0.25]])
    assert resident(planner) == [1, 2, 3]


def test_popular_needs_a_popularity():
    shape = Shape(1, 4, np.ones(1, np.int64))
    policy = Policy("test", AllGPU(), NoPrefetch(), Static())
    with pytest.raises(InputError, match=r"cache\.fill: found 'popular'"):
        Planner(policy, shape, Capacity.in_units(1, "layer", 1), cost_model(1))


@pytest.mark.parametrize(("slots", "keys"), [(2, []), (3, [6, 7, 8]), (7, [3, 4, 5, 6, 7, 8]), (20, list(range(9)))])
def test_whole_layers_are_the_last_ones(slots, keys):
    # Layers of three units: 7 slots make two whole layers, the seventh slot stays empty.
    planner = make(WholeLayers(), slots, np.full((3, 3), 1 / 3))
    assert resident(planner) == keys
    play(planner, [1, 1, 1])
    assert resident(planner) == keys


def test_whole_layers_counts_bytes():
    # Units of 5, 1 and 2 bytes, two a layer: the last layer takes 4, the last two 6, all three 16.
    sizes = np.array([5, 1, 2])
    for room, keys in ((3, []), (4, [4, 5]), (15, [2, 3, 4, 5]), (16, [0, 1, 2, 3, 4, 5])):
        cache = WholeLayers()
        capacity = Capacity.in_bytes(room, "global", sizes)
        cache.reset(Shape(3, 2, sizes), capacity, np.random.default_rng(0))
        assert cache.initial().tolist() == keys


def test_random_fill_takes_each_slot_and_depends_on_the_seed():
    drawn = set()
    for seed in range(20):
        cache = LRU()
        cache.reset(Shape(2, 4, np.ones(2, np.int64)), Capacity.in_units(5, "layer", 2), np.random.default_rng(seed))
        keys = cache.initial().tolist()
        assert len({key for key in keys if key < 4}) == 3
        assert len({key for key in keys if key >= 4}) == 2
        drawn.add(tuple(keys))
    assert len(drawn) > 5


# ---- least recently, least frequently used ---------------------------------------------------------------


def test_lru_evicts_the_least_recently_used():
    planner = make(LRU(fill="empty"), 2)
    for unit, after in ((0, [0]), (1, [0, 1]), (0, [0, 1]), (2, [0, 2]), (3, [2, 3]), (0, [0, 3])):
        play(planner, one(unit))
        assert resident(planner) == after


def test_lru_takes_the_order_within_a_layer_step():
    planner = make(LRU(fill="empty"), 2)
    play(planner, [1, 1, 0, 0], order=[1, 0])  # unit 0 was used last
    play(planner, one(2))
    assert resident(planner) == [0, 2]
    planner = make(LRU(fill="empty"), 2)
    play(planner, [1, 1, 0, 0])  # ascending: unit 1 was used last
    play(planner, one(2))
    assert resident(planner) == [1, 2]


def test_lru_keeps_what_was_used_last_where_not_all_can_stay():
    planner = make(LRU(fill="popular"), 1)  # unit 0 is there
    # 1 is heavier and copied first, 2 was used last.
    play(planner, [0, 5, 1, 0], order=[1, 2])
    assert resident(planner) == [2]
    # 2 hits but was used before 3, which takes its place when the layer step has ended; 0 is the heaviest.
    play(planner, [9, 0, 1, 1], order=[0, 2, 3])
    assert resident(planner) == [3]
    # 3 hits and was used last: it stays.
    play(planner, [9, 1, 0, 1], order=[0, 1, 3])
    assert resident(planner) == [3]


def test_lru_in_a_simulation_keeps_what_staging_still_holds():
    # Four misses, two slots of which one holds the hit 0, and two staging slots.  0 was used first, so the last used, 1
    # and 2, are to stay; they are copied first, being heaviest: 1 into the slot of the idle 4, 2 into staging, which
    # then is overwritten by 3 and 5.  What staging holds at the end, 3 and 5, was used after 0: 3, the later, stays.
    planner = make(LRU(fill="popular"), 2, [[0.4, 0.05, 0.05, 0.05, 0.4, 0.05]])
    assert resident(planner) == [0, 4]
    play(planner, [1, 9, 8, 2, 0, 1], order=[0, 5, 3, 2, 1])
    assert resident(planner) == [1, 3]


def test_lfu_keeps_the_most_used_where_not_all_can_stay():
    planner = make(LFU(fill="empty"), 1)
    for unit in (1, 1, 2):
        play(planner, one(unit))
    assert resident(planner) == [2]  # a copied unit stays, although 1 was used more often
    play(planner, [7, 1, 1, 0])  # uses 0:1 1:3 2:2, and 0 is the heaviest
    assert resident(planner) == [1]


def test_never_used_units_leave_first_the_lower_id_before():
    planner = make(LRU(fill="popular"), 3)
    play(planner, one(0))
    play(planner, one(3))  # units 1 and 2 were never used
    assert resident(planner) == [0, 2, 3]


def test_lfu_evicts_the_least_frequently_used_then_the_least_recently():
    planner = make(LFU(fill="empty"), 2)
    # uses after each: 0:1 | 0:2 | 0:2 1:1, 1 is evicted for 2 although used last | 2:1 and 1:2 (counted while absent)
    for unit, after in ((0, [0]), (0, [0]), (1, [0, 1]), (2, [0, 2]), (1, [0, 1])):
        play(planner, one(unit))
        assert resident(planner) == after
    # Now 0 and 1 were used twice each, 0 longer ago: the tie is broken by recency.
    play(planner, one(3))
    assert resident(planner) == [1, 3]


def test_lfu_counts_a_layer_step_once_whatever_its_workload():
    planner = make(LFU(fill="empty"), 2)
    play(planner, [9, 0, 0, 0])
    play(planner, one(1))
    play(planner, one(1))
    play(planner, one(2))
    assert resident(planner) == [1, 2]


# ---- HybriMoE's score --------------------------------------------------------------------------------------


def test_mrs_formula():
    planner = make(MRS(fill="empty", alpha=0.25, spread=2), 2)
    cache = planner.policy.cache
    # One active unit, so TopP keeps the two highest of the four: .5 and .25 (exact in float32).
    play(planner, one(0), router_scores=[0.5, 0.125, 0.25, 0.125])
    assert cache.score.tolist() == [0.125, 0, 0.0625, 0]
    # S = a TopP(s) + (1 - a) S; unit 1: .25 * .75; unit 0: .75 * .125; unit 2: .25 * .125 + .75 * .0625
    play(planner, one(1), router_scores=[0.0625, 0.75, 0.125, 0.0625])
    assert cache.score.tolist() == [0.09375, 0.1875, 0.078125, 0]
    # Two active units: all four count.
    play(planner, [1, 1, 0, 0], router_scores=[0.25, 0.25, 0.25, 0.25])
    assert cache.score.tolist() == [0.1328125, 0.203125, 0.12109375, 0.0625]
    # The lower score leaves: unit 0.
    assert resident(planner) == [0, 1]
    play(planner, one(3), router_scores=[0, 0, 0, 1])
    assert resident(planner) == [1, 3]


def test_mrs_keeps_the_highest_scores_where_not_all_can_stay():
    planner = make(MRS(fill="popular", alpha=0.5), 1)  # unit 0 is there
    # S after the step: .05, .1, .3, .05 for units 0 to 3; 1 is the heaviest.
    play(planner, [0, 9, 1, 1], router_scores=[0.1, 0.2, 0.6, 0.1])
    assert resident(planner) == [2]
    # 2 hits, with .15 + .25 = .4 against .475 of unit 1.
    play(planner, [0, 1, 1, 0], router_scores=[0.0, 0.85, 0.5, 0.0])
    assert resident(planner) == [1]


def test_mrs_keeps_scores_that_tie_at_the_cut():
    planner = make(MRS(fill="empty", alpha=1.0, spread=1), 2)
    play(planner, one(0), router_scores=[0.5, 0.5, 0.25, 0.25])
    assert planner.policy.cache.score.tolist() == [0.5, 0.5, 0, 0]


def test_mrs_lets_go_where_no_token_came():
    planner = make(MRS(fill="empty", alpha=0.5), 2)
    play(planner, one(0), router_scores=[1, 0, 0, 0])
    play(planner, [0, 0, 0, 0], router_scores=[1, 1, 1, 1])
    assert planner.policy.cache.score.tolist() == [0.25, 0, 0, 0]


def test_mrs_needs_router_scores():
    with pytest.raises(ValueError, match="no router_scores"):
        play(make(MRS(), 2), one(0))


@pytest.mark.parametrize("alpha", [0, -0.5, 1.5, float("nan"), "high", None])
def test_mrs_refuses(alpha):
    with pytest.raises(InputError, match=r"cache\.alpha"):
        MRS(alpha=alpha)


# ---- DALI's cache ------------------------------------------------------------------------------------------


def workload_aware(slots=2, popularity=FOUR, scope="layer", **sizes):
    return make(WorkloadAware(scope, "popular", **sizes), slots, popularity, AllCPU())


def swapped(copies):
    assert all(copy.kind == CopyKind.SWAP for copy in copies)
    return [(copy.layer, copy.unit) for copy in copies]


def test_window_of_four():
    planner = workload_aware(w_size=4, u_size=1)
    # Step sums after four steps: s = 3, 2, 4, 6.  Nothing before the fourth; then 3 in, 1 out.
    windows = [[3, 0, 0, 1], [0, 2, 1, 1], [0, 0, 3, 1], [0, 0, 0, 3]]
    assert [swapped(play(planner, w, step=i)) for i, w in enumerate(windows)] == [[], [], [], [(0, 3)]]
    assert resident(planner) == [0, 3]
    # s started anew: 1, 0, 0, 2 and no exchange, although unit 2 would lead with the old window's 4.
    for i in range(4, 8):
        assert play(planner, [1, 0, 0, 2] if i == 7 else [0, 0, 0, 0], step=i) == []
    assert resident(planner) == [0, 3]
    # A third window, by a single step of it: 2 in for 0, the lower id of the two that score 0.
    for i in range(8, 11):
        assert play(planner, one(2) if i == 9 else [0, 0, 0, 0], step=i) == []
    assert swapped(play(planner, [0, 0, 0, 0], step=11)) == [(0, 2)]
    assert resident(planner) == [2, 3]


def test_exchanges_pair_the_highest_with_the_lowest():
    planner = workload_aware(w_size=1, u_size=2)
    # in: 3 (9), 2 (5); out: 1 (0), 0 (1)
    play(planner, [1, 0, 5, 9])
    assert resident(planner) == [2, 3]
    assert [(planner.state.slot[2]), planner.state.slot[3]] == [0, 1]  # unit 0 was in slot 0, unit 1 in slot 1


def test_units_that_stay_or_are_on_their_way_do_not_come_in():
    planner = workload_aware(w_size=1, u_size=1)
    # Unit 0 leads, but is there: 3 (5) for 1 (0).  Left under way:
    planner.begin(LayerStep(0, 0, 1, np.array([9, 0, 4, 5], np.int32)))
    planner.end()
    copy = planner.next_copy()
    assert swapped([copy]) == [(0, 3)]
    # Unit 3 leads again, but is landing: 2 (6) for 0 (1), the only one that is there.
    assert swapped(play(planner, [1, 0, 6, 9], step=1)) == [(0, 2)]
    planner.landed(copy)
    assert resident(planner) == [2, 3]


def test_unprofitable_exchange_is_skipped():
    # 3 (5) for 1 (5) does not pay, nor does any later pair.
    planner = workload_aware(w_size=1, u_size=2)
    assert play(planner, [7, 5, 4, 5]) == []
    # 2 (9) for 1 (5) pays, 3 (7) for 0 (7) does not.
    assert swapped(play(planner, [7, 5, 9, 7])) == [(0, 2)]
    assert resident(planner) == [0, 2]


def test_exchange_ties_go_to_the_lower_id():
    planner = workload_aware(w_size=1, u_size=1)
    # 2 and 3 score 4 each, 0 and 1 score 1 each
    assert swapped(play(planner, [1, 1, 4, 4])) == [(0, 2)]
    assert resident(planner) == [1, 2]


def test_u_size_bounds_an_exchange():
    six = [[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]]
    for u_size, after in ((1, [1, 2, 5]), (2, [2, 4, 5]), (3, [3, 4, 5]), (8, [3, 4, 5])):
        planner = workload_aware(3, six, w_size=1, u_size=u_size)
        play(planner, [0, 0, 0, 1, 2, 3])
        assert resident(planner) == after


def test_layers_have_windows_of_their_own():
    planner = workload_aware(2, FOUR * 2, w_size=2, u_size=1)
    assert resident(planner) == [0, 4]
    assert play(planner, one(3), layer=0, step=0) == []
    assert play(planner, one(2), layer=1, step=0) == []
    assert swapped(play(planner, one(3), layer=0, step=1)) == [(0, 3)]
    assert swapped(play(planner, one(1), layer=1, step=1)) == [(1, 1)]  # 1 and 2 score 1 each
    assert resident(planner) == [3, 5]


def test_global_window_exchanges_across_layers_after_the_last_one():
    planner = workload_aware(2, [[0.6, 0.4], [0.3, 0.7]], "global", w_size=1, u_size=2)
    assert resident(planner) == [0, 3]
    assert play(planner, [0, 2], layer=0) == []
    # s = 0, 2 | 5, 1: key 2 (5) for key 0 (0), then key 1 (2) for key 3 (1)
    assert swapped(play(planner, [5, 1], layer=1)) == [(1, 0), (0, 1)]
    assert resident(planner) == [1, 2]
    assert not planner.policy.cache.score.any()


def test_only_exchanges_change_what_stays():
    planner = make(WorkloadAware(fill="popular", w_size=4, u_size=2), 2)  # every unit on the GPU
    for step in range(3):
        assert [copy.unit for copy in play(planner, [1, 1, 3, 2], step=step)] == [2, 3]
        assert resident(planner) == [0, 1]
    # The window's end: 2 (12) for 0 (4), and 3 (8) for 1 (4).  Both were copied on demand and still lie in staging, so
    # they stay without another copy.
    assert [copy.kind for copy in play(planner, [1, 1, 3, 2], step=3)] == [CopyKind.DEMAND] * 2
    assert resident(planner) == [2, 3]


# ---- the oracle ----------------------------------------------------------------------------------------------


def test_belady_keeps_what_is_used_soonest():
    # Unit after unit: 0 1 2 0 1 3 0; next use of each unit after step i by hand.
    sequence = [0, 1, 2, 0, 1, 3, 0]
    planner = make(Belady(fill="empty"), 2)
    # 2 is not used again and does not enter; 3 neither.
    for i, after in enumerate([[0], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]]):
        play(planner, one(sequence[i]), step=i, next_use=next_uses(sequence, i))
        assert resident(planner) == after


def test_belady_replaces_the_unit_used_last():
    sequence = [0, 1, 2, 1, 2, 0]
    planner = make(Belady(fill="empty"), 2)
    # At step 2 unit 2 is next used at 4, unit 0 at 5, unit 1 at 3: unit 0 leaves.
    for i, after in enumerate([[0], [0, 1], [1, 2], [1, 2], [1, 2], [1, 2]]):
        play(planner, one(sequence[i]), step=i, next_use=next_uses(sequence, i))
        assert resident(planner) == after


def test_belady_lets_the_soonest_of_several_in():
    # One slot, held by unit 0, never used again; units 1 and 2 miss together, 2 is used sooner although lighter.
    planner = make(Belady(fill="popular"), 1)
    play(planner, [0, 5, 1, 0], next_use=[NEVER, 7, 3, NEVER])
    assert resident(planner) == [2]


def test_belady_needs_next_use():
    with pytest.raises(ValueError, match="no next_use"):
        play(make(Belady(), 1), [1, 1, 1, 1])


def next_uses(sequence, i, units=4):
    return [next((j for j in range(i + 1, len(sequence)) if sequence[j] == u), NEVER) for u in range(units)]


def fewest_misses(sequence, slots):
    """By trying everything: on a miss the unit stays outside, or takes a free slot, or any other's."""

    @lru_cache(None)
    def misses(i, here):
        if i == len(sequence):
            return 0
        unit = sequence[i]
        if unit in here:
            return misses(i + 1, here)
        after = [here] + [here - {out} | {unit} for out in here] + ([here | {unit}] if len(here) < slots else [])
        return 1 + min(misses(i + 1, state) for state in after)

    return misses(0, frozenset())


def hits(cache, sequence, slots):
    planner = make(cache, slots)
    total = 0
    for i, unit in enumerate(sequence):
        play(planner, one(unit), step=i, next_use=next_uses(sequence, i))
        total += planner.n.hits
    return total


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 3))
def test_belady_misses_as_few_as_possible(sequence, slots):
    best = len(sequence) - fewest_misses(tuple(sequence), slots)
    assert hits(Belady(fill="empty"), sequence, slots) == best
    assert hits(LRU(fill="empty"), sequence, slots) <= best
    assert hits(LFU(fill="empty"), sequence, slots) <= best
