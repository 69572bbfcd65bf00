"""Busy shares of GPU, CPU and link, by policy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dali.experiments.drawing.figure import CPU, DEMAND, GPU, PREFETCH, SWAP, bare
from dali.experiments.output.columns import LINK
from dali.policies.columns import KINDS


def busy_panel(axes: Axes, shown: pd.DataFrame) -> None:
    """Three bars a policy (index) from the columns `output.columns.BUSY`."""
    places = np.arange(len(shown))
    axes.bar(places - 0.27, 100 * shown["gpu_busy"], 0.26, color=GPU, label="GPU")
    axes.bar(places, 100 * shown["cpu_busy"], 0.26, color=CPU, label="CPU")
    bottom = np.zeros(len(shown))
    for kind, column, colour in zip(KINDS, LINK, (DEMAND, PREFETCH, SWAP), strict=True):
        height = 100 * shown[column].to_numpy()
        axes.bar(places + 0.27, height, 0.26, bottom=bottom, color=colour, label=f"link: {kind}")
        bottom += height
    axes.set_xticks(places, list(shown.index), rotation=40, ha="right", fontsize=8)
    axes.set_ylim(0, 105)
    bare(axes)
