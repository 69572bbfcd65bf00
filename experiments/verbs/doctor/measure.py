"""What `dali doctor` measures and reads: bandwidths that are really reached, limits, kernels, versions."""

from __future__ import annotations

import importlib.metadata
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dali.runtime.calibrate.link import LinkProbe
from dali.runtime.device.arena import Arena
from dali.runtime.device.cuda import CudaArena
from dali.runtime.device.machine import cpu_flags, cpu_name, gpu_details, gpu_name, load_per_core, usable_cores
from dali.runtime.device.memory import free_host_bytes

_BLOCK = 64 << 20
LIBRARIES = ("torch", "transformers", "numpy", "numba", "safetensors")


@dataclass(frozen=True)
class Facts:
    """A machine.  Bandwidths in bytes a second as measured; None where there is no GPU.

    link           host to device, pinned, two copies outstanding
    host, device   memory read by the CPU's threads, by the GPU
    gpu_busy       per cent, before we gave it work; None if unknown
    locked         bytes that this process may pin; None = no limit
    isa            what torch's CPU kernels use; amx: whether the processor has tiles for bfloat16
    """

    gpu: str | None
    gpu_details: dict[str, str]
    gpu_free: int
    gpu_busy: int | None
    cpu: str
    cores: int
    threads: int
    load: float
    host_free: int
    locked: int | None
    link: float | None
    host: float
    device: float | None
    isa: str
    amx: bool
    versions: dict[str, str]


def facts(arena: Arena, seconds: float) -> Facts:
    """Read and measure; bandwidths for about `seconds`."""
    cuda = isinstance(arena, CudaArena)
    used = gpu_details(arena.device).get("utilization.gpu", "")
    link = _link(arena, seconds / 3) if cuda else None
    return Facts(
        gpu=gpu_name(arena) if cuda else None,
        # After the copies: an idle link saves power at a lower generation.
        gpu_details=gpu_details(arena.device),
        gpu_free=arena.free_bytes() if cuda else 0,
        gpu_busy=int(used) if used.isdigit() else None,
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        load=load_per_core(),
        host_free=free_host_bytes(),
        locked=_locked(),
        link=link,
        host=_reading(torch.device("cpu"), seconds / 3, lambda: None),
        device=_reading(arena.device, seconds / 3, arena.synchronize) if cuda else None,
        isa=torch.backends.cpu.get_cpu_capability(),
        amx="amx_bf16" in cpu_flags(),
        versions={name: _version(name) for name in LIBRARIES},
    )


def _link(arena: Arena, seconds: float) -> float:
    link = LinkProbe(arena, _BLOCK)
    try:
        spent, copies = 0.0, 0
        while spent < seconds:
            period = link.seconds(_BLOCK, 2, 6)
            spent, copies = spent + 6 * period, copies + 6
        return _BLOCK * copies / spent
    finally:
        link.release()


def _reading(device: torch.device, seconds: float, wait: Callable[[], None]) -> float:
    """Bytes a second of summing memory larger than caches: the best of as many goes as there is time for."""
    x = torch.ones(4 * _BLOCK // 4, dtype=torch.float32, device=device)
    x.sum()
    wait()
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        start = time.perf_counter()
        x.sum()
        wait()
        best = min(best, time.perf_counter() - start)
    return x.numel() * x.element_size() / best


def _locked() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
