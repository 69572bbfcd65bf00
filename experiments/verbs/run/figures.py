"""The figures of a `dali run`, which `dali report` draws."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dali.experiments.drawing.busy import busy_panel
from dali.experiments.drawing.figure import BATCH_COLOURS, Drawing, bare
from dali.experiments.output.columns import BUSY

SPEED = ["tokens_per_s", "tokens_per_s_min", "tokens_per_s_max"]


def drawings(results: pd.DataFrame) -> list[Drawing]:
    """Of a table with one row a policy (or another way to run the model) and phase."""
    policies = results[results["slots"].notna()]
    return [
        Drawing(
            "speed",
            "Tokens/s by policy: median of the runs, and from the slowest to the fastest",
            partial(speed, results),
            results[["policy", "phase", "runs", *SPEED]],
        ),
        Drawing(
            "busy",
            "Share of the time inside forward passes that GPU, CPU and link are busy, by policy",
            partial(busy, policies),
            policies[["policy", "phase", *BUSY]],
        ),
    ]


def speed(results: pd.DataFrame) -> Figure:
    """A bar a policy, a panel a phase."""
    figure, panels = _panels(results)
    for axes, (phase, part) in zip(panels, results.groupby("phase", sort=False), strict=True):
        median, low, high = (part[column].to_numpy(float) for column in SPEED)
        at = np.arange(len(part))
        axes.bar(at, median, 0.7, color=BATCH_COLOURS[1])
        axes.errorbar(at, median, [median - low, high - median], fmt="none", color="black", linewidth=1, capsize=3)
        axes.set_xticks(at, list(part["policy"]), rotation=40, ha="right", fontsize=8)
        axes.set_title(f"{phase}, tokens/s", fontsize=9)
        bare(axes)
    return figure


def busy(policies: pd.DataFrame) -> Figure:
    """Three bars a policy, a panel a phase."""
    figure, panels = _panels(policies)
    for axes, (phase, part) in zip(panels, policies.groupby("phase", sort=False), strict=True):
        busy_panel(axes, part.set_index("policy"))
        axes.set_title(f"{phase}, busy, %", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False)
    return figure


def _panels(results: pd.DataFrame) -> tuple[Figure, list]:
    width = 1.2 + 0.55 * results["policy"].nunique()
    phases = results["phase"].nunique()
    figure = Figure(figsize=(max(width, 3.2) * phases, 3.8), layout="constrained", dpi=130)
    return figure, list(figure.subplots(1, phases, squeeze=False)[0])
