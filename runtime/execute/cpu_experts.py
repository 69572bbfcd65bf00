"""CPU units: a thread of its own computes those of a layer step while the GPU works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dali.runtime.device.arena import Arena, Ready
from dali.runtime.execute.host_store import HostStore
from dali.runtime.execute.unit_math import Group, can_group, run_units, windows
from dali.runtime.model.layout import UnitLayout


@dataclass
class CpuJob:
    """All CPU units of one layer step, and what came of them.

    units, sizes  unit ids, rising, and how many choices each has
    choices       int64 [n], the choices (token * K + place) of the units one after the other
    weights       float32 [n], their router weights; None = leave them out and keep the choices apart
    rows          rows of the result: tokens, or all choices where they are kept apart
    hidden        waits for the layer's input [N, inputs] on the host
    """

    layer: int
    units: Sequence[int]
    sizes: Sequence[int]
    choices: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    rows: int
    top_k: int
    hidden: Ready
    result: Tensor | None = None
    span: tuple[float, float] = (0.0, 0.0)
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> Tensor:
        """The result [rows, outputs] on the host; raises what stopped the thread."""
        self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class CpuExperts:
    """The thread; one job at a time.

    modules  experts of each layer whose gate and activation work on the host
    threads  of torch's kernels (MKL's number is the whole process's)
    """

    def __init__(
        self,
        arena: Arena,
        store: HostStore,
        layouts: Sequence[UnitLayout],
        modules: Sequence[nn.Module],
        threads: int,
    ) -> None:
        self._arena, self._store, self._layouts, self._modules = arena, store, layouts, modules
        self._threads, self._threads_before = threads, torch.get_num_threads()
        self._grouped = [can_group(layout, torch.device("cpu")) for layout in layouts]
        self._jobs: queue.SimpleQueue[CpuJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dali-cpu", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Return when the job under way is done."""
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        torch.set_num_threads(self._threads_before)

    def submit(self, job: CpuJob) -> None:
        """Start on a job as soon as its input is there."""
        self._jobs.put(job)

    def _run(self) -> None:
        # Per thread in OpenMP, so it has to be said here.
        torch.set_num_threads(self._threads)
        while (job := self._jobs.get()) is not None:
            try:
                with torch.no_grad():
                    job.result = self._compute(job)
            except BaseException as error:
                # Whatever it is, it must reach the thread that waits for the result.
                job.error = error
            job.done.set()

    def _compute(self, job: CpuJob) -> Tensor:
        hidden = job.hidden()
        start = self._arena.now()
        layout = self._layouts[job.layer]
        choices = torch.from_numpy(job.choices)
        tokens = choices // job.top_k
        x = hidden.index_select(0, tokens)
        out = self._units(job, x)
        total = torch.zeros((job.rows, layout.outputs), dtype=torch.promote_types(layout.dtype, torch.float32))
        if job.weights is None:
            total.index_add_(0, choices, out.to(total.dtype))
        else:
            total.index_add_(0, tokens, out.to(total.dtype) * torch.from_numpy(job.weights)[:, None])
        result = self._arena.outbox(job.rows, layout.outputs, hidden.dtype)
        result.copy_(total)
        job.span = start, self._arena.now()
        return result

    def _units(self, job: CpuJob, x: Tensor) -> Tensor:
        layout, module = self._layouts[job.layer], self._modules[job.layer]
        weights = self._store.weights(job.layer)
        bounds = np.concatenate(([0], np.cumsum(job.sizes))).tolist()
        if not self._grouped[job.layer]:
            return run_units(module, layout, weights, x, Group(job.units, bounds))
        rows = None
        if weights.up_bias is not None:
            rows = torch.from_numpy(np.repeat(np.asarray(job.units, np.int32), job.sizes))
        parts = []
        for which, ends in windows(job.units, job.sizes):
            low, high = bounds[which.start], bounds[which.stop]
            group = Group(job.units[which], (), torch.from_numpy(ends), None if rows is None else rows[low:high])
            parts.append(run_units(module, layout, weights, x[low:high], group))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
