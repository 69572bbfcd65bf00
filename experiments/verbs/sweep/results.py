"""Results of a sweep: one table of all points, and for people each experiment beside the paper's figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dali.experiments.output.columns import SHARES
from dali.experiments.output.document import Block, Document, Items, Paragraph, Picture, Section, Table, markdown
from dali.experiments.output.folder import CONFIG, described, stamp
from dali.experiments.output.text import number, share
from dali.experiments.verbs.sweep import figures
from dali.experiments.verbs.sweep.job import replacing
from dali.experiments.verbs.sweep.points import Experiment, Figure, Label, Point, View
from dali.experiments.verbs.sweep.views import caption, means, panels, shown, winners


@dataclass(frozen=True)
class Beside:
    """A figure of the paper, ours (mean, least and most over the points), and ours over the paper's.

    own  mean of the same with the experiment's own policy in the place of the figure's; NaN without one
    """

    what: str
    paper: float
    ours: float
    least: float
    most: float
    ratio: float
    own: float


def gather(points: Sequence[tuple[Point, str]], store: Path) -> pd.DataFrame:
    """All stored rows, in the order of the points and their policies: equal however the points were run.

    Columns: experiment, the axes of all experiments (missing where an experiment has no such axis), policy, entry (as
    in `policies`), phase, and what `sweep_job.simulate` found; `key` names the stored result.
    """
    frames = [_labelled(pd.read_parquet(store / f"{key}.parquet"), point, key) for point, key in points]
    if not frames:
        return pd.DataFrame()
    labels: dict[str, list[Label]] = {}
    for point, _ in points:
        for axis, label in point.axes.items():
            labels.setdefault(axis, []).append(label)
    whole = pd.concat(frames, ignore_index=True)
    first = list(dict.fromkeys(["experiment", *labels, "policy", "entry", "phase"]))
    whole = whole[[*first, *(column for column in whole.columns if column not in first)]]
    return whole.assign(**{axis: _typed(whole[axis], found) for axis, found in labels.items()})


def _labelled(rows: pd.DataFrame, point: Point, key: str) -> pd.DataFrame:
    order = {entry: i for i, entry in enumerate(point.labels)}
    rows = rows.sort_values(
        ["entry", "batch", "seed", "phase"],
        key=lambda column: column.map(order).fillna(len(order)) if column.name == "entry" else column,
        kind="stable",
    )
    labels = rows["entry"].map(point.labels).fillna(rows["entry"])
    return rows.assign(experiment=point.experiment, policy=labels, key=key, **point.axes)


def _typed(column: pd.Series, labels: Sequence[Label]) -> pd.Series:
    """Numbers where all labels of an axis are; else text.

    The labels say it and not the column: what an experiment lacks is NaN, and whole numbers beside NaN are fractions.
    """
    if all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        return column.astype("Int64")
    if all(isinstance(label, int | float) for label in labels):
        return column.astype("float64")
    return column.map(str, na_action="ignore").astype("object")


# ---- beside the paper ------------------------------------------------------------------------------


def beside(experiment: Experiment, results: pd.DataFrame) -> list[Beside]:
    """The paper's figures beside ours; NaN where no row is what a figure is about."""
    rows = results[results["experiment"] == experiment.name]
    axes = _axes(experiment, rows)
    return [_beside(figure, rows, axes, experiment.own) for figure in experiment.figures]


def _axes(experiment: Experiment, rows: pd.DataFrame) -> list[str]:
    axes = dict.fromkeys(axis for point in experiment.points() for axis in point.axes)
    return [*(axis for axis in axes if axis in rows), "policy", "batch", "seed"]


def _beside(figure: Figure, rows: pd.DataFrame, axes: list[str], own: str | None) -> Beside:
    found = _found(figure, figure.of, rows, axes)
    mine = float("nan")
    if own is not None and figure.over is not None and "policy" in figure.of:
        mine = float(_found(figure, {**figure.of, "policy": own}, rows, axes).mean())
    if not len(found):
        nothing = float("nan")
        return Beside(figure.what, figure.value, nothing, nothing, nothing, nothing, mine)
    ours = float(found.mean())
    return Beside(figure.what, figure.value, ours, float(found.min()), float(found.max()), ours / figure.value, mine)


def _found(figure: Figure, of: Mapping[str, Label], rows: pd.DataFrame, axes: list[str]) -> pd.Series:
    """What stands beside a figure at each point: the metric of the rows `of`, or its quotient by what it is over."""
    found = _values(figure, of, rows, axes)
    if figure.over is None:
        return found
    fixed = set(of) | set(figure.over)
    at = [axis for axis in dict.fromkeys(axes) if axis not in fixed]
    base = _values(figure, figure.over, rows, axes)
    return (found.groupby(at, dropna=False).mean() / base.groupby(at, dropna=False).mean()).dropna()


def _values(figure: Figure, wanted: Mapping[str, Label], rows: pd.DataFrame, axes: list[str]) -> pd.Series:
    """The figure's metric in the rows it is about, indexed by the axes."""
    chosen = rows[rows["phase"] == figure.phase]
    for column, value in {**figure.where, **wanted}.items():
        chosen = chosen[(chosen[column] == value).fillna(False)]
    return chosen.set_index(list(dict.fromkeys(axes)))[str(figure.metric)]


