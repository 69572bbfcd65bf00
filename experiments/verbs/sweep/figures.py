"""The figures of `dali sweep`: lines, bars, and maps of the winner."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from dali.experiments.drawing.figure import Drawing, bare
from dali.experiments.output.columns import SHARES
from dali.experiments.verbs.sweep.job import replacing
from dali.experiments.verbs.sweep.points import Experiment, Label, View
from dali.experiments.verbs.sweep.views import caption, means, panels, shown, winners

# Okabe and Ito's palette, which readers with any colour vision can tell apart, and others for experiments with more.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5E4FA2", "#999999", "#8C6D31", "#000000",
    "#44AA99", "#882255",
)  # fmt: skip
MARKERS = "osD^v<>Pph*X"
_SYSTEMS = ("llama_cpp", "ktransformers", "moe_lightning", "fiddler", "hybrimoe", "dali", "frontier")
_THICK = ("dali", "frontier")  # what the project is about
_MOST_TICKS = 12
_FAR, _FAR_FROM_0 = 10, 100  # times the least value from which an axis is logarithmic; and if there is a 0
_ROOM = 0.028  # of the axis, for each character of a text along it
_LEAST_WIDTH = 7.5  # inches: room for the legend


def save(experiment: Experiment, rows: pd.DataFrame, place: Path) -> list[str]:
    """Write a figure for each view, each whole; their names."""
    found = drawings(experiment, rows)
    for drawing in found:
        with replacing(place / drawing.file) as temporary:
            drawing.write(temporary)
    return [drawing.file for drawing in found]


def drawings(experiment: Experiment, rows: pd.DataFrame) -> list[Drawing]:
    """A drawing for each view that the experiment's rows have numbers for."""
    found: dict[str, Drawing] = {}
    for view in experiment.views:
        part = shown(view, rows)
        if part[view.metric].notna().any():
            limits = "".join(f".{column}_{value}" for column, value in view.where.items())
            name = f"{experiment.name}.{view.metric}.{view.phase}{limits}"
            # Two views may differ in their axes alone.
            name += f".by_{view.x}" if name in found else ""
            what = f"{caption(view)}, by {view.x} and {view.line}".replace("_", " ")
            about = f"Fastest policy, and how many times the second's it has: {what}" if view.kind == "winner" else what
            found[name] = Drawing(name, about, partial(draw, view, part), data(view, part), experiment.title)
    return list(found.values())


def data(view: View, rows: pd.DataFrame) -> pd.DataFrame:
    """What is drawn: a row a panel and line, a column a value of x."""
    parts = []
    for panel, part in panels(view, rows):
        found = _leaders(view, part) if view.kind == "winner" else means(view, part)
        found.columns = [f"{view.x} {_text(label)}".replace("_", " ") for label in found.columns]
        found = found.reset_index()
        if panel is not None:
            found.insert(0, view.panel, panel)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def _leaders(view: View, rows: pd.DataFrame) -> pd.DataFrame:
    who, lead = winners(view, rows)
    return pd.DataFrame(
        {x: [_leader(name, times) for name, times in zip(who[x], lead[x], strict=True)] for x in who.columns},
        index=who.index,
    )


def _leader(name: object, times: float) -> str | None:
    return f"{name} {times:.2f}x" if isinstance(name, str) else None


