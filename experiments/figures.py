"""The figures of `dali compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sim.timeline import DENSE, LANE_CPU, LANE_LINK, Spans

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
BATCH_COLOURS = ("#56B4E9", "#0072B2", "#003B5C", "#009E73", "#E69F00", "#CC79A7")
GPU, CPU, DEMAND, PREFETCH, SWAP = "#009E73", "#E69F00", "#D55E00", "#56B4E9", "#CC79A7"
OTHER = "#BBBBBB"
NAMES = ("speedup.png", "busy.png", "hit_rate.png")
TIMELINE = "timeline.png"


def save_all(results: pd.DataFrame, baseline: str, title: str, place: Path) -> None:
    """Write the figures of `NAMES` for a table of results (one row a policy, batch and phase)."""
    for name, draw in zip(NAMES, (speedup, busy, hit_rate), strict=True):
        figure = draw(results, baseline)
        figure.suptitle(title, fontsize=10)
        FigureCanvasAgg(figure).print_png(str(place / name))


def speedup(results: pd.DataFrame, baseline: str) -> Figure:
    """Tokens/s over the baseline's, by policy and batch; a panel for each phase."""
    figure, panels = _panels(results)
    for axes, (phase, part) in zip(panels, _phases(results), strict=True):
        _bars(axes, part, "speedup", lambda value: f"{value:.2f}")
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_ylabel(f"{phase}: speed-up over {baseline}")
    panels[0].legend(title="batch", ncols=3, frameon=False)
    return figure


def hit_rate(results: pd.DataFrame, baseline: str) -> Figure:
    """Share of lookups that found their unit resident, by policy and batch; a panel for each phase."""
    figure, panels = _panels(results)
    for axes, (phase, part) in zip(panels, _phases(results), strict=True):
        _bars(axes, part.assign(hits=100 * part["hit_rate"]), "hits", lambda value: f"{value:.0f}")
        axes.set_ylim(0, 108)
        axes.set_ylabel(f"{phase}: resident when needed, %")
    panels[0].legend(title="batch", ncols=3, frameon=False)
    return figure


def busy(results: pd.DataFrame, baseline: str) -> Figure:
    """Busy share of GPU, CPU and link (stacked by kind of copy); a panel for each phase and batch."""
    phases = _phases(results)
    batches = sorted(results["batch"].unique())
    policies = list(results["policy"].unique())
    figure = Figure(figsize=(1.5 + 4.2 * len(batches), 1.2 + 2.9 * len(phases)), layout="constrained", dpi=130)
    grid = figure.subplots(len(phases), len(batches), squeeze=False, sharey=True)
    places = np.arange(len(policies))
    for row, (phase, part) in zip(grid, phases, strict=True):
        for axes, batch in zip(row, batches, strict=True):
            shown = part[part["batch"] == batch].set_index("policy").reindex(policies)
            axes.bar(places - 0.27, 100 * shown["gpu_busy"], 0.26, color=GPU, label="GPU")
            axes.bar(places, 100 * shown["cpu_busy"], 0.26, color=CPU, label="CPU")
            bottom = np.zeros(len(policies))
            for kind, colour in (("demand", DEMAND), ("prefetch", PREFETCH), ("swap", SWAP)):
                height = 100 * shown[f"link_{kind}"].to_numpy()
                axes.bar(places + 0.27, height, 0.26, bottom=bottom, color=colour, label=f"link: {kind}")
                bottom += height
            axes.set_title(f"{phase}, batch {batch}", fontsize=9)
            axes.set_xticks(places, policies, rotation=40, ha="right", fontsize=8)
            axes.set_ylim(0, 105)
            _bare(axes)
        row[0].set_ylabel("busy, % of the time")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def timeline(spans: Mapping[str, Spans], step: int, layers: int, title: str, place: Path) -> None:
    """Write `TIMELINE`, see `draw_timeline`."""
    FigureCanvasAgg(draw_timeline(spans, step, layers, title)).print_png(str(place / TIMELINE))


def draw_timeline(spans: Mapping[str, Spans], step: int, layers: int, title: str) -> Figure:
    """What GPU, CPU and link do in the first `layers` layers of a step, a panel for each policy.

    A panel is as long as those layers take under its policy, so that their lengths compare.
    """
    figure = Figure(figsize=(11, 0.6 + 0.85 * len(spans)), layout="constrained", dpi=130)
    panels = figure.subplots(len(spans), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (policy, shown) in zip(panels, spans.items(), strict=True):
        _lanes(axes, shown, step, layers)
        axes.set_title(policy, fontsize=8, loc="left", pad=2)
    panels[-1].set_xlabel(f"ms since step {step} began")
    legend = {
        "resident": GPU,
        "copied for this": DEMAND,
        "prefetch": PREFETCH,
        "swap": SWAP,
        "on the CPU": CPU,
        "dense": OTHER,
    }
    figure.legend(
        [Patch(color=colour) for colour in legend.values()], legend, loc="outside lower center", ncols=6, frameon=False
    )
    figure.suptitle(title, fontsize=10)
    return figure


def _lanes(axes: Axes, spans: Spans, step: int, layers: int) -> None:
    lane, owner, layer, unit, _, hit = spans.what.T
    run = (owner == step) & (lane < LANE_LINK) & (layer < layers)
    start, end = spans.time[run].min(), spans.time[run].max()
    shown = run | ((lane >= LANE_LINK) & (spans.time[:, 1] > start) & (spans.time[:, 0] < end))
    for row in np.flatnonzero(shown):
        if lane[row] >= LANE_LINK:
            colour = (DEMAND, PREFETCH, SWAP)[lane[row] - LANE_LINK]
        elif unit[row] == DENSE:
            colour = OTHER
        else:
            colour = CPU if lane[row] == LANE_CPU else GPU if hit[row] else DEMAND
        left, right = 1e3 * (np.clip(spans.time[row], start, end) - start)
        axes.barh(min(lane[row], LANE_LINK), right - left, 0.8, left, color=colour, edgecolor="white", linewidth=0.12)
    axes.set_yticks(range(3), ["GPU", "CPU", "link"], fontsize=7)
    axes.set_ylim(2.6, -0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _phases(results: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(phase, results[results["phase"] == phase]) for phase in results["phase"].unique()]


def _panels(results: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    phases = results["phase"].nunique()
    figure = Figure(figsize=(3 + 0.85 * results["policy"].nunique(), 0.8 + 2.9 * phases), layout="constrained", dpi=130)
    return figure, list(figure.subplots(phases, 1, squeeze=False)[:, 0])


def _bars(axes: Axes, part: pd.DataFrame, column: str, label) -> None:
    table = part.pivot(index="policy", columns="batch", values=column).reindex(part["policy"].unique())
    places = np.arange(len(table))
    width = 0.84 / len(table.columns)
    for i, batch in enumerate(table.columns):
        at = places + (i - (len(table.columns) - 1) / 2) * width
        bars = axes.bar(at, table[batch], width * 0.94, color=BATCH_COLOURS[i % len(BATCH_COLOURS)], label=str(batch))
        axes.bar_label(bars, [label(value) for value in table[batch]], fontsize=6.5, padding=1)
    axes.set_xticks(places, list(table.index), rotation=20, ha="right")
    axes.margins(y=0.12)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
