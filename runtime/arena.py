"""The memory that stands for the GPU's, and how work is ordered there: the one place where devices differ.

`CudaArena` is a GPU: kernels are queued on the current stream, copies on a second one, results come back on a
third.  `HostArena` is a second piece of host memory: kernels run where they are called, and a copy is made by
the thread that waits for it.  Everything else of the executor is the same code for both.
"""

from __future__ import annotations

import mmap
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.types import InputError

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


# ---- host ------------------------------------------------------------------------------------------


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


# ---- CUDA ------------------------------------------------------------------------------------------


class _Epoch:
    """A timed event and when it happened; its time follows from the epoch before once both have happened."""

    def __init__(self, event: Any, before: _Epoch | None) -> None:
        self.event = event
        self._before = before
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        if self._before is not None:
            self._seconds = self._before.seconds + self._before.event.elapsed_time(self.event) / 1e3
            self._before = None
        return self._seconds


class CudaTransfer(Transfer):
    """Queued on the copy stream between two timed events."""

    def __init__(self, arena: CudaArena, to: Tensor, what: Tensor, after: Any) -> None:
        self._arena = arena
        self._start, self._end = arena.event(), arena.event(blocking=True)
        with torch.cuda.device(arena.device), torch.cuda.stream(arena.copies):
            if after is not None:
                arena.copies.wait_event(after)
            self._start.record(arena.copies)
            to.copy_(what, non_blocking=True)
            self._end.record(arena.copies)
        self._epoch = arena.epoch

    def wait(self) -> None:
        """See `Transfer.wait`; the thread sleeps."""
        self._end.synchronize()

    def before_kernels(self) -> bool:
        """See `Transfer.before_kernels`."""
        torch.cuda.current_stream(self._arena.device).wait_event(self._end)
        return True

    def span(self) -> tuple[float, float]:
        """See `Transfer.span`."""
        return self._arena.seconds((self._start, self._epoch)), self._arena.seconds((self._end, self._epoch))


