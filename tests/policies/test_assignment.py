"""Assignment rules against hand-worked cases and against plain readings of their definitions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dali.policies.assign.base import sort_descending
from dali.policies.assign.fixed import AllCPU, AllGPU, LayerSplit, Threshold
from dali.policies.assign.greedy import Greedy
from dali.policies.assign.hybrimoe import HybriMoE, hybrid_schedule
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.types import InputError, Shape, Status
from dali.policies.view import AssignmentPolicy, LayerView

ABSENT, LANDING, RESIDENT = Status.ABSENT, Status.LANDING, Status.RESIDENT
CONF = Path(__file__).parents[2] / "conf" / "assignment"
UNREAD = None  # capacity and the planner's arrays: no policy here looks at them
EVERY: list[Callable[[], AssignmentPolicy]] = [
    AllCPU,
    AllGPU,
    LayerSplit,
    lambda: LayerSplit(None),
    Threshold,
    HybriMoE,
    Greedy,
    lambda: Greedy(max_copies=1),
]


def make_view(workload, status, cpu, gpu, copy, tokens=1):
    """One layer step of a one-layer model with the given times (of inactive units: 0)."""
    units = len(workload)
    workload = np.array(workload, np.int32)
    table = np.array([0.0, 1.0])
    nothing = lambda tokens, sequences, context: 0.0  # noqa: E731
    return LayerView(
        shape=Shape(1, units, np.ones(1, np.int64)),
        cost=CostModel(table, table, table, np.ones(1), np.ones(1), Overheads(), nothing, nothing),
        state=UNREAD,
        raw=UNREAD,
        status=np.array([status], np.int8),
        cpu_time=np.where(workload > 0, np.array(cpu, np.float64), 0.0),
        gpu_time=np.where(workload > 0, np.array(gpu, np.float64), 0.0),
        tokens=tokens,
        copy_time=float(copy),
        workload=workload,
        active=np.flatnonzero(workload).astype(np.int32),
    )


def on_gpu(policy, view):
    """Active units on the GPU."""
    units = view.shape.units
    policy.reset(view.shape, UNREAD, np.random.default_rng(0))
    mask = policy.assign(view)
    assert mask.shape == (units,)
    assert mask.dtype == np.bool_
    return {int(unit) for unit in view.active if mask[unit]}


# Small whole numbers: sums are exact and ties frequent.
whole = st.integers(0, 6)


@st.composite
def views(draw):
    units = draw(st.integers(1, 12))

    def row(values):
        return draw(st.lists(values, min_size=units, max_size=units))

    times = st.one_of(whole, st.floats(0, 10))
    return make_view(
        row(whole),
        row(st.integers(0, 2)),
        row(times),
        row(times),
        draw(st.one_of(st.integers(1, 6), st.floats(0.01, 9))),
    )


# ---- sorting ---------------------------------------------------------------------------------------


@given(st.lists(st.one_of(whole, st.floats(-5, 5)), max_size=200), st.randoms(use_true_random=False))
def test_sort_descending_by_key_then_id(keys, random):
    ids = list(range(len(keys)))
    random.shuffle(ids)
    expected = sorted(zip(keys, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
    sorted_ids, sorted_keys = np.array(ids, np.int32), np.array(keys, np.float64)
    sort_descending(sorted_ids, sorted_keys)
    assert list(zip(sorted_keys, sorted_ids, strict=True)) == expected


# ---- fixed rules -----------------------------------------------------------------------------------


def test_all_cpu_and_all_gpu():
    view = make_view([1, 0, 2], [ABSENT, RESIDENT, RESIDENT], [1, 1, 1], [1, 1, 1], 1)
    assert on_gpu(AllCPU(), view) == set()
    assert on_gpu(AllGPU(), view) == {0, 2}


@pytest.mark.parametrize(
    ("copy_from", "tokens", "expected"),
    [
        (32, 31, {1, 2}),  # below the limit absent unit 0 stays on the CPU; landing unit 2 counts as resident
        (32, 32, {0, 1, 2}),
        (None, 4096, {1, 2}),
    ],
)
def test_layer_split(copy_from, tokens, expected):
    view = make_view([9, 9, 9], [ABSENT, RESIDENT, LANDING], [1] * 3, [1] * 3, 1, tokens)
    assert on_gpu(LayerSplit(copy_from), view) == expected


def test_layer_split_forgets_a_large_step():
    small = make_view([1], [ABSENT], [1], [1], 1, tokens=1)
    policy = LayerSplit()
    assert on_gpu(policy, replace(small, tokens=32)) == {0}
    assert not policy.assign(small)[0]


def test_threshold_compares_each_unit_alone():
    # copy 4, gpu 1: absent units go to the CPU below 5 s of CPU time.  Unit 1 (5) is a draw: GPU.
    # Units 2 and 3 are slow on the GPU, but resident or landing.
    view = make_view([1] * 4, [ABSENT, ABSENT, RESIDENT, LANDING], [4, 5, 1, 1], [1, 1, 9, 9], 4)
    assert on_gpu(Threshold(), view) == {1, 2, 3}
    assert not Threshold.overlap


# ---- DALI greedy -----------------------------------------------------------------------------------


def test_greedy_by_hand_and_ties():
    # t_gpu = max(4, 1) = 4 for absent units 0 and 2, 1 for resident unit 1; unit 3 is inactive.
    # |t_gpu - t_cpu| = |4-6|, |1-3|, |4-2| = 2, 2, 2: all equal, so by id.
    # 0: 0+4 <= 0+6 GPU (4).  1: 4+1 <= 0+3? no, CPU (3).  2: 4+4 <= 3+2? no, CPU (5).
    # (By descending id it would be 2 on the CPU, then 1 and 0 on the GPU.)
    view = make_view([6, 3, 2, 0], [ABSENT, RESIDENT, ABSENT, RESIDENT], [6, 3, 2, 7], [1, 1, 1, 1], 4)
    assert on_gpu(Greedy(), view) == {0}


def test_greedy_takes_the_largest_difference_first():
    # Resident: differences 1, 8.  Unit 1: 0+2 <= 0+10 GPU (2).  Unit 0: 2+2 <= 0+3? no, CPU.
    # (By id unit 0 would have come first: 0+2 <= 0+3, GPU; then 2+2 <= 10, GPU.)
    view = make_view([1, 2], [RESIDENT, RESIDENT], [3, 10], [2, 2], 4)
    assert on_gpu(Greedy(), view) == {1}


def test_greedy_draw_goes_to_the_gpu_and_landing_needs_no_copy():
    # t_gpu = 2 (landing, no copy of 9), t_cpu = 2: 0+2 <= 0+2, GPU.
    assert on_gpu(Greedy(), make_view([1], [LANDING], [2], [2], 9)) == {0}


def test_greedy_copy_hides_behind_longer_compute():
    # t_gpu = max(copy 3, compute 5) = 5, not 8: 5 <= 6, GPU.
    assert on_gpu(Greedy(), make_view([1], [ABSENT], [6], [5], 3)) == {0}


def test_greedy_max_copies():
    # All on the GPU as listed: differences 90, 89, 88; each time T_gpu + t_gpu <= 0 + t_cpu (t_gpu 10, 10, 1).
    view = make_view([3, 2, 1], [ABSENT, ABSENT, RESIDENT], [100, 99, 89], [1, 1, 1], 10)
    assert on_gpu(Greedy(), view) == {0, 1, 2}
    assert on_gpu(Greedy(max_copies=2), view) == {0, 1, 2}
    assert on_gpu(Greedy(max_copies=1), view) == {0, 2}
    assert on_gpu(Greedy(max_copies=0), view) == {2}


def plain_greedy(view, max_copies=None, free=(LANDING, RESIDENT)):
    """Algorithm 1 line by line."""
    t_cpu = view.cpu_time
    t_gpu = [
        view.gpu_time[u] if view.here[u] in free else max(view.copy_time, view.gpu_time[u])
        for u in range(view.shape.units)
    ]
    gpu, total_gpu, total_cpu, copies = set(), 0.0, 0.0, 0
    for u in sorted(range(view.shape.units), key=lambda u: -abs(t_gpu[u] - t_cpu[u])):
        if view.workload[u] == 0:
            continue
        no_room = view.here[u] == ABSENT and max_copies is not None and copies == max_copies
        if total_gpu + t_gpu[u] <= total_cpu + t_cpu[u] and not no_room:
            gpu.add(u)
            total_gpu += t_gpu[u]
            copies += view.here[u] == ABSENT
        else:
            total_cpu += t_cpu[u]
    return gpu


@given(views(), st.none() | st.integers(0, 4))
def test_greedy_equals_algorithm_1(view, max_copies):
    assert on_gpu(Greedy(max_copies), view) == plain_greedy(view, max_copies)
    assert on_gpu(Greedy(max_copies, landing="copy"), view) == plain_greedy(view, max_copies, free=(RESIDENT,))


def test_greedy_may_price_a_copy_under_way():
    # One unit, landing: 5 on the CPU, 1 on the GPU, copy 10.  Free: 1 <= 5, GPU.  A whole copy: 10 > 5, CPU.
    view = make_view([1], [LANDING], [5], [1], 10)
    assert on_gpu(Greedy(), view) == {0}
    assert on_gpu(Greedy(landing="copy"), view) == set()
    with pytest.raises(InputError, match="landing"):
        Greedy(landing="half")


# ---- HybriMoE --------------------------------------------------------------------------------------


def test_hybrimoe_by_hand():
    # Queue: cached 2 (w 3), 0 (w 1), then uncached 3 (w 5), 1 (w 2).  gpu 1, cpu 2w, copy 3.
    # GPU would end 2 at 1, CPU would end 1 at 4: GPU.  GPU 0 at 2, CPU 4: GPU.
    # GPU 3: copy 0-3, so max(2, 3) + 1 = 4; CPU 4: a draw, GPU.
    # GPU 1: copy 3-6, so 7; CPU 4: CPU.
    view = make_view([1, 2, 3, 5], [RESIDENT, ABSENT, LANDING, ABSENT], [2, 4, 6, 10], [1] * 4, 3)
    assert on_gpu(HybriMoE(), view) == {0, 2, 3}
    order = np.array([2, 0, 3, 1], np.int32)
    assert hybrid_schedule(order, 2, view.cpu_time, view.gpu_time, 3.0) == (3, 4.0)


def test_hybrimoe_cpu_takes_a_light_cached_unit():
    # Cached 0 (w 2), 1 (w 1).  GPU would end 0 at 4, CPU 1 at 3: CPU.  Then GPU 0 at 4, CPU 0 at 3+5: GPU.
    view = make_view([2, 1], [RESIDENT, RESIDENT], [5, 3], [4, 4], 1)
    assert on_gpu(HybriMoE(), view) == {0}


def test_hybrimoe_equal_workloads():
    # Queue 0, 1.  GPU would end 0 at 1+1 = 2, CPU 1 at 1.5: CPU.  Then GPU 0 at 2, CPU 0 at 3: GPU.
    view = make_view([1, 1], [ABSENT, ABSENT], [1.5, 1.5], [1, 1], 1)
    assert on_gpu(HybriMoE(), view) == {0}


def test_hybrimoe_next_copy_waits_for_the_link_not_for_the_gpu():
    # Uncached 0, 1 (w 2, 1), copy 2, gpu 5: copies end at 2 and 4, so the GPU ends at 7 and 7+5 = 12.
    # CPU would end 1 at 12: a draw, GPU.  Were the second copy to wait for the GPU, it would end at 14: CPU.
    view = make_view([2, 1], [ABSENT, ABSENT], [30, 12], [5, 5], 2)
    assert on_gpu(HybriMoE(), view) == {0, 1}


def plain_hybrimoe(view):
    """Three timelines and the paper's priorities, with sets instead of a queue; makespan too."""
    cached = {int(u) for u in view.active if view.here[u] != ABSENT}
    uncached = {int(u) for u in view.active if view.here[u] == ABSENT}
    gpu, gpu_free, cpu_free, link_free = set(), 0.0, 0.0, 0.0

    def weight(u):
        return (view.workload[u], -u)

    while cached or uncached:
        for_gpu = max(cached or uncached, key=weight)
        for_cpu = min(uncached or cached, key=weight)
        copied = link_free if for_gpu in cached else link_free + view.copy_time
        ready = 0.0 if for_gpu in cached else copied
        gpu_end = max(gpu_free, ready) + view.gpu_time[for_gpu]
        cpu_end = cpu_free + view.cpu_time[for_cpu]
        if gpu_end <= cpu_end:
            gpu_free, link_free, taken = gpu_end, copied, for_gpu
            gpu.add(taken)
        else:
            cpu_free, taken = cpu_end, for_cpu
        cached.discard(taken)
        uncached.discard(taken)
    return gpu, max(gpu_free, cpu_free)


