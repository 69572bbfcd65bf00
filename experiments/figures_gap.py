"""The figures of `dali gap`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.figures import BATCH_COLOURS

NAMES = ("gap.png", "waterfall.png", "scheduling.png")
_KEYS = ["scene", "cache_share", "batch", "phase"]
# Below this a gap is drawn at the edge: an exact answer has none, and a logarithmic axis no place for it.
_LEAST = 1e-5


def save_all(gaps: pd.DataFrame, results: pd.DataFrame, names: list[str], place: Path) -> None:
    """Write the figures of `NAMES`."""
    drawn = (_gap(gaps), _waterfall(results, names), _scheduling(gaps))
    for name, figure in zip(NAMES, drawn, strict=True):
        FigureCanvasAgg(figure).print_png(str(place / name))


def _gap(gaps: pd.DataFrame) -> Figure:
    """Mean gap of every assignment, and up to its worst, a panel for each model."""
    scenes, colours = list(gaps["scene"].unique()), _colours(gaps)
    figure = Figure(figsize=(4.6 * len(scenes), 3.9), layout="constrained", dpi=130)
    for axes, scene in zip(figure.subplots(1, len(scenes), squeeze=False, sharey=True)[0], scenes, strict=True):
        part = gaps[(gaps["scene"] == scene) & (gaps["assignment"] != "exact")]
        cells = list(part.groupby(_KEYS[1:], sort=False))
        names = list(part["assignment"].unique())
        for i, name in enumerate(names):
            rows = part[part["assignment"] == name]
            at = np.arange(len(rows)) + (i - (len(names) - 1) / 2) * 0.18
            mean, worst = (np.maximum(rows[column], _LEAST) for column in ("gap_mean", "gap_max"))
            colour = colours[name]
            axes.vlines(at, mean, worst, color=colour, linewidth=1)
            axes.plot(at, mean, "o", color=colour, markersize=4, label=name)
        axes.set_yscale("log")
        axes.set_xticks(range(len(cells)), [_label(*key) for key, _ in cells], rotation=40, ha="right", fontsize=8)
        axes.set_title(scene, fontsize=9)
        _bare(axes)
    first = figure.axes[0]
    first.set_yticks([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["none", ".01 %", ".1 %", "1 %", "10 %", "100 %"])
    first.set_ylabel("gap to exact: mean, line to worst")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _waterfall(results: pd.DataFrame, names: list[str]) -> Figure:
    """Milliseconds a decode step from the chosen policy to the bound, a panel for each model and batch."""
    decode = results[results["phase"] == "decode"]
    scenes, batches = list(decode["scene"].unique()), sorted(decode["batch"].unique())
    least = decode["cache_share"].min()
    figure = Figure(figsize=(3.4 * len(batches) + 1, 2.5 * len(scenes) + 0.4), layout="constrained", dpi=130)
    grid = figure.subplots(len(scenes), len(batches), squeeze=False, sharex=True)
    for line, scene in zip(grid, scenes, strict=True):
        for axes, batch in zip(line, batches, strict=True):
            chosen = (decode["scene"] == scene) & (decode["batch"] == batch) & (decode["cache_share"] == least)
            _bars(axes, decode[chosen], names)
            axes.set_title(f"{scene}, batch {batch}", fontsize=8)
        line[0].set_ylabel("ms a step")
    figure.suptitle(f"Decode, {least:.0%} of the experts in GPU memory", fontsize=10)
    return figure


def _bars(axes: Axes, part: pd.DataFrame, names: list[str]) -> None:
    each = part.set_index("name")
    ideas = list(each.index[each["kind"] == "waterfall"])
    bars = [names[0], *ideas, "bound", names[1]]
    times = 1e3 * (each["seconds"] / each["steps"])[bars].to_numpy()
    colours = ["#0072B2", *["#56B4E9"] * len(ideas), "#009E73", "#E69F00"]
    drawn = axes.bar(range(len(bars)), times, 0.8, color=colours)
    axes.bar_label(drawn, [f"{time:.0f}" if time >= 100 else f"{time:.3g}" for time in times], fontsize=7)
    for i in range(len(ideas) + 1):
        axes.plot([i + 0.4, i + 0.6], [times[i]] * 2, color="0.4", linewidth=0.8)
    labels = [names[0], *(f"+ {idea}" for idea in ideas), "bound", names[1]]
    axes.set_xticks(range(len(bars)), labels, rotation=35, ha="right", fontsize=7)
    axes.margins(y=0.15)
    _bare(axes)


def _scheduling(gaps: pd.DataFrame) -> Figure:
    """Time of a call against the mean gap it leaves, one point for each case (Figure 15 of arXiv 2602.03495)."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=130)
    axes = figure.subplots()
    for name, colour in _colours(gaps).items():
        rows = gaps[gaps["assignment"] == name]
        gap = np.maximum(rows["gap_mean"], _LEAST)
        axes.plot(1e6 * rows["call_median"], gap, "o", color=colour, label=name, alpha=0.7, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="microseconds a call (median)", ylabel="mean gap to the exact makespan")
    axes.set_yticks([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["none", ".01 %", ".1 %", "1 %", "10 %", "100 %"])
    axes.legend(frameon=False)
    _bare(axes)
    return figure


def _colours(gaps: pd.DataFrame) -> dict[str, str]:
    return dict(zip(gaps["assignment"].unique(), BATCH_COLOURS[1:], strict=False))


def _label(share: float, batch: int, phase: str) -> str:
    return f"{share:.0%}, {'prefill' if phase == 'prefill' else f'batch {batch}'}"


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
