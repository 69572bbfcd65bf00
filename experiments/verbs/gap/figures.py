"""The figures of `dali gap`."""

from __future__ import annotations

from functools import partial
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dali.experiments.drawing.figure import BATCH_COLOURS, GPU, OTHER, Drawing, bare, logarithmic
from dali.policies.columns import PREFILL

KEYS = ["scene", "cache_share", "batch", "phase", "assignment"]
BOUND = "bound"  # the stage of a waterfall that nobody can go below
STAGE, MS = "stage", "ms_per_token"  # columns of a waterfall; any others tell cases apart
# Below this a gap is drawn at the edge: an exact answer has none, and a logarithmic axis no place for it.
_LEAST = 1e-5
_PANELS_ABREAST = 3


def drawings(gaps: pd.DataFrame, fall: pd.DataFrame) -> list[Drawing]:
    """Of the tables `assignments.parquet` and `waterfall.parquet`."""
    return [
        Drawing(
            "gap",
            "How much longer than the exact makespan each assignment takes: its mean, and a line up to its worst",
            partial(gap, gaps),
            gaps[[*KEYS, "layer_steps", "gap_mean", "gap_max"]],
        ),
        of_waterfall(fall),
        Drawing(
            "scheduling",
            "Time of a call against the mean gap it leaves, a point a case (as Figure 15 of arXiv 2602.03495)",
            partial(scheduling, gaps),
            gaps[[*KEYS, "call_median", "gap_mean"]],
        ),
    ]


def of_waterfall(fall: pd.DataFrame) -> Drawing:
    """A row a stage, in order: `STAGE`, `MS`, and whatever tells cases apart."""
    caption = "Milliseconds per output token, idea by idea down to the bound that no policy can beat"
    return Drawing("waterfall", caption, partial(waterfall, fall), fall)


def gap(gaps: pd.DataFrame) -> Figure:
    """Mean gap of every assignment, and up to its worst, a panel for each model."""
    scenes, colours = list(gaps["scene"].unique()), _colours(gaps)
    figure = Figure(figsize=(4.6 * len(scenes), 3.9), layout="constrained", dpi=130)
    for axes, scene in zip(figure.subplots(1, len(scenes), squeeze=False, sharey=True)[0], scenes, strict=True):
        part = gaps[(gaps["scene"] == scene) & (gaps["assignment"] != "exact")]
        cells = list(part.groupby(KEYS[1:-1], sort=False))
        names = list(part["assignment"].unique())
        for i, name in enumerate(names):
            rows = part[part["assignment"] == name]
            at = np.arange(len(rows)) + (i - (len(names) - 1) / 2) * 0.18
            mean, worst = (np.maximum(rows[column], _LEAST) for column in ("gap_mean", "gap_max"))
            axes.vlines(at, mean, worst, color=colours[name], linewidth=1)
            axes.plot(at, mean, "o", color=colours[name], markersize=4, label=name)
        axes.set_xticks(range(len(cells)), [_label(*key) for key, _ in cells], rotation=40, ha="right", fontsize=8)
        axes.set_title(scene, fontsize=9)
        _shares(axes)
    first = figure.axes[0]
    first.set_ylabel("gap to exact: mean, line to worst")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False)
    return figure


def scheduling(gaps: pd.DataFrame) -> Figure:
    """Time of a call against the mean gap it leaves, one point for each case."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=130)
    axes = figure.subplots()
    for name, colour in _colours(gaps).items():
        rows = gaps[gaps["assignment"] == name]
        left = np.maximum(rows["gap_mean"], _LEAST)
        axes.plot(1e6 * rows["call_median"], left, "o", color=colour, label=name, alpha=0.7, markersize=5)
    logarithmic(axes.xaxis)
    axes.set(xlabel="microseconds a call (median)", ylabel="mean gap to the exact makespan")
    axes.legend(frameon=False)
    _shares(axes)
    return figure


def waterfall(fall: pd.DataFrame) -> Figure:
    """Milliseconds per output token by stage, and what each stage saves over the one before; a panel for each case."""
    keys = [column for column in fall.columns if column not in (STAGE, MS)]
    cases = list(fall.groupby(keys, sort=False)) if keys else [((), fall)]
    abreast = min(_PANELS_ABREAST, len(cases))
    down = -(-len(cases) // abreast)
    figure = Figure(
        figsize=(1.4 + 3.1 * abreast, 0.5 + down * (0.7 + 0.19 * fall[STAGE].nunique())), layout="constrained", dpi=130
    )
    grid = figure.subplots(down, abreast, squeeze=False, sharey=True)
    for axes, (case, rows) in zip(grid.ravel(), cases, strict=False):
        _fall(axes, rows)
        axes.set_title(_case(keys, case), fontsize=8, loc="left")
    for axes in grid.ravel()[len(cases) :]:
        axes.set_visible(False)
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("ms per output token", fontsize=8)
    return figure


def _fall(axes: Axes, rows: pd.DataFrame) -> None:
    names, ms = [str(stage) for stage in rows[STAGE]], rows[MS].to_numpy(float)
    end = names.index(BOUND) if BOUND in names else len(names) - 1
    colours = [GPU if i == end else BATCH_COLOURS[4] if i > end else BATCH_COLOURS[1] for i in range(len(names))]
    places = np.arange(len(names))
    bars = axes.barh(places, ms, 0.75, color=colours)
    saved = (ms[:end] - ms[1 : end + 1]).clip(min=0)
    axes.barh(places[1 : end + 1], saved, 0.75, left=ms[1 : end + 1], color=OTHER, alpha=0.4)
    axes.bar_label(bars, [f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in ms], fontsize=7, padding=2)
    axes.set_yticks(places, names, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _case(keys: list[str], case: tuple) -> str:
    """Names as they are, numbers after what they count."""
    return ", ".join(
        value if isinstance(value, str) else f"{key.replace('_', ' ')} {value:g}"
        for key, value in zip(keys, case, strict=True)
    )


def _colours(gaps: pd.DataFrame) -> dict[str, str]:
    return dict(zip(gaps["assignment"].unique(), cycle(BATCH_COLOURS[1:]), strict=False))


def _label(share: float, batch: int, phase: str) -> str:
    return f"{share:.0%}, {'prefill' if phase == PREFILL else f'batch {batch}'}"


def _shares(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_yticks([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["none", ".01 %", ".1 %", "1 %", "10 %", "100 %"])
    axes.minorticks_off()
    bare(axes)
