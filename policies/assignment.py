"""Which active units of a layer step run on the GPU.

In every rule, if not told otherwise, a landing unit counts as resident: its copy is paid for.  A mask is a
buffer of its policy, valid until the next `assign`; what it says of inactive units means nothing.
"""

from __future__ import annotations

import numpy as np

from policies.checks import require_choice, require_count
from policies.jit import kernel
from policies.types import Bools, Bytes, Capacity, Floats, Ints, LayerView, Shape, Status

ABSENT = int(Status.ABSENT)
LANDING = int(Status.LANDING)
RESIDENT = int(Status.RESIDENT)
NO_LIMIT = int(np.iinfo(np.int32).max)
# Added to a unit's workload it puts the unit before all without it; the sum is exact in float64.
CACHED_FIRST = float(2**40)


@kernel
def sort_descending(ids: Ints, keys: Floats) -> None:
    """Sort both arrays in place: larger key first, equal keys by lower id.  Keys must not be NaN.

    Each entry's place is the number of entries that go before it.  That is n * n comparisons, but without
    branches: up to some hundred units it takes half the time of a sort that jumps about.
    """
    unsorted_ids = ids.copy()
    unsorted_keys = keys.copy()
    for i in range(ids.size):
        key, unit = unsorted_keys[i], unsorted_ids[i]
        place = 0
        for j in range(ids.size):
            place += (unsorted_keys[j] > key) | ((unsorted_keys[j] == key) & (unsorted_ids[j] < unit))
        ids[place], keys[place] = unit, key


@kernel
def threshold(active: Ints, here: Bytes, cpu_time: Floats, gpu_time: Floats, copy_time: float, on_gpu: Bools) -> None:
    """Rule of `Threshold`, written to `on_gpu` bool [U]."""
    for unit in active:
        on_gpu[unit] = here[unit] != ABSENT or cpu_time[unit] >= copy_time + gpu_time[unit]


@kernel
def greedy(
    active: Ints,
    here: Bytes,
    cpu_time: Floats,
    gpu_time: Floats,
    copy_time: float,
    max_copies: int,
    paid_from: int,
    on_gpu: Bools,
) -> None:
    """Rule of `Greedy`, written to `on_gpu` bool [U]; a unit whose status is below `paid_from` is charged a copy."""
    order = np.empty(active.size, np.int32)
    stake = np.empty(active.size, np.float64)
    for i in range(active.size):
        unit = active[i]
        seconds = gpu_time[unit]
        if here[unit] < paid_from:
            seconds = max(copy_time, seconds)
        order[i] = unit
        stake[i] = abs(seconds - cpu_time[unit])
    sort_descending(order, stake)

    gpu_total = 0.0
    cpu_total = 0.0
    copies = 0
    for unit in order:
        absent = here[unit] == ABSENT
        seconds = max(copy_time, gpu_time[unit]) if here[unit] < paid_from else gpu_time[unit]
        to_gpu = gpu_total + seconds <= cpu_total + cpu_time[unit] and not (absent and copies >= max_copies)
        if to_gpu:
            gpu_total += seconds
            copies += absent
        else:
            cpu_total += cpu_time[unit]
        on_gpu[unit] = to_gpu


@kernel
def hybrid_order(active: Ints, workload: Ints, here: Bytes) -> tuple[Ints, int]:
    """HybriMoE's queue: cached units, then the others, heavier first in each; and the number cached."""
    order = active.astype(np.int32)
    keys = np.empty(active.size, np.float64)
    cached = 0
    for i in range(active.size):
        unit = active[i]
        keys[i] = workload[unit]
        if here[unit] != ABSENT:
            keys[i] += CACHED_FIRST
            cached += 1
    sort_descending(order, keys)
    return order, cached


@kernel
def hybrid_schedule(
    order: Ints, cached: int, cpu_time: Floats, gpu_time: Floats, copy_time: float
) -> tuple[int, float]:
    """HybriMoE's simulated schedule of one layer step, as `HybriMoE` defines it.

    Args:
        order: int32 [n], the queue; its first `cached` units need no copy.
        cached: number of units that need no copy.
        cpu_time: float64 [U], seconds.
        gpu_time: float64 [U], seconds.
        copy_time: seconds of one copy.

    Returns:
        How many units at the front of `order` the GPU takes, and the makespan in seconds.
    """
    gpu_free = 0.0
    cpu_free = 0.0
    link_free = 0.0
    front = 0
    back = order.size
    while front < back:
        needs_copy = front >= cached
        landed = link_free + copy_time if needs_copy else 0.0
        gpu_end = max(gpu_free, landed) + gpu_time[order[front]]
        cpu_end = cpu_free + cpu_time[order[back - 1]]
        if gpu_end <= cpu_end:
            gpu_free = gpu_end
            front += 1
            if needs_copy:
                link_free = landed
        else:
            cpu_free = cpu_end
            back -= 1
    return front, max(gpu_free, cpu_free)


