"""A GPU: kernels are queued on the current stream, copies on a second one, results come back on a third."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.policies.types import InputError
from dali.runtime.device.arena import Arena, Ready, Transfer
from dali.runtime.device.memory import page_memory


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
