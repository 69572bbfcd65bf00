"""What a sweep says, experiment by experiment: who wins where, and how far ours is from the paper's figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from dali.experiments.output.document import Table
from dali.experiments.output.text import number
from dali.experiments.output.wording import LEVEL, listed, span
from dali.experiments.verbs.sweep.points import Experiment, View
from dali.experiments.verbs.sweep.views import shown

BESIDE = ["experiment", "what", "paper", "ours", "least", "most", "ratio"]
# Who wins by a metric: whether less is better, and the words for it.
WINS = {
    "tokens_per_s": (False, "is the fastest"),
    "tokens_per_s_per_sequence": (False, "is the fastest"),
    "moe_time": (True, "takes the least MoE time"),
    "planning": (True, "plans for the smallest share of the time"),
}
_KNOWS_FUTURE = re.compile(r"oracle|belady")  # in an entry of `policies`
_NEAR = 0.1  # ours and the paper's closer than this share are called near


def has(experiment: Experiment, rows: pd.DataFrame) -> bool:
    """Whether the rows have all columns of the experiment's views, and numbers for their metrics."""
    wanted = {
        column
        for view in experiment.views
        for column in (view.metric, view.x, view.line, view.panel, *view.where)
        if column is not None
    }
    if not wanted <= set(rows.columns):
        return False
    return all(pd.api.types.is_numeric_dtype(rows[view.metric].dtype) for view in experiment.views)


def beside(summary: object) -> pd.DataFrame:
    """Columns `BESIDE`, a row a figure of the paper, from a sweep's summary.json; empty for any other."""
    experiments = summary.get("experiments") if isinstance(summary, Mapping) else None
    rows = [
        {"experiment": each.get("name"), **figure}
        for each in (experiments if isinstance(experiments, list) else [])
        if isinstance(each, Mapping)
        for figure in each.get("paper", [])
        if set(BESIDE[1:]) <= set(figure)
    ]
    found = pd.DataFrame(rows, columns=BESIDE)
    return found.astype(dict.fromkeys(BESIDE[2:], float)).dropna(subset=["ratio"])


def headline(figures: pd.DataFrame) -> list[Table]:
    """The paper's figures beside ours; no table without them."""
    if figures.empty:
        return []
    rows = [
        [
            row["what"],
            *(number(row[column]) for column in ("paper", "ours", "ratio")),
            _from_to(row["least"], row["most"]),
            str(row["experiment"]).replace("_", " "),
        ]
        for row in figures.to_dict("records")
    ]
    header = ["figure", "paper", "ours", "ours/paper", "from – to", "experiment"]
    return [Table(header, rows, "The paper's figures beside ours, and the least and the most over the points.")]


def sentences(experiments: Sequence[tuple[Experiment, pd.DataFrame]], figures: pd.DataFrame) -> list[str]:
    """All figures of the paper together; then for each experiment who wins where, and its figures.

    experiments  with their rows of the results; figures: columns `BESIDE`
    """
    said = []
    if figures["experiment"].nunique() > 1:
        said.append(f"All experiments: {_ratios(figures)}{_turned(figures, names=False)}.")
    for experiment, rows in experiments:
        own = figures[figures["experiment"] == experiment.name]
        parts = [*_winners(experiment, rows), *([f"{_ratios(own)}{_turned(own)}."] if len(own) else [])]
        if parts:
            said.append(f"{experiment.title}: {' '.join(parts)}")
    return said


def _ratios(figures: pd.DataFrame) -> str:
    ratio = figures["ratio"]
    if len(figures) == 1:
        return f"Ours is {number(ratio.iloc[0])} times the paper's figure"
    near = int(((ratio - 1).abs() <= _NEAR).sum())
    return (
        f"Ours are {number(ratio.median())} times the paper's {len(figures)} figures in the median "
        f"({_from_to(ratio.min(), ratio.max(), ' to ')}; {near or 'none'} within {_NEAR:.0%})"
    )


