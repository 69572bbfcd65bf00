"""The figures of `dali compare`."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dali.experiments.drawing.busy import busy_panel
from dali.experiments.drawing.figure import BATCH_COLOURS, Drawing, bare
from dali.experiments.output.columns import BUSY, KEYS


def drawings(results: pd.DataFrame, baseline: str, title: str = "") -> list[Drawing]:
    """Of a table of results (one row a policy, batch and phase)."""

    def made(name: str, caption: str, draw: partial[Figure], shown: list[str]) -> Drawing:
        return Drawing(name, f"{caption}, by policy and batch size", draw, results[KEYS + shown], title)

    return [
        made(
            "speedup",
            f"Tokens/s as a multiple of {baseline}'s",
            partial(speedup, results, baseline),
            ["tokens_per_s", "speedup"],
        ),
        made("busy", "Share of the time that GPU, CPU and link are busy", partial(busy, results), BUSY),
        made("hit_rate", "Share of lookups that found their unit resident", partial(hit_rate, results), ["hit_rate"]),
    ]


def speedup(results: pd.DataFrame, baseline: str) -> Figure:
    """Tokens/s over the baseline's, by policy and batch; a panel for each phase."""
    figure, panels = _panels(results)
    for axes, (phase, part) in zip(panels, _phases(results), strict=True):
        _bars(axes, part, "speedup", lambda value: f"{value:.2f}")
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_ylabel(f"{phase}: speed-up over {baseline}")
    panels[0].legend(title="batch", ncols=3, frameon=False)
    return figure


def hit_rate(results: pd.DataFrame) -> Figure:
    """Share of lookups that found their unit resident, by policy and batch; a panel for each phase."""
    figure, panels = _panels(results)
    for axes, (phase, part) in zip(panels, _phases(results), strict=True):
        _bars(axes, part.assign(hits=100 * part["hit_rate"]), "hits", lambda value: f"{value:.0f}")
        axes.set_ylim(0, 108)
        axes.set_ylabel(f"{phase}: resident when needed, %")
    panels[0].legend(title="batch", ncols=3, frameon=False)
    return figure


def busy(results: pd.DataFrame) -> Figure:
    """Busy share of GPU, CPU and link (stacked by kind of copy); a panel for each phase and batch."""
    phases = _phases(results)
    batches = sorted(results["batch"].unique())
    figure = Figure(figsize=(1.5 + 4.2 * len(batches), 1.2 + 2.9 * len(phases)), layout="constrained", dpi=130)
    grid = figure.subplots(len(phases), len(batches), squeeze=False, sharey=True)
    policies = list(results["policy"].unique())
    for row, (phase, part) in zip(grid, phases, strict=True):
        for axes, batch in zip(row, batches, strict=True):
            busy_panel(axes, part[part["batch"] == batch].set_index("policy").reindex(policies))
            axes.set_title(f"{phase}, batch {batch}", fontsize=9)
        row[0].set_ylabel("busy, % of the time")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False)
    return figure


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
    bare(axes)
