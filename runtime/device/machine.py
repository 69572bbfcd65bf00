"""What results say of the machine they were measured on, and whether it is fit to be measured now."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from dali.policies.types import InputError
from dali.runtime.device.arena import Arena
from dali.runtime.device.host import HostArena
from dali.runtime.device.memory import free_host_bytes

_QUERY = ("driver_version", "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "utilization.gpu")
LIBRARIES = ("transformers", "accelerate", "safetensors", "numpy", "numba", "dali-moe")
# Another process's kernels would be in every figure.
BUSY_PERCENT = 10
# Two profiles of one machine agree in these; others, such as versions, may change and are then said.
IDENTITY = ("gpu", "cpu", "cores", "cpu_threads", "device_threads", "dtype", "link_bytes_per_s")


def describe(arena: Arena, cpu_threads: int | None = None, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Names, sizes, threads and versions of this machine, as plain values.

    cpu_threads  of CPU units; None = the arena's number
    dtype        of the units that are measured; None where there are none
    """
    host = arena if isinstance(arena, HostArena) else None
    return {
        "gpu": gpu_name(arena),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "cpu_threads": cpu_threads or arena.cpu_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device_threads": host and host.threads,
        "host_memory_gb": round(host_memory_bytes() / 1e9, 1),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "link_bytes_per_s": host and host.link_bytes_per_s,
        "gpu_details": gpu_details(arena.device),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions(),
    }


def versions() -> dict[str, str | None]:
    """Versions of the libraries that figures depend on, None for one that is not installed.

    Of torch the build (2.13.0+cu130): other builds run other kernels, and the distribution's version may not tell them
    apart.
    """
    return {"torch": str(torch.__version__), **{name.replace("-", "_"): _version(name) for name in LIBRARIES}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_same_machine(name: str, profile: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """InputError if a profile was measured on another machine; lines on what else changed of what it says."""
    for field in IDENTITY:
        if profile.get(field) != here[field]:
            raise InputError(
                f"profile {name}: expected {field} {profile.get(field)}, found {here[field]} here; calibrate here"
            )
    changed = [key for key in here if key not in IDENTITY and key in profile and profile[key] != here[key]]
    return [f"{key} was {profile[key]} at calibration and is {here[key]} now." for key in changed]


def gpu_name(arena: Arena) -> str:
    """The device's name; where host memory stands for it, that."""
    if arena.device.type == "cuda":
        return torch.cuda.get_device_name(arena.device)
    return "none (host memory in its place)"


def gpu_details(device: torch.device) -> dict[str, str]:
    """CUDA's version; driver, link generation and width, and use where nvidia-smi says them; empty without a GPU."""
    if device.type != "cuda":
        return {}
    return _from_driver(device) | {"cuda": str(torch.version.cuda)}


def _from_driver(device: torch.device) -> dict[str, str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    # torch's numbering follows CUDA_VISIBLE_DEVICES, nvidia-smi's does not: the identifier is the same for both.
    index = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [tool, f"--id={index}", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode:
        return {}
    values = answer.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(_QUERY, values, strict=True))


def check_idle(device: torch.device) -> None:
    """InputError if the GPU is at work before we gave it any."""
    used = gpu_details(device).get("utilization.gpu", "0")
    if used.isdigit() and int(used) > BUSY_PERCENT:
        raise InputError(f"GPU: found it {used} % busy, expected an idle one (at most {BUSY_PERCENT} %) to measure")


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory_bytes() -> int:
    """All of the host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_per_core() -> float:
    """What others want of the cores: the mean number of waiting processes of the last minute, over the cores."""
    return os.getloadavg()[0] / usable_cores()


def experts_memory_gb(arena: Arena) -> float:
    """GPU memory that experts can have."""
    return (arena.free_bytes() if arena.device.type == "cuda" else free_host_bytes()) / 1e9
