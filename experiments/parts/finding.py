"""GPUs and CPUs by free text, such as a column of a table that others wrote."""

from __future__ import annotations

import re
from functools import lru_cache

from dali.experiments.parts.catalogue import Cpu, Gpu, cpus, gpus
from dali.experiments.parts.memory import Ram
from dali.experiments.parts.spellings import (
    Index,
    Mention,
    count_beside,
    is_unsaid,
    leaves_unsaid,
    plain,
    without_memory,
)
from dali.policies.types import InputError

_GPU_BRANDS = r"nvidia|geforce|tesla|amd|radeon|instinct|intel|rtx|gtx|rx|graphics|gpus?"
_GPU_FURTHER = ("ti", "super", "xt", "xtx", "gre", "laptop", "mobile", "max", "m", "d", "ada", "sff")
_CPU_BRANDS = (
    r"intel|amd|core|ultra \d|i[3579]|ryzen(?: ai)?(?: [3579])?|threadripper|pro|epyc|xeon(?: 6(?!\d))?"
    r"|gold|platinum|silver|bronze|e[57]|w[3579]|w|cpus?|processors?"
)
_SHARED_MEMORY = (
    r"\bapple\b|\bmac(book|mini)?\b|\bm[1-5] ?(pro|max|ultra)\b|strix halo|\b80[56]0s\b"
    r"|\bdgx spark\b|\bgb10\b|\bjetson\b"
)
_QUANTITY = (
    r"\d+(x|[gt]i?b?|ch|channels?|[gm]hz|v?cpus?|cores?|c|threads?|[a-z]{2}|gen|w|s|p|t|gpus?)|x\d+"
    r"|i[3579]|w[3579]|e[57]|v\d|l?p?ddr\d[a-z]?|wsl\d|tp\d|gen\d|win\d+"
)
_HOSTED = re.compile(r"(?<=gh200) 480 ?gb")  # the memory of its CPU, which is part of the name
# A card of 24 GB is also written as 24.6 GB (GiB counted as GB, or what nvidia-smi shows) or as 23 GB (what is free).
_MEMORY_TOLERANCE = 0.1


def find_gpu(text: str, total_memory_gb: float | None = None) -> tuple[Gpu, int] | None:
    """(card, how many) that a text names; None where it names none.

    total_memory_gb  of all cards together, where it is known: it tells apart cards of one name, as does a size in the
                     text

    InputError for cards of two kinds, a card that the table does not have, one whose memory is not said and not clear,
    and a machine whose GPU has no memory of its own.
    """
    index = _gpu_index(tuple(gpus().values()))
    bare = without_memory(plain(text))
    found = [] if is_unsaid(text) else index.mentions(bare)
    if not found:
        _refuse_unknown("gpu", text, bare, index)
        return None
    if len({mention.items for mention in found}) > 1:
        raise InputError(f"gpu: found cards of two kinds in {text!r}, expected one kind")
    count = sum(count_beside(bare, mention.start, mention.end, _GPU_BRANDS) for mention in found)
    sizes = re.findall(r"(\d+(?:\.\d+)?) ?(?:gb|gib|g)\b", _HOSTED.sub(" ", plain(text)))
    return _of_memory(text, found[0], count, total_memory_gb, float(sizes[0]) if sizes else None), count


def find_cpu(text: str) -> tuple[Cpu, int] | None:
    """(processor, sockets) that a text names; None where it names none.

    InputError for two kinds, one that the table does not have, and more sockets than it goes into.
    """
    index = _cpu_index(tuple(cpus().values()))
    bare = re.sub(r"\d+[- ]cores?(?: processor)?|@ ?[\d.]+ ?ghz", " ", plain(text))
    found = [] if is_unsaid(text) else index.mentions(bare)
    if not found:
        _refuse_unknown("cpu", text, bare, index)
        return None
    items = {mention.items[0] for mention in found}
    if len(items) > 1:
        raise InputError(f"cpu: found two kinds in {text!r}, expected one")
    (cpu,) = items
    sockets = re.search(r"\b(\d) ?(?:sockets?|cpus?|s|p)\b|\b(dual|two)[ -](?:sockets?|cpus?)\b", bare)
    stated = 1 if sockets is None else 2 if sockets[2] else int(sockets[1])
    count = max(stated, sum(count_beside(bare, each.start, each.end, _CPU_BRANDS) for each in found))
    if count > cpu.sockets:
        raise InputError(f"cpu: found {count} of {cpu.title} in {text!r}, expected at most {cpu.sockets}")
    return cpu, count


def unnamed_cpu(ram: Ram | None = None, cores: int | None = None) -> Cpu:
    """A desktop's processor for a machine whose own is not said: all but what is given is an assumption.

    Figures of such a machine say how settings compare with each other, and not how fast it is.
    """
    return Cpu(
        name="unnamed",
        title="a processor that is not said",
        cores=cores or 8,
        base_ghz=3.5,
        boost_ghz=4.5,
        memory=(ram.kind if ram else None) or "ddr4",
        channels=(ram.channels if ram else None) or 2,
        mts=(ram.mts if ram else None) or 3200,
        isa="avx2",
        operations=32,
        pcie_generation=5,
        pcie_lanes=64,
        sockets=2,
        source=("assumed",),
    )


@lru_cache(maxsize=2)
def _gpu_index(table: tuple[Gpu, ...]) -> Index[Gpu]:
    return Index(table, _GPU_BRANDS, _GPU_FURTHER, ("s", "fe"))


@lru_cache(maxsize=2)
def _cpu_index(table: tuple[Cpu, ...]) -> Index[Cpu]:
    return Index(table, _CPU_BRANDS, (), ("s",))


def _refuse_unknown(kind: str, text: str, bare: str, index: Index) -> None:
    """InputError for a text that names a model which the table does not have; nothing for one that names none."""
    if is_unsaid(text):
        return
    if re.search(_SHARED_MEMORY, bare):
        raise InputError(f"{kind}: found {text!r}, whose CPU and GPU share one memory, expected a card with its own")
    if not leaves_unsaid(text) and any(map(_is_model, re.findall(r"[a-z\d]+", bare))):
        raise index.refuse(kind, text)


def _is_model(word: str) -> bool:
    """Whether a word looks like that of a model: 9999, 9b14, a11, and no quantity or family."""
    mixed = re.search(r"\d", word) and (re.search(r"[a-z]", word) or len(word) > 2)
    return bool(mixed) and re.fullmatch(_QUANTITY, word) is None


def _of_memory(text: str, mention: Mention[Gpu], count: int, total: float | None, said: float | None) -> Gpu:
    """Of cards that share a name, the one with the memory that is said."""
    sizes = [each for each in (total and total / count, said, said and said / count, total) if each]
    for size in sizes:
        fitting = [each for each in mention.items if abs(size / each.memory_gb - 1) <= _MEMORY_TOLERANCE]
        if fitting:
            return min(fitting, key=lambda each: abs(size / each.memory_gb - 1))
    known = " or ".join(f"{each.memory_gb:g}" for each in mention.items)
    if sizes:
        raise InputError(f"gpu: found {sizes[0]:g} GB a card in {text!r}, expected {known}")
    usual = [each for each in mention.items if without_memory(plain(each.title)) == plain(each.title)]
    if len(mention.items) > 1 and len(usual) != 1:
        raise InputError(f"gpu: found {text!r} without its memory, expected {known} GB")
    return (usual or mention.items)[0]
