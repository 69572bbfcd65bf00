"""The one objective that heuristics, exact solvers and tests share: the makespan of a layer step."""

from __future__ import annotations

import numpy as np

from dali.policies.core.jit import kernel
from dali.policies.types import Bools, Floats, Ints, Status
from dali.policies.view import LayerView


@kernel
def _gpu_finish(order: Ints, gpu_time: Floats, copy_time: float, first_copy: int) -> float:
    """Finish of GPU jobs run in `order`, those from `first_copy` on each after its own copy in sequence."""
    free = 0.0
    landed = 0.0
    for i in range(order.size):
        if i >= first_copy:
            landed += copy_time
            free = max(free, landed)
        free += gpu_time[order[i]]
    return free


def gpu_order(view: LayerView, on_gpu: Bools) -> tuple[Ints, int]:
    """Units of a GPU set in the planner's execution order, and how many of them need no new copy."""
    here = view.here
    units = np.flatnonzero(on_gpu & (view.workload > 0))
    ready = here[units].astype(np.int64)  # 2 resident, 1 landing, 0 to copy
    order = units[np.lexsort((units, -view.workload[units].astype(np.int64), -ready))].astype(np.int32)
    return order, int(np.count_nonzero(ready > 0))


def makespan(view: LayerView, on_gpu: Bools) -> float:
    """Pipelined makespan of one layer step: the larger of CPU time and GPU time, in seconds.

    CPU units run one after the other.  On the GPU, units without a copy run first; copies follow each
    other on the link from time 0 and each overlaps the compute of earlier units.  Landing units count
    as resident (how much of their copy is left is the driver's knowledge, not the planner's).
    """
    order, first_copy = gpu_order(view, on_gpu)
    gpu = float(_gpu_finish(order, view.gpu_time, view.copy_time, first_copy))
    cpu = float(view.cpu_time[(view.workload > 0) & ~on_gpu].sum())
    return max(gpu, cpu)


def paper_makespan(view: LayerView, on_gpu: Bools) -> float:
    """DALI's objective (arXiv 2602.03495): T_gpu sums max(copy, compute) over the units, T_cpu the CPU times."""
    copied = view.here == Status.ABSENT
    gpu_time = np.where(copied, np.maximum(view.copy_time, view.gpu_time), view.gpu_time)
    active = view.workload > 0
    return max(float(gpu_time[active & on_gpu].sum()), float(view.cpu_time[active & ~on_gpu].sum()))
