"""Host memory and the link to the GPU by free text, with what a text leaves open filled in from the other parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from dali.experiments.parts import links, memory
from dali.experiments.parts.catalogue import Cpu, Gpu
from dali.experiments.parts.links import HostLink
from dali.experiments.parts.memory import CHANNEL_BYTES, Ram
from dali.experiments.parts.spellings import plain
from dali.policies.types import InputError

_GB = {"tb": 1000.0, "tib": 1000.0, "gb": 1.0, "gib": 1.0, "g": 1.0}
_CHANNELS = {"single": 1, "one": 1, "dual": 2, "two": 2, "quad": 4, "four": 4, "hexa": 6, "six": 6}
_CHANNELS |= {"octa": 8, "eight": 8, "twelve": 12}
_SPEEDS = (2133, 2400, 2666, 2667, 2933, 3000, 3200, 3466, 3600, 4000, 4400, 4800, 5200, 5600, 6000, 6400, 7200, 8000)
_USUAL_SPEED = {"ddr4": 3200, "ddr5": 5600}
_DESKTOP_GB = 256  # what two channels hold
# A stated bandwidth so close to MT/s x channels is computed and not measured: 77 for 76.8 GB/s.
_PEAK_TOLERANCE = 0.004


def find_ram(text: str, cpu: Cpu | None, sockets: int = 1, stated: str = "") -> Ram | None:
    """Host memory that a text tells of; None where neither text nor CPU say anything.

    cpu      its official memory fills in what is not said; without one, DDR4-3200 or DDR5-5600 and two channels do, as
             far as the kind is known and the size is a desktop's
    stated   bandwidth of host memory as a source gives it, in GB/s: "62.5", "~56".  One that is MT/s x channels is read
             as these; any other as measured on the whole machine

    InputError for memory that the CPU does not take.
    """
    said = plain(text)
    rate = re.search(r"\d+(?:\.\d+)?", stated)
    gbs = float(rate[0]) if rate else None
    found = Ram(_kind(said), _mts(said), _channels(said), _gb(said), _modules(said))
    peak = None if gbs is None or "~" in stated else _as_peak(gbs, found)
    if peak is not None:
        found = replace(found, mts=peak[0], channels=peak[1])
    elif gbs is not None:
        found = replace(found, measured_gbs=gbs)
    if cpu is not None:
        return _of_cpu(found, cpu, sockets)
    return None if found == Ram(None, None, None) else _of_nothing(found)


def find_link(text: str, gpu: Gpu | None, cpu: Cpu | None, gpus: int = 1) -> HostLink | None:
    """The link that a text tells of: measured if it gives GB/s, else the slowest of text, card and CPU.

    None where nothing is known of any of them.  What a text says of an NVMe disk is no link to the GPU.  InputError
    for links that are no PCIe.
    """
    said = re.sub(r"nvme[^;,(]*", " ", plain(text))
    if "c2c" in said:
        return links.link(links.NVLINK_C2C)
    if re.search(r"thunderbolt|usb ?-?[4c]|\btb[345]\b", said):
        raise InputError(f"link: found {text!r}, expected PCIe or NVLink-C2C")
    generation = re.search(r"(?<![\d.])([2-6])\.0(?!\d)|(?:pcie|pci-e|gen) ?-?([2-6])(?!\d)", said)
    lanes = re.search(r"(?:\bx ?|[\d.]x ?|@ ?x?)(16|8|4|2|1)\b(?! ?gb)", said)
    found = links.slower(
        gpu, cpu, gpus, int(generation[1] or generation[2]) if generation else None, int(lanes[1]) if lanes else None
    )
    rates = [(word, rate) for word, rate in _rates(said) if word != "contended"]
    measured = [rate for word, rate in rates if word != "gather"] or [rate for _, rate in rates]
    if not measured:
        return found
    gbs = max(measured)
    assumed = (f"{gbs:g} GB/s, the fastest of {len(measured)} stated",) if len(measured) > 1 else ()
    return HostLink("measured" if found is None else found.name, gbs, assumed)


def _rates(said: str) -> Iterator[tuple[str, float]]:
    """(word before, GB/s) of each number with that unit, or within brackets that hold no words of another sense."""
    for inside in re.findall(r"\(([^)]*\d[^)]*)\)", said):
        for word, rate in re.findall(r"([a-z]*) ?\b(\d+(?:\.\d+)?)\b(?! ?w\b)", inside):
            if word not in ("x", "tp", "gen", "pcie"):
                yield word, float(rate)
    for rate in re.findall(r"(\d+(?:\.\d+)?) ?gb/s", re.sub(r"\([^)]*\)", " ", said)):
        yield "", float(rate)


# ---- what a text says of memory --------------------------------------------------------------------


def _kind(said: str) -> str | None:
    match = re.search(r"(lp)?ddr ?-?([345])|\bpc([45])\b", said)
    if match is None:
        return None
    return f"lpddr{match[2]}x" if match[1] else f"ddr{match[2] or match[3]}"


def _mts(said: str) -> int | None:
    rated = re.search(r"\bpc[45]-(\d{5})", said)
    if rated:
        return int(rated[1]) // CHANNEL_BYTES
    match = re.search(r"ddr ?-?[345]x?[ @-]*(\d{4,5})\b", said) or re.search(r"\b(\d{4,5}) ?(?:mt|mhz|m\b)", said)
    match = match or re.search(r"\b([2-9]\d00|2133|2666|2667|2933|3466)\b(?! ?(?:gb|g|mb))", said)
    return int(match[1]) if match else None


def _channels(said: str) -> int | None:
    match = re.search(r"\b(\d+) ?-?ch(?:an|\b)", said)
    if match:
        return int(match[1])
    match = re.search(rf"\b({'|'.join(_CHANNELS)})[ -]?chan", said)
    return _CHANNELS[match[1]] if match else None


def _module(said: str) -> tuple[int, float] | None:
    """(modules, GB of each): "4x32 GB", "32GB x 4"."""
    match = re.search(r"\b(\d{1,2}) ?x ?(\d+) ?(?:gb|gib|g)\b", said)
    if match:
        return int(match[1]), float(match[2])
    match = re.search(r"\b(\d+) ?(?:gb|gib|g) ?x ?(\d{1,2})\b", said)
    return (int(match[2]), float(match[1])) if match else None


def _modules(said: str) -> int | None:
    found = _module(said)
    if found is not None:
        return found[0]
    match = re.search(r"\b(\d{1,2}) ?(?:dimms?|sticks?|modules?)\b", said)
    return int(match[1]) if match else None


def _gb(said: str) -> float | None:
    found = _module(said)
    if found is not None:
        return found[0] * found[1]
    match = re.search(r"\b(\d+(?:\.\d+)?) ?(tb|tib|gb|gib|g)\b(?!/)", said)
    return float(match[1]) * _GB[match[2]] if match else None


def _as_peak(gbs: float, found: Ram) -> tuple[int, int] | None:
    """(MT/s, channels) whose peak is `gbs`, as far as the text leaves them open."""
    for channels in (2, 4, 6, 8, 12, 1) if found.channels is None else (found.channels,):
        for mts in _SPEEDS if found.mts is None else (found.mts,):
            if abs(gbs * 1e3 / (mts * channels * CHANNEL_BYTES) - 1) <= _PEAK_TOLERANCE:
                return mts, channels
    return None


# ---- what is filled in -----------------------------------------------------------------------------


def _of_cpu(found: Ram, cpu: Cpu, sockets: int) -> Ram:
    assumed: list[str] = []
    kind = found.kind
    if kind is None:
        slower, speed = cpu.also.split("_") if cpu.also else ("", "0")
        kind = slower if found.mts is not None and found.mts <= int(speed) else cpu.memory
        assumed.append(kind)
    memory.check_kind(kind, cpu)
    mts = found.mts
    if mts is None:
        mts = cpu.mts if kind == cpu.memory else int(cpu.also.split("_")[1])
        assumed.append(f"{mts} MT/s")
    channels = found.channels
    if channels is None and found.modules is not None:
        channels = max(1, found.modules // sockets)
        assumed.append(f"{min(channels, cpu.channels)} channels by its modules")
    elif channels is None:
        channels = cpu.channels
        assumed.append(f"{channels} channels")
    elif channels > cpu.channels:
        assumed.append(f"{cpu.channels} channels, not {channels}")
    return replace(found, kind=kind, mts=mts, channels=min(channels, cpu.channels), assumed=tuple(assumed))


def _of_nothing(found: Ram) -> Ram:
    """Without a CPU: a desktop's, if the size is one's."""
    assumed: list[str] = []
    mts, channels = found.mts, found.channels
    if mts is None and found.kind in _USUAL_SPEED:
        mts = _USUAL_SPEED[found.kind]
        assumed.append(f"{mts} MT/s")
    if channels is None and found.modules is not None:
        channels = min(2, found.modules)
        assumed.append(f"{channels} channels by its modules")
    elif channels is None and (found.gb or 0) <= _DESKTOP_GB:
        channels = 2
        assumed.append("2 channels")
    return replace(found, mts=mts, channels=channels, assumed=tuple(assumed))
