"""The objective by hand and against all orders; what a cost model refuses."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.assign.objective import gpu_order, makespan, paper_makespan
from dali.policies.costs.roofline import shared_bandwidth
from dali.policies.types import InputError, Shape, Status
from dali.policies.view import LayerView
from dali.testing.worlds import cost_model

ABSENT, LANDING, RESIDENT = Status.ABSENT, Status.LANDING, Status.RESIDENT


def make_view(here, workload, cpu_time=0.0, gpu_time=0.0, copy_time=1.0):
    """One layer step of a model of one layer; times one a unit, or one for all."""
    workload = np.array(workload, np.int32)
    active = workload > 0
    return LayerView(
        shape=Shape(1, workload.size, np.ones(1, np.int64)),
        cost=cost_model(1),
        state=None,
        raw=None,
        status=np.array([here], np.int8),
        cpu_time=np.where(active, cpu_time, 0.0),
        gpu_time=np.where(active, gpu_time, 0.0),
        copy_time=copy_time,
        workload=workload,
        active=np.flatnonzero(active).astype(np.int32),
    )


def mask(view, *units):
    on_gpu = np.zeros(view.workload.size, np.bool_)
    on_gpu[list(units)] = True
    return on_gpu


def test_gpu_order_is_resident_landing_to_copy_then_heavier_then_lower_id():
    here = [ABSENT, LANDING, RESIDENT, ABSENT, RESIDENT, RESIDENT, LANDING, ABSENT]
    view = make_view(here, [3, 1, 2, 5, 2, 9, 4, 0])
    # resident 5 (9), 2 (2), 4 (2); landing 6 (4), 1 (1); to copy 3 (5), 0 (3); unit 7 is inactive
    order, ready = gpu_order(view, np.ones(8, np.bool_))
    assert order.tolist() == [5, 2, 4, 6, 1, 3, 0]
    assert ready == 5


def test_makespan_overlaps_copies_with_compute():
    view = make_view([RESIDENT, ABSENT, ABSENT], [1, 3, 2], cpu_time=10.0, gpu_time=[4.0, 2.0, 1.0], copy_time=3.0)
    # unit 0 runs 0-4; unit 1 lands at 3, runs 4-6; unit 2 lands at 6, runs 6-7
    assert makespan(view, mask(view, 0, 1, 2)) == 7
    # the GPU waits for the only copy: 3 + 1; the CPU runs the two others one after the other
    assert makespan(view, mask(view, 2)) == 20
    # unit 0 runs 0-4, unit 2 landed at 3 runs 4-5; the CPU needs 10
    assert makespan(view, mask(view, 0, 2)) == 10
    assert makespan(view, mask(view)) == 30


def test_makespan_takes_landing_units_as_resident():
    view = make_view([LANDING, ABSENT], [1, 1], gpu_time=1.0, copy_time=5.0)
    # unit 0 runs 0-1, unit 1 lands at 5 and runs 5-6: the rest of the first copy is not known
    assert makespan(view, mask(view, 0, 1)) == 6


def test_inactive_units_cost_nothing():
    view = make_view([ABSENT, ABSENT], [0, 2], cpu_time=3.0, gpu_time=1.0, copy_time=7.0)
    assert makespan(view, mask(view, 0)) == 3
    assert paper_makespan(view, mask(view, 0)) == 3
    assert makespan(make_view([ABSENT], [0]), np.ones(1, np.bool_)) == 0


def test_paper_makespan_sums_the_larger_of_copy_and_compute():
    here = [RESIDENT, LANDING, ABSENT, ABSENT, ABSENT]
    view = make_view(
        here, [1, 1, 1, 1, 1], cpu_time=[1, 1, 1, 2, 4], gpu_time=[0.5, 0.25, 9.0, 2.0, 1.0], copy_time=3.0
    )
    # GPU: 0.5 (resident) + 0.25 (landing: its copy is paid for) + max(3, 9) + max(3, 2) = 12.75; CPU: 4
    assert paper_makespan(view, mask(view, 0, 1, 2, 3)) == 12.75
    # GPU: 0.5; CPU: 1 + 1 + 2 + 4
    assert paper_makespan(view, mask(view, 0)) == 8


def finish(order, here, gpu_time, copy_time):
    """GPU jobs one after the other in `order`; copies follow each other on the link in the same order."""
    link = free = 0.0
    for unit in order:
        if here[unit] == ABSENT:
            link += copy_time
            free = max(free, link)
        free += gpu_time[unit]
    return free


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from([ABSENT, LANDING, RESIDENT]), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(0, 9),
)
def test_planner_order_is_the_best_order(units, copy_time, fixed):
    # Copy then compute is a flow shop of two machines.  By Johnson's rule the jobs without a copy come first and,
    # as all copies take equal time, the longer jobs first among the others: the planner's order, if a heavier unit
    # never takes less time.  Small integers keep every sum exact.
    here, workload = zip(*units, strict=True)
    gpu_time = np.array(workload) + fixed
    view = make_view(here, workload, gpu_time=gpu_time, copy_time=copy_time)
    everything = np.ones(len(here), np.bool_)
    best = min(finish(order, here, view.gpu_time, copy_time) for order in permutations(view.active.tolist()))
    order, _ = gpu_order(view, everything)
    assert makespan(view, everything) == best == finish(order.tolist(), here, view.gpu_time, copy_time)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": np.array([0.0, 1.0])}, "cost table gpu"),
        ({"cpu_contended": np.zeros((2, 2))}, "cost table cpu_contended"),
        ({"cpu": np.zeros(1), "cpu_contended": np.zeros(1), "gpu": np.zeros(1)}, "2 or more"),
        ({"gpu": np.array([1.0, 1.0, 1.0, 1.0])}, "cost table gpu: expected 0 for no tokens"),
        ({"cpu": np.array([0.0, 2.0, 1.0, 3.0])}, "cost table cpu: expected"),
        ({"cpu_contended": np.array([0.0, 1.0, 2.0, np.inf])}, "cost table cpu_contended: expected"),
        ({"cpu": np.array([0.0, np.nan, 2.0, 3.0])}, "cost table cpu: expected"),
        ({"copy": np.array([1.0, 0.0])}, "cost table copy: expected"),
        ({"copy": np.array([1.0, np.inf])}, "cost table copy: expected"),
        ({"copy_contended": np.array([1.0, -1.0])}, "cost table copy_contended"),
        ({"copy_contended": np.array([1.0])}, "cost table copy_contended"),
    ],
)
def test_cost_model_refuses(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        replace(cost_model(2, most=3), **changes)
    assert "\n" not in str(caught.value)


def test_cost_model_knows_its_range():
    assert cost_model(1, most=3).max_tokens == 3


def test_shared_bandwidth():
    # The link asks for less than half: it gets it, the CPU has the rest.  It asks for more: they halve it.
    assert shared_bandwidth(100.0, 25.0) == (75.0, 25.0)
    assert shared_bandwidth(40.0, 25.0) == (20.0, 20.0)
    assert shared_bandwidth(50.0, 25.0) == (25.0, 25.0)
