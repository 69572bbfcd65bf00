"""The Lagrangian relaxation behind `sim.bounds`: its value and slope at given prices.

Layer steps are numbered i = step * L + layer, N in all.  A *kind* is a distinct workload w > 0 within a
layer step: its units are alike there.  All kinds of all layer steps are one list of R rows.  What the
value means, and why it is a bound: `sim.bounds`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.jit import kernel
from dali.policies.costs.model import CostModel
from dali.policies.types import Floats, InputError
from dali.traces.step import Step

MOST_SPLITS = 512  # a layer step with at most this many ways to split its units, by kind, is solved in whole units
Counts = NDArray[np.int64]
Kinds = NDArray[np.uint16]


class Prices(NamedTuple):
    """What a second of each machine, and a slot, is worth at each layer step.  Also holds derivatives by them.

    cpu, gpu, link  float64 [N], at least 0, summing to 1 at every layer step
    slot            float64 [N], seconds for owning a slot as the layer step starts, at least 0
    exempt          seconds for a CPU job during which a copy starts, at least 0
    """

    cpu: Floats
    gpu: Floats
    link: Floats
    slot: Floats
    exempt: float


class Relaxation:
    """Steps that follow each other, on a machine with `slots` GPU slots.

    contention  False leaves out that copies slow the CPU down: a weaker bound
    copy        float64 [L], least seconds a copy takes
    most_saved  the most seconds that any CPU job here gains by not starting beside a copy
    """

    def __init__(self, steps: list[Step], slots: int, cost: CostModel, contention: bool = True) -> None:
        work = np.stack([step.workload for step in steps])
        self.n_steps, self.layers, units = work.shape
        self.size = self.n_steps * self.layers
        self.slots = slots
        if int(work.max()) > cost.max_tokens:
            raise InputError(f"cost model: covers workloads up to {cost.max_tokens} tokens, found {int(work.max())}")
        if cost.copy.size != self.layers:
            raise InputError(f"cost model: found copy times of {cost.copy.size} layers, expected {self.layers}")
        self._take_serial(steps, cost)

        work = work.reshape(self.size, units)
        self.first, self.workload, self.count, self.kind = _kinds(work)
        self.row = np.repeat(np.arange(self.size), np.diff(self.first))
        self.whole = self._sum(np.log1p(self.count)) <= np.log(MOST_SPLITS)

        self.copy = np.minimum(cost.copy, cost.copy_contended)
        self.gap = cost.overheads.issue_gap
        idle = np.minimum(cost.cpu, cost.cpu_contended)
        beside = np.maximum(idle, cost.cpu_contended) if contention else idle
        self.idle, self.beside, self.gpu = idle[self.workload], beside[self.workload], cost.gpu[self.workload]
        self.saving = self.beside - self.idle
        self.most_saved = float(self.saving.max(initial=0.0))
        self.alone = np.maximum(self.idle - self.gap, 0.0)  # for how long a job that is alone keeps the link idle
        self._take_crossing(work, steps, cost)

    def _take_serial(self, steps: list[Step], cost: CostModel) -> None:
        """Time that no MoE layer's units take.  What lies outside the layers counts with the layer step after it."""
        about = [(step.tokens, step.sequences, step.context) for step in steps]
        waiting = cost.overheads.readback + cost.overheads.planning
        inside = np.array([cost.dense(*each) for each in about]) + waiting
        outside = np.array([cost.per_step(*each) for each in about])
        serial = np.repeat(inside[:, None], self.layers, axis=1)
        serial[1:, 0] += outside[:-1]
        self.serial = serial.ravel()
        self.last = float(outside[-1])  # after the last layer step
        self.serial_by_step = inside * self.layers + outside

    def _take_crossing(self, work: NDArray[np.int32], steps: list[Step], cost: CostModel) -> None:
        """What moving activations and merging cost: in full where units are whole, else shared out over the units.

        min(tokens, sum of w) is concave in the set of units: it lies above its chord from none to all.
        """
        over = cost.overheads
        self.tokens = np.repeat(np.array([step.tokens for step in steps], np.int64), self.layers)
        self.per_token = 2 * over.transfer_per_token
        self.any_cpu, self.merge = 2 * over.transfer_latency, over.merge
        chord = self.per_token * np.minimum(1.0, self.tokens / np.maximum(work.sum(axis=1), 1))
        share = np.where(self.whole, 0.0, 1.0 / np.maximum(np.count_nonzero(work, axis=1), 1))[self.row]
        self.extra = chord[self.row] * self.workload + self.any_cpu * share
        self.merging = self.merge * share  # after both sides: at the price of CPU and GPU together

    def _sum(self, values: Floats) -> Floats:
        """float64 [N], sum over the kinds of each layer step."""
        sums: Floats = np.asarray(np.bincount(self.row, values, self.size), np.float64)
        return sums

    def value(self, prices: Prices) -> tuple[float, Prices]:
        """A lower bound on the seconds of all steps together, and its derivative by each price."""
        cpu, gpu, link = prices.cpu[self.row], prices.gpu[self.row], prices.link[self.row]
        # A CPU unit starts beside a copy, or alone (then the link is idle throughout), or a copy starts during it.
        by_link = link * self.alone
        apart = np.minimum(by_link, prices.exempt)
        slowed = cpu * self.beside <= cpu * self.idle + apart
        on_cpu = np.where(slowed, cpu * self.beside, cpu * self.idle + apart) + cpu * self.extra
        on_cpu += (cpu + gpu) * self.merging
        worth = np.maximum(on_cpu - gpu * self.gpu, 0.0)  # of having a unit on the GPU

        split = self._split(on_cpu * self.count, worth, prices.link, apart, self.beside)
        stay = self._stay(prices, worth)
        gap_price = self.gap * float(prices.link.min())
        total = float(((prices.cpu + prices.gpu) * self.serial + split.seconds - self.slots * prices.slot).sum())
        total += stay.seconds - prices.exempt - gap_price
        # A CPU job is exempt by a copy that starts: at most one each `between` seconds, and one more.
        between = float(self.copy.min()) + self.gap
        stretch = 1.0 + prices.exempt / between

        whole = self.whole[self.row]
        moved = np.where(worth > 0, np.where(whole, split.on_gpu, 0.0) - stay.used, 0.0)
        jobs = moved + np.where(whole, 0.0, self.count)  # how many times `on_cpu` is in the total
        alone = np.where(slowed, 0.0, jobs)
        sped = np.flatnonzero(split.saved)
        alone[split.saver[sped]] += split.saved[sped] / self.saving[split.saver[sped]]
        cheap = by_link < prices.exempt
        seconds = np.where(slowed, self.beside, self.idle) + self.extra + self.merging
        both = self.serial + split.longest
        return total / stretch + self.last, Prices(
            cpu=(both + self._sum(jobs * seconds)) / stretch,
            gpu=(both + self._sum(jobs * self.merging) - self._sum(moved * self.gpu)) / stretch,
            link=(stay.copying + self._sum(np.where(cheap, alone * self.alone, 0.0))) / stretch,
            slot=(stay.owned - self.slots) / stretch,
            exempt=(float(alone[~cheap].sum()) - 1.0) / stretch - total / stretch**2 / between,
        )

    def floor(self) -> tuple[Floats, Floats]:
        """With every unit always resident: seconds of each step [n_steps], and the CPU's price [N].

        The first bounds each step by itself.  The second is the dual solution of splitting units in fractions.
        """
        low, high = np.zeros(self.size), np.ones(self.size)
        on_cpu = self.idle + self.extra
        for _ in range(50):
            price = (low + high) / 2
            to_cpu = price[self.row] * on_cpu + self.merging < (1 - price[self.row]) * self.gpu
            rises = self._sum(self.count * np.where(to_cpu, on_cpu, -self.gpu)) > 0
            low, high = np.where(rises, price, low), np.where(rises, high, price)
        side = np.minimum(low[self.row] * on_cpu + self.merging, (1 - low[self.row]) * self.gpu)
        fractions = self.count * side
        nothing = np.zeros(self.row.size)
        moe = self._split(fractions, nothing, np.zeros(self.size), nothing, self.idle).seconds
        return moe.reshape(self.n_steps, self.layers).sum(axis=1) + self.serial_by_step, low

    def _split(self, shared: Floats, worth: Floats, link: Floats, apart: Floats, beside: Floats) -> _Split:
        """The MoE part of every layer step: in whole units, or else the sum of `shared` [R]."""
        rate, saver = np.full(self.size, np.inf), np.zeros(self.size, np.int64)
        gains = np.flatnonzero(beside > self.idle)
        by_row = apart[gains] / (beside - self.idle)[gains]
        for_last = np.argsort(-by_row, kind="stable")  # what is written last stays: the lowest
        rate[self.row[gains[for_last]]] = by_row[for_last]
        saver[self.row[gains[for_last]]] = gains[for_last]
        found = _Split(self._sum(shared), np.zeros(self.row.size), np.zeros(self.size), np.zeros(self.size), saver)
        tables = (self.first, self.count, self.workload, self.idle, beside, self.gpu, worth)
        crossing = (self.tokens, self.per_token, self.any_cpu, self.merge)
        _whole_units(self.whole, *tables, *crossing, link, rate, *found[:4])
        return found

    def _stay(self, prices: Prices, worth: Floats) -> _Stay:
        """Every unit's best residency by itself."""
        since = np.concatenate([[0.0], np.cumsum(prices.slot)])
        arrive, start = np.empty(self.size), np.empty(self.size, np.int64)
        gap_price = self.gap * float(prices.link.min())
        _cheapest_copies(prices.link, since, self.copy, gap_price, arrive, start)
        used, copying, owned = np.zeros(self.row.size), np.zeros(self.size), np.zeros(self.size + 1)
        kind = self.kind.reshape(self.n_steps, self.layers, -1)
        seconds = _residency(kind, self.first, worth, since, arrive, start, self.copy, used, copying, owned)
        return _Stay(float(seconds), used, copying, np.cumsum(owned)[:-1])


