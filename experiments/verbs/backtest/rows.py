"""Published speeds as a CSV file of text: read whole and checked; what the text means is for `understand`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dali.experiments.verbs.backtest.phrases import quantity, said
from dali.policies.types import InputError

PUBLISHED = Path(__file__).parent / "published.csv"
SPEEDS = ("prefill_tps", "decode_tps")


@dataclass(frozen=True)
class Row:
    """A row of the file, as text; the two speeds as numbers, tokens/s, None where the source gives none."""

    id: str
    source: str
    model: str
    quant: str
    bits_per_weight: str
    gpu: str
    gpu_mem_gb: str
    cpu: str
    cores: str
    ram: str
    ram_gbs: str
    pcie: str
    knob: str
    knob_value: str
    batch: str
    prompt: str
    context: str
    prefill_tps: float | None
    decode_tps: float | None
    notes: str

    @property
    def series(self) -> str:
        """What varies in one thing at a time: the id before its last dot."""
        return self.id.rpartition(".")[0] or self.id


COLUMNS = tuple(field.name for field in fields(Row))


def read_rows(path: Path) -> list[Row]:
    """All rows, in the order of the file; other columns than `COLUMNS` are of no account.

    InputError in one line for a file that is not there or not such a table, an id that is missing or not the only one,
    and a speed that is no number above 0.
    """
    table = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header, *lines = [[cell.strip() for cell in line] for line in table if any(map(str.strip, line))]
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}: found no table ({error}), expected columns {', '.join(COLUMNS)}") from None
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{path}: found no column {missing[0]}, expected {', '.join(COLUMNS)}")
    if len(set(header)) < len(header):
        raise InputError(f"{path}: found columns {', '.join(header)}, expected each once")
    if not lines:
        raise InputError(f"{path}: found no rows, expected one or more")
    found = [_row(path, header, number, line) for number, line in enumerate(lines, 1)]
    seen: set[str] = set()
    for row in found:
        if row.id in seen:
            raise InputError(f"{path}: found id {row.id!r} twice, expected each once")
        seen.add(row.id)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text ({error})") from None


def _row(path: Path, header: list[str], number: int, line: list[str]) -> Row:
    where = f"{path}: row {number}"
    if len(line) != len(header):
        raise InputError(f"{where}: found {len(line)} cells, expected {len(header)} as in the header")
    cells = dict(zip(header, line, strict=True))
    if not cells["id"]:
        raise InputError(f"{where}: found no id, expected one such as SERIES.01")
    found: dict[str, Any] = {name: cells[name] for name in COLUMNS}
    for name in SPEEDS:
        found[name] = _speed(f"{where} ({found['id']}): {name}", found[name])
    return Row(**found)


def _speed(where: str, text: str) -> float | None:
    """A number, or None where the source says nothing."""
    if not said(text):
        return None
    found = quantity(text)
    if found is None or not 0 < found < float("inf"):
        raise InputError(f"{where}: found {text!r}, expected a number above 0, or nothing")
    return found
