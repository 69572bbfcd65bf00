"""The optimum of one layer step: the assignment of least pipelined makespan (`policies.assign.objective`), proven.

Notation.  c[i] and g[i] are the CPU and GPU time of active unit i, x[i] is 1 if it runs on the GPU.  Units stand in
the order in which the GPU runs them: the ready ones, which need no copy, then the absent ones, heavier first.  With
K copies the makespan is the largest of

    CPU        sum of c (1 - x)
    compute    sum of g x
    link, k    k * copy + sum of g x from the k-th copied unit on, for k = 1..K

**Counts first.**  Units of a layer are much alike, so what makes the relaxation of the whole problem weak is that
numbers of units are whole.  They are therefore fixed: K in the outer loop, the number J of ready units that stay on
the GPU in the inner one.  For each pair:

- relaxation (`_relax`): for any 0 <= a <= 1, a CPU + (1 - a) compute is least where, of each kind, those units run
  on the GPU that gain most by it.  The largest of these minima over a is a bound, and it is the linear relaxation's.
  It is convex in J and in K, so each loop starts at the incumbent's or the relaxation's own count, goes both ways,
  and stops where the relaxation reaches the incumbent;
- last copy (`_last_copy`): if the last copied unit is p, the link needs K * copy + g[p], and the CPU at least what
  p and the K - 1 units that save it most leave.  On most layer steps copies, not compute, fill the GPU's time, and
  this bound settles them;
- whole tokens (`_lattice`): where times are linear in the workload, CPU and compute time take discrete values.

Every bound comes with an assignment that may become the incumbent, and `_exchange` improves on these.

**Where the bounds do not meet**, `_search` decides unit after unit.  A state is (CPU time so far, time at which the
GPU is free); of two states of equal counts the one that is no better in either is dropped (Nemhauser and Ullmann,
Management Science 15, 1969), and so is one whose relaxation, with the multipliers of the pair, reaches the incumbent.
Units of equal workload and status lead to equal states and cost little.

**Accuracy.**  A bound within `SLACK` of the incumbent counts as reached.  Dominance forgives SLACK / n at each of n
decisions, so that rounding does not keep equal states apart; an assignment it loses is worse by at most SLACK in
all.  Times count as linear if they are so to `ROUNDING` of the makespan.  The result is therefore within
2 SLACK + n ROUNDING of the optimum, relative: less than 1e-9 up to 200 units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dali.policies.assign.base import ABSENT, Assignment, sort_descending
from dali.policies.assign.greedy import NO_LIMIT
from dali.policies.assign.hybrimoe import CACHED_FIRST
from dali.policies.core.jit import kernel
from dali.policies.require import require_count
from dali.policies.types import Bools, Bytes, Capacity, Floats, InputError, Ints, Shape
from dali.policies.view import LayerView

SLACK = 4e-10
ROUNDING = 1e-12
ANY = -1  # a count that is not fixed
# Positions in a report.
MAKESPAN, BOUND, STATES, REPORT = range(4)


class Instance(NamedTuple):
    """Active units in the GPU's order; float64 [n], seconds.

    load       workload
    cpu, gpu   CPU and GPU time
    saved      float64 [absent + 1], entry k = CPU time of the k absent units that have most of it
    ready      units at the front that need no copy
    copy_time  seconds of one copy
    """

    load: Floats
    cpu: Floats
    gpu: Floats
    saved: Floats
    ready: int
    copy_time: float


class Found(NamedTuple):
    """The incumbent and the memory to look for a better one.

    best, trial  bool [n], the incumbent (True = GPU) and an assignment under construction
    report       float64 [REPORT]: the incumbent's makespan; the least bound of what was left open; states made
    busy, free   float64, CPU time of a search state, and when its GPU is free; their size is the most states
    origin       int32, the state before, times 2, plus whether the last unit went to the GPU
    """

    best: Bools
    trial: Bools
    report: Floats
    busy: Floats
    free: Floats
    origin: Ints


@kernel
def _finish(p: Instance, on_gpu: Bools) -> float:
    """GPU finish of the chosen units."""
    free = 0.0
    landed = 0.0
    for i in range(p.gpu.size):
        if on_gpu[i]:
            if i >= p.ready:
                landed += p.copy_time
                free = max(free, landed)
            free += p.gpu[i]
    return free


@kernel
def _sides(p: Instance, on_gpu: Bools) -> tuple[float, float]:
    """CPU time and compute time."""
    on_cpu = 0.0
    compute = 0.0
    for i in range(p.cpu.size):
        if on_gpu[i]:
            compute += p.gpu[i]
        else:
            on_cpu += p.cpu[i]
    return on_cpu, compute


@kernel
def _keep(p: Instance, f: Found) -> None:
    """Make the trial the incumbent if it is better."""
    makespan = max(_sides(p, f.trial)[0], _finish(p, f.trial))
    if makespan < f.report[MAKESPAN]:
        f.report[MAKESPAN] = makespan
        f.best[:] = f.trial


@kernel
def _start(p: Instance, f: Found, most: int) -> int:
    """First incumbent: all ready units and the best number of the heaviest absent ones, which it returns."""
    on_cpu = 0.0
    free = 0.0
    for i in range(p.cpu.size):
        if i < p.ready:
            free += p.gpu[i]
        else:
            on_cpu += p.cpu[i]
    copies = 0
    shortest = max(free, on_cpu)
    for k in range(1, most + 1):
        i = p.ready + k - 1
        free = max(free, k * p.copy_time) + p.gpu[i]
        on_cpu -= p.cpu[i]
        if max(free, on_cpu) < shortest:
            shortest = max(free, on_cpu)
            copies = k
    for i in range(p.cpu.size):
        f.trial[i] = i < p.ready + copies
    f.report[MAKESPAN] = np.inf
    _keep(p, f)
    return copies


# ---- bounds for given counts --------------------------------------------------------------------------


@kernel
def _pick(cost: Floats, low: int, high: int, count: int, on_gpu: Bools) -> float:
    """Choose the `count` lowest costs of positions low..high - 1, of equal ones the first; `ANY` = all below 0.

    Returns the multiplier of the count: the highest cost chosen (the lowest of all if none is), 0 for `ANY`.
    """
    price = 0.0
    equal = 0
    if count != ANY and high > low:
        price = np.sort(cost[low:high])[max(count - 1, 0)]
        equal = count
        for i in range(low, high):
            equal -= cost[i] < price
    for i in range(low, high):
        on_gpu[i] = cost[i] < price
        if cost[i] == price and equal > 0:
            on_gpu[i] = True
            equal -= 1
    return price


@kernel
def _cheapest(p: Instance, f: Found, stay: int, copies: int, weight: float) -> tuple[float, float]:
    """Minimise weight * CPU + (1 - weight) * compute over the given counts; the trial is what does.

    Returns the multipliers of the two counts.
    """
    cost = (1 - weight) * p.gpu - weight * p.cpu
    return _pick(cost, 0, p.ready, stay, f.trial), _pick(cost, p.ready, cost.size, copies, f.trial)


@kernel
def _line(p: Instance, f: Found, stay: int, copies: int, weight: float) -> tuple[float, float, float]:
    """CPU time, compute time and ready units on the GPU of the minimiser at `weight`, which is tried as incumbent."""
    _cheapest(p, f, stay, copies, weight)
    _keep(p, f)
    on_cpu, compute = _sides(p, f.trial)
    return on_cpu, compute, float(np.count_nonzero(f.trial[: p.ready]))


@kernel
def _relax(p: Instance, f: Found, stay: int, copies: int) -> tuple[float, float, float]:
    """Largest relaxation bound for the given counts (`stay` may be `ANY`).

    Returns it, its weight, and the ready units on the GPU in the relaxed optimum (a fraction if `stay` is `ANY`).

    CPU and compute time of an assignment are a line over the weight, and the bound is their lower envelope.  The
    next weight is where the lines found left and right of its top cross, until no line lies below the crossing.
    """
    right_cpu, right_gpu, right_stay = _line(p, f, stay, copies, 1.0)
    if right_cpu >= right_gpu:
        return right_cpu, 1.0, right_stay
    left_cpu, left_gpu, left_stay = _line(p, f, stay, copies, 0.0)
    if left_gpu >= left_cpu:
        return left_gpu, 0.0, left_stay
    bound, weight = right_cpu, 1.0
    for _ in range(64):  # ten do; a limit, because rounding might repeat a line for ever
        crossing = (right_gpu - left_gpu) / ((right_gpu - left_gpu) + (left_cpu - right_cpu))
        on_cpu, compute, number = _line(p, f, stay, copies, crossing)
        found = crossing * on_cpu + (1 - crossing) * compute
        if found > bound:
            bound, weight = found, crossing
        if found >= (crossing * right_cpu + (1 - crossing) * right_gpu) * (1 - ROUNDING):
            break
        if on_cpu > compute:
            left_cpu, left_gpu, left_stay = on_cpu, compute, number
        else:
            right_cpu, right_gpu, right_stay = on_cpu, compute, number
    share = (right_gpu - right_cpu) / ((right_gpu - right_cpu) + (left_cpu - left_gpu))
    return bound, weight, share * left_stay + (1 - share) * right_stay


@kernel
def _last_copy(p: Instance, f: Found, copies: int) -> float:
    """Bound over all last copied units, with at least one copy; tries the heaviest units and the best last one."""
    on_cpu = p.saved[p.saved.size - 1] - p.saved[copies - 1]
    bound = np.inf
    last = 0
    for i in range(p.ready + copies - 1, p.cpu.size):
        least = max(copies * p.copy_time + p.gpu[i], on_cpu - p.cpu[i])
        if least < bound:
            bound = least
            last = i
    for i in range(p.cpu.size):
        f.trial[i] = i < p.ready + copies - 1 or i == last
    _keep(p, f)
    return bound


@kernel
def _lattice(p: Instance, f: Found, stake: Floats, gap: float) -> float:
    """Bound from workloads being whole numbers.

    Units with a stake of at least `gap` stay where the trial has them.  If both times of all others are linear in
    their workload, CPU and compute time depend only on how many of their tokens are on the GPU.  0 if they are not.
    """
    on_cpu, compute = _sides(p, f.trial)
    light = heavy = -1
    for i in range(p.cpu.size):
        if stake[i] < gap:
            if light < 0 or p.load[i] < p.load[light]:
                light = i
            if heavy < 0 or p.load[i] > p.load[heavy]:
                heavy = i
    if light < 0:
        return max(on_cpu, compute)
    span = max(p.load[heavy] - p.load[light], 1.0)
    cpu_slope = (p.cpu[heavy] - p.cpu[light]) / span
    gpu_slope = (p.gpu[heavy] - p.gpu[light]) / span
    for i in range(p.cpu.size):
        if stake[i] < gap:
            tokens = p.load[i] - p.load[light]
            off_cpu = abs(p.cpu[i] - p.cpu[light] - tokens * cpu_slope)
            off_gpu = abs(p.gpu[i] - p.gpu[light] - tokens * gpu_slope)
            if max(off_cpu, off_gpu) > ROUNDING * max(on_cpu, compute):
                return 0.0
    if cpu_slope == 0 and gpu_slope == 0:
        return max(on_cpu, compute)
    if cpu_slope < 0 or gpu_slope < 0:
        return 0.0
    # Tokens to move to the GPU until both sides are equal: round down, and up.
    down = np.floor((on_cpu - compute) / (cpu_slope + gpu_slope))
    rounded_down: float = max(on_cpu - down * cpu_slope, compute + down * gpu_slope)
    rounded_up: float = max(on_cpu - (down + 1) * cpu_slope, compute + (down + 1) * gpu_slope)
    return min(rounded_down, rounded_up)


# ---- search -------------------------------------------------------------------------------------------


@kernel
def _exchange(p: Instance, f: Found, stake: Floats, gap: float) -> None:
    """Balance both sides of the trial by exchanges, the best first, of units of one kind with stakes below `gap`."""
    on_cpu, compute = _sides(p, f.trial)
    while True:
        shortest = max(on_cpu, compute) * (1 - SLACK)
        leaves = enters = -1
        for i in range(p.cpu.size):
            if f.trial[i] and stake[i] < gap:
                low, high = (0, p.ready) if i < p.ready else (p.ready, p.cpu.size)
                for j in range(low, high):
                    longest = max(on_cpu + p.cpu[i] - p.cpu[j], compute - p.gpu[i] + p.gpu[j])
                    if longest < shortest and not f.trial[j] and stake[j] < gap:
                        shortest = longest
                        leaves, enters = i, j
        if leaves < 0:
            break
        f.trial[leaves], f.trial[enters] = False, True
        on_cpu += p.cpu[leaves] - p.cpu[enters]
        compute += p.gpu[enters] - p.gpu[leaves]
    _keep(p, f)


@kernel
def _search(
    p: Instance, f: Found, stay: int, copies: int, weight: float, ready_price: float, copy_price: float
) -> bool:
    """Best assignment of the given counts, if it is better than the incumbent; False if the states ran out.

    `weight` and the prices are the multipliers of `_relax` and `_cheapest`.

    States of stage i (the units before i are decided) that have k units of the kind of i (ready or absent) on the
    GPU stand from `first[i, k]` to `first[i, k + 1]`, CPU time ascending, GPU time descending.
    """
    n = p.cpu.size
    busy, free, origin = f.busy, f.free, f.origin
    limit = f.report[MAKESPAN] * (1 - SLACK)
    near = f.report[MAKESPAN] * SLACK / n
    # What the units from i on add to the relaxation at least, and the shortest GPU time of an absent one of them.
    rest = np.zeros(n + 1)
    shortest = np.full(n + 1, np.inf)
    for i in range(n - 1, -1, -1):
        price = ready_price if i < p.ready else copy_price
        shortest[i] = shortest[i + 1] if i < p.ready else min(shortest[i + 1], p.gpu[i])
        rest[i] = rest[i + 1] + min(weight * p.cpu[i], (1 - weight) * p.gpu[i] - price)

    first = np.zeros((n + 1, max(stay, copies) + 2), np.int32)
    first[0, 1:] = 1
    busy[0] = 0.0
    free[0] = 0.0
    count = 1
    for i in range(n):
        absent = i >= p.ready
        wanted, decided, kind = (copies, i + 1 - p.ready, n - p.ready) if absent else (stay, i + 1, p.ready)
        first[i + 1, :] = count
        for k in range(max(0, wanted - (kind - decided)), min(wanted, decided) + 1):
            owed = copy_price * (copies - k) if absent else ready_price * (stay - k) + copy_price * copies
            late = absent and k < copies and copies * p.copy_time + shortest[i + 1] >= limit
            # Merge: the unit on the CPU after states with k units, on the GPU after states with k - 1.
            to_cpu, cpu_end = first[i, k], first[i, k + 1]
            to_gpu, gpu_end = (first[i, k - 1], first[i, k]) if k > 0 else (0, 0)
            landed = k * p.copy_time if absent else 0.0
            lowest = np.inf
            while not late and (to_cpu < cpu_end or to_gpu < gpu_end):
                gpu_next = to_cpu == cpu_end
                if not gpu_next and to_gpu < gpu_end:
                    gpu_next = busy[to_gpu] < busy[to_cpu] + p.cpu[i]
                if gpu_next:
                    on_cpu, finish, source = busy[to_gpu], max(free[to_gpu], landed) + p.gpu[i], 2 * to_gpu + 1
                    to_gpu += 1
                else:
                    on_cpu, finish, source = busy[to_cpu] + p.cpu[i], free[to_cpu], 2 * to_cpu
                    to_cpu += 1
                if finish >= lowest - near or max(on_cpu, finish) >= limit:
                    continue
                if weight * on_cpu + (1 - weight) * finish + owed + rest[i + 1] >= limit:
                    continue
                if f.report[STATES] + count >= busy.size:
                    f.report[STATES] = busy.size
                    return False
                busy[count], free[count], origin[count] = on_cpu, finish, source
                lowest = finish
                count += 1
            first[i + 1, k + 1 :] = count
        if i + 1 == p.ready:  # all states have `stay` ready units on the GPU, and none has a copy
            first[p.ready, 0] = first[p.ready, stay]
            first[p.ready, 1:] = count
    f.report[STATES] += count

    state = -1
    for j in range(first[n, copies if p.ready < n else 0], count):
        if state < 0 or max(busy[j], free[j]) < max(busy[state], free[state]):
            state = j
    if state >= 0:
        for i in range(n - 1, -1, -1):
            f.trial[i] = origin[state] & 1
            state = origin[state] >> 1
        _keep(p, f)
    return True


@kernel
def _settle_counts(p: Instance, f: Found, stay: int, copies: int) -> bool:
    """Solve for one pair of counts; False if the relaxation reaches the incumbent.

    As the loop over `stay` leaves from the relaxation's lowest point, it then does so for all counts beyond.
    """
    relaxed, weight, _ = _relax(p, f, stay, copies)
    if relaxed >= f.report[MAKESPAN]:
        return False
    bound = max(relaxed, copies * p.copy_time)
    if bound >= f.report[MAKESPAN] * (1 - SLACK):
        return True
    ready_price, copy_price = _cheapest(p, f, stay, copies, weight)
    # A unit's stake: what the relaxation rises by if the unit changes sides.
    stake = (1 - weight) * p.gpu - weight * p.cpu
    stake[: p.ready] = np.abs(stake[: p.ready] - ready_price)
    stake[p.ready :] = np.abs(stake[p.ready :] - copy_price)
    for part in (0.02, 0.2, 1.0):  # first trade only units that the relaxation hardly cares about
        _cheapest(p, f, stay, copies, weight)
        _exchange(p, f, stake, part * (f.report[MAKESPAN] - relaxed))
        bound = max(bound, _lattice(p, f, stake, f.report[MAKESPAN] - relaxed))
        if bound >= f.report[MAKESPAN] * (1 - SLACK):
            return True
    if not _search(p, f, stay, copies, weight, ready_price, copy_price):
        f.report[BOUND] = min(f.report[BOUND], bound)
    return True


@kernel
def _settle(p: Instance, f: Found, copies: int) -> bool:
    """Solve for one number of copies.

    False if the relaxation, or the link alone, reaches the incumbent that was found for other numbers: being convex
    in the number, it then does so for all beyond this one.
    """
    before = f.report[MAKESPAN]
    relaxed, _, stay = _relax(p, f, ANY, copies)
    bound = max(relaxed, copies * p.copy_time)
    if bound >= before:
        return False
    if copies > 0:
        bound = max(bound, _last_copy(p, f, copies))
    if bound >= f.report[MAKESPAN] * (1 - SLACK):
        return True
    for number in range(int(stay), -1, -1):
        if not _settle_counts(p, f, number, copies):
            break
    for number in range(int(stay) + 1, p.ready + 1):
        if not _settle_counts(p, f, number, copies):
            break
    return True


@kernel
def _spare(p: Instance, f: Found) -> None:
    """Undo what the makespan has no need of: ready units on the CPU, and copies."""
    best, makespan = f.best, f.report[MAKESPAN]
    on_cpu, _ = _sides(p, best)
    changed = True
    while changed:
        changed = False
        for i in range(p.ready):
            if not best[i]:
                best[i] = True
                if _finish(p, best) <= makespan:
                    on_cpu -= p.cpu[i]
                    changed = True
                else:
                    best[i] = False
        for i in range(p.cpu.size - 1, p.ready - 1, -1):
            if best[i] and on_cpu + p.cpu[i] <= makespan:
                best[i] = False
                on_cpu += p.cpu[i]
                changed = True
    # Shorter, if the incumbent was not the optimum.
    f.report[MAKESPAN] = max(_sides(p, best)[0], _finish(p, best))


@kernel
def exact(
    active: Ints,
    workload: Ints,
    here: Bytes,
    cpu_time: Floats,
    gpu_time: Floats,
    copy_time: float,
    max_copies: int,
    busy: Floats,
    free: Floats,
    origin: Ints,
    on_gpu: Bools,
    report: Floats,
) -> bool:
    """The optimum as `Exact` defines it, written to `on_gpu` bool [U] and `report` (see `Found`, as are the others).

    False if a time is negative or not finite.
    """
    n = active.size
    order = active.astype(np.int32)
    keys = np.empty(n, np.float64)
    ready = 0
    for i in range(n):
        unit = active[i]
        keys[i] = workload[unit]
        if here[unit] != ABSENT:
            keys[i] += CACHED_FIRST
            ready += 1
    sort_descending(order, keys)
    cpu = cpu_time[order]
    gpu = gpu_time[order]
    valid = 0 <= copy_time < np.inf
    for i in range(n):
        valid &= 0 <= cpu[i] < np.inf and 0 <= gpu[i] < np.inf
    if not valid:
        return False
    saved = np.zeros(n - ready + 1)
    saved[1:] = np.cumsum(np.sort(cpu[ready:])[::-1])
    p = Instance(workload[order].astype(np.float64), cpu, gpu, saved, ready, copy_time)
    f = Found(np.empty(n, np.bool_), np.empty(n, np.bool_), report, busy, free, origin)
    report[BOUND] = np.inf
    report[STATES] = 0
    most = min(n - ready, max_copies)
    start = _start(p, f, most)
    _settle(p, f, start)
    for copies in range(start + 1, most + 1):
        if not _settle(p, f, copies):
            break
    for copies in range(start - 1, -1, -1):
        if not _settle(p, f, copies):
            break
    _spare(p, f)
    report[BOUND] = min(report[BOUND], report[MAKESPAN])
    for i in range(n):
        on_gpu[order[i]] = f.best[i]
    return True


class Exact(Assignment):
    """The assignment of least pipelined makespan (`policies.assign.objective`), to a relative 1e-9.

    max_copies  most absent units that go to the GPU, None = no limit
    states      most states that the search of one layer step may make.  Where they run out, the best assignment
                found is returned and the layer step counts as unproven

    A landing unit counts as resident.  Of equally good assignments it returns one in which no ready unit could be
    taken from the CPU, and then no copy left out, without a longer makespan; among those the choice is arbitrary,
    but always the same.  Overheads of a layer step, and copies that wait for a staging slot, are not looked at.

    Since `reset`: `solves`; `unproven`, those whose optimality is not proven; `largest_gap`, 1 - bound / makespan
    of the worst of these.  Of the last layer step: `makespan` and `bound` in seconds, and `visited` states.
    """

    def __init__(self, max_copies: int | None = None, states: int = 1 << 19) -> None:
        if max_copies is not None:
            require_count("Exact.max_copies", max_copies, least=0)
        self.max_copies = max_copies
        self.states = require_count("Exact.states", states)

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        super().reset(shape, capacity, rng)
        self.solves = self.unproven = self.visited = 0
        self.largest_gap = self.makespan = self.bound = 0.0
        self._busy: Floats = np.empty(self.states, np.float64)
        self._free: Floats = np.empty(self.states, np.float64)
        self._origin: Ints = np.empty(self.states, np.int32)
        self._report: Floats = np.zeros(REPORT, np.float64)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U].  InputError if a time is negative or not finite."""
        limit = NO_LIMIT if self.max_copies is None else self.max_copies
        valid = exact(
            view.active,
            view.workload,
            view.here,
            view.cpu_time,
            view.gpu_time,
            view.copy_time,
            limit,
            self._busy,
            self._free,
            self._origin,
            self._on_gpu,
            self._report,
        )
        if not valid:
            raise InputError("exact assignment: expected CPU, GPU and copy times that are finite and at least 0")
        self.makespan, self.bound, visited = self._report.tolist()
        self.visited = int(visited)
        self.solves += 1
        if self.bound < self.makespan * (1 - SLACK):
            self.unproven += 1
            self.largest_gap = max(self.largest_gap, 1 - self.bound / self.makespan)
        return self._on_gpu
