"""The link between host and GPU by its name, `pcie5_x16`, and what of the wire arrives."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dali.experiments.parts.catalogue import Cpu, Gpu
from dali.policies.types import InputError

LANES = (1, 2, 4, 8, 16)
# GB/s a lane after encoding (PCI-SIG; 128b/130b up to 5.0, flits in 6.0), and the share of it that copies from pinned
# memory reach.
_LANE = {2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
_PINNED = {
    2: 0.79,  # estimate: as 3.0
    3: 0.79,  # 12.4 of 15.8: bandwidthTest and FreeToken (issue 151: 12.3) on x16
    4: 0.794,  # 25 of 31.5: nvbandwidth and bandwidthTest on x16, 25.2 (A10, RTX 4090) to 26.1 (A100)
    5: 0.86,  # 54 of 63: nvbandwidth on x16, 55.4 to 56.5 on servers; desktops are behind
    6: 0.86,  # estimate: as 5.0
}
NVLINK_C2C = "nvlink_c2c"
_NVLINK_C2C_GBS = 375.0  # of 450 a direction; host to device, GH200 (arXiv 2407.07850)


@dataclass(frozen=True)
class HostLink:
    """One direction, host to GPU.

    gbs      what copies from pinned memory reach
    assumed  what was not said and is filled in
    """

    name: str
    gbs: float
    assumed: tuple[str, ...] = ()


def pcie(generation: int, lanes: int, assumed: tuple[str, ...] = ()) -> HostLink:
    """PCIe by generation and lanes; InputError for one that there is not."""
    if generation not in _LANE or lanes not in LANES:
        known = f"pcie{min(_LANE)}_x1 to pcie{max(_LANE)}_x16"
        raise InputError(f"link: found PCIe {generation}.0 x{lanes}, expected one of {known}")
    return HostLink(f"pcie{generation}_x{lanes}", _LANE[generation] * lanes * _PINNED[generation], assumed)


def link(name: str) -> HostLink:
    """A link by its name: pcie4_x8, nvlink_c2c."""
    if name == NVLINK_C2C:
        return HostLink(NVLINK_C2C, _NVLINK_C2C_GBS)
    match = re.fullmatch(r"pcie(\d+)_x(\d+)", name)
    if match is None:
        raise InputError(f"link: found {name!r}, expected pcieGENERATION_xLANES, such as pcie4_x16, or {NVLINK_C2C}")
    return pcie(int(match[1]), int(match[2]))


def slower(
    gpu: Gpu | None, cpu: Cpu | None, gpus: int = 1, generation: int | None = None, lanes: int | None = None
) -> HostLink | None:
    """The slower of a card's connector and its CPU's, as far as they are known; None if nothing is.

    generation, lanes  as stated; None = what both have.  Equal cards share the CPU's lanes
    """
    if gpu is not None and gpu.name.startswith("gh200") and generation is None and lanes is None:
        return HostLink(NVLINK_C2C, _NVLINK_C2C_GBS, ("link NVLink-C2C",))
    generations = [each.pcie_generation for each in (gpu, cpu) if each is not None]
    generations += [] if generation is None else [generation]
    if not generations:
        return None
    if lanes is None:
        limits = [] if gpu is None else [gpu.pcie_lanes]
        limits += [] if cpu is None else [cpu.pcie_lanes // gpus]
        wide = max(each for each in LANES if each <= max(1, min([16, *limits])))
    else:
        wide = lanes
    slowest = min(generations)
    assumed = [f"PCIe {slowest}.0"] if slowest != generation else []
    assumed += [f"x{wide}"] if lanes is None else []
    return pcie(slowest, wide, ("link " + " ".join(assumed),) if assumed else ())
