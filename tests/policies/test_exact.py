"""The two exact assignments against hand-worked cases, every assignment there is, and each other."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_assignment import make_view, on_gpu, views

from dali.policies.assign.exact import Exact
from dali.policies.assign.greedy import Greedy
from dali.policies.assign.hybrimoe import HybriMoE
from dali.policies.assign.ilp import ILP, solve
from dali.policies.assign.objective import makespan, paper_makespan
from dali.policies.types import InputError, Status
from dali.policies.view import AssignmentPolicy

ABSENT, LANDING, RESIDENT = Status.ABSENT, Status.LANDING, Status.RESIDENT
CONF = Path(__file__).parents[2] / "conf" / "assignment"
TOLERANCE = 1e-9
SOLVER_TOLERANCE = 1e-6  # of HiGHS and CBC on whole numbers


def best_of_all(view, max_copies=None, paper=False):
    """Least makespan over every assignment, by running all of them through the machines at once."""
    units = sorted(view.active.tolist(), key=lambda u: (-view.here[u], -view.workload[u], u))
    chosen = (np.arange(1 << len(units))[:, None] >> np.arange(len(units)) & 1).astype(bool)
    cpu, gpu, landed = (np.zeros(len(chosen)) for _ in range(3))
    copies = np.zeros(len(chosen), int)
    for unit, here in zip(units, chosen.T, strict=True):
        absent = view.here[unit] == ABSENT
        seconds = view.gpu_time[unit]
        cpu += np.where(here, 0.0, view.cpu_time[unit])
        copies += here & absent
        if paper:
            gpu += np.where(here, max(view.copy_time, seconds) if absent else seconds, 0.0)
        else:
            landed += np.where(here & absent, view.copy_time, 0.0)
            gpu = np.where(here, np.maximum(gpu, landed if absent else 0.0) + seconds, gpu)
    allowed = copies <= (len(units) if max_copies is None else max_copies)
    return float(np.maximum(cpu, gpu)[allowed].min())


def assigned(policy, view):
    """Mask of active units on the GPU, after `reset`."""
    policy.reset(view.shape, None, np.random.default_rng(0))
    return policy.assign(view) & (view.workload > 0)


def random_view(rng, most):
    """1 to `most` active units: times by workload or not, few or all values alike, any share of them resident."""
    units = int(rng.integers(1, most + 1))
    workload = rng.integers(1, rng.choice([2, 5, 60]), units) if rng.random() < 0.8 else np.ones(units, int)
    status = rng.choice(3, units, p=[[0.7, 0.1, 0.2], [0.2, 0.1, 0.7], [1, 0, 0], [0, 0, 1]][rng.integers(4)])
    kind = rng.integers(4)
    if kind == 0:  # any times: neither rise with the workload
        cpu, gpu = rng.random(units) * 9, rng.random(units) * 9
    elif kind == 1:  # small whole numbers, zeros among them
        cpu, gpu = rng.integers(0, 7, units).astype(float), rng.integers(0, 7, units).astype(float)
    elif kind == 2:  # tables that rise at random
        cpu, gpu = (np.sort(rng.random(61))[workload] * high for high in (9, rng.choice([1, 9])))
    else:  # rooflines: flat, then linear
        cpu, gpu = (np.maximum(1 + 0.01 * workload, workload / flat) * high for flat, high in ((8, 1), (90, 0.3)))
    return make_view(workload, status, cpu, gpu, rng.uniform(0.05, 5))


def close(found, expected, tolerance=TOLERANCE):
    return found == pytest.approx(expected, rel=tolerance, abs=1e-12)


def allows(view, mask, max_copies):
    return max_copies is None or np.count_nonzero(mask & (view.here == ABSENT)) <= max_copies


# ---- by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Exact, ILP, lambda: ILP(solver="cbc")])
def test_by_hand(make):
    # Resident 0 (cpu 6, gpu 1); absent 1 (cpu 5, gpu 1) and 2 (cpu 3, gpu 1); copy 3.  With 0 on the GPU:
    # no copy: CPU 8.  Copy 1: CPU 3, GPU max(1, 3) + 1 = 4.  Copy 2: CPU 5.  Both: GPU max(4, 6) + 1 = 7.
    # With 0 on the CPU it takes 6 or more.  So 4, with 0 and 1 on the GPU; inactive unit 3 would be free.
    view = make_view([3, 2, 1, 0], [RESIDENT, ABSENT, ABSENT, ABSENT], [6, 5, 3, 0], [1, 1, 1, 0], 3)
    assert on_gpu(make(), view) == {0, 1}
    assert makespan(view, assigned(make(), view)) == pytest.approx(4)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_the_objectives_differ_where_a_copy_hides_behind_resident_units(solver):
    # Resident 0 (cpu 10, gpu 3), absent 1 (cpu 5, gpu 1), copy 3.  Both on the GPU: pipelined max(3, 3) + 1 = 4, but
    # 3 + max(3, 1) = 6 as the paper sums.  Unit 1 on the CPU: max(3, 5) = 5 either way.
    view = make_view([2, 1], [RESIDENT, ABSENT], [10, 5], [3, 1], 3)
    pipelined, paper = (solve(view, objective, solver) for objective in ("pipelined", "paper"))
    assert (pipelined.objective, pipelined.on_gpu.tolist()) == (pytest.approx(4), [True, True])
    assert (paper.objective, paper.on_gpu.tolist()) == (pytest.approx(5), [True, False])
    assert on_gpu(Exact(), view) == {0, 1}


@pytest.mark.parametrize("make", [Exact, ILP])
def test_landing_units_need_no_copy(make):
    # Landing 0: gpu 2 against cpu 5; with a copy of 9 it would be 11.
    assert on_gpu(make(), make_view([1], [LANDING], [5], [2], 9)) == {0}


@pytest.mark.parametrize("make", [lambda limit: Exact(limit), lambda limit: ILP(max_copies=limit)])
def test_max_copies_by_hand(make):
    # Three absent units of cpu 9, 8, 7, gpu 1, copy 2.  Unlimited: all, 2 + 2 + 2 + 1 = 7.  Two copies: the CPU keeps
    # 7.  One: 8 + 7 = 15.  None: 24.
    view = make_view([3, 2, 1], [ABSENT] * 3, [9, 8, 7], [1, 1, 1], 2)
    found = [makespan(view, assigned(make(limit), view)) for limit in (None, 3, 2, 1, 0)]
    assert found == pytest.approx([7, 7, 7, 15, 24])
    assert on_gpu(make(0), view) == set()


def test_ties_take_ready_units_off_the_cpu_then_leave_out_copies():
    # Absent 0 alone decides: cpu 20 or 9 + 1 = 10 on the GPU.  Resident 1 (cpu 2, gpu 1) fits before it lands: GPU.
    # Absent 2 (cpu 4, gpu 0) could be copied too if heavier units allowed it, but the CPU has time: no copy.
    view = make_view([3, 2, 1], [ABSENT, RESIDENT, ABSENT], [20, 2, 4], [1, 1, 0], 9)
    assert on_gpu(Exact(), view) == {0, 1}


# ---- against every assignment ----------------------------------------------------------------------


@settings(max_examples=300)
@given(views(), st.none() | st.integers(0, 4))
def test_exact_is_the_best_of_all(view, max_copies):
    policy = Exact(max_copies)
    mask = assigned(policy, view)
    assert allows(view, mask, max_copies)
    assert close(makespan(view, mask), best_of_all(view, max_copies))
    assert close(policy.makespan, makespan(view, mask))
    assert policy.bound == policy.makespan
    assert (policy.solves, policy.unproven, policy.largest_gap) == (1, 0, 0)


def test_exact_is_the_best_of_all_on_thousands():
    rng = np.random.default_rng(1)
    searched = 0
    for _ in range(3000):
        view = random_view(rng, 10)
        max_copies = None if rng.random() < 0.7 else int(rng.integers(0, 6))
        policy = Exact(max_copies)
        mask = assigned(policy, view)
        assert allows(view, mask, max_copies)
        assert close(makespan(view, mask), best_of_all(view, max_copies))
        searched += policy.visited > 0
    assert searched > 100, "the bounds alone settle nearly all: these instances do not test the search"


@pytest.mark.parametrize("status", [ABSENT, RESIDENT])
def test_exact_at_12_units(status):
    rng = np.random.default_rng(2)
    for _ in range(40):
        times = rng.random((2, 12)) * [[3], [1]]
        view = make_view(rng.permutation(12) + 1, [status] * 12, *times, rng.uniform(0.1, 1))
        assert close(makespan(view, assigned(Exact(), view)), best_of_all(view))


@settings(max_examples=150)
@given(views())
def test_nothing_is_on_the_wrong_side_without_need(view):
    mask = assigned(Exact(), view)
    shortest = makespan(view, mask)
    for unit in view.active:
        other = mask.copy()
        other[unit] = not mask[unit]
        ready = view.here[unit] != ABSENT
        if ready != mask[unit]:  # a ready unit on the CPU, or a copy
            assert makespan(view, other) > shortest * (1 - TOLERANCE)


@settings(max_examples=60)
@given(views(), st.data())
def test_the_order_of_active_units_does_not_matter(view, data):
    shuffled = replace(view, active=np.array(data.draw(st.permutations(view.active.tolist())), np.int32))
    assert np.array_equal(assigned(Exact(), view), assigned(Exact(), shuffled))


# ---- exact against the program ---------------------------------------------------------------------


def compare(rng, most, **options):
    view = random_view(rng, most)
    max_copies = None if rng.random() < 0.7 else int(rng.integers(0, most))
    policy = Exact(max_copies)
    mask = assigned(policy, view)
    solution = solve(view, max_copies=max_copies, **options)
    assert solution.status == "optimal"
    assert allows(view, solution.on_gpu, max_copies)
    assert close(solution.objective, makespan(view, mask), SOLVER_TOLERANCE)
    assert close(solution.objective, makespan(view, solution.on_gpu))
    assert solution.bound <= policy.makespan * (1 + SOLVER_TOLERANCE)
    assert policy.unproven == 0
    return policy


def test_exact_equals_the_program():
    rng = np.random.default_rng(3)
    assert sum(compare(rng, 14).visited > 0 for _ in range(150)) > 5


def test_exact_equals_the_program_of_cbc():
    rng = np.random.default_rng(4)
    for _ in range(15):
        compare(rng, 10, solver="cbc")


def check_program(view):
    """Exact and the program agree, whatever the unit of time: `close` would take two small numbers for equal."""
    policy = Exact()
    shortest = makespan(view, assigned(policy, view))
    solution = solve(view)
    assert solution.status == "optimal"
    assert policy.unproven == 0
    assert solution.objective == pytest.approx(shortest, rel=SOLVER_TOLERANCE, abs=0)
    assert solution.bound <= shortest * (1 + SOLVER_TOLERANCE)


@pytest.mark.parametrize("seconds", [1.0, 1e-3, 1e-6, 1e-9])
def test_the_program_of_equal_units_is_solved(seconds):
    # HiGHS gives some of these up where times are not powers of two: 8 of 40 equal units resident, wherever they are.
    rng = np.random.default_rng(3)
    for _ in range(6):
        status = np.where(rng.permutation(40) < 8, RESIDENT, ABSENT)
        times = (np.full(40, figure * seconds) for figure in (5198, 233))
        view = make_view([1] * 40, status, *times, 1255 * seconds)
        check_program(view)
        # 6 units on the CPU, 31188; 8 resident and 26 copied, 26 * 1255 + 233 = 32863, against 5 and 27: 34118.
        assert solve(view).objective == pytest.approx(32863 * seconds, rel=SOLVER_TOLERANCE, abs=0)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(-9, 3))
def test_the_program_in_any_unit_of_time(seed, power):
    view = random_view(np.random.default_rng(seed), 14)
    seconds = 10.0**power
    times = {name: getattr(view, name) * seconds for name in ("cpu_time", "gpu_time", "copy_time")}
    check_program(replace(view, **times))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_the_program_of_times_of_all_magnitudes(seed):
    rng = np.random.default_rng(seed)
    units = int(rng.integers(1, 11))
    status = rng.choice(3, units, p=[0.6, 0.1, 0.3])
    cpu, gpu, copy = 10.0 ** rng.uniform(-6, 6, (3, units))
    view = make_view([1] * units, status, cpu, gpu, copy[0])
    check_program(view)
    assert solve(view).objective == pytest.approx(best_of_all(view), rel=SOLVER_TOLERANCE, abs=0)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_program_of_many_equal_units(seed):
    rng = np.random.default_rng(seed)
    units = int(rng.integers(20, 61))
    times = (np.full(units, float(rng.integers(1, high))) for high in (9000, 500))
    status = np.where(rng.random(units) < rng.random(), RESIDENT, ABSENT)
    check_program(make_view([1] * units, status, *times, float(rng.integers(1, 3000))))


@pytest.mark.slow
def test_exact_equals_the_program_on_thousands():
    rng = np.random.default_rng(5)
    for _ in range(2500):
        compare(rng, 24)


@pytest.mark.parametrize(("solver", "cases"), [("highs", 40), ("cbc", 8)])
def test_the_papers_program_is_the_best_of_all(solver, cases):
    rng = np.random.default_rng(6)
    for _ in range(cases):
        view = random_view(rng, 9)
        max_copies = None if rng.random() < 0.5 else int(rng.integers(0, 5))
        solution = solve(view, "paper", solver, max_copies=max_copies)
        assert allows(view, solution.on_gpu, max_copies)
        assert close(solution.objective, paper_makespan(view, solution.on_gpu))
        assert close(solution.objective, best_of_all(view, max_copies, paper=True), SOLVER_TOLERANCE)
        assert solution.gap < SOLVER_TOLERANCE


# ---- large instances -------------------------------------------------------------------------------


def layer_step(rng, units, tokens, share):
    """Zipf-like loads of top-8 routing, and times of a machine where copies cost most."""
    popularity = rng.permutation(1 / np.arange(1, units + 1) ** rng.uniform(0.2, 1))
    chosen = np.argpartition(-np.log(popularity) - rng.gumbel(size=(tokens, units)), 7, axis=1)[:, :8]
    workload = np.bincount(chosen.ravel(), minlength=units)
    status = np.where(rng.random(units) < share, RESIDENT, ABSENT)
    cpu = np.maximum(85 + 0.1 * workload, 13.0 * workload + 10)
    return make_view(workload, status, cpu, np.maximum(27 + 0.01 * workload, 0.2 * workload + 15), 390.0)


@pytest.mark.parametrize("tokens", [1, 16, 64, 512])
def test_exact_proves_layer_steps_of_128_units(tokens):
    rng = np.random.default_rng(tokens)
    policy = Exact()
    for share in (0.25, 0.5):
        for _ in range(25):
            view = layer_step(rng, 128, tokens, share)
            mask = assigned(policy, view)
            found = makespan(view, mask)
            assert policy.unproven == 0
            assert found <= makespan(view, assigned(Greedy(), view)) * (1 + TOLERANCE)
            assert found <= makespan(view, assigned(HybriMoE(), view)) * (1 + TOLERANCE)


def test_exact_counts_what_it_cannot_prove():
    rng = np.random.default_rng(7)
    unproven = 0
    for _ in range(400):
        view = random_view(rng, 10)
        policy = Exact(states=1)
        mask = assigned(policy, view)
        found, best = makespan(view, mask), best_of_all(view)
        assert policy.bound <= best * (1 + TOLERANCE)
        assert close(policy.makespan, found)
        if policy.unproven:
            unproven += 1
            assert policy.largest_gap == pytest.approx(1 - policy.bound / found)
            assert policy.largest_gap > 0
        else:
            assert close(found, best)
    assert unproven > 20


# ---- time limit, bad input -------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_a_time_limit_that_strikes_leaves_a_feasible_assignment_and_says_so(solver):
    view = layer_step(np.random.default_rng(8), 128, 512, 0.25)
    best = Exact(8)
    shortest = makespan(view, assigned(best, view))
    policy = ILP(solver=solver, time_limit_ms=1, max_copies=8)
    mask = assigned(policy, view)
    solution = policy.last
    assert solution.status == "time limit"
    assert allows(view, mask, 8)
    assert makespan(view, mask) == pytest.approx(solution.objective)
    assert solution.found_by in (solver, "greedy")
    assert solution.objective <= makespan(view, assigned(Greedy(8), view)) * (1 + TOLERANCE)
    assert 0 < solution.bound <= shortest * (1 + SOLVER_TOLERANCE)
    assert solution.gap == pytest.approx(1 - solution.bound / solution.objective)
    assert (policy.solves, policy.limited, policy.by_greedy) == (1, 1, int(solution.found_by == "greedy"))
    assert policy.largest_gap == solution.gap


def test_a_solve_in_time_is_not_counted_as_limited():
    policy = ILP()
    assigned(policy, make_view([1, 2], [ABSENT, RESIDENT], [2, 3], [1, 1], 1))
    assert (policy.solves, policy.limited, policy.largest_gap) == (1, 0, 0)
    assert policy.last.status == "optimal"
    assert policy.last.gap < SOLVER_TOLERANCE


def test_no_active_unit():
    view = make_view([0, 0], [ABSENT, RESIDENT], [0, 0], [0, 0], 1)
    for policy in (Exact(), ILP()):
        assert isinstance(policy, AssignmentPolicy)
        assert on_gpu(policy, view) == set()
    with pytest.raises(InputError, match="no active unit"):
        solve(view)


def test_units_that_take_no_time():
    view = make_view([1, 1], [ABSENT, RESIDENT], [0, 0], [0, 0], 1)
    assert makespan(view, assigned(Exact(), view)) == makespan(view, solve(view).on_gpu) == 0
    assert solve(view).gap == 0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["cpu_time", "gpu_time", "copy_time"])
def test_impossible_times_are_input_errors(field, bad):
    view = make_view([1, 1], [ABSENT, RESIDENT], [1, 1], [1, 1], 1)
    view = replace(view, **{field: bad if field == "copy_time" else np.array([1.0, bad])})
    with pytest.raises(InputError, match=f"{field} {bad}"):
        solve(view)
    with pytest.raises(InputError, match="finite"):
        on_gpu(Exact(), view)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exact(max_copies=-1), r"Exact\.max_copies: found -1, expected"),
        (lambda: Exact(states=0), r"Exact\.states: found 0, expected"),
        (lambda: ILP(objective="sum"), r"ILP\.objective: found 'sum', expected one of pipelined, paper"),
        (lambda: ILP(solver="glpk"), r"ILP\.solver: found 'glpk', expected one of highs, cbc"),
        (lambda: ILP(time_limit_ms=0), r"ILP\.time_limit_ms: found 0, expected"),
        (lambda: ILP(max_copies=-1), r"ILP\.max_copies: found -1, expected"),
    ],
)
def test_bad_hyper_parameters(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(("name", "kind"), [("exact", Exact), ("ilp", ILP)])
def test_configuration_names_every_hyper_parameter(name, kind):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    policy = instantiate(config)
    parameters = inspect.signature(kind).parameters
    assert type(policy) is kind
    assert set(config) - {"_target_"} == set(parameters)
    assert {key: getattr(policy, key) for key in parameters} == {key: p.default for key, p in parameters.items()}
