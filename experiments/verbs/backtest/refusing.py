"""Rows that are of no use to a simulator of memory, link and processors, by a few reasons that a table counts by."""

from __future__ import annotations

import re

from dali.experiments.verbs.backtest.case import CpuLayers, FitMemory, GpuLayers, Hot, Placement, Refusal
from dali.experiments.verbs.backtest.knobs import value_of
from dali.experiments.verbs.backtest.rows import Row

NO_SPEED = "no speed"
DISK = "experts on disk"
PAGING = "memory paged by the driver"
SEVERAL = "several models or formats in one row"
MODEL = "model not said"
ENGINE = "no constants of this engine"
DRAFTER = "speculative drafter"
PROMPT = "length of the prompt not said"
NOT_PRICED = "not priced"

_LARGER = r"(?:larger|bigger) than (?:the )?(?:ram|host memory)|about the size of the model"
_DISK = (
    rf"{_LARGER}|disk[- ]bound|disk reads?|(?:from|on) (?:the |an )?(?:disk|ssd)\b|\bnvme\b|\brss\b|"
    r"swap(?:ped|ping) (?:to|out)|swap ?file|\bin swap\b"
)
_PAGING = (
    r"\buvm\b|unified memory|driver paging|paged by the driver|\bspill(?:s|ed)?\b|shared gpu memory|sysmem fallback"
)
_DRAFTER = r"\bdrafter\b|draft (?:model|tokens?)|speculative|\bmtp\b|\beagle"
_NONE = r"\b(?:no|not|without) (?:a |the )?"


def at_sight(row: Row) -> Refusal | None:
    """For reasons that stand in the row's own words."""
    if row.prefill_tps is None and row.decode_tps is None:
        return Refusal(row.id, NO_SPEED, _found(_DISK, row.knob) or "neither of prefill nor of decode")
    for text in (row.knob_value, row.knob, row.notes):
        disk = _found(_DISK, text)
        if disk:
            return Refusal(row.id, DISK, disk)
    paged = _found(_PAGING, row.knob_value) or _found(_PAGING, row.knob)
    return Refusal(row.id, PAGING, row.knob_value) if paged else None


def of_placement(row: Row, where: Placement) -> Refusal | None:
    """A cache of GPU memory in front of a drive, which the machine's description names."""
    if isinstance(where, CpuLayers | GpuLayers | FitMemory | Hot):
        return None
    drive = _found(_DISK, f"{row.pcie} {row.ram}")
    return Refusal(row.id, DISK, drive) if drive else None


def drafted(row: Row) -> tuple[str, ...]:
    """What is left out of a row that was written with a drafter: its decode, which counts accepted guesses."""
    found = _found(_DRAFTER, row.notes) or _found(_DRAFTER, row.knob_value)
    switch = value_of(row, _DRAFTER)
    if not found and switch and not re.match(r"(?:off|no|none|without|0)\b", switch.lower()):
        found = f"{row.knob} {switch}"
    return (f"decode: {found}",) if found else ()


def _found(pattern: str, text: str) -> str:
    """The clause of a text that a pattern fits; empty where there is none, or where it is denied."""
    for clause in re.split(r"\s*[;,]\s+", text):
        low = clause.lower()
        if re.search(pattern, low) and not re.search(f"{_NONE}(?:{pattern})|(?:{pattern}) (?:off|disabled)", low):
            return clause.strip()
    return ""