class _Split(NamedTuple):
    """seconds [N]; on_gpu [R], units run there; longest [N], the MoE time; saved [N] on the CPU by jobs `saver` [N]."""

    seconds: Floats
    on_gpu: Floats
    longest: Floats
    saved: Floats
    saver: Counts


class _Stay(NamedTuple):
    """seconds; used [R], units found on the GPU; copying [N], seconds of the link; owned [N], slots."""

    seconds: float
    used: Floats
    copying: Floats
    owned: Floats


@kernel
def _kinds(work: NDArray[np.int32]) -> tuple[Counts, Counts, Counts, Kinds]:
    """Rows `first[i]` to `first[i + 1]` are layer step i's: workload, units; and each unit's number there, from 1."""
    size, units = work.shape
    first = np.zeros(size + 1, np.int64)
    kind = np.zeros((size, units), np.uint16)
    number = np.zeros(work.max() + 1, np.int64)
    for i in range(size):
        number[:] = 0
        for unit in range(units):
            number[work[i, unit]] = 1
        number[0] = 0
        first[i + 1] = first[i] + number.sum()
    workload = np.zeros(first[size], np.int64)
    count = np.zeros(first[size], np.int64)
    for i in range(size):
        number[:] = 0
        for unit in range(units):
            number[work[i, unit]] += 1
        n = 0
        for w in range(1, number.size):
            if number[w] > 0:
                workload[first[i] + n] = w
                count[first[i] + n] = number[w]
                n += 1
                number[w] = n
        number[0] = 0
        for unit in range(units):
            kind[i, unit] = number[work[i, unit]]
    return first, workload, count, kind


