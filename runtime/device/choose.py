"""The device that a name means."""

from __future__ import annotations

import torch

from dali.policies.types import InputError
from dali.runtime.device.arena import Arena
from dali.runtime.device.cuda import CudaArena
from dali.runtime.device.host import HostArena


def arena_for(
    device: str | torch.device | None = None, link_bytes_per_s: float | None = None, device_threads: int | None = None
) -> Arena:
    """The arena of a device: cuda, cuda:N, cpu or None, a GPU where there is one.

    `link_bytes_per_s` and `device_threads` are for cpu only.  InputError for a device that is not there.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device: found {device!r}, expected cuda, cuda:N or cpu") from None
    if found.type == "cpu":
        return HostArena(link_bytes_per_s, device_threads)
    if found.type != "cuda":
        raise InputError(f"device: found {device}, expected cuda or cpu")
    for name, value in (("link_bytes_per_s", link_bytes_per_s), ("device_threads", device_threads)):
        if value is not None:
            raise InputError(f"{name}: found {value} with {device}, expected it with device=cpu only")
    return CudaArena(found)
