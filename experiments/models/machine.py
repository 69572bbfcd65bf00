"""The machine that a run is measured on: its names and versions, and how fast it copies and reads."""

from __future__ import annotations

import os
import platform as this
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dali.runtime.device.arena import Arena
from dali.runtime.device.machine import cpu_name


def bandwidths(arena: Arena) -> tuple[float, float]:
    """Bytes a second of large copies to the device, one after the other, and of reading host memory with all threads.

    The best of several; copies are the executor's own, from the host memory that units live in.
    """
    size = (256 if arena.device.type == "cuda" else 32) << 20
    host, device = arena.host_memory(2, size), arena.memory(1, size)
    try:
        host.fill_(1)
        copies = []
        for turn in range(6):
            transfer = arena.copy(device[0], host[turn % 2], None)
            transfer.wait()
            start, end = transfer.span()
            copies.append(end - start)
        reads, words = [], host.view(torch.float32)
        for _ in range(5):
            began = time.perf_counter()
            words.sum()
            reads.append(time.perf_counter() - began)
    finally:
        arena.synchronize()
        arena.release(host)
    return size / min(copies[1:]), 2 * size / min(reads)


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions that a measurement belongs to."""
    found: dict[str, Any] = {
        "gpu": None,
        "driver": None,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": this.python_version(),
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in ("dali-moe", "torch", "transformers", "accelerate", "numpy", "numba")},
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["driver"] = _driver(device)
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver(device: torch.device) -> str | None:
    """As nvidia-smi says it, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.split()
    return said[0] if said else None