def draw(view: View, rows: pd.DataFrame) -> Figure:
    """A panel for each value of the view's panel axis; `rows` are those the view is about."""
    parts = panels(view, rows)
    figure = Figure(figsize=(max(0.6 + 3.3 * len(parts), _LEAST_WIDTH), 3.6), layout="constrained", dpi=150)
    row = figure.subplots(1, len(parts), squeeze=False)[0]
    names = list(dict.fromkeys(_winning(view, parts) if view.kind == "winner" else rows[view.line].dropna()))
    looks = _looks(names)
    for axes, (panel, part) in zip(row, parts, strict=True):
        if view.kind == "winner":
            _map(axes, view, part, looks)
        else:
            found = means(view, part) * (100 if view.metric in SHARES else 1)
            (_bars if view.kind == "bars" else _lines)(axes, found, looks)
            axes.set_ylim(0, 1.05 * max(np.nanmax(found.to_numpy(np.float64), initial=0), 1e-9))
        axes.set_title(_title(view, panel), fontsize=10)
        axes.set_xlabel(view.x.replace("_", " "))
    unit = ", %" if view.metric in SHARES else ""
    row[0].set_ylabel(view.line.replace("_", " ") if view.kind == "winner" else f"{caption(view)}{unit}")
    if view.kind == "winner":
        used = [Patch(color=COLOURS[looks[name]], label=name) for name in names]
        figure.legend(handles=used, loc="outside lower left", ncols=6, frameon=False, fontsize=9)
    else:
        handles = {handle.get_label(): handle for axes in row for handle in axes.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    return figure


def _looks(names: list[str]) -> dict[str, int]:
    """Index of each name's colour and marker: the same in all figures for the systems that most of them show."""
    fixed = {name: i for i, name in enumerate(_SYSTEMS) if name in names}
    free = [i for i in range(len(COLOURS)) if i not in fixed.values()]
    others = [name for name in names if name not in fixed]
    return fixed | {name: free[i % len(free)] for i, name in enumerate(others)}


def _lines(axes: Axes, found: pd.DataFrame, looks: dict[str, int]) -> None:
    numeric = pd.api.types.is_numeric_dtype(found.columns.dtype) and len(found.columns) > 1
    places = found.columns.to_numpy(np.float64) if numeric else np.arange(len(found.columns))
    order = np.argsort(places, kind="stable")
    for name in found.index:
        values = found.loc[name]
        known = values.notna().to_numpy()[order]
        heights = values.to_numpy(np.float64)[order]
        look = f"{MARKERS[looks[name]]}-"
        width = 2.2 if name in _THICK else 1.1
        axes.plot(
            places[order][known], heights[known], look, ms=4, lw=width, color=COLOURS[looks[name]], label=str(name)
        )
    if numeric:
        _scale(axes, places)
    if len(places) <= _MOST_TICKS:
        along = axes.xaxis.get_transform().transform(places)
        texts = _spread(along, [_text(label) for label in found.columns])
        axes.set_xticks(places, texts, fontsize=8, rotation=0 if numeric else 20)
    bare(axes)


def _scale(axes: Axes, places: np.ndarray) -> None:
    """Logarithmic where values are far apart; down to a 0, if there is one, evenly."""
    above = places[places > 0]
    far = above.max() / above.min() if len(above) and places.min() >= 0 else 1
    if len(above) < len(places) and far > _FAR_FROM_0:
        axes.set_xscale("symlog", linthresh=above.min())
    elif len(above) == len(places) and far > _FAR:
        axes.set_xscale("log")
    axes.minorticks_off()


def _spread(places: np.ndarray, texts: list[str]) -> list[str]:
    """The texts, without those that would run into the one before."""
    character, free = _ROOM * max(np.ptp(places), 1e-9), -np.inf
    shown = list(texts)
    for i in np.argsort(places, kind="stable"):
        half = character * len(texts[i]) / 2
        if places[i] - half < free:
            shown[i] = ""
        else:
            free = places[i] + half
    return shown


def _bars(axes: Axes, found: pd.DataFrame, looks: dict[str, int]) -> None:
    """Beside each other at each place, without room for those that have no value there."""
    heights = found.to_numpy(np.float64)
    known = ~np.isnan(heights)
    width = 0.84 / max(known.sum(axis=0).max(), 1)
    places = np.arange(len(found.columns))
    before = known.cumsum(axis=0) - 1 - (known.sum(axis=0) - 1) / 2
    for i, name in enumerate(found.index):
        own = known[i]
        if own.any():
            at = places[own] + before[i, own] * width
            axes.bar(at, heights[i, own], width * 0.94, color=COLOURS[looks[name]], label=str(name))
    axes.set_xticks(places, [_text(label) for label in found.columns], fontsize=8)
    bare(axes)


def _map(axes: Axes, view: View, rows: pd.DataFrame, looks: dict[str, int]) -> None:
    who, lead = winners(view, rows)
    for y, line in enumerate(who.index):
        for x, column in enumerate(who.columns):
            name = who.at[line, column]
            if isinstance(name, str):
                corner = (x - 0.5, y - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=COLOURS[looks[name]], alpha=0.4, edgecolor="white"))
                text = f"{name}\n{lead.to_numpy()[y, x]:.2f}x"
                axes.text(x, y, text, ha="center", va="center", fontsize=6)
    axes.set_xlim(-0.5, len(who.columns) - 0.5)
    axes.set_ylim(-0.5, len(who.index) - 0.5)
    axes.set_xticks(range(len(who.columns)), [_text(label) for label in who.columns], fontsize=8)
    axes.set_yticks(range(len(who.index)), [_text(label) for label in who.index], fontsize=8)


def _title(view: View, panel: Label | None) -> str:
    """A number says nothing without its axis."""
    if panel is None or isinstance(panel, str):
        return panel or ""
    return f"{view.panel} {_text(panel)}".replace("_", " ")


def _text(label: Label) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)


def _winning(view: View, parts: list[tuple[Label | None, pd.DataFrame]]) -> list[str]:
    return [name for _, part in parts for name in winners(view, part)[0].to_numpy().ravel() if isinstance(name, str)]
