"""A cut through the sorted units: nearly the smallest pipelined makespan, at the cost of a sort.

*Ready* units are resident or landing, the others are absent; each kind is sorted by workload, heavier first.
A *cut* (kept, fetched) runs on the GPU the first `kept` ready units and the first `fetched` absent ones, all
others on the CPU.  The GPU gains most on heavy units, as it reads weights faster and computes faster still,
and a copy of a heavy unit takes no longer than one of a light unit: but for rounding to whole units, the
best assignment is a cut.
"""

from __future__ import annotations

import numpy as np

from dali.policies.assign.base import ABSENT, LANDING, Assignment
from dali.policies.core.jit import kernel
from dali.policies.require import require_count
from dali.policies.types import Bools, Bytes, Floats, InputError, Ints
from dali.policies.view import LayerView

MOST_CORE = 16

# A unit's place in one integer that sorts ascending: ready before absent, heavier first, lower id first.
ID_BITS = 20
ABSENT_LAST = 1 << 52


@kernel
def sorted_units(active: Ints, workload: Ints, here: Bytes) -> tuple[Ints, int]:
    """Active units, ready before absent, heavier first within each, equal ones by lower id; the number ready."""
    n = active.size
    keys = np.empty(n, np.int64)
    order = np.empty(n, np.int32)
    ready = 0
    for i in range(n):
        unit = active[i]
        absent = here[unit] == ABSENT
        ready += not absent
        keys[i] = absent * ABSENT_LAST - (np.int64(workload[unit]) << ID_BITS) + unit
    # The place of each key is the number of smaller ones: comparisons without a branch run as vectors.
    for i in range(n):
        key = keys[i]
        place = 0
        for j in range(n):
            place += keys[j] < key
        order[place] = active[i]
    return order, ready


@kernel
def best_cut(
    order: Ints, ready: int, cpu_time: Floats, gpu_time: Floats, copy_time: float, delay: float
) -> tuple[int, int, float]:
    """The cut of smallest makespan among all (ready + 1) * (absent + 1): kept, fetched, makespan in seconds.

    With every unit fetched the CPU's time falls and the GPU's rises, so the best number of ready units to give
    back to the CPU never falls: one sweep over both numbers meets the best cut.  The first copy starts at `delay`.
    """
    cpu = 0.0
    ready_gpu = 0.0
    for unit in order[:ready]:
        ready_gpu += gpu_time[unit]
    for unit in order[ready:]:
        cpu += cpu_time[unit]
    fetched_gpu = 0.0
    link_gpu = 0.0  # when the GPU would be done if it had no ready unit
    kept = ready
    best_kept, best_fetched, best = 0, 0, np.inf
    for fetched in range(order.size - ready + 1):
        if fetched > 0:
            unit = order[ready + fetched - 1]
            cpu -= cpu_time[unit]
            fetched_gpu += gpu_time[unit]
            link_gpu = max(link_gpu, delay + fetched * copy_time) + gpu_time[unit]
        if link_gpu >= best:
            break
        while True:
            makespan = max(cpu, ready_gpu + fetched_gpu, link_gpu)
            if makespan < best:
                best_kept, best_fetched, best = kept, fetched, makespan
            if kept == 0 or cpu + cpu_time[order[kept - 1]] > makespan:
                break
            kept -= 1
            cpu += cpu_time[order[kept]]
            ready_gpu -= gpu_time[order[kept]]
    return best_kept, best_fetched, best


@kernel
def _sets(
    units: Ints, first: int, size: int, cpu_time: Floats, gpu_time: Floats, copy_time: float, delay: float
) -> tuple[Floats, Floats, Floats]:
    """Every way to divide `size` of the `units`, those before them on the GPU and those after them on the CPU.

    Args:
        units: int32 [n], heavier first.
        first, size: the units divided are units[first : first + size].
        cpu_time, gpu_time: float64 [U], seconds.
        copy_time, delay: seconds of one copy and before the first; both 0 for ready units.

    Returns:
        float64 [2^size] each, seconds: CPU time, GPU time, and when the GPU would be done if it had no other
        units, copies included.  Unit first + i runs on the GPU where bit i of the position is set.
    """
    cpu, gpu, link = np.zeros(1 << size), np.zeros(1 << size), np.zeros(1 << size)
    for i in range(first):
        gpu[0] += gpu_time[units[i]]
        link[0] = max(link[0], delay + (i + 1) * copy_time) + gpu_time[units[i]]
    for i in range(first + size, units.size):
        cpu[0] += cpu_time[units[i]]
    copies = np.full(1 << size, first)
    for i in range(size):
        unit = units[first + i]
        for without in range(1 << i):
            chosen = without + (1 << i)
            copies[chosen] = copies[without] + 1
            cpu[chosen] = cpu[without]
            cpu[without] += cpu_time[unit]
            gpu[chosen] = gpu[without] + gpu_time[unit]
            link[chosen] = max(link[without], delay + copies[chosen] * copy_time) + gpu_time[unit]
    return cpu, gpu, link