def _turned(figures: pd.DataFrame, names: bool = True) -> str:
    """Factors over another system that are above 1 there and below 1 here, or the reverse: another is ahead."""
    factors = figures[figures["what"].str.contains(" over ")]
    turned = factors[(factors["paper"] - 1) * (factors["ours"] - 1) < 0]
    if turned.empty:
        return ""
    if not names:
        return f"; {len(turned)} of {len(factors)} factors of one system over another are the other way round"
    pairs = [
        f"{what} ({number(paper)} there, {number(ours)} here)"
        for what, paper, ours in turned[["what", "paper", "ours"]].to_numpy()
    ]
    return f"; the other way round than there: {listed(pairs)}"


def _winners(experiment: Experiment, rows: pd.DataFrame) -> list[str]:
    """Of the first view that is about policies: who wins at how many points, and where those that seldom do."""
    view = next((each for each in experiment.views if each.metric in WINS and _of_policies(each)), None)
    if view is None:
        return []
    less, wins = WINS[view.metric]
    part = shown(View(view.metric, view.phase, view.x), rows)
    part = part[~part["entry"].str.contains(_KNOWS_FUTURE)]
    known = dict.fromkeys(axis for point in experiment.points() for axis in point.axes)
    axes = [axis for axis in known if axis in part and part[axis].nunique() > 1]
    if not axes:
        return []
    mean = part.groupby([*axes, "policy"], sort=False, dropna=False)[view.metric].mean().reset_index()
    best = _best(mean, axes, view.metric, less)
    if best.empty:
        return []
    clear = best[best["lead"] >= LEVEL]
    if clear.empty:
        return [f"At all {len(best)} points the best two policies are level (within {LEVEL:.0%})."]
    (first, count), *others = clear["policy"].value_counts().items()
    leads = clear.loc[clear["policy"] == first, "lead"]
    texts = [f"{first} {wins} at {count} of {len(best)} points, {span(leads, '{:.0%}'.format)} ahead of the next"]
    texts += [f"{name} at {count}{_where(best, clear[clear['policy'] == name], axes)}" for name, count in others]
    level = best[best["lead"] < LEVEL]
    if len(level):
        who = listed(level["policy"].value_counts().index)
        texts.append(f"at {len(level)} the best two are level (within {LEVEL:.0%}; in front {who})")
    return [f"{'; '.join(texts)}."]


def _of_policies(view: View) -> bool:
    return view.line == "policy" or view.kind == "winner"


def _best(mean: pd.DataFrame, axes: list[str], metric: str, less: bool) -> pd.DataFrame:
    """A row a point at which there is a choice: its axes, policy, and lead (share over the next)."""
    found = []
    for _, rows in mean.dropna(subset=[metric]).groupby(axes, sort=False, dropna=False):
        if len(rows) > 1:
            first, second = rows.sort_values(metric, ascending=less, kind="stable").iloc[:2].to_dict("records")
            ratio = second[metric] / first[metric] if less else first[metric] / second[metric]
            found.append({**{axis: first[axis] for axis in axes}, "policy": first["policy"], "lead": ratio - 1})
    return pd.DataFrame(found)


def _where(best: pd.DataFrame, own: pd.DataFrame, axes: list[str]) -> str:
    """What the points of a winner have in common: axes on which they take some values only."""
    limits = []
    for axis in axes:
        values = [value for value in dict.fromkeys(best[axis]) if value in set(own[axis])]
        if len(values) < best[axis].nunique():
            plain = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
            limits.append(" or ".join(plain) if axis in ("model", "link", "dtype") else f"{axis} {' or '.join(plain)}")
    return f" ({'; '.join(limits)})".replace("_", " ") if limits else ""


def _from_to(low: float, high: float, between: str = " – ") -> str:
    return between.join(dict.fromkeys((number(low), number(high))))
