"""Assignment of one layer step as a 0-1 program in PuLP, solved by HiGHS or CBC.

x[i] = 1 if active unit i runs on the GPU; c[i] and g[i] are its CPU and GPU time; T is to be least.

    T >= sum of c (1 - x)                                                          both objectives

**paper** (arXiv 2602.03495, problem statement; `policies.assign.objective.paper_makespan`):

    T >= sum of t x,    t[i] = max(copy, g[i]) for an absent unit, g[i] for any other

**pipelined** (`policies.assign.objective`).  The GPU runs the ready units first, then the copied ones, heavier first,
each once its copy has landed.  So it ends at the larger of sum of g x, without waiting, and f[last], where over the
copied units in this order

    f[i] = max(f[i-1], copy * d[i]) + g[i],    d[i] = number of copies up to and including i's,    f = d = 0 before.

Over a choice x this reads, for every absent unit, chosen or not,

    d[i] = d[i-1] + x[i],    f[i] >= f[i-1] + g[i] x[i],    f[i] >= copy * d[i] + g[i] x[i],
    T >= sum of g x,         T >= f[last].

Where unit i is chosen, the two bounds on f[i] are the recursion.  Where it is not, d[i] = d[i-1] and they say
f[i] >= f[i-1] and f[i] >= copy * d[i-1], which f of the last chosen unit before i has already met.  So the least f is
the pipelined finish, without a big-M constant.  Without f, the same is T >= copy * d[i] + sum of g x from i on, for
every i: n constraints of n terms each, with which the solver took about twice as long.

`max_copies` bounds d[last]: it stands for the paper's sum of G size <= M_gpu, as resident units are in memory either
way and the units of a layer have one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pulp

from dali.policies.assign.base import ABSENT, LANDING, Assignment
from dali.policies.assign.greedy import NO_LIMIT, greedy
from dali.policies.assign.objective import gpu_order, makespan, paper_makespan
from dali.policies.require import require_choice, require_count
from dali.policies.types import Bools, Capacity, Floats, InputError, Shape
from dali.policies.view import LayerView

OBJECTIVES = {"pipelined": makespan, "paper": paper_makespan}
SOLVERS = ("highs", "cbc")
# The program is stated in parts of the best makespan known: solvers' absolute tolerances, mostly 1e-6, then are 1e-9 of
# the result.  The parts are powers of two, so that whole numbers of any unit of time stay whole and equal units equal.
# HiGHS sometimes gives up for numerical reasons: without its presolve or in other parts it then finds the same optimum.
PARTS = 10
ATTEMPTS = ((PARTS, True), (PARTS, False), (PARTS + 4, True), (PARTS - 3, True), (PARTS + 4, False), (0, False))
# A unit that takes longer than twice the best makespan known is on the other side in every better assignment, however
# much longer it takes: times beyond are cut off there, as solvers do not see small numbers beside very large ones.
BEYOND = 2.0
# Where the optimum is this much shorter than what the parts were made of, they were too coarse.
MUCH_SHORTER = 16.0


@dataclass(frozen=True)
class Solution:
    """What a solve found.

    on_gpu     bool [U], True = GPU
    status     "optimal" to the solver's tolerance, or "time limit"
    objective  seconds, of `on_gpu`
    bound      seconds that no assignment is below: the solver's, or where it gave none that of the linear relaxation
    found_by   the solver's name, or "greedy" where the solver had nothing as good when the limit struck
    seconds    wall time of building and solving
    """

    on_gpu: Bools
    status: str
    objective: float
    bound: float
    found_by: str
    seconds: float

    @property
    def gap(self) -> float:
        """1 - bound / objective, 0 if proven."""
        return 1 - self.bound / self.objective if self.objective > 0 else 0.0


def solve(
    view: LayerView,
    objective: str = "pipelined",
    solver: str = "highs",
    time_limit_ms: int | None = None,
    max_copies: int | None = None,
) -> Solution:
    """Solve one layer step.

    Args:
        view: its active units, their times and status.
        objective: "pipelined" or "paper".
        solver: "highs" or "cbc".
        time_limit_ms: for the solver; what it then has, or the greedy assignment if that is better, is returned.
        max_copies: most absent units on the GPU, None = no limit.

    Raises:
        InputError: no active unit, a time that is negative or not finite, a bad option, a solver that is not
            installed.
        RuntimeError: the solver gives up.  With finite times every instance is feasible: the CPU can take all units.
    """
    value = OBJECTIVES[require_choice("ILP.objective", objective, tuple(OBJECTIVES))]
    _check(view)
    start = perf_counter()
    by_greedy = np.zeros(view.workload.size, np.bool_)
    limit = NO_LIMIT if max_copies is None else require_count("ILP.max_copies", max_copies, least=0)
    greedy(view.active, view.here, view.cpu_time, view.gpu_time, view.copy_time, limit, LANDING, by_greedy)
    feasible = value(view, by_greedy)
    solved = _solve(view, objective, limit, feasible, solver, time_limit_ms)
    reached = value(view, solved.on_gpu)
    while solved.optimal and 0 < reached < feasible / MUCH_SHORTER:
        by_greedy, feasible = solved.on_gpu, reached
        solved = _solve(view, objective, limit, feasible, solver, time_limit_ms)
        reached = value(view, solved.on_gpu)
    on_gpu, found_by = solved.on_gpu, solver
    too_many = np.count_nonzero(on_gpu & (view.here == ABSENT)) > limit
    if not solved.optimal and (too_many or feasible <= reached):
        on_gpu, found_by, reached = by_greedy, "greedy", feasible
    status = "optimal" if solved.optimal else "time limit"
    return Solution(on_gpu, status, reached, min(solved.bound, reached), found_by, perf_counter() - start)


@dataclass(frozen=True)
class _Answer:
    """What the solver left: see `Solution`; `optimal` is False where the time limit struck."""

    on_gpu: Bools
    optimal: bool
    bound: float


def _solve(
    view: LayerView, objective: str, limit: int, feasible: float, solver: str, time_limit_ms: int | None
) -> _Answer:
    """One solve in parts of the makespan `feasible`, again in other parts where the solver gives up."""
    for parts, presolve in ATTEMPTS:
        power = parts - int(np.frexp(feasible)[1])
        problem, chosen = _program(view, objective, limit, power, BEYOND * feasible)
        problem.solve(_solver(solver, time_limit_ms, presolve))
        optimal = problem.sol_status == pulp.LpSolutionOptimal
        if optimal or not _stumbled(problem, solver):
            break
    if not optimal and (time_limit_ms is None or not _out_of_time(problem, solver)):
        raise RuntimeError(f"ILP: {solver} reports {pulp.LpStatus[problem.status]!r} for a feasible layer step")
    on_gpu = np.zeros(view.workload.size, np.bool_)
    for unit, variable in chosen.items():
        on_gpu[unit] = (variable.value() or 0.0) > 0.5
    return _Answer(on_gpu, optimal, float(np.ldexp(_bound(problem, solver, optimal), -power)))


def _check(view: LayerView) -> None:
    """InputError unless there are active units with valid times."""
    if view.active.size == 0:
        raise InputError("ILP: found no active unit, expected at least one workload above 0")
    for name, times in (("cpu_time", view.cpu_time), ("gpu_time", view.gpu_time)):
        for unit in view.active.tolist():
            if not 0 <= times[unit] < np.inf:
                found = f"{name} {times[unit]} of unit {unit}"
                raise InputError(f"ILP: found {found}, expected a finite time of at least 0")
    if not 0 < view.copy_time < np.inf:
        raise InputError(f"ILP: found copy_time {view.copy_time}, expected a positive finite time")


def _solver(name: str, time_limit_ms: int | None, presolve: bool = True) -> Any:
    """A silent PuLP solver that stops at a gap of 0 or at the limit."""
    require_choice("ILP.solver", name, SOLVERS)
    seconds = None
    if time_limit_ms is not None:
        seconds = require_count("ILP.time_limit_ms", time_limit_ms) / 1000
    if name == "highs":
        options = {"parallel": "off", "presolve": "choose" if presolve else "off"}
        found = pulp.HiGHS(msg=False, timeLimit=seconds, gapRel=0.0, gapAbs=0.0, **options)
    else:
        found = pulp.COIN_CMD(msg=False, timeLimit=seconds, gapRel=0.0, gapAbs=0.0)
        bundled = getattr(pulp, "PULP_CBC_CMD", None)  # up to PuLP 3
        if not found.available() and bundled is not None:
            found = pulp.COIN_CMD(msg=False, timeLimit=seconds, gapRel=0.0, gapAbs=0.0, path=bundled.pulp_cbc_path)
    if not found.available():
        package = {"highs": "highspy", "cbc": "pulp[cbc]"}[name]
        raise InputError(f"ILP.solver: found {name!r}, which is not installed (pip install '{package}')")
    return found


def _stumbled(problem: Any, solver: str) -> bool:
    """Whether HiGHS gave up for numerical reasons, as it rarely does after its presolve."""
    if solver != "highs":
        return False
    model = problem.solverModel
    return bool(model.modelStatusToString(model.getModelStatus()) == "Solve error")


def _out_of_time(problem: Any, solver: str) -> bool:
    """Whether the solver stopped without a proof, and not for another reason than time."""
    if solver == "highs":
        model = problem.solverModel
        return bool(model.modelStatusToString(model.getModelStatus()) == "Time limit reached")
    # Of CBC's answers PuLP keeps "stopped", with or without an assignment; no limit but time is set.
    return problem.status in (pulp.LpStatusOptimal, pulp.LpStatusNotSolved)


def _program(
    view: LayerView, objective: str, limit: int, power: int, longest_time: float
) -> tuple[Any, dict[int, Any]]:
    """The program, times cut off at `longest_time` and multiplied by 2 ** `power`, and x of each active unit."""
    everything = np.ones(view.workload.size, np.bool_)
    order, ready = gpu_order(view, everything)
    times = (view.cpu_time, view.gpu_time, np.array(view.copy_time))
    cpu, gpu, copy = (np.ldexp(np.minimum(each, longest_time), power) for each in times)
    problem = pulp.LpProblem("assignment", pulp.LpMinimize)
    longest = problem.add_variable("T", 0)
    chosen = {unit: problem.add_variable(f"x{unit}", 0, 1, pulp.LpBinary) for unit in order.tolist()}
    absent = order.tolist()[ready:]
    problem += longest
    problem += _sum([(longest, 1.0)] + [(x, cpu[unit]) for unit, x in chosen.items()]) >= float(cpu[order].sum())
    if limit < len(absent):
        problem += _sum([(chosen[unit], 1.0) for unit in absent]) <= limit
    if objective == "paper":
        gpu = np.where(view.here == ABSENT, np.maximum(copy, gpu), gpu)
    problem += _sum([(longest, 1.0)] + [(x, -gpu[unit]) for unit, x in chosen.items()]) >= 0
    if objective == "pipelined" and absent:
        _pipeline(problem, longest, [chosen[unit] for unit in absent], gpu[absent], float(copy))
    return problem, chosen


def _pipeline(problem: Any, longest: Any, absent: list[Any], gpu: Floats, copy: float) -> None:
    """Constraints on d and f of the absent units, and on T by them."""
    before: list[Any] = []  # d and f of the unit before
    for i, (x, seconds) in enumerate(zip(absent, gpu.tolist(), strict=True)):
        copies = problem.add_variable(f"d{i}", 0)
        finish = problem.add_variable(f"f{i}", 0)
        problem += _sum([(copies, 1.0), (x, -1.0)] + [(old, -1.0) for old in before[:1]]) == 0
        problem += _sum([(finish, 1.0), (copies, -copy), (x, -seconds)]) >= 0
        if before:
            problem += _sum([(finish, 1.0), (before[1], -1.0), (x, -seconds)]) >= 0
        before = [copies, finish]
    problem += _sum([(longest, 1.0), (before[1], -1.0)]) >= 0


def _sum(terms: list[tuple[Any, float]]) -> Any:
    return pulp.LpAffineExpression([(variable, float(factor)) for variable, factor in terms])


def _bound(problem: Any, solver: str, optimal: bool) -> float:
    """Proven lower bound of a solved program, in its own unit."""
    if optimal and solver == "cbc":  # PuLP hands on no bound of CBC's
        return float(pulp.value(problem.objective))
    bound = -np.inf
    if solver == "highs":
        bound = float(problem.solverModel.getInfo().mip_dual_bound)
    if not optimal:
        relaxation = _solver(solver, None)
        relaxation.mip = False
        problem.solve(relaxation)
        bound = max(bound, float(pulp.value(problem.objective)))
    return bound


class ILP(Assignment):
    """The optimum of a 0-1 program, by HiGHS or CBC.

    objective      "pipelined" (`policies.assign.objective`) or "paper" (`paper_makespan` there)
    solver         "highs" or "cbc"
    time_limit_ms  of one layer step, None = no limit; see `solve`
    max_copies     most absent units that go to the GPU, None = no limit

    Since `reset`: `solves`; `limited`, those that the time limit cut off; `by_greedy`, of these, those that returned
    the greedy assignment; `largest_gap` of the cut off ones.  `last` is the last solution.  A layer step without
    active units is not solved.
    """

    def __init__(
        self,
        objective: str = "pipelined",
        solver: str = "highs",
        time_limit_ms: int | None = 10_000,
        max_copies: int | None = None,
    ) -> None:
        self.objective = require_choice("ILP.objective", objective, tuple(OBJECTIVES))
        self.solver = require_choice("ILP.solver", solver, SOLVERS)
        if time_limit_ms is not None:
            require_count("ILP.time_limit_ms", time_limit_ms)
        if max_copies is not None:
            require_count("ILP.max_copies", max_copies, least=0)
        self.time_limit_ms = time_limit_ms
        self.max_copies = max_copies

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        super().reset(shape, capacity, rng)
        self.solves = self.limited = self.by_greedy = 0
        self.largest_gap = 0.0
        self.last: Solution | None = None

    def assign(self, view: LayerView) -> Bools:
        """Bool [U].  InputError as `solve`."""
        self._on_gpu.fill(False)
        if view.active.size == 0:
            return self._on_gpu
        solution = solve(view, self.objective, self.solver, self.time_limit_ms, self.max_copies)
        self.last = solution
        self.solves += 1
        if solution.status != "optimal":
            self.limited += 1
            self.by_greedy += solution.found_by == "greedy"
            self.largest_gap = max(self.largest_gap, solution.gap)
        self._on_gpu[:] = solution.on_gpu
        return self._on_gpu
