"""Rules without a search: all on one side, whole layers, a threshold."""

from __future__ import annotations

import numpy as np

from dali.policies.assign.base import ABSENT, Assignment
from dali.policies.core.jit import kernel
from dali.policies.require import require_count
from dali.policies.types import Bools, Bytes, Capacity, Floats, Ints, Shape
from dali.policies.view import LayerView


@kernel
def threshold(active: Ints, here: Bytes, cpu_time: Floats, gpu_time: Floats, copy_time: float, on_gpu: Bools) -> None:
    """Rule of `Threshold`, written to `on_gpu` bool [U]."""
    for unit in active:
        on_gpu[unit] = here[unit] != ABSENT or cpu_time[unit] >= copy_time + gpu_time[unit]


class AllCPU(Assignment):
    """Every unit runs on the CPU: the base line of DALI's ablation."""

    def assign(self, view: LayerView) -> Bools:
        """Bool [U], all False."""
        return self._on_gpu


class AllGPU(Assignment):
    """Every unit runs on the GPU, absent ones once copied: offloading on demand, as in mixtral-offloading."""

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._on_gpu = np.ones(shape.units, np.bool_)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U], all True."""
        return self._on_gpu


class LayerSplit(Assignment):
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


class Threshold(Assignment):
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
