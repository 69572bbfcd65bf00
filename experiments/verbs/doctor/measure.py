"""What `dali doctor` measures and reads: bandwidths that are really reached, limits, kernels, versions."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch

from dali.runtime.device.arena import Arena
from dali.runtime.device.bandwidth import copy_bandwidth, read_bandwidth
from dali.runtime.device.cuda import CudaArena
from dali.runtime.device.machine import cpu_flags, describe, gpu_details, load_per_core
from dali.runtime.device.memory import free_host_bytes

LIBRARIES = ("torch", "transformers", "numpy", "numba", "safetensors")


@dataclass(frozen=True)
class Facts:
    """A machine.  Bandwidths in bytes a second as measured; None where there is no GPU.

    link           host to device, pinned, one copy after the other
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
    link = copy_bandwidth(arena, seconds / 3) if cuda else None
    # After the copies: an idle link saves power at a lower generation.
    about = describe(arena)
    return Facts(
        gpu=about["gpu"] if cuda else None,
        gpu_details=about["gpu_details"],
        gpu_free=arena.free_bytes() if cuda else 0,
        gpu_busy=int(used) if used.isdigit() else None,
        cpu=about["cpu"],
        cores=about["cores"],
        threads=torch.get_num_threads(),
        load=load_per_core(),
        host_free=free_host_bytes(),
        locked=_locked(),
        link=link,
        host=read_bandwidth(torch.device("cpu"), seconds / 3),
        device=read_bandwidth(arena.device, seconds / 3) if cuda else None,
        isa=about["cpu_capability"],
        amx="amx_bf16" in cpu_flags(),
        versions={name: about[name] or "not installed" for name in LIBRARIES},
    )


def _locked() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