class CudaArena(Arena):
    """A GPU."""

    def __init__(self, device: torch.device) -> None:
        if not torch.cuda.is_available():
            raise InputError(f"device: found {device}, but torch sees no CUDA device; device=cpu runs without")
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise InputError(f"device: found cuda:{index}, expected one of {torch.cuda.device_count()} CUDA devices")
        self.device = torch.device("cuda", index)
        self.copies = torch.cuda.Stream(self.device)
        self._back = torch.cuda.Stream(self.device)
        self._buffers: dict[str, Tensor] = {}
        self._registered: dict[int, Tensor] = {}
        torch.cuda.synchronize(self.device)
        self.epoch = self._new_epoch(None)
        self.epoch.event.synchronize()
        self._base = time.perf_counter()

    def free_bytes(self) -> int:
        """What the driver has free, and what torch holds without using it."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def host_memory(self, blocks: int, size: int) -> Tensor:
        """Pinned where the system lets us; torch's own pinned memory is rounded up to powers of two."""
        memory = page_memory(blocks, size)
        with torch.cuda.device(self.device):
            refused = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
            if refused:
                self._forget_error()
                warnings.warn(
                    f"host memory: pinning {memory.numel() / 1e9:.1f} GB was refused (CUDA error {refused}); "
                    "units stay pageable and their copies will be slow. See `ulimit -l`.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                self._registered[memory.data_ptr()] = memory
        return memory

    def _forget_error(self) -> None:
        """A refused registration is also left as the last error, which the next launch would report as its own."""
        try:
            torch.zeros(1, device=self.device)
        except RuntimeError as error:
            if "regist" not in str(error) and "memory" not in str(error):
                raise

    def release(self, memory: Tensor) -> None:
        """Unpin."""
        if self._registered.pop(memory.data_ptr(), None) is not None:
            with torch.cuda.device(self.device):
                torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())

    def event(self, blocking: bool = False) -> Any:
        """A timed event; the thread that waits for a blocking one sleeps."""
        return torch.cuda.Event(enable_timing=True, blocking=blocking)

    def copy(self, to: Tensor, what: Tensor, after: Any) -> Transfer:
        """See `Arena.copy`; the wait for `after` is the copy stream's."""
        return CudaTransfer(self, to, what, after)

    def used(self) -> Any:
        """See `Arena.used`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def to_host(self, numbers: Tensor, hidden: Tensor) -> tuple[Ready, Ready]:
        """Both on a stream of their own, so that kernels go on meanwhile and a small copy waits for no large one."""
        self._back.wait_stream(torch.cuda.current_stream(self.device))
        found = []
        with torch.cuda.stream(self._back):
            for name, tensor in (("numbers", numbers), ("hidden", hidden)):
                place = self._pinned(name, tensor.numel(), tensor.dtype).view(tensor.shape)
                place.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._back)
                done = torch.cuda.Event()
                done.record(self._back)
                found.append(_Arriving(place, done))
        return found[0], found[1]

    def send(self, values: NDArray[Any]) -> Tensor:
        """See `Arena.send`; the buffer is free again by the next layer step, whose `to_host` was waited for."""
        source = torch.from_numpy(values)
        place = self._pinned("send", source.numel(), source.dtype).view(source.shape)
        place.copy_(source)
        return place.to(self.device, non_blocking=True)

    def outbox(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """See `Arena.outbox`; pinned."""
        return self._pinned("outbox", rows * columns, dtype).view(rows, columns)

    def bring(self, outbox: Tensor) -> Tensor:
        """See `Arena.bring`."""
        return outbox.to(self.device, non_blocking=True)

    def _pinned(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        size = count * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            # A copy that still reads the old buffer keeps it: torch waits for its events before reusing it.
            with torch.inference_mode(False):
                buffer = self._buffers[name] = torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True)
        return buffer[:size].view(dtype)

    def mark(self) -> Any:
        """See `Arena.mark`."""
        event = self.event()
        event.record(torch.cuda.current_stream(self.device))
        return event, self.epoch

    def seconds(self, mark: Any) -> float:
        """See `Arena.seconds`."""
        event, epoch = mark
        return float(epoch.seconds + epoch.event.elapsed_time(event) / 1e3)

    def now(self) -> float:
        """See `Arena.now`."""
        return time.perf_counter() - self._base

    def synchronize(self) -> None:
        """All streams of the device."""
        torch.cuda.synchronize(self.device)

    def start_epoch(self) -> None:
        """See `Arena.start_epoch`."""
        self.epoch = self._new_epoch(self.epoch)

    def cpu_threads(self) -> int:
        """See `Arena.cpu_threads`."""
        return torch.get_num_threads()

    def _new_epoch(self, before: _Epoch | None) -> _Epoch:
        event = self.event()
        event.record(torch.cuda.current_stream(self.device))
        return _Epoch(event, before)


class _Arriving:
    """A tensor on its way to the host."""

    def __init__(self, place: Tensor, done: Any) -> None:
        self._place, self._done = place, done

    def __call__(self) -> Tensor:
        self._done.synchronize()
        return self._place


# ---- host memory -----------------------------------------------------------------------------------


def page_memory(blocks: int, size: int) -> Tensor:
    """uint8 [blocks, size] in pages of its own, which go back to the system with the tensor; large ones if it may."""
    pages = mmap.mmap(-1, blocks * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8).view(blocks, size)


_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_host_bytes() -> int:
    """Bytes of host memory that can still be taken: the system's, or what a container's limit leaves if that is less.

    Where the system does not say (it has no /proc), as much as can be addressed.
    """
    if not _MEMINFO.exists():
        return sys.maxsize
    free = 1024 * _entry(_MEMINFO, "MemAvailable:")
    limit = _CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        # Files that a container has read count as its memory until somebody else wants it.
        stat = _CGROUP / "memory.stat"
        files = _entry(stat, "active_file") + _entry(stat, "inactive_file")
        free = min(free, int(most) - int((_CGROUP / "memory.current").read_text()) + files)
    return free


def _entry(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name)


def arena_for(
    device: str | torch.device, link_bytes_per_s: float | None = None, device_threads: int | None = None
) -> Arena:
    """The arena of a device: cuda, cuda:N or cpu.  `link_bytes_per_s` and `device_threads` are for cpu only."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(f"device: found {device!r}, expected cuda, cuda:N or cpu") from None
    if found.type == "cpu":
        return HostArena(link_bytes_per_s, device_threads)
    if found.type != "cuda":
        raise InputError(f"device: found {device}, expected cuda or cpu")
    for name, value in (("link_bytes_per_s", link_bytes_per_s), ("device_threads", device_threads)):
        if value is not None:
            raise InputError(f"{name}: found {value} with {device}, expected it with device=cpu only")
    return CudaArena(found)
