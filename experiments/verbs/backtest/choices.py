"""Cells that name several models or formats: the row's knob says which of them it is."""

from __future__ import annotations

import re

from dali.experiments.verbs.backtest.knobs import value_of
from dali.experiments.verbs.backtest.phrases import said
from dali.experiments.verbs.backtest.rows import Row

_FORMAT = re.compile(r"\b(?:UD-)?(?:I?Q\d\w*|MXFP4|NVFP4|FP8|FP16|BF16|F16|INT[48]|[\d.]+ ?bpw)\b", re.IGNORECASE)


class Several(ValueError):
    """A cell names several things, and nothing in the row says which."""


def chosen(row: Row, column: str) -> str:
    """The text of a column; of several that are written "this / that" the one that the value of the knob names.

    Bits a weight are those in the place of the format.  `Several` where it cannot be told.
    """
    text = str(getattr(row, column))
    options = _options(text)
    if len(options) == 1:
        return text if said(text) and not text.lower().startswith("various") else _from_knob(row, column)
    if column == "bits_per_weight" and len(_options(row.quant)) == len(options):
        return options[_place(row, _options(row.quant), text)]
    return options[_place(row, options, text)]


def _options(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\s+/\s+", text)]


def _place(row: Row, options: list[str], text: str) -> int:
    """Which option a word of the knob's value is, or is the beginning of."""
    words = [word.lower() for word in re.findall(r"[A-Za-z][\w.\-]{2,}|[\w.]*\d[\w.\-]+", f"{row.knob_value}")]
    fits = [
        i for i, each in enumerate(options) if any(each.lower().startswith(word) for word in words if _letter(word))
    ]
    if len(fits) != 1:
        raise Several(text)
    return fits[0]


def _letter(word: str) -> bool:
    return re.search(r"[a-z]", word) is not None


def _from_knob(row: Row, column: str) -> str:
    """What a knob such as "quant" says in the place of an empty column."""
    if column == "quant":
        value = value_of(row, r"quant|format") or ""
        found = _FORMAT.search(value)
        return found[0] if found else ""
    if column == "model":
        return value_of(row, r"\bmodel") or ""
    return ""
