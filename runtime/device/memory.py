"""Host memory: pages for what is copied, and how many bytes are free."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def page_memory(blocks: int, size: int) -> Tensor:
    """uint8 [blocks, size] in pages of its own, which go back to the system with the tensor; large ones if it may."""
    pages = mmap.mmap(-1, blocks * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8).view(blocks, size)


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
