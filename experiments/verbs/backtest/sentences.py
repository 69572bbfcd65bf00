"""What a backtest says, in a few plain sentences."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dali.experiments.output.wording import listed, phases
from dali.experiments.verbs.backtest.metrics import APART, measures, pairs


def sentences(table: pd.DataFrame) -> list[str]:
    """Of a table `metrics.with_errors`: speeds, shapes, order, and who is farthest off."""
    held = table[table["held_out"].astype(bool)]
    said = [*_speeds(held, table), *_within(held), *_ordered(held), *_engines(table)]
    return said or ["No series is held out: every figure is of series that constants were fitted on."]


def _speeds(held: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    found, fitted = measures(held), measures(table[~table["held_out"].astype(bool)])
    parts = []
    for phase in phases(table):
        off, median = found[f"{phase}_median_abs"], found[f"{phase}_median"]
        if off is None:
            continue
        beside = fitted[f"{phase}_median_abs"]
        known = "" if beside is None else f", {beside:.0%} where constants were fitted"
        parts.append(
            f"{phase} is {off:.0%} off in the median of {_points(found[f'{phase}_absolute'])} "
            f"(half of them above {median:+.0%}{known})"
        )
    return [f"In series that nothing was fitted on, predicted {listed(parts)}."] if parts else []


def _within(held: pd.DataFrame) -> list[str]:
    found = measures(held)
    parts = [
        f"{phase} {found[f'{phase}_series_mape']:.0%} ({_points(found[f'{phase}_series_points'])})"
        for phase in phases(held)
        if found[f"{phase}_series_mape"] is not None
    ]
    return [f"With one scale for each of these series what remains is, on average, {listed(parts)}."] if parts else []


def _ordered(held: pd.DataFrame) -> list[str]:
    compared = pairs(held)
    if compared.empty:
        return []
    right = compared["right"].astype(bool)
    said = (
        f"Of {len(compared)} pairs in a series that differ by more than {APART:.0%}, {right.mean():.0%} are predicted "
        "in the right order"
    )
    wrong = compared.loc[~right, "series"].value_counts()
    return [f"{said}; most of the others are in {wrong.index[0]} ({wrong.iloc[0]})." if len(wrong) else f"{said}."]


def _engines(table: pd.DataFrame) -> list[str]:
    """By phase, the engine whose median is nearest and the one whose is farthest."""
    said = []
    for phase in phases(table):
        part = table[(table["phase"] == phase) & table["absolute"].astype(bool)]
        off = part["error"].abs().groupby(part["engine"]).median().sort_values()
        if len(off) > 1:
            said.append(
                f"In {phase} {off.index[0]} is nearest to what was measured ({off.iloc[0]:.0%} off in the median) and "
                f"{off.index[-1]} is farthest from it ({off.iloc[-1]:.0%})."
            )
    return said


def _points(count: Any) -> str:
    return f"{count} point" + ("" if count == 1 else "s")
