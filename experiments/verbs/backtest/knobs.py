"""What a row's knob sets: "n_ubatch/exps=CPU" with "256" is n_ubatch = 256, and exps=CPU as it stands."""

from __future__ import annotations

import re
from typing import NamedTuple

from dali.experiments.verbs.backtest.rows import Row

_BRACKETS = re.compile(r"\s*\(([^()]*)\)")


class KnobSetting(NamedTuple):
    """A name and its value as written; a part of the knob that stands for itself has an empty value."""

    name: str
    value: str


def settings(row: Row) -> list[KnobSetting]:
    """Of the columns knob and knob_value.

    Parts between semicolons belong together one by one.  What is left of the name has no value of its own.  What stands
    in brackets belongs together too: "share (slots)" with "45 % (186)" are two settings.
    """
    names, values = row.knob.split(";"), row.knob_value.split(";")
    if len(names) < len(values):
        values = [row.knob_value]
    found: list[KnobSetting] = []
    for i, name in enumerate(names):
        first, *fixed = re.split(r"\s*/\s*|\s*,\s+", name.strip())
        found += _bracketed(first, values[i].strip() if i < len(values) else "")
        found += [KnobSetting(part.lower(), "") for part in fixed if part]
    return [setting for setting in found if setting.name]


def value_of(row: Row, name: str) -> str | None:
    """The value of the first setting whose name fits a pattern; None where there is no such name, or no value."""
    return next((each.value for each in settings(row) if each.value and re.search(name, each.name)), None)


def _bracketed(name: str, value: str) -> list[KnobSetting]:
    inner = _BRACKETS.search(name)
    if not inner:
        return [KnobSetting(name.lower(), value)]
    whole = KnobSetting(_BRACKETS.sub("", name).lower(), value)
    within = _BRACKETS.search(value)
    return [whole, KnobSetting(inner[1].lower(), within[1])] if within else [whole]
