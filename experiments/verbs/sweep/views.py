"""Rows of a sweep arranged as a view's tables and figures show them."""

from __future__ import annotations

import pandas as pd

from dali.experiments.verbs.sweep.points import Label, View


def shown(view: View, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that a view is about."""
    found = rows[rows["phase"] == view.phase]
    for column, value in view.where.items():
        found = found[(found[column] == value).fillna(False)]
    return found


def caption(view: View) -> str:
    """Metric, phase and what the view is limited to."""
    limits = [f"{column} {value}" for column, value in view.where.items()]
    return ", ".join([view.metric, view.phase, *limits]).replace("_", " ")


def panels(view: View, rows: pd.DataFrame) -> list[tuple[Label | None, pd.DataFrame]]:
    """(value of the panel axis, its rows), in order; (None, all) if the view has no panels."""
    if view.panel is None:
        return [(None, rows)]
    return [(value, rows[rows[view.panel] == value]) for value in rows[view.panel].dropna().unique()]


def means(view: View, rows: pd.DataFrame) -> pd.DataFrame:
    """The view's metric by line (rows) and x (columns), both in order of appearance; means over all else.

    A line without any value is left out.
    """
    order = [list(dict.fromkeys(rows[axis].dropna())) for axis in (view.line, view.x)]
    found = rows.pivot_table(index=view.line, columns=view.x, values=view.metric, aggfunc="mean", sort=False)
    return found.reindex(index=order[0], columns=order[1]).dropna(how="all")


def winners(view: View, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """By line and x: the policy with the largest mean of the metric, and how many times the second one's it has."""
    by = [view.line, view.x]
    mean = rows.groupby([*by, "policy"], sort=False)[view.metric].mean().reset_index()
    ranked = mean.sort_values(view.metric, ascending=False, kind="stable").groupby(by, sort=False)
    best = ranked.head(1).set_index(by)
    second = ranked.nth(1).set_index(by)[view.metric]
    lead = (best[view.metric] / second).unstack(view.x)
    return best["policy"].unstack(view.x).reindex_like(lead), lead
