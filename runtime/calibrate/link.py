"""Copies by size, one and two outstanding, alone and beside CPU units; and the small pieces of a layer step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch
from torch import Tensor

from dali.runtime.calibrate.forward import host_seconds
from dali.runtime.calibrate.probe import Probe
from dali.runtime.device.arena import Arena, Transfer
from dali.runtime.execute.quick_costs import without_weights
from dali.runtime.execute.unit_math import Group, run_units

# Larger than caches, where host memory allows it: copies come from memory in a run.
_SCRATCH = 256 << 20
_BUSY_TOKENS = 4


def period(arena: Arena, host: Tensor, device: Tensor, copies: int, outstanding: int) -> float:
    """Seconds from the end of one copy to that of the next, with so many handed to the link at a time.

    One outstanding: from when it is asked for to its end, what a lone copy takes.
    """
    under_way: deque[Transfer] = deque()
    ends, asked = [], []
    issued = 0
    while issued < copies or under_way:
        while issued < copies and len(under_way) < outstanding:
            asked.append(arena.now())
            under_way.append(arena.copy(device[issued % len(device)], host[issued % len(host)], None))
            issued += 1
        under_way.popleft().wait()
        ends.append(arena.now())
    if outstanding == 1:
        return median(end - start for start, end in zip(asked, ends, strict=True))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


class LinkProbe:
    """Scratch memory to copy from and to, for sizes up to `largest` bytes."""

    def __init__(self, arena: Arena, largest: int) -> None:
        self._arena = arena
        self._blocks = max(2, min(64, _SCRATCH // largest))
        self._host = arena.host_memory(self._blocks, largest)
        self._host.zero_()
        self._device = arena.memory(4, largest)
        self._device.zero_()
        arena.synchronize()

    def release(self) -> None:
        """Give the host memory back."""
        self._arena.synchronize()
        self._arena.release(self._host)

    def seconds(self, size: int, outstanding: int, copies: int) -> float:
        """Seconds of a copy of `size` bytes: see `period`."""
        return period(self._arena, self._host[:, :size], self._device[:, :size], copies, outstanding)


@contextmanager
def cpu_busy(probe: Probe) -> Iterator[None]:
    """CPU units run on another thread meanwhile, as the executor's do."""
    layer = probe.layers[0]
    store = probe.run.arena.host_memory(8, probe.layout.block_bytes)
    store.zero_()
    weights, module = probe.layout.weights(store), without_weights(layer.experts, torch.device("cpu"))
    x = torch.zeros((_BUSY_TOKENS, probe.layout.inputs), dtype=probe.layout.dtype)
    stopping, started = threading.Event(), threading.Event()

    def work() -> None:
        torch.set_num_threads(probe.cpu_threads)
        place = 0
        with torch.no_grad():
            while not stopping.is_set():
                run_units(module, probe.layout, weights, x, Group([place % 8], [0, _BUSY_TOKENS]))
                place += 1
                started.set()

    try:
        with _meanwhile(work, stopping, started):
            yield
    finally:
        probe.run.arena.release(store)


@contextmanager
def link_busy(link: LinkProbe, size: int) -> Iterator[None]:
    """Copies of `size` bytes are made by another thread meanwhile, two outstanding, as the executor's are."""
    stopping, started = threading.Event(), threading.Event()

    def work() -> None:
        while not stopping.is_set():
            started.set()
            link.seconds(size, 2, 4)

    with _meanwhile(work, stopping, started):
        yield


@contextmanager
def _meanwhile(work: Callable[[], None], stopping: threading.Event, started: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, name="dali-busy", daemon=True)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def pieces(probe: Probe, repeats: int) -> dict[str, float]:
    """Seconds of the small pieces of a layer step, each alone on an idle machine.

    readback      routing and input of one token, from the device to the host
    launch        the host's time to start one unit of one token on the device
    merge         the CPU's result of one token, brought to the device and added
    per_token     half of what a further token adds to bringing the input to the host and the result back
    """
    arena, layout = probe.arena, probe.layout
    few, many = 1, 1024
    x = {n: torch.zeros((n, layout.inputs), dtype=layout.dtype, device=arena.device) for n in (few, many)}
    total = {n: torch.zeros((n, layout.outputs), device=arena.device) for n in (few, many)}
    numbers = torch.zeros(4 * probe.top_k, dtype=torch.int32, device=arena.device)
    memory = arena.memory(1, layout.block_bytes)
    memory.zero_()
    module = without_weights(probe.layers[0].experts, arena.device)
    weights = layout.weights(memory)

    def readback() -> None:
        arriving, _ = arena.to_host(torch.cat([numbers, numbers]), x[few])
        arriving()

    def there_and_back(tokens: int) -> Callable[[], None]:
        def run() -> None:
            _, hidden = arena.to_host(numbers, x[tokens])
            found = arena.outbox(tokens, layout.outputs, layout.dtype)
            if layout.inputs == layout.outputs:
                found.copy_(hidden())
            total[tokens].add_(arena.bring(found))
            arena.synchronize()

        return run

    def merge() -> None:
        total[few].add_(arena.bring(arena.outbox(few, layout.outputs, layout.dtype)))
        arena.synchronize()

    def launch() -> None:
        run_units(module, layout, weights, x[few], Group([0], [0, few]))

    with torch.no_grad():
        found = {"readback": host_seconds(readback, repeats), "merge": host_seconds(merge, repeats)}
        found["launch"] = host_seconds(launch, repeats)
        arena.synchronize()
        near, far = (host_seconds(there_and_back(n), repeats) for n in (few, many))
    found["per_token"] = max(far - near, 0.0) / (many - few) / 2
    return found


def sizes_around(unit: int, most: int) -> list[int]:
    """Bytes to measure copies of: powers of two around a unit, itself left out (the executor's own copies are that)."""
    found = {int(unit * 2.0**power) // 256 * 256 for power in np.arange(-4, 3)}
    return sorted(size for size in found if 4096 <= size <= most and size != unit)
