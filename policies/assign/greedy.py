"""DALI's greedy assignment (arXiv 2602.03495, Algorithm 1)."""

from __future__ import annotations

import numpy as np

from dali.policies.assign.base import ABSENT, LANDING, RESIDENT, Assignment, sort_descending
from dali.policies.core.jit import kernel
from dali.policies.require import require_choice, require_count
from dali.policies.types import Bools, Bytes, Floats, Ints
from dali.policies.view import LayerView

NO_LIMIT = int(np.iinfo(np.int32).max)


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


class Greedy(Assignment):
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
