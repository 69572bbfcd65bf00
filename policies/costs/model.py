"""What jobs cost, and the one objective that heuristics, exact solvers and tests share.

All times are seconds.  Heuristics read a cost model as what they *believe*; the simulator reads one as
what it *charges*; by default the two are the same object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dali.policies.types import Floats, InputError


@dataclass(frozen=True)
class Overheads:
    """Fixed costs of a layer step, seconds.

    readback            router ids and predicted workloads to the host, once a layer step
    planning            the planner itself, once a layer step
    issue_gap           link idle between two copies issued one after the other
    transfer_latency    activations one way between GPU and CPU, per transfer (two if any CPU unit runs)
    transfer_per_token  the same, per token that some CPU unit needs
    merge               adding the CPU's result to the GPU's, once both are there and if any CPU unit runs
    dispatch            the GPU's units wait while those of the CPU are handed over, once if any CPU unit runs
    cpu_launch          added to the first CPU unit of a layer step
    gpu_launch          added to the first GPU unit of a layer step, as those resident at `begin` are launched together,
                        and to each one that was not: it is launched alone
    late_notice         from the landing of such a unit to when the GPU may start on it
    """

    readback: float = 0.0
    planning: float = 0.0
    issue_gap: float = 0.0
    transfer_latency: float = 0.0
    transfer_per_token: float = 0.0
    merge: float = 0.0
    dispatch: float = 0.0
    cpu_launch: float = 0.0
    gpu_launch: float = 0.0
    late_notice: float = 0.0


@dataclass(frozen=True)
class Contention:
    """How many times as long something takes that starts while something else works, besides `CostModel.cpu_contended`.

    gpu_beside_copy  a GPU unit while a copy is under way
    gpu_beside_cpu   a GPU unit while the CPU has units of the layer step left that need not wait for the GPU
    cpu_beside_gpu   a CPU unit while the GPU has units of the layer step left that need not wait for a copy
    dense_beside_copy  a dense part, or what lies outside the layers, while a copy is under way

    A side has units left from begin until its last one has ended: also while it waits for activations, `dispatch` or
    `late_notice`.  A copy that starts at the same moment as a unit is not yet under way for it; for a dense part it is.
    """

    gpu_beside_copy: float = 1.0
    gpu_beside_cpu: float = 1.0
    cpu_beside_gpu: float = 1.0
    dense_beside_copy: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value < float("inf"):
                raise InputError(f"contention.{name}: found {value}, expected 1 or more")


DenseCost = Callable[[int, int, float], float]
"""Seconds of (tokens, sequences, mean number of positions a token attends to)."""


@dataclass(frozen=True)
class CostModel:
    """Seconds of every kind of job, tabulated so that a lookup is one array access.

    cpu, cpu_contended    float64 [W + 1], CPU job of w tokens with the link idle / copying; entry 0 is 0
    gpu                   float64 [W + 1], GPU job of w tokens, weights on the GPU; entry 0 is 0
    copy, copy_contended  float64 [L], one unit of each layer over the link with the CPU idle / computing
    dense                 attention, shared experts and router of one MoE layer, on the GPU
    per_step              what lies outside the MoE layers (dense layers, embedding, head), once a step
    contention            what the machines take from each other besides
    copies_overlap        False: GPU and link take turns, see below
    parallel              False: the CPU waits for the GPU's units of the layer step, whatever the policy says

    The CPU computes while one of its units is under way.  `W` is the largest workload that can be looked up: at least
    the tokens of the largest step.

    **In turn.**  Copies are made from begin to join only.  One starts while no GPU unit is under way and the next one
    is not resident (or there is none); the merge and the join wait for the copy under way.  So a layer step whose CPU
    is done first takes as long as its copies and its GPU units together, and no copy is beside a dense part.
    """

    cpu: Floats
    cpu_contended: Floats
    gpu: Floats
    copy: Floats
    copy_contended: Floats
    overheads: Overheads
    dense: DenseCost
    per_step: DenseCost
    contention: Contention = Contention()
    copies_overlap: bool = True
    parallel: bool = True

    def __post_init__(self) -> None:
        for name in ("cpu", "cpu_contended", "gpu"):
            table = getattr(self, name)
            if table.ndim != 1 or table.size < 2 or table.size != self.cpu.size:
                raise InputError(f"cost table {name}: found shape {table.shape}, expected [{self.cpu.size}], 2 or more")
            if table[0] != 0 or not np.all(np.isfinite(table)) or np.any(np.diff(table) < 0):
                raise InputError(f"cost table {name}: expected 0 for no tokens, then finite values that never fall")
        for name in ("copy", "copy_contended"):
            times = getattr(self, name)
            if (
                times.ndim != 1
                or times.shape != self.copy.shape
                or not np.all(np.isfinite(times))
                or np.any(times <= 0)
            ):
                raise InputError(f"cost table {name}: expected one positive finite time a layer")

    @property
    def max_tokens(self) -> int:
        """Largest workload the tables cover."""
        return int(self.cpu.size) - 1
