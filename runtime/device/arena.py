"""The memory that units are copied to, and how work is ordered there: what the executor asks of a device.

`device.cuda` is a GPU, `device.host` a second piece of host memory in its place; `device.choose` tells them apart by
name.  Everything else of the executor is the same code for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Ready = Callable[[], Tensor]
"""Waits for what is on its way to the host, and gives it."""


class Transfer(ABC):
    """A copy of one unit that has been handed to the link."""

    @abstractmethod
    def wait(self) -> None:
        """Return when the copy has ended; called by the link's thread, in the order of the copies."""

    @abstractmethod
    def before_kernels(self) -> bool:
        """Make kernels launched from now on wait for the copy; False where only the caller can wait."""

    @abstractmethod
    def span(self) -> tuple[float, float]:
        """Start and end in the arena's seconds; after `wait`."""


class Arena(ABC):
    """A device's memory and clock.  Seconds count from the arena's making, for host and device alike."""

    device: torch.device

    # ---- memory

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes that can still be allocated here."""

    def memory(self, blocks: int, size: int) -> Tensor:
        """uint8 [blocks, size] on the device."""
        return torch.empty((blocks, size), dtype=torch.uint8, device=self.device)

    @abstractmethod
    def host_memory(self, blocks: int, size: int) -> Tensor:
        """uint8 [blocks, size] on the host, contiguous, from which copies to the device can be made."""

    def release(self, memory: Tensor) -> None:
        """Undo what `host_memory` did besides allocating; the memory goes with its last reference."""

    # ---- copies

    @abstractmethod
    def copy(self, to: Tensor, what: Tensor, after: Any) -> Transfer:
        """Hand the link a copy of host memory to the device, to be made once the kernels of `after` are done."""

    @abstractmethod
    def used(self) -> Any:
        """A point after all kernels launched so far, for `copy`."""

    @abstractmethod
    def to_host(self, numbers: Tensor, hidden: Tensor) -> tuple[Ready, Ready]:
        """Start bringing two tensors of the device to the host, `numbers` first; valid until the next call."""

    @abstractmethod
    def send(self, values: NDArray[Any]) -> Tensor:
        """The values on the device, for kernels launched from now on; once a layer step."""

    @abstractmethod
    def outbox(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """A host tensor in which results for the device are put; valid until the next call."""

    @abstractmethod
    def bring(self, outbox: Tensor) -> Tensor:
        """What is in the outbox, on the device, for kernels launched from now on."""

    # ---- time

    @abstractmethod
    def mark(self) -> Any:
        """A point in the device's work: after all kernels launched so far."""

    @abstractmethod
    def seconds(self, mark: Any) -> float:
        """When the device reached the mark, which must have happened."""

    @abstractmethod
    def now(self) -> float:
        """The host's time on the same scale."""

    def synchronize(self) -> None:
        """Return when all kernels launched so far are done."""

    def start_epoch(self) -> None:
        """Marks from now on are measured from here: called at each step, because event times lose precision."""

    # ---- threads

    @abstractmethod
    def cpu_threads(self) -> int:
        """Threads that torch's kernels of CPU units can have."""

    def working(self) -> AbstractContextManager[None]:
        """What the thread that runs the model needs meanwhile."""
        return nullcontext()