@kernel
def _whole_units(
    whole: NDArray[np.bool_],
    first: Counts,
    count: Counts,
    workload: Counts,
    idle: Floats,
    beside: Floats,
    gpu: Floats,
    worth: Floats,
    tokens: Counts,
    per_token: float,
    any_cpu: float,
    merge: float,
    link: Floats,
    rate: Floats,
    seconds: Floats,
    on_gpu: Floats,
    longest: Floats,
    saved: Floats,
) -> None:
    """Every split of a layer step's units by kind: (1 - link) x the longer side + what is paid; keep the least.

    The CPU's side may be shortened, at `rate` for a second, by as much as its jobs gain.  The longer side includes the
    merge that follows it.
    """
    split = np.zeros(64, np.int64)  # 2 to the 64 is more than MOST_SPLITS
    for i in range(whole.size):
        if not whole[i]:
            continue
        begin = first[i]
        kinds = first[i + 1] - begin
        split[:kinds] = 0
        gpu_side = paid = cpu_jobs = gain = 0.0
        moved = left = 0
        for t in range(begin, begin + kinds):
            cpu_jobs += count[t] * beside[t]
            gain += count[t] * (beside[t] - idle[t])
            moved += count[t] * workload[t]
            left += count[t]
        least = np.inf
        while True:
            cpu_side = 0.0 if left == 0 else any_cpu + per_token * min(moved, tokens[i]) + cpu_jobs
            saving = 0.0
            bought = 0.0
            if left > 0 and rate[i] < 1.0 - link[i] and cpu_side > gpu_side:
                saving = min(cpu_side - gpu_side, gain)
                bought = rate[i] * saving
            longer = max(gpu_side, cpu_side - saving) + (merge if left > 0 else 0.0)
            found = (1.0 - link[i]) * longer + bought + paid
            if found < least:
                least = found
                longest[i] = longer
                saved[i] = saving
                for t in range(kinds):
                    on_gpu[begin + t] = split[t]
            # The next split: one unit more of the first kind that has one left, none of the kinds before it.
            t = 0
            while t < kinds:
                row = begin + t
                n = 1 if split[t] < count[row] else -split[t]
                split[t] += n
                left -= n
                gpu_side += n * gpu[row]
                cpu_jobs -= n * beside[row]
                gain -= n * (beside[row] - idle[row])
                moved -= n * workload[row]
                paid += n * worth[row]
                if n > 0:
                    break
                t += 1
            if t == kinds:
                break
        seconds[i] = least


