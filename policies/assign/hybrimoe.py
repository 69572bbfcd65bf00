"""HybriMoE's schedule (arXiv 2504.05897): three timelines, the earliest to finish acts next."""

from __future__ import annotations

import numpy as np

from dali.policies.assign.base import ABSENT, Assignment, sort_descending
from dali.policies.core.jit import kernel
from dali.policies.types import Bools, Bytes, Floats, Ints
from dali.policies.view import LayerView

# Added to a unit's workload it puts the unit before all without it; the sum is exact in float64.
CACHED_FIRST = float(2**40)


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


class HybriMoE(Assignment):
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