@given(views())
def test_hybrimoe_equals_the_plain_simulation(view):
    expected, makespan = plain_hybrimoe(view)
    assert on_gpu(HybriMoE(), view) == expected
    queue = sorted(view.active, key=lambda u: (view.here[u] == ABSENT, -view.workload[u], u))
    cached = int(np.count_nonzero(view.here[view.active]))
    split, simulated = hybrid_schedule(np.array(queue, np.int32), cached, view.cpu_time, view.gpu_time, view.copy_time)
    assert set(queue[:split]) == expected
    assert simulated == makespan


# ---- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", EVERY)
@settings(max_examples=40)
@given(view=views(), data=st.data())
def test_only_active_units_matter(make, view, data):
    before = on_gpu(make(), view)
    order = data.draw(st.permutations(view.active.tolist()))
    inactive = view.workload == 0
    other = replace(
        view,
        active=np.array(order, np.int32),
        status=np.where(inactive, data.draw(st.integers(0, 2)), view.status).astype(np.int8),
        cpu_time=np.where(inactive, data.draw(st.floats(0, 9)), view.cpu_time),
        gpu_time=np.where(inactive, data.draw(st.floats(0, 9)), view.gpu_time),
    )
    assert on_gpu(make(), other) == before


@pytest.mark.parametrize("make", EVERY)
def test_protocol_and_no_active_unit(make):
    policy = make()
    assert isinstance(policy, AssignmentPolicy)
    assert on_gpu(policy, make_view([0, 0], [ABSENT, RESIDENT], [0, 0], [0, 0], 1)) == set()


