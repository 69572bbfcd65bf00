"""What the comparison of a run with the simulator says, in a few plain sentences."""

from __future__ import annotations

import pandas as pd

from dali.experiments.output.document import Table
from dali.experiments.output.wording import listed, phases, span


def validate(results: pd.DataFrame) -> list[str]:
    """For each phase the error by policy, its sign, the spread of what was measured, and the largest term.

    results  of `report.Report.table`, a row a policy, setting and phase
    """
    said = []
    for phase in phases(results):
        part = results[results["phase"] == phase]
        by = part.groupby("policy", sort=False)["mape"].mean().sort_values(kind="stable")
        fast = int((part["error"] < 0).sum())
        terms = part["largest"].value_counts()
        text = (
            f"{phase.capitalize()}: a simulated step is off by {part['mape'].mean():.1%} (mean absolute error over "
            f"{len(part)} policies and settings, {span(part['mape'], '{:.1%}'.format)}), too fast in {fast} of them. "
        )
        if len(by) > 1:
            ends = [f"{by.index[i]} ({by.iloc[i]:.1%})" for i in (0, -1)]
            text += f"It is closest for {ends[0]}, farthest off for {ends[1]}. "
        text += f"The largest term of the error is {listed(f'{name} in {count}' for name, count in terms.items())}."
        if part["spread"].max() > 0:
            text += f" Repeats of one measurement differ by {part['spread'].median():.1%} in the median."
        said.append(text)
    return said


def errors(results: pd.DataFrame) -> list[Table]:
    """Signed error and mean absolute error of a step, a table a phase."""
    tables = []
    for phase in phases(results):
        part = results[results["phase"] == phase]
        settings = list(dict.fromkeys(part["setting"]))
        rows = []
        for policy, own in part.groupby("policy", sort=False):
            each = own.set_index("setting")[["error", "mape"]].reindex(settings)
            cells = ["–" if error != error else f"{error:+.1%} ({mape:.1%})" for error, mape in each.to_numpy()]
            rows.append([str(policy), *cells])
        caption = f"{phase.capitalize()}, error of the simulated time (in brackets the mean of a step's, unsigned)"
        tables.append(Table(["policy", *settings], rows, caption))
    return tables
