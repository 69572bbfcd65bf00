"""Host memory in the GPU's place: kernels run where they are called, copies are real and made by who waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.policies.types import InputError
from dali.runtime.device.arena import Arena, Ready, Transfer
from dali.runtime.device.memory import free_host_bytes, page_memory


class HostTransfer(Transfer):
    """Copied by the thread that waits for it, and no faster than the link it stands for."""

    def __init__(self, arena: HostArena, to: Tensor, what: Tensor) -> None:
        self._arena, self._to, self._what = arena, to, what
        self._asked = arena.now()
        self._span = (0.0, 0.0)

    def wait(self) -> None:
        """Make the copy."""
        self._span = self._arena.transport(self._to, self._what, self._asked)

    def before_kernels(self) -> bool:
        """False: there is no queue to put the wait into."""
        return False

    def span(self) -> tuple[float, float]:
        """See `Transfer.span`."""
        return self._span


class HostArena(Arena):
    """Host memory in place of a GPU's.

    link_bytes_per_s  a copy is made to last at least its bytes / this; None = as fast as memory copies
    threads  of torch's kernels in the GPU's place; None = half of torch's number.  CPU units have the rest: kernels of
             both run at the same time, and with more threads than cores each waits for the other's
    """

    def __init__(self, link_bytes_per_s: float | None = None, threads: int | None = None) -> None:
        if link_bytes_per_s is not None and not link_bytes_per_s > 0:
            raise InputError(f"link_bytes_per_s: found {link_bytes_per_s!r}, expected a number above 0")
        if threads is not None and threads < 1:
            raise InputError(f"device_threads: found {threads}, expected at least 1")
        self.device = torch.device("cpu")
        self.link_bytes_per_s = link_bytes_per_s
        self.threads = threads or max(1, torch.get_num_threads() // 2)
        self._cpu_threads = max(1, torch.get_num_threads() - self.threads)
        self._base = time.perf_counter()
        self._link_free = 0.0

    def free_bytes(self) -> int:
        """See `Arena.free_bytes`."""
        return free_host_bytes()

    def host_memory(self, blocks: int, size: int) -> Tensor:
        """See `Arena.host_memory`."""
        return page_memory(blocks, size)

    def copy(self, to: Tensor, what: Tensor, after: Any) -> Transfer:
        """Kernels have ended when they have been called, so `after` is over."""
        return HostTransfer(self, to, what)

    def transport(self, to: Tensor, what: Tensor, asked: float) -> tuple[float, float]:
        """Make a copy that the link was handed at `asked`; its start and end."""
        start = self.now()
        self.copy_bytes(to, what)
        if self.link_bytes_per_s is not None:
            # Counted from when the link could have begun: what a sleep is too long does not add up over copies.
            due = max(asked, self._link_free) + what.numel() / self.link_bytes_per_s
            self._link_free = max(due, self.now())
            while (left := due - self.now()) > 0:
                time.sleep(left)
        return start, self.now()

    def copy_bytes(self, to: Tensor, what: Tensor) -> None:
        """The copy itself; numpy's, because it is one thread's and lets others run."""
        np.copyto(to.numpy(), what.numpy())

    def used(self) -> Any:
        """See `copy`."""
        return None

    def to_host(self, numbers: Tensor, hidden: Tensor) -> tuple[Ready, Ready]:
        """They are there."""
        return lambda: numbers, lambda: hidden

    def send(self, values: NDArray[Any]) -> Tensor:
        """See `Arena.send`."""
        return torch.from_numpy(values)

    def outbox(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """See `Arena.outbox`."""
        return torch.empty((rows, columns), dtype=dtype)

    def bring(self, outbox: Tensor) -> Tensor:
        """See `Arena.bring`."""
        return outbox

    def mark(self) -> float:
        """See `Arena.mark`."""
        return self.now()

    def seconds(self, mark: Any) -> float:
        """See `Arena.seconds`."""
        return float(mark)

    def now(self) -> float:
        """See `Arena.now`."""
        return time.perf_counter() - self._base

    def cpu_threads(self) -> int:
        """See `Arena.cpu_threads`."""
        return self._cpu_threads

    @contextmanager
    def working(self) -> Iterator[None]:
        """See `Arena.working`: `threads`, in the thread that calls."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