@pytest.mark.parametrize("make", EVERY)
@settings(max_examples=20)
@given(first=views(), second=views())
def test_nothing_is_carried_over_between_steps(make, first, second):
    units = max(first.shape.units, second.shape.units)
    policy = make()
    policy.reset(Shape(1, units, np.ones(1, np.int64)), UNREAD, None)
    wide = [
        make_view(*(np.resize(row, units) for row in (v.workload, v.here, v.cpu_time, v.gpu_time)), v.copy_time)
        for v in (first, second)
    ]
    policy.assign(wide[0])
    mask = policy.assign(wide[1])
    assert {int(u) for u in wide[1].active if mask[u]} == on_gpu(make(), wide[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerSplit(0),
        lambda: LayerSplit(1.5),
        lambda: LayerSplit(True),
        lambda: Greedy(max_copies=-1),
    ],
)
def test_bad_hyper_parameters(make):
    with pytest.raises(InputError, match=r"(LayerSplit\.copy_from|Greedy\.max_copies): found .*, expected"):
        make()


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("all_cpu", AllCPU, {}),
        ("all_gpu", AllGPU, {}),
        ("layer_split", LayerSplit, {"copy_from": 32}),
        ("resident_only", LayerSplit, {"copy_from": None}),
        ("threshold", Threshold, {}),
        ("hybrimoe", HybriMoE, {}),
        ("greedy", Greedy, {"max_copies": None, "landing": "free"}),
    ],
)
def test_configuration_names_every_hyper_parameter(name, kind, values):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    policy = instantiate(config)
    assert type(policy) is kind
    assert {key: getattr(policy, key) for key in values} == values
    assert set(config) - {"_target_"} == set(inspect.signature(kind).parameters) == set(values)
