"""Bytes a second that the link and the memories reach, measured for a time: a size that suits one link takes minutes
on another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

import torch

from dali.runtime.device.arena import Arena
from dali.runtime.device.memory import page_memory

SECONDS = 0.3
# Blocks grow for as long as one is over in this share of the time: large ones are out of caches, and what comes on top
# of moving one, which is milliseconds where threads wait for each other on a busy machine, is a small part of it.
_SHARE = 0.25
# Bytes of the first block: a link of a few megabytes a second is done with it in that share of `SECONDS`.
_SMALLEST = 64 << 10
_LARGEST_COPY = {"cuda": 256 << 20, "cpu": 32 << 20}
_LARGEST_READ = 512 << 20


def copy_bandwidth(arena: Arena, seconds: float = SECONDS) -> float:
    """Bytes a second of large copies to the device, one after the other, from the host memory that units live in.

    The best that about `seconds` of copies show; of a slow link, two copies that take as long or a little longer.
    """
    largest = _LARGEST_COPY[arena.device.type]
    host, device = arena.host_memory(2, largest), arena.memory(1, largest)
    turns = count()

    def copy(size: int) -> float:
        transfer = arena.copy(device[0, :size], host[next(turns) % 2, :size], None)
        transfer.wait()
        start, end = transfer.span()
        return end - start

    try:
        host.fill_(1)
        device.zero_()
        return _reached(copy, largest, seconds)
    finally:
        arena.synchronize()
        arena.release(host)


def read_bandwidth(device: torch.device, seconds: float = SECONDS) -> float:
    """Bytes a second at which all of a device's threads read its memory; the best, as in `copy_bandwidth`.

    Of the host it is pages such as units live in.
    """
    memory = (
        page_memory(1, _LARGEST_READ)[0]
        if device.type == "cpu"
        else torch.empty(_LARGEST_READ, dtype=torch.uint8, device=device)
    )
    written = 0

    def read(size: int) -> float:
        nonlocal written
        if size > written:
            # Pages that nobody wrote to are all one page of zeros, which is in a cache.
            memory[written:size].fill_(1)
            written = size
        _wait(device)
        start = time.perf_counter()
        memory[:size].view(torch.float32).sum()
        _wait(device)
        return time.perf_counter() - start

    return _reached(read, _LARGEST_READ, seconds)


def _reached(take: Callable[[int], float], largest: int, seconds: float) -> float:
    """Bytes a second of the largest block that is tried; take(bytes) moves one and returns its seconds."""
    size, spent = _SMALLEST, 0.0
    times: list[float] = []
    while len(times) < 2 or spent < seconds:
        times.append(take(size))
        spent += times[-1]
        if size < largest and min(times) < _SHARE * seconds:
            size, times = min(4 * size, largest), []
    return size / min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