@kernel
def hybrimoe(
    active: Ints,
    workload: Ints,
    here: Bytes,
    cpu_time: Floats,
    gpu_time: Floats,
    copy_time: float,
    on_gpu: Bools,
) -> None:
    """Rule of `HybriMoE`, written to `on_gpu` bool [U]."""
    order, cached = hybrid_order(active, workload, here)
    split, _ = hybrid_schedule(order, cached, cpu_time, gpu_time, copy_time)
    for i in range(order.size):
        on_gpu[order[i]] = i < split


class _Assignment:
    """Keeps the mask that `assign` fills."""

    overlap: bool = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._on_gpu: Bools = np.zeros(shape.units, np.bool_)


class AllCPU(_Assignment):
    """Every unit runs on the CPU: the base line of DALI's ablation."""

    def assign(self, view: LayerView) -> Bools:
        """Bool [U], all False."""
        return self._on_gpu


class AllGPU(_Assignment):
    """Every unit runs on the GPU, absent ones once copied: offloading on demand, as in mixtral-offloading."""

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._on_gpu = np.ones(shape.units, np.bool_)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U], all True."""
        return self._on_gpu


class LayerSplit(_Assignment):
    """What is resident runs on the GPU; what is absent waits for a large batch (llama.cpp, `-ncmoe`).

    An absent unit runs on the CPU while the step has fewer than `copy_from` tokens, else it is copied
    and runs on the GPU; llama.cpp does so from 32 tokens.  `copy_from` None = never copied: KTransformers
    with some experts on the GPU.  llama.cpp keeps whole layers resident, which is for the cache policy.
    """

    def __init__(self, copy_from: int | None = 32) -> None:
        if copy_from is not None:
            require_count("LayerSplit.copy_from", copy_from, least=1)
        self.copy_from = copy_from

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        if self.copy_from is not None and view.tokens >= self.copy_from:
            self._on_gpu.fill(True)
        else:
            np.not_equal(view.here, ABSENT, out=self._on_gpu)
        return self._on_gpu


class Threshold(_Assignment):
    """Each absent unit goes where it alone would be done first (Fiddler, arXiv 2402.07033).

    A resident unit runs on the GPU.  An absent one runs on the CPU if cpu_time < copy_time + gpu_time,
    else on the GPU.  No unit looks at another, and the two devices take turns: the GPU units, then the
    CPU units (so its published code).
    """

    overlap = False

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        threshold(view.active, view.here, view.cpu_time, view.gpu_time, view.copy_time, self._on_gpu)
        return self._on_gpu


class HybriMoE(_Assignment):
    """The simulated schedule of HybriMoE (arXiv 2504.05897, hybrid scheduling).

    The paper gives each machine a priority: the GPU takes cached units, heavy before light; the CPU
    takes uncached units, light before heavy, and light cached ones once those are gone; the link moves
    uncached units, heavy before light, and the GPU may take such a unit once its copy ends.  It
    simulates the three timelines; whichever finishes its next task first acts next, until no unit is left.

    So all units stand in one queue, cached before uncached, heavier first in each: the GPU takes from the
    front, the CPU from the back.  The paper leaves open when a copy is put on the link and who wins a
    draw; as the authors' code (`HSS` in `ktransformers/operators/experts.py`) decides:

    - a copy is part of the GPU's next task once all cached units are taken.  It starts when the link is
      free, from time 0 on, and the task ends at max(GPU free, copy ended) + gpu_time.  No copy is made
      for a unit that the CPU then computes;
    - the GPU acts if its task ends no later than the CPU's;
    - of equal workloads the lower unit id is nearer to the front, and weight is the workload.

    Unlike that code, times are the cost model's instead of constants, and prefill is scheduled as well.
    """

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        hybrimoe(view.active, view.workload, view.here, view.cpu_time, view.gpu_time, view.copy_time, self._on_gpu)
        return self._on_gpu


class Greedy(_Assignment):
    """DALI's greedy assignment (arXiv 2602.03495, algorithm 1).

    t_gpu = max(copy_time, gpu_time) for an absent unit, gpu_time for a resident one; t_cpu = cpu_time.
    Active units are taken by |t_gpu - t_cpu| descending, equal ones by lower id.  A unit goes to the GPU
    if T_gpu + t_gpu <= T_cpu + t_cpu, else to the CPU, and its time is added to that side's total.

    `max_copies` bounds the absent units that go to the GPU; later ones run on the CPU.  It stands for the
    memory constraint of the paper's problem statement, which its listing does not enforce; None = as listed.
    `landing` says what a copy under way costs, which the paper leaves open: nothing more ("free", as in every
    other rule here) or a whole copy ("copy").
    """

    def __init__(self, max_copies: int | None = None, landing: str = "free") -> None:
        if max_copies is not None:
            require_count("Greedy.max_copies", max_copies, least=0)
        self.max_copies = max_copies
        self.landing = require_choice("Greedy.landing", landing, ("free", "copy"))

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        limit = NO_LIMIT if self.max_copies is None else self.max_copies
        paid_from = LANDING if self.landing == "free" else RESIDENT
        greedy(view.active, view.here, view.cpu_time, view.gpu_time, view.copy_time, limit, paid_from, self._on_gpu)
        return self._on_gpu
