"""The figures of `dali sweep`: lines, bars, and maps of the winner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from experiments.sweep_job import replacing
from experiments.sweep_points import Experiment, Label, View
from experiments.sweep_views import SHARES, caption, means, panels, shown, winners

# Okabe and Ito's palette, which readers with any colour vision can tell apart, and four greys and browns.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999", "#8C6D31", "#5E4FA2",
)  # fmt: skip
MARKERS = "osD^v<>Pph"
_MOST_TICKS = 12


def save(experiment: Experiment, rows: pd.DataFrame, place: Path) -> list[str]:
    """Write a figure for each view; their names."""
    names = []
    for view in experiment.views:
        found = shown(view, rows)
        if found[view.metric].notna().any():
            limits = "".join(f".{column}_{value}" for column, value in view.where.items())
            names.append(f"{experiment.name}.{view.metric}.{view.phase}{limits}.png")
            figure = draw(view, found)
            figure.suptitle(experiment.title, fontsize=10)
            with replacing(place / names[-1]) as temporary, open(temporary, "wb") as file:
                FigureCanvasAgg(figure).print_png(file)
    return names


def draw(view: View, rows: pd.DataFrame) -> Figure:
    """A panel for each value of the view's panel axis; `rows` are those the view is about."""
    parts = panels(view, rows)
    figure = Figure(figsize=(1.2 + 4.2 * len(parts), 3.8), layout="constrained", dpi=130)
    row = figure.subplots(1, len(parts), squeeze=False)[0]
    names = list(dict.fromkeys(_winning(view, parts) if view.kind == "winner" else rows[view.line].dropna()))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for axes, (panel, part) in zip(row, parts, strict=True):
        if view.kind == "winner":
            _map(axes, view, part, colours)
        else:
            found = means(view, part) * (100 if view.metric in SHARES else 1)
            (_bars if view.kind == "bars" else _lines)(axes, found, colours)
            axes.set_ylim(bottom=0)
        axes.set_title("" if panel is None else str(panel), fontsize=9)
        axes.set_xlabel(view.x.replace("_", " "))
    unit = ", %" if view.metric in SHARES else ""
    row[0].set_ylabel(view.line.replace("_", " ") if view.kind == "winner" else f"{caption(view)}{unit}")
    if view.kind == "winner":
        used = [Patch(color=colours[name], label=name) for name in names]
        figure.legend(handles=used, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    else:
        handles = {handle.get_label(): handle for axes in row for handle in axes.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _lines(axes: Axes, found: pd.DataFrame, colours: dict) -> None:
    numeric = pd.api.types.is_numeric_dtype(found.columns.dtype) and len(found.columns) > 1
    places = found.columns.to_numpy(np.float64) if numeric else np.arange(len(found.columns))
    order = np.argsort(places, kind="stable")
    for i, name in enumerate(found.index):
        values = found.loc[name]
        known = values.notna().to_numpy()[order]
        heights = values.to_numpy(np.float64)[order]
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(
            places[order][known], heights[known], marker + "-", ms=4, lw=1.2, color=colours[name], label=str(name)
        )
    if numeric and places.min() > 0 and places.max() / places.min() > 10:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(places) <= _MOST_TICKS:
        axes.set_xticks(places, [str(label) for label in found.columns], fontsize=7, rotation=0 if numeric else 20)
    _bare(axes)


def _bars(axes: Axes, found: pd.DataFrame, colours: dict) -> None:
    width = 0.84 / len(found)
    places = np.arange(len(found.columns))
    for i, name in enumerate(found.index):
        values = found.loc[name]
        at = places + (i - (len(found) - 1) / 2) * width
        axes.bar(at, values.to_numpy(np.float64), width * 0.94, color=colours[name], label=name)
    axes.set_xticks(places, [str(label) for label in found.columns], fontsize=7)
    _bare(axes)


def _map(axes: Axes, view: View, rows: pd.DataFrame, colours: dict) -> None:
    who, lead = winners(view, rows)
    for y, line in enumerate(who.index):
        for x, column in enumerate(who.columns):
            name = who.at[line, column]
            if isinstance(name, str):
                corner = (x - 0.5, y - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=colours[name], alpha=0.55, edgecolor="white"))
                text = f"{name}\n{lead.to_numpy()[y, x]:.2f}x"
                axes.text(x, y, text, ha="center", va="center", fontsize=6)
    axes.set_xlim(-0.5, len(who.columns) - 0.5)
    axes.set_ylim(-0.5, len(who.index) - 0.5)
    axes.set_xticks(range(len(who.columns)), [str(label) for label in who.columns], fontsize=7)
    axes.set_yticks(range(len(who.index)), [str(label) for label in who.index], fontsize=7)


def _winning(view: View, parts: list[tuple[Label | None, pd.DataFrame]]) -> list[str]:
    return [name for _, part in parts for name in winners(view, part)[0].to_numpy().ravel() if isinstance(name, str)]


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
