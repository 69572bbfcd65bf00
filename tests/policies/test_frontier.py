"""`Frontier`: what holds by construction, the optimum of small layer steps, and its distance from it on larger ones."""

from __future__ import annotations

import inspect
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dali.policies.assign.frontier import Frontier, best_cut, sorted_units
from dali.policies.assign.greedy import Greedy
from dali.policies.assign.hybrimoe import HybriMoE
from dali.policies.assign.objective import gpu_order, makespan
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.types import InputError, Shape, Status
from dali.policies.view import AssignmentPolicy, LayerView
from dali.traces.synthetic import generate_profile
from dali.traces.workload import Workload

ABSENT, LANDING, RESIDENT = (int(status) for status in (Status.ABSENT, Status.LANDING, Status.RESIDENT))
NO_STATE = None  # capacity and the planner's arrays: no assignment looks at them
ROUNDING = 1 + 1e-9


def step(workload, status, cpu, gpu, copy, others=()):
    """Layer 0 of a model with further layers of status `others`; times are by unit, of inactive ones 0."""
    workload = np.array(workload, np.int32)
    units = workload.size
    table = np.array([0.0, 1.0])
    rows = np.array([status, *others], np.int8)
    nothing = lambda tokens, sequences, context: 0.0  # noqa: E731
    ones = np.ones(len(rows))
    return LayerView(
        shape=Shape(len(rows), units, ones.astype(np.int64)),
        cost=CostModel(table, table, table, ones, ones, Overheads(), nothing, nothing),
        state=NO_STATE,
        raw=NO_STATE,
        status=rows,
        cpu_time=np.where(workload > 0, np.array(cpu, np.float64), 0.0),
        gpu_time=np.where(workload > 0, np.array(gpu, np.float64), 0.0),
        tokens=int(workload.max(initial=0)),
        copy_time=float(copy),
        workload=workload,
        active=np.flatnonzero(workload).astype(np.int32),
    )


def decide(policy, view):
    """A copy of the mask that a fresh policy gives."""
    policy.reset(view.shape, NO_STATE, np.random.default_rng(0))
    return policy.assign(view).copy()


def reached(policy, view):
    return makespan(view, decide(policy, view))


def chosen(policy, view):
    mask = decide(policy, view)
    return {int(unit) for unit in view.active if mask[unit]}


def optimum(view):
    """Smallest makespan over all assignments."""
    best = np.inf
    for choice in product([False, True], repeat=view.active.size):
        mask = np.zeros(view.workload.size, np.bool_)
        mask[view.active] = choice
        best = min(best, makespan(view, mask))
    return best


def cuts(view):
    """Makespan of every cut, from masks."""
    order = sorted(view.active, key=lambda u: (view.here[u] == ABSENT, -view.workload[u], u))
    ready = [u for u in order if view.here[u] != ABSENT]
    absent = [u for u in order if view.here[u] == ABSENT]
    for kept in range(len(ready) + 1):
        for fetched in range(len(absent) + 1):
            mask = np.zeros(view.workload.size, np.bool_)
            mask[ready[:kept] + absent[:fetched]] = True
            yield makespan(view, mask)


@st.composite
def any_times(draw, most=9):
    """Times that have nothing to do with the workload, ties and zeros included."""
    units = draw(st.integers(1, most))
    times = st.one_of(st.integers(0, 6), st.floats(0, 10))

    def row(values):
        return draw(st.lists(values, min_size=units, max_size=units))

    copy = draw(st.one_of(st.integers(1, 6), st.floats(0.01, 9)))
    return step(row(st.integers(0, 6)), row(st.integers(0, 2)), row(times), row(times), copy)


def by_workload(rng, units, top, resident, copy):
    """Times in microseconds that rise with the workload: fixed + weights + arithmetic, faster on the GPU."""
    workload = np.minimum(rng.geometric(1 / top, units), 8 * top) * (rng.random(units) < 0.9)
    status = np.where(rng.random(units) < resident, RESIDENT, ABSENT)
    cpu = 10 + np.maximum(74.0, 13.0 * workload)
    gpu = 27 + 0.2 * workload
    return step(workload, status, cpu, gpu, copy)


# ---- by hand ---------------------------------------------------------------------------------------


def test_order_by_hand():
    # Ready first (resident 1 and landing 3 alike), heavier first, equal 2 and 4 by id.
    here = np.array([ABSENT, RESIDENT, ABSENT, LANDING, ABSENT], np.int8)
    workload = np.array([9, 1, 2, 5, 2], np.int32)
    order, ready = sorted_units(np.array([4, 3, 2, 1, 0], np.int32), workload, here)
    assert order.tolist() == [3, 1, 0, 2, 4]
    assert ready == 2


