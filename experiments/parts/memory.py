"""Host memory by its name, `ddr5_4800x2`, and how much of its peak arrives."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dali.experiments.parts.catalogue import Cpu
from dali.policies.types import InputError

CHANNEL_BYTES = 8
"""Bytes a channel moves at a time: 64 bits."""

# Of the peak, by memory and by whether a machine has more than two channels.  Reading alone, or STREAM triad:
_SHARES = {
    ("ddr4", False): 0.8,  # estimate: between the two below
    ("ddr4", True): 0.75,  # 226 of 341 GB/s on two EPYC 7452 (ktransformers, pull request 2175); others reach 0.83
    # 60 to 75 of 96 GB/s (STREAM triad, two modules of DDR5-6000); 63 of 77 on a Core i9-14900KF (colibri, issue 537).
    ("ddr5", False): 0.72,
    # 111 of 141 GB/s on two Xeon Silver 4510 (colibri, issue 537), 512 of 614 on a Xeon 6980P (ik_llama.cpp, pull
    # request 534), 440 of 614 on two Xeon Platinum 8452Y (KTransformers, SOSP 2025).
    ("ddr5", True): 0.8,
    ("lpddr5x", True): 0.95,  # 486 of 512 GB/s on Grace (arXiv 2407.07850)
}
# AMD specifies DDR5-3600 for four modules on a desktop of the 7000 and 9000 series.  Measured with four modules sold as
# DDR5-6000: 32 to 39 GB/s = 0.56 to 0.68 of 57.6 (STREAM triad).
_FOUR_MODULES_MTS = 3600
KINDS = ("ddr4", "ddr5", "lpddr5x")


@dataclass(frozen=True)
class Ram:
    """Host memory of one socket; fields that are None are not known.

    kind, mts, channels  one of `KINDS`, MT/s, channels of 64 bits
    gb, modules          capacity and modules of the whole machine
    measured_gbs         what was measured of the whole machine; it counts in place of the data sheet's
    assumed              what was not said and is filled in
    """

    kind: str | None
    mts: int | None
    channels: int | None
    gb: float | None = None
    modules: int | None = None
    measured_gbs: float | None = None
    assumed: tuple[str, ...] = ()

    @property
    def gbs(self) -> float | None:
        """Peak of one socket, GB/s."""
        return None if self.mts is None or self.channels is None else self.mts * self.channels * CHANNEL_BYTES / 1e3

    @property
    def name(self) -> str:
        """As it is chosen: ddr5_4800x2; by its measured bandwidth where that is all there is."""
        if self.gbs is None:
            return "ram" if self.measured_gbs is None else f"ram_{self.measured_gbs:g}gbs"
        return f"{self.kind or 'ram'}_{self.mts}x{self.channels}"

    @property
    def is_known(self) -> bool:
        """Whether there is a bandwidth to go by."""
        return self.gbs is not None or self.measured_gbs is not None


def official(cpu: Cpu) -> Ram:
    """The fastest memory that a CPU's data sheet names, one module in every channel."""
    return Ram(cpu.memory, cpu.mts, cpu.channels)


def ram(name: str, cpu: Cpu) -> Ram:
    """Memory by its name on a CPU; InputError for one that does not fit."""
    match = re.fullmatch(r"(\w+?)_(\d+)x(\d+)", name)
    if match is None:
        raise InputError(f"ram: found {name!r}, expected type_MT/s x channels, such as {official(cpu).name}")
    found = Ram(match[1], int(match[2]), int(match[3]))
    check_kind(found.kind, cpu)
    if not 1 <= int(match[3]) <= cpu.channels:
        raise InputError(f"ram: found {match[3]} channels in {name!r}, expected 1 to the {cpu.channels} of {cpu.title}")
    check_speed(int(match[2]), name)
    return found


def check_kind(kind: str | None, cpu: Cpu) -> None:
    """InputError for memory that a CPU does not take."""
    known = [cpu.memory, *([cpu.also.partition("_")[0]] if cpu.also else [])]
    if kind not in known:
        raise InputError(f"ram: found {kind} with {cpu.title}, expected {' or '.join(known)}")


def check_speed(mts: int, name: str) -> None:
    """InputError for what no memory runs at."""
    if not 800 <= mts <= 12800:
        raise InputError(f"ram: found {mts} MT/s in {name!r}, expected 800 to 12800")


def share(memory: Ram, cpu: Cpu) -> float:
    """Of the peak of `memory.gbs`, what all cores together read: estimate by kind of memory and by the CPU's dies."""
    if memory.gbs is None:
        raise InputError(f"ram: found {memory}, expected type, MT/s and channels")
    wide = cpu.channels > 2
    reached = _SHARES.get((memory.kind or "", wide), 0.75)
    if memory.kind == "ddr5" and not wide and memory.mts and memory.modules and memory.modules > 2:
        reached *= min(1.0, _FOUR_MODULES_MTS / memory.mts)
    return min(reached, cpu.link_limit_gbs / memory.gbs)
