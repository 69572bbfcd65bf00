"""Ours, hints by the seconds they save: hand-worked layers, and what holds for every one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.cache.fixed import Static
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.frontier import SavingPrefetch, demand_copies, judge, remember
from dali.policies.types import Capacity, LayerStep, Shape, Status
from dali.testing.worlds import random_world


class Given:
    """The assignment is part of the case."""

    overlap = True

    def __init__(self, on_gpu):
        self.on_gpu = np.array(on_gpu, bool)

    def reset(self, shape, capacity, rng):
        pass

    def assign(self, view):
        return self.on_gpu


class Holds(Static):
    """These keys are resident, and stay so."""

    def __init__(self, keys):
        super().__init__("global", "empty")
        self.keys = keys

    def initial(self):
        return np.array(self.keys, np.int32)


def costs(layers, gpu=0.25, copy=2.0, contended=1.0, dense=0.0, most=50, **overheads):
    """CPU time w, times `contended` while the link is busy."""
    cpu = np.arange(most + 1.0)
    copies = np.full(layers, copy)
    nothing = lambda tokens, sequences, context: 0.0  # noqa: E731
    return CostModel(
        cpu,
        cpu * contended,
        gpu * np.minimum(cpu, 1.0),
        copies,
        copies,
        Overheads(**overheads),
        lambda tokens, sequences, context: dense,
        nothing,
    )


def hints(policy, workload, predicted, resident=(), on_gpu=(), layers=None, **cost):
    """Hints given at the begin of layer 0, which has `workload`; predicted [H, U] is about layers 1, 2, ..."""
    predicted = np.array(predicted, np.float32)
    layers = layers or 1 + len(predicted)
    units = len(workload)
    mask = np.zeros(units, bool)
    mask[list(on_gpu)] = True
    shape = Shape(layers, units, np.ones(layers, np.int64))
    keys = [layer * units + unit for layer, unit in resident]
    planner = Planner(
        Policy("test", Given(mask), policy, Holds(keys), 4),
        shape,
        Capacity.in_units(max(1, len(keys)), "global", layers),
        costs(layers, **cost),
    )
    planner.begin(LayerStep(0, 0, 1, np.array(workload, np.int32), predicted))
    return [tuple(pair) for pair in policy.rank(planner.view).tolist()]


def one(**kw):
    return SavingPrefetch(ahead=1, **kw)


# ---- what a hint saves -----------------------------------------------------------------------------


def test_heavier_units_first_while_the_cpu_is_waited_for():
    # Layer 0 takes 4 s on the CPU.  Layer 1: 3 + 2 s on the CPU; it would copy nothing, as a copy (2 s + 0.25) ends
    # after the CPU is done with the other unit (2 s).
    # Unit 0 lands at 2 s; max(5, 0) -> max(2, 0.25) saves 3 s.  Unit 1 lands at 4 s, when layer 1 begins; max(2, 0.25)
    # -> max(0, 0.5) saves 1.5 s.
    assert hints(one(), [4, 0, 0], [[2, 3, 0]]) == [(1, 1), (1, 0)]


def test_at_most_size_hints():
    assert hints(one(size=1), [4, 0, 0], [[2, 3, 0]]) == [(1, 1)]


def test_nothing_for_a_layer_that_waits_for_its_gpu():
    # Layer 1: unit 2 is resident and takes 3 s on the GPU; unit 0 takes 2 s on the CPU meanwhile, on the GPU it would
    # make it 6.
    assert hints(one(), [9, 0, 0], [[2, 0, 1]], resident=[(1, 2)], gpu=3.0) == []


def test_a_second_hint_only_until_the_gpu_is_what_takes_longest():
    # GPU 2 s a unit, unit 3 resident.  CPU 3 + 3 + 3, GPU 2: 9 -> max(6, 4) -> max(3, 6): the second saves nothing.
    # Copies of 20 s land within layer 0's 45.
    assert hints(one(), [45, 0, 0, 0], [[3, 3, 3, 1]], resident=[(1, 3)], gpu=2.0, copy=20.0) == [(1, 0)]


def test_resident_and_unpredicted_units_are_not_hinted_at():
    assert hints(one(), [9, 0, 0], [[3, 0, 2]], resident=[(1, 0)]) == [(1, 2)]


def test_what_joining_costs_is_saved_with_the_last_unit():
    # Unit 0: 1 s on the CPU and 2 * 0.2 for its activations; then both sides are merged, 0.1.  GPU: unit 1 resident,
    # 1.2 s each.  max(1.4, 1.2) + 0.1 -> max(0, 2.4) saves nothing; with a GPU job of 0.7 s max(1.4, 0.7) + 0.1 -> 1.4
    # does, which without joining, max(1, 0.7) -> 1.4, would not.
    more = {"transfer_latency": 0.2, "merge": 0.1}
    case = ([9, 0], [[1, 1]], [(1, 1)])
    assert hints(one(), *case, gpu=1.2, **more) == []
    assert hints(one(), *case, gpu=0.7, **more) == [(1, 0)]
    assert hints(one(), *case, gpu=0.7) == []
    # Where the GPU takes longest the merge is still saved: max(1, 3) + 3.5 -> 6, but not max(1, 3) + 2.5 -> 6.
    assert hints(one(), *case, gpu=3.0, merge=3.5) == [(1, 0)]
    assert hints(one(), *case, gpu=3.0, merge=2.5) == []


def test_the_merge_of_the_running_layer_step_is_time_for_a_copy():
    # Layer 0: 1 s on the CPU and 1.1 s to merge; the copy of 2 s lands at 2, before layer 1 begins at 2.1.
    assert hints(one(), [1, 0], [[1, 0]], merge=1.1) == [(1, 0)]
    # The GPU has its units done at 0.5, and nothing is merged: layer 1 begins then.
    assert hints(one(), [0, 1], [[1, 0]], resident=[(0, 1)], on_gpu=[1], gpu=0.5, merge=1.6) == []


# ---- whether it is in time -------------------------------------------------------------------------


def test_a_unit_that_lands_late_is_left_to_the_cpu():
    # Layer 0 takes 1 s, the copy 2 s: the GPU would wait until 2 for a unit that the CPU is done with at 2.
    assert hints(one(), [1, 0], [[1, 0]]) == []
    # The dense part of 1 s in between makes it in time.
    assert hints(one(), [1, 0], [[1, 0]], dense=1.0) == [(1, 0)]


def test_landing_while_the_others_are_computed_is_in_time():
    # Layer 1 begins at 1 s; its unit 1 is resident and runs on the GPU until 2.5: unit 0 lands at 2.
    # max(3, 1.5) -> max(0, 3) is nothing saved.  With 4 tokens: max(4, 1.5) -> 3.
    assert hints(one(), [1, 0], [[3, 1]], resident=[(1, 1)], gpu=1.5) == []
    assert hints(one(), [1, 0], [[4, 1]], resident=[(1, 1)], gpu=1.5) == [(1, 0)]


def test_demand_copies_of_the_running_layer_step_come_first():
    # Unit 0 runs on the GPU once copied (2 s), unit 1 takes 3 s on the CPU: layer 1 begins at 3, the hint lands at 4.
    assert hints(one(), [1, 3], [[1, 0]], on_gpu=[0]) == []
    assert hints(one(), [1, 4], [[1, 0]], on_gpu=[0]) == [(1, 0)]


def test_too_late_for_the_next_layer_may_be_in_time_for_the_one_after_it():
    # Each layer takes 1 s on the CPU, a copy 2 s: it lands when layer 2 begins.
    assert hints(SavingPrefetch(ahead=2), [1, 0], [[1, 0], [0, 1]]) == [(2, 1)]
    assert hints(SavingPrefetch(ahead=1), [1, 0], [[1, 0], [0, 1]]) == []


def test_what_the_next_layer_copies_anyway_may_be_late():
    # Layer 1: 9, 9 and 1 s on the CPU.  Copies of 4 s: the first two end at 4 and 8 s + 0.25, when the CPU would have
    # 10 and 1 s left to do: no, after the second it is done at 1 s; so one copy is made on demand (4.25 < 10).
    assert demand_copies(np.array([9.0, 9.0, 1.0]), 19.0, 0.0, 4.0, 0.25) == 1
    # Layer 0 takes 1 s.  Unit 0 would be copied anyway: it may land at 4.  Unit 1 would not, and lands at 8: too late.
    assert hints(one(), [1, 0, 0], [[9, 9, 1]], copy=4.0) == [(1, 0)]
    # After a layer 0 of 12 s all land in time: saved are 9 * 4 / 13 s each, and 1 * 4 / 5 s.
    assert hints(one(), [12, 0, 0], [[9, 9, 1]], copy=4.0) == [(1, 0), (1, 1), (1, 2)]


def test_how_many_copies_a_layer_makes_by_hand():
    # Three units of 3 s on the CPU, copies of 1 s, GPU jobs of 0.25 s: after one copy 1.25 < 6, after two 2.25 < 3,
    # after three 3.25 > 0.  With 5.5 s of resident units: 5.75 < 6, then 6 > 3.
    assert demand_copies(np.array([3.0, 3.0, 3.0]), 9.0, 0.0, 1.0, 0.25) == 2
    assert demand_copies(np.array([3.0, 3.0, 3.0]), 9.0, 5.5, 1.0, 0.25) == 1


def test_only_the_next_layer_takes_late_copies():
    # Layer 0 takes 5 s, layer 1 has nothing to do; layer 2 would copy two of three units of 9 s (4 s a copy).
    # The first lands at 4, before layer 2 begins; the second at 8.
    assert hints(SavingPrefetch(ahead=2), [5, 0, 0], [[0, 0, 0], [9, 9, 9]], copy=4.0) == [(2, 0)]
    assert hints(SavingPrefetch(ahead=1), [5, 0, 0], [[9, 9, 9]], copy=4.0) == [(1, 0), (1, 1)]


def test_the_dense_part_counts_for_each_layer():
    # Layers of 1 s with 1 s between them: layer 1 begins at 2, layer 2 at 4, when a copy of 4 s lands.
    assert hints(SavingPrefetch(ahead=2), [1, 0], [[1, 0], [0, 1]], copy=4.0, dense=1.0) == [(2, 1)]


def test_demand_copies_of_a_layer_come_before_hints_for_the_one_after_it():
    # Layer 0: 20 s on the CPU, 30 beside copies; a copy of 4 s costs 4/3 s.  Layer 1: eight units of 1.5 s contended.
    # It copies two (4.25 < 10.5, 8.25 < 9), saving 1.5 * 4 / 5.5 = 1.1 s each: no hint.  They end at 30 + 8; a
    # hint for layer 2 would land at 42, and layer 2 begins at 30 + 12 - 3 = 39.
    workload, later = [20] + [0] * 7, [[1] * 8, [9] + [0] * 7]
    assert hints(SavingPrefetch(ahead=2), workload, later, copy=4.0, contended=1.5) == []
    # Without layer 1's copies it is in time.
    later[0] = [1] + [0] * 7
    assert hints(SavingPrefetch(ahead=2), workload, later, copy=4.0, contended=1.5) == [(2, 0)]


# ---- what it costs ---------------------------------------------------------------------------------


def test_a_copy_that_slows_the_cpu_more_than_it_saves_is_not_made():
    # CPU jobs take 1.5 times as long beside a copy: of each second 1/3 is lost, of a copy of 2 s 0.67 s.
    # Unit 0 with 1 token: 1 s -> 0.25 s on the GPU, 0.75 s saved.  With a GPU job of 0.5 s: 0.5 s saved.
    assert hints(one(), [9, 0], [[1, 0]], contended=1.5) == [(1, 0)]
    assert hints(one(), [9, 0], [[1, 0]], contended=1.5, gpu=0.5) == []
    # Layer 0 waits for its GPU (9.75 s), not for its CPU (1 s): nothing is lost.  Layer 1: 10 -> 9.75 s.  If the
    # second of the CPU counted, 1.5 / 3 = 0.5 s would be lost, more than is saved.
    assert hints(one(), [1, 1], [[10, 0]], contended=1.5, gpu=9.75, resident=[(0, 1)], on_gpu=[1]) == [(1, 0)]


def test_a_copy_costs_nothing_once_the_cpu_is_done():
    # The CPU computes 1.5 s of the 4 s that the copy takes: 0.5 s lost, 0.75 s saved.
    assert hints(one(), [1, 0], [[1, 0]], contended=1.5, dense=10.0, copy=4.0) == [(1, 0)]


def test_cpu_jobs_of_a_layer_that_copies_are_contended():
    # Layer 1: 2 and 2 s on the CPU, 6 and 6 beside copies of 4 s.  4 + 0.25 < 12 - 6: it copies one.  Layer 0 ends at
    # 0.25 (all GPU): the first hint lands at 4, late but a copy it makes anyway.
    case = {"copy": 4.0, "resident": [(0, 0)], "on_gpu": [0], "gpu": 0.25}
    assert hints(one(), [1, 0], [[2, 2]], contended=3.0, **case) == [(1, 0)]
    # Uncontended a copy would not be made, and the hint is too late: at 4 the CPU is done.
    assert hints(one(), [1, 0], [[2, 2]], contended=1.0, **case) == []


def test_trust_is_a_running_share_of_right_predictions():
    # Of layer 1, rows 0 and 1 said from layers 0 and -1 what would be active: only row 0 was there to say.
    believed = np.zeros((2, 8), bool)
    remember(np.array([[3, 1, 0, 0], [1, 0, 0, 0]], np.float32), 0, 4, believed)
    assert np.flatnonzero(believed[0]).tolist() == [4, 5]  # layer 1; there is no layer 2
    trust = np.ones(2)
    judge(believed, 1, np.array([0, 2, 5, 0], np.int32), trust)
    assert trust.tolist() == pytest.approx([0.98 + 0.02 * 0.5, 1.0])
    judge(believed, 0, np.array([1, 1, 1, 1], np.int32), trust)  # nothing was said of layer 0
    assert trust.tolist() == pytest.approx([0.99, 1.0])


def test_a_predictor_that_is_always_wrong_is_not_followed_for_long():
    # 0.67 s lost against 0.75 s saved times trust: given up once trust is below 0.89, that is 0.98^n < 0.89: n = 6.
    policy = one()
    predicted = np.array([[0, 1]], np.float32)
    planner = Planner(
        Policy("test", Given([False, False]), policy, Holds([]), 4),
        Shape(2, 2, np.ones(2, np.int64)),
        Capacity.in_units(1, "global", 2),
        costs(2, contended=1.5),
    )
    given = []
    for step in range(40):
        for layer in range(2):
            planner.begin(LayerStep(step, layer, 1, np.array([9, 0], np.int32), predicted * (layer == 0)))
            if layer == 0:
                given.append(planner.n.hint_tail - planner.n.hint_head)  # hints queued
            planner.end()
    assert given == [1] * 6 + [0] * 34


# ---- always ----------------------------------------------------------------------------------------


def test_a_missing_prediction_is_the_drivers_error():
    policy = SavingPrefetch("gate", ahead=2)
    with pytest.raises(ValueError, match="found 1 rows of predicted workload, expected 2 from source 'gate'"):
        hints(policy, [1, 0], [[1, 0]], layers=4)


def scaled(cost, by):
    tables = {name: getattr(cost, name) * by for name in ("cpu", "cpu_contended", "gpu", "copy", "copy_contended")}
    return replace(cost, **tables)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5))
def test_hints_are_few_useful_and_independent_of_the_unit_of_time(seed, ahead, size):
    world = random_world(np.random.default_rng(seed), passes=4)
    planners = []
    for by in (1.0, 4.0):  # a power of two: no rounding
        policy = Policy("test", Given(np.arange(world.shape.units) % 2), SavingPrefetch("gate", ahead, size), Static())
        planners.append(Planner(policy, world.shape, world.capacity("layer"), scaled(world.cost, by), seed))
    for step in world.steps:
        ranked = []
        for planner in planners:
            plan = planner.begin(step)
            # What `begin` queued: hints at absent units are not skipped.
            state = planner.state
            ranked.append(state.hint[state.n.hint_head : state.n.hint_tail].tolist())
            for unit in plan.gpu.tolist():
                while planner.view.here[unit] == Status.ABSENT:
                    planner.landed(planner.next_copy())
                planner.computed(unit)
            planner.end()
        assert ranked[0] == ranked[1]
        assert len(set(ranked[0])) == len(ranked[0]) <= size
        for key in ranked[0]:
            layer, unit = divmod(key, world.shape.units)
            assert step.layer < layer <= step.layer + ahead
            assert step.predicted[layer - step.layer - 1, unit] > 0