def test_fetches_and_gives_back_by_hand():
    # Ready 0, 1, 2: GPU 3 each, CPU 4 each.  Absent 3: CPU 20, GPU 1, copy 6.
    # (kept, fetched): (3, 0) GPU 9, CPU 20; (3, 1) GPU 3*3 + 1 = 10, CPU 0; (2, 1) GPU max(6, 6) + 1 = 7, CPU 4;
    # (1, 1) GPU max(3, 6) + 1 = 7, CPU 8.  Best: 7 with two kept, one fetched.  HybriMoE's queue cannot give
    # back a ready unit and fetch an absent one: its best is 10.
    view = step([3, 2, 1, 5], [RESIDENT] * 3 + [ABSENT], [4, 4, 4, 20], [3, 3, 3, 1], 6)
    order, ready = sorted_units(view.active, view.workload, view.here)
    assert best_cut(order, ready, view.cpu_time, view.gpu_time, 6.0, 0.0) == (2, 1, 7.0)
    for core in (0, 8):
        assert chosen(Frontier(core), view) == {0, 1, 3}
    assert reached(HybriMoE(), view) == 10


def test_core_divides_the_units_around_the_cut():
    # CPU = GPU = 5, 4, 2, 1 by falling workload, all resident.  Cuts (GPU, CPU): (5, 7), (9, 3), ...: 7 at best.
    # {5, 1} on the GPU against {4, 2}: (6, 6).
    view = step([4, 3, 2, 1], [RESIDENT] * 4, [5, 4, 2, 1], [5, 4, 2, 1], 1)
    assert reached(Frontier(0), view) == 7
    assert reached(Frontier(4), view) == 6


def test_a_copy_under_way_delays_the_first_copy():
    # One absent unit: CPU 5; copy 3 + GPU 1 = 4, so it is fetched.  With half a copy to wait for: 5.5, CPU.
    # Copies of other layers count, resident units do not.
    view = step([1, 0], [ABSENT, ABSENT], [5, 0], [1, 0], 3)
    waiting = step([1, 0], [ABSENT, ABSENT], [5, 0], [1, 0], 3, others=[[LANDING, RESIDENT]])
    idle = step([1, 0], [ABSENT, ABSENT], [5, 0], [1, 0], 3, others=[[RESIDENT, RESIDENT]])
    assert chosen(Frontier(), view) == chosen(Frontier(), waiting) == {0}
    assert chosen(Frontier(in_flight=0.5), waiting) == set()
    assert chosen(Frontier(in_flight=0.5), idle) == chosen(Frontier(in_flight=0.5), view) == {0}
    # 0.3 of a copy: 0.9 + 3 + 1 = 4.9 < 5.  Two under way: 1.3 copies, 7.9.
    two = step([1, 0], [ABSENT, ABSENT], [5, 0], [1, 0], 3, others=[[LANDING, LANDING]])
    assert chosen(Frontier(in_flight=0.3), waiting) == {0}
    assert chosen(Frontier(in_flight=0.3), two) == set()


# ---- by construction -------------------------------------------------------------------------------


@given(any_times(most=12))
def test_the_best_cut_is_the_best_of_all(view):
    order, ready = sorted_units(view.active, view.workload, view.here)
    kept, fetched, found = best_cut(order, ready, view.cpu_time, view.gpu_time, view.copy_time, 0.0)
    assert found == pytest.approx(min(cuts(view)))
    mask = np.zeros(view.workload.size, np.bool_)
    mask[order[:kept]] = mask[order[ready : ready + fetched]] = True
    assert makespan(view, mask) == pytest.approx(found)


@given(any_times(most=24), st.integers(0, 8))
def test_never_worse_than_any_cut(view, core):
    ours = reached(Frontier(core), view)
    ready = view.here != ABSENT
    for other in (decide(HybriMoE(), view), np.zeros_like(ready), np.ones_like(ready), ready):
        assert ours <= makespan(view, other) * ROUNDING
    assert ours <= reached(Frontier(0), view) * ROUNDING


@settings(max_examples=60)
@given(any_times(most=8))
def test_optimal_where_the_core_holds_all_active_units(view):
    assert reached(Frontier(8), view) == pytest.approx(optimum(view))


@settings(max_examples=30)
@given(any_times(most=7), st.sampled_from([0.25, 1.0]))
def test_optimal_with_the_wait_for_a_copy_under_way(view, in_flight):
    waiting = replace(view, status=np.array([view.here, np.full(view.workload.size, LANDING)], np.int8))
    wait = (np.count_nonzero(waiting.status == LANDING) - 1 + in_flight) * view.copy_time

    def seconds(mask):
        order, copied_from = gpu_order(view, mask)
        free, landed = float(view.gpu_time[order[:copied_from]].sum()), wait
        for unit in order[copied_from:]:
            landed += view.copy_time
            free = max(free, landed) + view.gpu_time[unit]
        return max(free, float(view.cpu_time[(view.workload > 0) & ~mask].sum()))

    masks = [np.array(bits) for bits in product([False, True], repeat=view.workload.size)]
    assert seconds(decide(Frontier(in_flight=in_flight), waiting)) == pytest.approx(min(map(seconds, masks)))