# ---- for people ------------------------------------------------------------------------------------


def write(
    place: Path,
    experiments: Sequence[Experiment],
    results: pd.DataFrame,
    failures: Sequence[Mapping[str, Any]],
    command: str,
    config: str,
) -> str:
    """Write results, figures, configuration, document and manifest, each file whole; what to print."""
    place.mkdir(parents=True, exist_ok=True)
    with replacing(place / "results.parquet") as temporary:
        results.to_parquet(temporary, index=False)
    sections, about = [], []
    for experiment in experiments:
        rows = results[results["experiment"] == experiment.name] if len(results) else results
        drawn = figures.save(experiment, rows, place) if len(rows) else []
        compared = beside(experiment, results) if len(rows) else []
        sections.append(_section(experiment, rows, compared, drawn))
        about.append(
            {
                "name": experiment.name,
                "title": experiment.title,
                "source": experiment.source,
                "paper": [asdict(each) for each in compared],
                "differs": experiment.differs,
                "figures": drawn,
            }
        )
    if failures:
        failed = Items([f"{_where(each)}: {each['error']}" for each in failures])
        sections.append(Section(f"Failed points ({len(failures)})", [failed]))
    summary = {"command": command, "experiments": about, "failures": list(failures), "versions": stamp()}
    # JSON has no NaN.
    plain = json.dumps(_no_nan(summary), indent=2, allow_nan=False) + "\n"
    document = Document(place.name, blocks=[Paragraph(f"`{command}`")], sections=sections)
    texts = {"summary.json": plain, CONFIG: config, **described(place, "sweep", command, document)}
    for name, content in texts.items():
        with replacing(place / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return f"{markdown(sections)}\n\nResults: {place}"


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _no_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_no_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value


def _where(failure: Mapping[str, Any]) -> str:
    axes = ", ".join(f"{axis} {label}" for axis, label in failure.items() if axis not in ("experiment", "error"))
    return f"{failure['experiment']} ({axes})" if axes else str(failure["experiment"])


def _section(experiment: Experiment, rows: pd.DataFrame, compared: list[Beside], drawn: list[str]) -> Section:
    blocks: list[Block] = [Paragraph(f"Source: {experiment.source}")]
    if compared:
        blocks.append(_beside_table(compared, experiment.own))
    if experiment.differs:
        blocks.append(Paragraph(" ".join(experiment.differs.split())))
    if len(rows):
        blocks += [table for view in experiment.views for table in tables(view, rows)]
        blocks += [Picture(name) for name in drawn]
        blocks += [Paragraph(f"Note: {note}") for note in _notes(rows)]
    return Section(experiment.title, blocks)


def _notes(rows: pd.DataFrame) -> list[str]:
    """The notes of all points; of those that differ in numbers only, the first."""
    lines = [line for notes in dict.fromkeys(rows["notes"]) for line in notes.splitlines()]
    kinds: dict[str, list[str]] = {}
    for line in dict.fromkeys(lines):
        kinds.setdefault(re.sub(r"[0-9.]+", "#", line), []).append(line)
    return [first + (f" ({len(others)} more points alike.)" if others else "") for first, *others in kinds.values()]


def _beside_table(compared: list[Beside], own: str | None) -> Table:
    rows = [[each.what, number(each.paper), number(each.ours), _range(each), number(each.ratio)] for each in compared]
    header = ["", "paper", "ours", "from – to", "ours/paper"]
    if own is not None:
        header.append(f"{own} in its place")
        rows = [[*row, number(each.own)] for row, each in zip(rows, compared, strict=True)]
    return Table(header, rows)


def _range(each: Beside) -> str:
    return (
        number(each.ours)
        if each.least == each.most or each.ours != each.ours
        else f"{number(each.least)} – {number(each.most)}"
    )


def tables(view: View, rows: pd.DataFrame) -> list[Table]:
    """A view as tables: a row a line, a column a value of x, means over what is left; one table a panel."""
    found = []
    for panel, part in panels(view, shown(view, rows)):
        name = caption(view) + ("" if panel is None else f", {view.panel} {panel}".replace("_", " "))
        found.append(_winners(view, part, name) if view.kind == "winner" else _grid(view, part, name))
    return found


def _grid(view: View, rows: pd.DataFrame, name: str) -> Table:
    show = share if view.metric in SHARES else number
    found = means(view, rows)
    header = [view.line, *(f"{view.x} {label}" for label in found.columns)]
    return Table(header, [[str(line), *map(show, found.loc[line])] for line in found.index], name)


def _winners(view: View, rows: pd.DataFrame, name: str) -> Table:
    who, lead = winners(view, rows)
    header = [view.line, *(f"{view.x} {label}" for label in who.columns)]
    cells = [
        [str(line), *(f"{best} ({times:.2f}x)" for best, times in zip(who.loc[line], lead.loc[line], strict=True))]
        for line in who.index
    ]
    return Table(header, cells, name)
