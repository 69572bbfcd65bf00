"""Ours, the cache by gain: what a unit is worth and who leaves for it, by hand; its index against a plain search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.assign.fixed import AllCPU, AllGPU
from dali.policies.cache.frontier import UNKNOWN, SavingCache, expected_saving, next_victim
from dali.policies.core.state import STAGING
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.simple import NoPrefetch, RandomPrefetch
from dali.policies.types import Capacity, CopyKind, LayerStep, Shape
from dali.testing.worlds import cost_model, random_world

# A CPU job of w tokens takes w seconds up to 4 tokens, a GPU job 0.25.
CPU = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
GPU = np.array([0.0, 0.25, 0.25, 0.25, 0.25])


def make(cache, slots, layers=1, units=4, assignment=AllGPU, prefetch=NoPrefetch, staging=2):
    """A planner of units of one size; `popular` fills the lowest units of each layer first."""
    popularity = np.tile(np.linspace(0.4, 0.1, units), (layers, 1))
    shape = Shape(layers, units, np.ones(layers, np.int64), popularity)
    policy = Policy("test", assignment(), prefetch(), cache, staging)
    return Planner(policy, shape, Capacity.in_units(slots, cache.scope, layers), cost_model(layers))


def play(planner, workload, step=0, layer=0):
    """One layer step with every copy made when it is asked for: the units that were copied on demand."""
    workload = np.array(workload, np.int32)
    plan = planner.begin(LayerStep(step, layer, int(workload.sum()), workload))
    copied = []
    while (copy := planner.next_copy()) is not None:
        if copy.kind == CopyKind.DEMAND:
            copied.append(copy.unit)
        planner.landed(copy)
        if copy.layer == layer and copy.unit in plan.gpu:
            planner.computed(copy.unit)
    planner.end()
    return copied


def stays(planner):
    """Keys in slots that are not staging."""
    state = planner.state
    return sorted(state.owner[(state.group != STAGING) & (state.owner >= 0)].tolist())


# ---- what a unit saves -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "saving"),
    [
        (0.0, 0.0),
        (0.2, 0.2 * 0.75),  # in a fifth of the steps one token: 1 - 0.25
        (1.0, 0.75),
        (2.5, 2.25),  # between 2 - 0.25 and 3 - 0.25
        (4.0, 3.75),
        (9.0, 3.75),  # the tables end at 4 tokens
    ],
)
def test_expected_saving_by_hand(rate, saving):
    assert expected_saving(rate, CPU, GPU) == pytest.approx(saving, abs=1e-12)


def test_a_unit_that_the_cpu_runs_faster_saves_nothing():
    assert expected_saving(2.0, CPU, CPU + 1.0) == 0.0


@given(st.floats(0, 6), st.floats(0, 6))
def test_more_tokens_never_save_less(one, other):
    few, many = sorted((one, other))
    assert expected_saving(few, CPU, GPU) <= expected_saving(many, CPU, GPU) + 1e-12


def test_scores_are_savings_at_the_decayed_rate():
    planner = make(SavingCache(fill="empty", kept=0.5), slots=2, assignment=AllCPU)
    play(planner, [3, 1, 0, 0], step=0)
    # 4 tokens: 3 and 1 of them to units 0 and 1.  Savings 3 - 0.25, 1 - 0.25.
    assert planner.policy.cache.score.tolist() == pytest.approx([2.75, 0.75, 0, 0])
    play(planner, [0, 1, 1, 0], step=1)
    # Counts 1.5, 1.5, 1, 0 of 0.5 * 4 + 2 = 4; times the 2 tokens of this step 0.75, 0.75, 0.5, 0 tokens a step.
    assert planner.policy.cache.score.tolist() == pytest.approx([0.75 * 0.75, 0.75 * 0.75, 0.5 * 0.75, 0])


# ---- who leaves ------------------------------------------------------------------------------------


def test_a_demand_copy_takes_the_place_of_the_least_saving_unit():
    planner = make(SavingCache(scope="layer", fill="popular", kept=0.5), slots=2)
    assert stays(planner) == [0, 1]
    assert play(planner, [0, 4, 0, 0], step=0) == []
    # Unit 2 is worth 2 tokens; of units 0 (none) and 1 (counts 2 of 4) unit 0 saves less.
    assert play(planner, [0, 0, 2, 0], step=1) == [2]
    assert stays(planner) == [1, 2]


def test_a_unit_that_saves_less_than_all_others_does_not_stay():
    planner = make(SavingCache(scope="layer", fill="popular", kept=0.5), slots=2)
    play(planner, [8, 8, 0, 0], step=0)
    # Counts 4, 4 and 1 of 0.5 * 16 + 1 = 9: unit 2 passes through staging.
    assert play(planner, [0, 0, 1, 0], step=1) == [2]
    assert stays(planner) == [0, 1]
    # The same again: counts 2, 2 and 1.5.  And again: 1, 1 and 1.75, and unit 0 goes before unit 1.
    assert play(planner, [0, 0, 1, 0], step=2) == [2]
    assert stays(planner) == [0, 1]
    assert play(planner, [0, 0, 1, 0], step=3) == [2]
    assert stays(planner) == [1, 2]


def test_of_two_that_save_the_same_the_resident_one_stays():
    planner = make(SavingCache(scope="layer", fill="popular", kept=0.5), slots=1)
    play(planner, [2, 0, 0, 0], step=0)
    assert play(planner, [0, 1, 0, 0], step=1) == [1]  # counts 1 and 1
    assert stays(planner) == [0]


def test_layers_share_slots_by_what_their_units_save():
    # Two layers of four units, four slots: units 0 and 1 of each (keys 0, 1, 4, 5).
    planner = make(SavingCache(fill="popular"), slots=4, layers=2)
    assert stays(planner) == [0, 1, 4, 5]
    play(planner, [1, 1, 0, 0], step=0, layer=0)
    # Layer 1 needs units 0, 2 and 3.  Unit 1 of it is not used: it leaves for one of them.  For the other one of layer
    # 0 has to go, where a unit saves half of a token's time: rate 1 each, against 4 and 3 here.
    assert play(planner, [2, 0, 4, 3], step=0, layer=1) == [2, 3]
    assert stays(planner) == [1, 4, 6, 7]


def test_a_layer_that_has_not_run_gives_up_nothing():
    planner = make(SavingCache(fill="popular"), slots=4, layers=2)
    # Of layer 0, which is the first to run, both cached units are used: nobody may leave for unit 2.
    assert play(planner, [1, 1, 9, 0], step=0, layer=0) == [2]
    assert stays(planner) == [0, 1, 4, 5]


def test_a_used_prefetch_stays_without_another_copy():
    # Layer 1's units are hinted at during layer 0; both used ones stay, in the place of units 0 and 1 of layer 1.
    planner = make(SavingCache("layer", "popular"), slots=4, layers=2, prefetch=lambda: RandomPrefetch(4), staging=4)
    play(planner, [1, 1, 0, 0], layer=0)
    assert play(planner, [0, 0, 2, 2], layer=1) == []
    assert stays(planner) == [0, 1, 6, 7]


def test_an_empty_cache_fills_up():
    planner = make(SavingCache(fill="empty"), slots=2)
    assert play(planner, [0, 1, 0, 1], step=0) == [1, 3]
    assert stays(planner) == [1, 3]


# ---- the index -------------------------------------------------------------------------------------


def plain_victim(planner, layer):
    state, score = planner.state, planner.policy.cache.score
    group = state.group_of[layer]
    keys = [k for k in np.flatnonzero(state.status == 2).tolist() if state.group[state.slot[k]] == group]
    return min((k for k in keys if not state.pinned[k]), key=lambda k: (score[k], k), default=-1)


class Indexed(SavingCache):
    """Compares the next victim with a plain search, each time before room is made."""

    def place(self, view):
        self._compare(view)
        super().place(view)

    def settle(self, view):
        self._compare(view)
        super().settle(view)

    def _compare(self, view):
        self._count(view)
        bottom = self._bottom.copy()
        bottom[view.layer] = UNKNOWN  # its scores have just changed
        found = next_victim(view.raw, view.layer, self.score, bottom, self._taken)
        assert found == plain_victim(self.planner, view.layer)
        assert not self._taken.any()


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(["global", "layer"]))
def test_index_finds_the_lowest_score(seed, scope):
    world = random_world(np.random.default_rng(seed), passes=10)
    cache = Indexed(scope, kept=0.7)
    policy = Policy("test", AllGPU(), RandomPrefetch(2), cache, world.staging)
    planner = cache.planner = Planner(policy, world.shape, world.capacity(scope), world.cost, seed)
    for step in world.steps:
        plan = planner.begin(step)
        for unit in plan.gpu.tolist():
            while planner.view.here[unit] == 0:
                planner.landed(planner.next_copy())
            planner.computed(unit)
        while (copy := planner.next_copy()) is not None:
            planner.landed(copy)
        planner.end()
