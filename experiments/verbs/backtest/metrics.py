"""How far predicted speeds are from measured ones.

All take a table with a row for each row and phase: series, phase, engine, measured and predicted (tokens/s), absolute
(whether the machine is known well enough for the speed itself to count), held_out.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from dali.policies.columns import DECODE, PREFILL

APART = 0.05  # pairs whose speeds differ by no more than this share of the slower are not ordered
LEVEL = 0.005  # predictions as close as this order nothing
KEYS = ["series", "phase"]


def with_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The table with two more columns.

    error         predicted over measured, less 1
    series_error  the same after one scale for the series and phase, the best in least squares of logarithms; NaN where
                  there is only one point
    """
    ratio = table["predicted"] / table["measured"]
    log = pd.Series(np.log(ratio), table.index)
    points = log.groupby([table[key] for key in KEYS])
    within = pd.Series(np.exp(log - points.transform("mean")), table.index) - 1
    return table.assign(error=ratio - 1, series_error=within.where(points.transform("size") > 1))


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """All pairs of a series and phase whose measured speeds differ by more than `APART`.

    Columns: those of `KEYS`, slower and faster (ids, as measured), right: whether the prediction puts them in this
    order and apart by more than `LEVEL`.
    """
    rows = []
    for key, part in table.groupby(KEYS, sort=False):
        each = part[["id", "measured", "predicted"]].itertuples(index=False, name=None)
        for pair in combinations(each, 2):
            (slow, lower, first), (fast, upper, second) = sorted(pair, key=lambda one: one[1])
            if upper > (1 + APART) * lower:
                rows.append((*key, slow, fast, second > (1 + LEVEL) * first))
    return pd.DataFrame(rows, columns=[*KEYS, "slower", "faster", "right"])


def measures(table: pd.DataFrame) -> dict[str, Any]:
    """Of a table `with_errors`; None for what no row of it has.

    rows_priced          rows with a speed predicted, whatever the phase
    pairs, pairs_right   how many of `pairs`, and the share of them that is ordered right
    for decode_ and prefill_:
    points, absolute     speeds predicted, and how many of them count by themselves
    median_abs, median   median of |error| and of error over the latter
    series_points        speeds in series of more than one
    series_mape          mean of |series_error| over them; series_mape_by_series: each series counts alike
    """
    found: dict[str, Any] = {"rows_priced": int(table["id"].nunique())}
    for phase in (DECODE, PREFILL):
        part = table[table["phase"] == phase]
        found |= {f"{phase}_{name}": value for name, value in _of_phase(part).items()}
    compared = pairs(table)
    return found | {"pairs": len(compared), "pairs_right": _number(compared["right"].astype(float).mean())}


def _of_phase(part: pd.DataFrame) -> dict[str, Any]:
    error = part.loc[part["absolute"].astype(bool), "error"]
    within = part["series_error"].abs().dropna()
    return {
        "points": len(part),
        "absolute": len(error),
        "median_abs": _number(error.abs().median()),
        "median": _number(error.median()),
        "series_points": len(within),
        "series_mape": _number(within.mean()),
        "series_mape_by_series": _number(within.groupby(part["series"]).mean().mean()),
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def by(table: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """`measures` of each value of a column, in order of how many rows it has."""
    return {str(name): measures(table[table[column] == name]) for name in table[column].value_counts().index}


def summary(table: pd.DataFrame, given: int, refused: pd.Series) -> dict[str, Any]:
    """What summary.json holds.

    given    rows of the file
    refused  category of each row that was not priced
    The figures that are named first are those of held-out series, but for rows_priced, which are all.  left_out are all
    series, each predicted without a part of its own in the constants; data_sheet are all without constants of engines.
    """
    held, fitted = table[table["held_out"]], table[~table["held_out"]]
    of_held = measures(held)
    first = [f"{phase}_{name}" for name in ("median_abs", "series_mape") for phase in (DECODE, PREFILL)]
    return {
        "rows_given": given,
        "rows_priced": int(table["id"].nunique()),
        "rows_refused": {str(name): int(count) for name, count in refused.value_counts().items()},
        **{name: of_held[name] for name in (*first, "pairs_right")},
        "held_out": of_held,
        "fitted": measures(fitted),
        "left_out": measures(with_errors(table.assign(predicted=table["left_out"]))),
        "data_sheet": measures(with_errors(table.assign(predicted=table["data_sheet"]))),
        "all": measures(table),
        "held_out_by_engine": by(held, "engine"),
        "by_engine": by(table, "engine"),
        "by_machine": by(table, "machine"),
    }
