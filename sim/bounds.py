"""A proven lower bound on the simulated time of a workload, for any policy with the given GPU memory.

**Who is covered.**  Whatever decides, online or knowing the future, and whatever it keeps on the GPU at the
start (which is free), as long as: every active unit of a layer step runs exactly once, wholly on one side; a
unit runs on the GPU only once its copy has landed in one of the `slots` slots (staging included, over all
layers), or if it was there from the start; times are charged as `sim.engine` charges them.  The bound is for
the slices of the workload and for one cost model: where policies differ in `attention_on`, take the lower of
the bounds of both.

**Theorem.**  Let T_i be the time from the join of layer step i - 1 to the join of i, in which the GPU runs
the units G_i, the CPU the units C_i, and the link copies for P_i seconds; what lies outside the layers after
the last join comes on top of their sum.  For all prices a_i, b_i, m_i >= 0 with a_i + b_i + m_i = 1, s_i >= 0
and e >= 0

    sum T_i >= (V - e - g min m) / (1 + e / (c + g)),   c = shortest copy, g = issue gap,
    V = sum_i (a_i + b_i) serial_i + sum_i split_i + sum_units path_u - slots * sum_i s_i.

split_i is the least, over all splits of layer step i's units, of (1 - m_i) * (the longer side and the merge), plus
what the CPU pays for not being slowed down, plus for each unit on the GPU its worth; path_u is the least cost of
unit u's way through the steps between absent and present, where a copy at i costs c m_i + g min m, being in a
slot when layer step i starts costs s_i, and being present when needed earns the unit's worth.  The worth of a
unit is its price on the CPU less b_i times its GPU time, or 0 where that is negative.

**Proof.**
1. The dense part, read-back and planning come first.  Then GPU jobs run one after the other, and CPU jobs do
   between two transfers (if there are any); after both comes the merge (if there are CPU jobs), and then the join:
   T_i - serial_i is at least the longer of sum_G gpu(w) and sum_C cpu(w) + transfers, and the merge.  Launches,
   dispatch, the slow-down of one side beside the other, and turns of GPU and link, which some machines have on top,
   are left out: they only add to T_i.
2. A CPU job that starts while a copy is under way takes `cpu_contended`.  Of the others, call *exempt* those
   during which a copy starts.  While a job that is neither runs, the link is idle, but for at most one gap.
   So T_i >= P_i + sum over these jobs of (cpu(w) - g), where P_i has the gaps after copies.
3. A copy starts within at most one job, and the starts of two copies are c + g apart: the number of exempt jobs
   is at most 1 + sum T_i / (c + g).  This inequality, times e, makes the denominator; its 1, and the last
   copy's gap, which may outlast the run, the e and g min m of the numerator.
4. T_i >= (a_i + b_i)(serial_i + the longer side + the merge) + m_i (what 2 says), as the prices sum to 1.
5. A unit on the GPU at i that was not there since its layer's step before has been copied since then.  The
   seconds of a copy fall on layer steps between issue and landing; priced at the cheapest of these, and the
   slot paid from that one on only, the copy costs what it does on path_u or more.
6. A slot holds one unit: at the start of i at most `slots` are owned or being filled, which times s_i is the
   last term of V.  A unit that runs on the GPU must be present: the worth, paid in split_i and earned on path_u,
   may only lower the sum where a unit is present without being run there.
7. What is left has no constraint between layer steps or units: its minimum is the sum of minima, V.

With many kinds of units the first minimum is taken over fractions of units (weight a_i on the CPU's side, b_i on
the GPU's, both on a fraction of the merge), which is lower.  Any prices give a bound; `lower_bound` looks for high
ones by supergradient ascent.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from dali.policies.costs.model import CostModel
from dali.policies.types import Floats, InputError
from dali.sim.relaxation import Prices, Relaxation
from dali.traces.step import Step
from dali.traces.workload import Workload

START = (0.6, 0.2, 0.2)  # where the ascent begins: prices of CPU, GPU and link,
START_SLOT = 0.2  # of a slot for a step over that of a copy,
START_EXEMPT = 0.3  # of `exempt` over the most that a CPU job saves by it
FREE_LINK = 0.01  # the link's price where it hardly binds

RATE = 0.015  # first step of the ascent, as a change of a machine's price
LOG_RATE = 0.12  # the same for the logarithms of the other prices
LAST = 0.03  # its last step over the first
SMOOTH, SMOOTH_SQUARE = 0.8, 0.95  # averaging of slopes and of their squares, as in Adam (arXiv 1412.6980)
SMALLEST = 1e-30


@dataclass(frozen=True)
class Bound:
    """No policy is faster.

    seconds      of the whole workload
    phases       of the steps of each phase by themselves, whatever is resident when they begin
    steps        float64 [n_steps], of each step by itself: as if every unit were always resident
    serial       the part of `seconds` that is no MoE layer's units: dense parts, read-back, planning
    relaxations  `seconds` with fewer constraints, so that a reader sees which bind; they ascend:
                 "serial": units take no time; "compute": every unit is always resident; "link": the slots limit
                 what is, and the link what is copied; "contention": copies slow the CPU down (= `seconds`)
    """

    seconds: float
    phases: dict[str, float]
    steps: Floats
    serial: float
    relaxations: dict[str, float]

    @property
    def moe(self) -> float:
        """`seconds` less `serial`."""
        return self.seconds - self.serial


def lower_bound(workload: Workload, slots: int, cost: CostModel, rounds: int = 120) -> Bound:
    """The bound for `slots` GPU slots, staging included, when `cost` is charged.

    rounds  of the ascent; fewer give a weaker bound

    InputError if `cost` does not cover the workload.
    """
    if slots < 0 or rounds < 0:
        raise InputError(f"lower bound: found {slots} slots and {rounds} rounds, expected at least 0 of each")
    steps = list(workload.steps())
    relaxation = Relaxation(steps, slots, cost)
    floor, _ = relaxation.floor()
    link, seconds = _limits(steps, slots, cost, rounds)
    runs = [list(run) for _, run in groupby(steps, lambda step: step.phase)]
    phases = dict.fromkeys((run[0].phase for run in runs), 0.0)
    for run in runs:
        phases[run[0].phase] += seconds if len(runs) == 1 else _limits(run, slots, cost, rounds)[1]
    seconds = max(seconds, sum(phases.values()))
    serial = float(relaxation.serial_by_step.sum())
    relaxations = {"serial": serial, "compute": float(floor.sum()), "link": link, "contention": seconds}
    return Bound(seconds, phases, floor, serial, relaxations)


def _limits(steps: list[Step], slots: int, cost: CostModel, rounds: int) -> tuple[float, float]:
    """The bound if copies did not slow the CPU down, and the bound."""
    link, prices = _highest(Relaxation(steps, slots, cost, contention=False), rounds)
    relaxation = Relaxation(steps, slots, cost)
    start = prices._replace(exempt=START_EXEMPT * relaxation.most_saved)
    return link, max(link, _ascend(relaxation, start, rounds // 2)[0])


def _highest(relaxation: Relaxation, rounds: int) -> tuple[float, Prices]:
    """The highest value found, starting as if the link bound, and where that fails as if it hardly did."""
    found = _ascend(relaxation, _alike(relaxation, *START), rounds)
    floor, share = relaxation.floor()
    if found[0] < floor.sum():
        rest = 1 - FREE_LINK
        other = _ascend(relaxation, _alike(relaxation, rest * share, rest * (1 - share), FREE_LINK), rounds)
        found = max(found, other, key=lambda each: each[0])
    return max(found[0], float(floor.sum())), found[1]


def _alike(relaxation: Relaxation, cpu: Floats | float, gpu: Floats | float, link: float) -> Prices:
    """Prices that are much the same at every layer step."""
    everywhere = np.ones(relaxation.size)
    slot = START_SLOT * link * float(relaxation.copy.mean()) / relaxation.layers
    exempt = START_EXEMPT * relaxation.most_saved
    return Prices(cpu * everywhere, gpu * everywhere, link * everywhere, slot * everywhere, exempt)


def _ascend(relaxation: Relaxation, start: Prices, rounds: int) -> tuple[float, Prices]:
    """The highest value met, and its prices.

    Prices are sums of a part for all layer steps, one by layer, one by step and one by layer step: the first
    move together and find the level, the last the differences.
    """
    steps, layers = relaxation.n_steps, relaxation.layers
    shape = (steps, layers)
    machines = _Levels(np.stack([start.cpu, start.gpu, start.link], axis=-1).reshape(*shape, 3))
    slots = _Levels(np.log(np.maximum(start.slot, SMALLEST)).reshape(*shape, 1))
    exempt = _Levels(np.log(np.full((1, 1, 1), max(start.exempt, SMALLEST))))
    best, prices = relaxation.value(start)[0], start
    for turn in range(rounds):
        shares = on_simplex(machines.sum())
        cpu, gpu, link = np.ascontiguousarray(shares.reshape(-1, 3).T)
        now = Prices(cpu, gpu, link, np.exp(slots.sum()).ravel(), float(np.exp(exempt.sum()).item()))
        value, slope = relaxation.value(now)
        if value > best:
            best, prices = value, now
        size = LAST + (1 - LAST) * (1 - turn / rounds)
        by_machine = np.stack([slope.cpu, slope.gpu, slope.link], axis=-1).reshape(*shape, 3)
        machines.climb(_along_simplex(by_machine, shares), RATE * size)
        slots.climb((slope.slot * now.slot).reshape(*shape, 1), LOG_RATE * size)
        exempt.climb(np.full((1, 1, 1), slope.exempt * now.exempt), LOG_RATE * size)
    return best, prices


class _Levels:
    """An array [n_steps, L, n] as the sum of parts, each moved by the averaged slope in units of its usual size."""

    def __init__(self, start: Floats) -> None:
        steps, layers, n = start.shape
        self._start = start
        shapes = dict.fromkeys([(1, 1, n), (1, layers, n), (steps, 1, n), (steps, layers, n)])
        self._parts = [np.zeros(shape) for shape in shapes]
        self._slope = [np.zeros(shape) for shape in shapes]
        self._square = [np.zeros((*shape[:2], 1)) for shape in shapes]
        self._turn = 0

    def sum(self) -> Floats:
        """The array."""
        total: Floats = self._start + sum(self._parts)
        return total

    def climb(self, slope: Floats, rate: float) -> None:
        """Move every part by about `rate` along `slope` [n_steps, L, n]."""
        self._turn += 1
        for part, mean, square in zip(self._parts, self._slope, self._square, strict=True):
            axes = tuple(axis for axis in (0, 1) if part.shape[axis] < slope.shape[axis])
            here = slope.sum(axis=axes, keepdims=True)
            mean += (1 - SMOOTH) * (here - mean)
            square += (1 - SMOOTH_SQUARE) * ((here**2).sum(axis=2, keepdims=True) - square)
            usual = np.sqrt(square / (1 - SMOOTH_SQUARE**self._turn)) + SMALLEST
            part += rate * mean / (1 - SMOOTH**self._turn) / usual


def on_simplex(point: Floats) -> Floats:
    """The nearest point with entries of at least 0 that sum to 1 along the last axis."""
    falling = -np.sort(-point, axis=-1)
    excess = (np.cumsum(falling, axis=-1) - 1) / np.arange(1, point.shape[-1] + 1)
    last = np.count_nonzero(falling > excess, axis=-1)[..., None] - 1
    nearest: Floats = np.maximum(point - np.take_along_axis(excess, last, axis=-1), 0.0)
    return nearest


def _along_simplex(slope: Floats, point: Floats) -> Floats:
    """The part of `slope` that keeps the sum and leaves no entry that is 0 and would fall."""
    inside = point > 0
    mean = (slope * inside).sum(axis=-1, keepdims=True) / inside.sum(axis=-1, keepdims=True)
    moves = inside | (slope > mean)
    mean = (slope * moves).sum(axis=-1, keepdims=True) / moves.sum(axis=-1, keepdims=True)
    along: Floats = np.where(moves, slope - mean, 0.0)
    return along
