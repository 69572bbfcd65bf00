"""How sentences about results are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from dali.experiments.output.columns import LINK
from dali.experiments.output.text import number
from dali.policies.columns import DECODE

HEADING = "In short"
LEVEL = 0.01  # speeds closer than this are called level
ORACLE = "oracle"  # the policy that knows the future, in results without the column `knows_future`


def phases(results: pd.DataFrame) -> list[str]:
    """Phases of the table, decode first: it is what offloading is mostly for."""
    return sorted(results["phase"].unique(), key=lambda phase: phase != DECODE)


def runnable(part: pd.DataFrame) -> pd.Series:
    """Bool, rows of policies that could run; all rows if none could."""
    known = part["knows_future"].astype(bool) if "knows_future" in part else part["policy"] == ORACLE
    return ~known if not known.all() else known


def busiest(row: pd.Series) -> str:
    """The busiest machine of a row of results; machines within a point of each other share the place."""
    busy = {"GPU": row["gpu_busy"], "CPU": row["cpu_busy"], "link": sum(row[name] for name in LINK)}
    ranked = sorted(busy, key=lambda machine: -busy[machine])
    first = [machine for machine in ranked if busy[machine] > busy[ranked[0]] - LEVEL]
    rest = ", ".join(f"{machine} {busy[machine]:.0%}" for machine in ranked if machine not in first)
    shares = listed(f"{busy[machine]:.0%}" for machine in first)
    what = f"the {first[0]} is the busiest machine" if len(first) == 1 else f"{listed(first)} are the busiest machines"
    return f"{what}, {shares} of the time{f' ({rest})' if rest else ''}"


def listed(items: Iterable[str]) -> str:
    """One, two and three."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


def span(values: pd.Series, read: Callable[[float], str] = number) -> str:
    """The smallest and the largest value, or one if they read the same."""
    return " to ".join(dict.fromkeys((read(values.min()), read(values.max()))))