# ---- close to the optimum --------------------------------------------------------------------------


def test_close_to_the_optimum_on_eleven_units():
    """The core of 8 is smaller than the number of active units; every assignment is tried for comparison."""
    rng = np.random.default_rng(3)
    gaps = []
    for _ in range(40):
        view = by_workload(rng, 11, 6, rng.choice([0.25, 0.5, 0.75]), rng.choice([100.0, 390.0]))
        gaps.append(reached(Frontier(), view) / optimum(view) - 1)
    assert min(gaps) > -1e-9
    assert np.mean(gaps) < 0.005
    assert max(gaps) < 0.03


def relaxed(view):
    """A lower bound on the makespan: the largest of a CPU + b GPU + (1 - a - b) link over a grid of weights.

    Any weighted mean of the three times is at most the makespan, and the smallest weighted mean sends each
    unit to its cheaper side.
    """
    cpu, gpu = view.cpu_time[view.active], view.gpu_time[view.active]
    copy = np.where(view.here[view.active] == ABSENT, view.copy_time, 0.0)
    weights = np.linspace(0, 1, 101)
    return max(
        np.minimum(a * cpu, b * gpu + (1 - a - b) * copy).sum() for a in weights for b in weights[weights <= 1 - a]
    )


@pytest.mark.parametrize("batch", [16, 64])
def test_close_to_the_optimum_on_routing_like_that_of_qwen(batch):
    """Against a relaxation: the true distance is smaller."""
    trace = generate_profile("qwen3_30b_a3b", sequences=8, prompt=0, length=24, seed=1)
    workload = Workload.from_trace(trace, batch, 0, 1)
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for row in next(workload.steps()).workload[::6]:
        status = np.where(rng.random(row.size) < 0.25, RESIDENT, ABSENT)
        view = step(row, status, 10 + np.maximum(74.0, 13.0 * row), 27 + 0.2 * row, 388)
        bound = relaxed(view)
        ours.append(reached(Frontier(), view) / bound - 1)
        theirs.append(reached(Greedy(), view) / bound - 1)
    assert max(ours) < 0.03
    assert np.mean(ours) < np.mean(theirs)


# ---- invariants ------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), units=st.integers(1, 128), core=st.sampled_from([0, 1, 8]))
def test_valid_and_blind_to_unit_ids(seed, units, core):
    rng = np.random.default_rng(seed)
    view = by_workload(rng, units, rng.integers(1, 9), rng.random(), rng.uniform(20, 500))
    mask = decide(Frontier(core), view)
    assert mask.shape == (units,)
    assert mask.dtype == np.bool_
    new = rng.permutation(units)
    renamed = replace(
        view,
        workload=view.workload[new],
        status=view.status[:, new],
        cpu_time=view.cpu_time[new],
        gpu_time=view.gpu_time[new],
        active=np.flatnonzero(view.workload[new]).astype(np.int32),
    )
    assert reached(Frontier(core), renamed) == pytest.approx(makespan(view, mask))
    shuffled = replace(view, active=rng.permutation(view.active))
    assert np.array_equal(decide(Frontier(core), shuffled)[view.active], mask[view.active])


@settings(max_examples=30)
@given(first=any_times(), second=any_times())
def test_nothing_is_carried_over(first, second):
    units = max(first.workload.size, second.workload.size)
    policy = Frontier()
    policy.reset(Shape(1, units, np.ones(1, np.int64)), NO_STATE, None)
    wide = [
        step(*(np.resize(row, units) for row in (v.workload, v.here, v.cpu_time, v.gpu_time)), v.copy_time)
        for v in (first, second)
    ]
    policy.assign(wide[0])
    mask = policy.assign(wide[1])
    assert {int(unit) for unit in wide[1].active if mask[unit]} == chosen(Frontier(), wide[1])


def test_no_active_unit():
    assert isinstance(Frontier(), AssignmentPolicy)
    assert chosen(Frontier(), step([0, 0], [ABSENT, RESIDENT], [0, 0], [0, 0], 1)) == set()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("core", {"core": -1}),
        ("core", {"core": 17}),
        ("core", {"core": 2.0}),
        ("in_flight", {"in_flight": 1.1}),
        ("in_flight", {"in_flight": float("nan")}),
    ],
)
def test_bad_hyper_parameters(field, values):
    with pytest.raises(InputError, match=rf"Frontier\.{field}: found .*, expected"):
        Frontier(**values)


def test_configuration_names_every_hyper_parameter():
    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "assignment" / "frontier.yaml")
    policy = instantiate(config)
    assert type(policy) is Frontier
    assert (policy.core, policy.in_flight) == (Frontier().core, Frontier().in_flight)
    assert set(config) - {"_target_"} == set(inspect.signature(Frontier).parameters)