@kernel
def _cheapest_copies(
    link: Floats, since: Floats, copy: Floats, gap_price: float, arrive: Floats, start: Counts
) -> None:
    """For each layer step: least price of a unit that was absent a step ago and is there now, and when it is copied.

    A copy in layer step j pays for the link then, and for a slot at the start of each later one.
    """
    layers = copy.size
    for i in range(link.size):
        arrive[i] = np.inf
        for j in range(i, max(i - layers, 0) - 1, -1):
            price = copy[i % layers] * link[j] + since[i + 1] - since[j + 1]
            if price < arrive[i]:
                arrive[i] = price
                start[i] = j
        arrive[i] += gap_price


@kernel
def _residency(
    kind: NDArray[np.uint16],
    first: Counts,
    worth: Floats,
    since: Floats,
    arrive: Floats,
    start: Counts,
    copy: Floats,
    used: Floats,
    copying: Floats,
    owned: Floats,
) -> float:
    """Shortest paths between absent and present over the steps, one a unit; adds up what they use.

    owned  float64 [N + 1], differences: its running sum is the slots owned
    """
    steps, layers, units = kind.shape
    total = 0.0
    choice = np.empty((steps, units), np.uint8)
    absent = np.empty(units)
    present = np.empty(units)
    here = np.empty(units, np.bool_)
    gain = np.zeros(units + 1)
    for layer in range(layers):
        absent[:] = 0.0
        present[:] = 0.0
        for step in range(steps):
            i = step * layers + layer
            hold = since[i + 1] - (since[i + 1 - layers] if step > 0 else 0.0)
            for t in range(first[i + 1] - first[i]):
                gain[t + 1] = worth[first[i] + t]
            for unit in range(units):
                copied = absent[unit] + arrive[i]
                held = present[unit] + hold
                there = min(copied, held) - gain[kind[step, layer, unit]]
                choice[step, unit] = (copied < held) + 2 * (there < absent[unit])
                present[unit] = there
                absent[unit] = min(there, absent[unit])
        for unit in range(units):
            total += absent[unit]
        here[:] = False
        for step in range(steps - 1, -1, -1):
            i = step * layers + layer
            copies = 0
            kept = 0
            for unit in range(units):
                if not here[unit] and choice[step, unit] < 2:
                    continue
                if kind[step, layer, unit] > 0:
                    used[first[i] + kind[step, layer, unit] - 1] += 1
                here[unit] = choice[step, unit] % 2 == 0
                copies += not here[unit]
                kept += here[unit]
            copying[start[i]] += copies * copy[layer]
            owned[start[i] + 1] += copies
            owned[max(i - layers + 1, 0)] += kept
            owned[i + 1] -= copies + kept
    return total