@kernel
def _window(units: int, cut: int, size: int) -> int:
    """First of the `size` units around a cut, as evenly on both sides of it as the ends allow."""
    return max(0, min(cut - size // 2, units - size))


@kernel
def _write(units: Ints, first: int, size: int, chosen: int, on_gpu: Bools) -> None:
    """Units before `first` to the GPU, of the next `size` those whose bit is set in `chosen`, no others."""
    for i in range(units.size):
        on_gpu[units[i]] = i < first or (i < first + size and (chosen >> (i - first)) & 1 == 1)


@kernel
def frontier(
    active: Ints,
    workload: Ints,
    here: Bytes,
    cpu_time: Floats,
    gpu_time: Floats,
    copy_time: float,
    delay: float,
    core: int,
    on_gpu: Bools,
) -> float:
    """Rule of `Frontier`, written to `on_gpu` bool [U]; returns the makespan in seconds.

    The first copy starts at `delay` seconds.
    """
    order, n_ready = sorted_units(active, workload, here)
    ready, absent = order[:n_ready], order[n_ready:]
    kept, fetched, best = best_cut(order, n_ready, cpu_time, gpu_time, copy_time, delay)
    if core == 0:
        _write(ready, kept, 0, 0, on_gpu)
        _write(absent, fetched, 0, 0, on_gpu)
        return best

    of_ready = min(ready.size, max(core // 2, core - absent.size))
    of_absent = min(absent.size, core - of_ready)
    first_ready = _window(ready.size, kept, of_ready)
    first_absent = _window(absent.size, fetched, of_absent)
    ready_cpu, ready_gpu, _ = _sets(ready, first_ready, of_ready, cpu_time, gpu_time, 0.0, 0.0)
    absent_cpu, absent_gpu, link = _sets(absent, first_absent, of_absent, cpu_time, gpu_time, copy_time, delay)
    best_ready, best_absent, best = 0, 0, np.inf
    for a in range(absent_cpu.size):
        for r in range(ready_cpu.size):
            makespan = max(ready_cpu[r] + absent_cpu[a], ready_gpu[r] + absent_gpu[a], link[a])
            if makespan < best:
                best_ready, best_absent, best = r, a, makespan
    _write(ready, first_ready, of_ready, best_ready, on_gpu)
    _write(absent, first_absent, of_absent, best_absent, on_gpu)
    return best


@kernel
def copies_under_way(status: Bytes) -> int:
    """Units that are landing, of int8 [L, U]."""
    landing = 0
    for value in status.ravel():
        landing += value == LANDING
    return landing


class Frontier(Assignment):
    """The best cut, and every division of the `core` units around it.

    A cut is a number of ready units kept on the GPU and a number of absent ones fetched, heavier first (module
    `policies.assign.frontier`).  The best cut is the best of all of them under `makespan`, so it is never
    worse than all units on one device, than the ready units alone on the GPU, or than HybriMoE's schedule, each
    of which is a cut.  Where units are few, a cut leaves much between the two devices; so the units around it
    are divided in every way.  With at most `core` active units the result is the optimum.

    core       units divided in every way, at most 16 (2^core sums); 0 = the cut alone
    in_flight  share of a copy that is expected to be left of one under way at `begin`, for whichever layer: demand
               copies wait for it.  With c copies under way they wait for c - 1 + in_flight of them; 0 = for
               none, as `makespan` has it.  What is said above then holds of the makespan with that wait
    """

    def __init__(self, core: int = 8, in_flight: float = 0.0) -> None:
        self.core = require_count("Frontier.core", core, least=0)
        if core > MOST_CORE:
            raise InputError(f"Frontier.core: found {core}, expected at most {MOST_CORE}")
        if not 0 <= in_flight <= 1:
            raise InputError(f"Frontier.in_flight: found {in_flight}, expected a share from 0 to 1")
        self.in_flight = float(in_flight)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        frontier(
            view.active,
            view.workload,
            view.here,
            view.cpu_time,
            view.gpu_time,
            view.copy_time,
            self._delay(view),
            self.core,
            self._on_gpu,
        )
        return self._on_gpu

    def _delay(self, view: LayerView) -> float:
        """Seconds until the link is expected to take this layer step's first copy."""
        if self.in_flight == 0:
            return 0.0
        copies = copies_under_way(view.status)
        return (copies - 1 + self.in_flight) * view.copy_time if copies else 0.0
