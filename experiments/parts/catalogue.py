"""Tables of GPUs and CPUs (`conf/parts`): data sheets by name.

A further column, `recalled`, is for readers alone: cells of the row that were checked against none of its sources.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from dali.experiments.settings.folders import folders
from dali.policies.types import InputError

ISAS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "sve2")
"""Classes of vector and matrix units of a CPU; each of x86 has those before it."""
WIDE = ("avx512", "avx512_vnni", "avx512_bf16", "amx", "sve2")
"""Those under which all cores hold little more than their base clock."""

# A die reads 32 bytes a cycle and link of the fabric's clock; what arrives of it: 62 of 64 GB/s on a Ryzen 7 9800X3D
# (AIDA64), 84.5 of 102.4 on a Threadripper PRO 5955WX (FreeToken, pull request 232).
LINK_SHARE = 0.9


@dataclass(frozen=True)
class Gpu:
    """A graphics card by its data sheet.

    memory_gb, bandwidth_gbs  its memory
    tflops              16-bit products, dense, with FP32 accumulate where the sheet tells them apart; without matrix
                        units the faster of FP16 and FP32
    compute_capability  of CUDA, "" for others
    pcie_generation, pcie_lanes  of its own connector
    spellings           short names in free text, beside the title
    source              rows of conf/parts/sources.csv
    """

    name: str
    title: str
    memory_gb: float
    bandwidth_gbs: float
    tflops: float
    fp32_tflops: float
    pcie_generation: int
    pcie_lanes: int
    source: tuple[str, ...]
    compute_capability: str = ""
    spellings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cpu:
    """A processor by its data sheet.

    cores, base_ghz, boost_ghz        its cores, or its fast ones; e_* the efficient ones beside them
    memory, channels, mts             the fastest official memory, one module a channel: channels of 64 bits, MT/s; no
                                      MRDIMM, which few have
    also                              slower memory that it takes as well: "ddr4_3200"
    isa                               one of `ISAS`
    operations, e_operations          in BF16, or FP32 where the isa has none, a cycle and core
    pcie_generation, pcie_lanes       towards graphics cards
    sockets                           that a machine may have of it
    chiplets, chiplet_gbs             dies with links of their own to memory, and what a die's links carry; 0 = no limit
    """

    name: str
    title: str
    cores: int
    base_ghz: float
    boost_ghz: float
    memory: str
    channels: int
    mts: int
    isa: str
    operations: int
    pcie_generation: int
    pcie_lanes: int
    sockets: int
    source: tuple[str, ...]
    also: str = ""
    e_cores: int = 0
    e_base_ghz: float = 0.0
    e_boost_ghz: float = 0.0
    e_operations: int = 0
    chiplets: int = 0
    chiplet_gbs: float = 0.0
    spellings: tuple[str, ...] = ()

    @property
    def all_cores(self) -> int:
        """Fast and efficient ones."""
        return self.cores + self.e_cores

    @property
    def tflops(self) -> float:
        """Arithmetic of all cores at the clock they hold together.

        Estimate: the base clock under AVX-512 and AMX; under AVX2 half-way between base and boost, as vendors do not
        publish it for most (a Xeon Platinum 8480+ has 3.0 of 2.0 to 3.8 GHz, an EPYC 9654 3.55 of 2.4 to 3.7).
        """
        fast = self.base_ghz if self.isa in WIDE else (self.base_ghz + self.boost_ghz) / 2
        efficient = (self.e_base_ghz + self.e_boost_ghz) / 2
        return (self.cores * self.operations * fast + self.e_cores * self.e_operations * efficient) / 1e3

    @property
    def link_limit_gbs(self) -> float:
        """What its dies can read of memory together; infinite where they are no limit."""
        return self.chiplets * self.chiplet_gbs * LINK_SHARE or float("inf")


Part = TypeVar("Part", Gpu, Cpu)


def gpus() -> Mapping[str, Gpu]:
    """By name; a file parts/gpu.csv in the user's own folder comes first."""
    return _all("gpu")


def cpus() -> Mapping[str, Cpu]:
    """By name; a file parts/cpu.csv in the user's own folder comes first."""
    return _all("cpu")


def gpu(name: str) -> Gpu:
    """A row of the table; InputError with near matches for a name that it does not have."""
    return _one("gpu", gpus(), name)


def cpu(name: str) -> Cpu:
    """A row of the table; InputError with near matches for a name that it does not have."""
    return _one("cpu", cpus(), name)


def near(found: str, known: Iterable[str]) -> str:
    """What may have been meant, for the end of a message."""
    names = list(known)
    close = difflib.get_close_matches(found.lower(), names, n=3, cutoff=0.5)
    return f"such as {', '.join(close or names[:3])}"


def _one(kind: str, table: Mapping[str, Part], name: str) -> Part:
    if name not in table:
        raise InputError(f"{kind}: found {name!r}, expected a name of conf/parts/{kind}.csv, {near(name, table)}")
    return table[name]


def _all(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in folders():
        file = folder / "parts" / f"{kind}.csv"
        if file.is_file():
            found = {**_table(file, kind, file.stat().st_mtime_ns), **found}
    return found


@lru_cache(maxsize=8)
def _table(file: Path, kind: str, version: int) -> Mapping[str, Any]:
    part: type[Gpu] | type[Cpu] = Gpu if kind == "gpu" else Cpu
    found: dict[str, Any] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            each = _part(f"{file}, line {number}", part, row)
            if each.name in found:
                raise InputError(f"{file}, line {number}: found {each.name!r} twice, expected each name once")
            found[each.name] = each
    return found


def _part(where: str, part: type[Gpu] | type[Cpu], row: Mapping[str, Any]) -> Gpu | Cpu:
    """A row as an object; InputError for a cell that is missing or of another type."""
    values: dict[str, Any] = {}
    for column in fields(part):
        cell = (row.get(column.name) or "").strip()
        if cell:
            values[column.name] = _typed(f"{where}, {column.name}", str(column.type), cell)
        elif column.default is MISSING:
            raise InputError(f"{where}, {column.name}: found nothing, expected a value")
    made = part(**values)
    if isinstance(made, Cpu) and made.isa not in ISAS:
        raise InputError(f"{where}, isa: found {made.isa!r}, expected one of {', '.join(ISAS)}")
    return made


def _typed(where: str, kind: str, cell: str) -> Any:
    if kind.startswith("tuple"):
        return tuple(each.strip() for each in cell.split(";"))
    if kind == "str":
        return cell
    try:
        value = int(cell) if kind == "int" else float(cell)
    except ValueError as error:
        raise InputError(f"{where}: found {cell!r}, expected a number") from error
    if not 0 < value < float("inf"):
        raise InputError(f"{where}: found {cell}, expected a positive number")
    return value
