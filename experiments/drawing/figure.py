"""What all figures share: how one is described, written, and coloured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
BATCH_COLOURS = ("#56B4E9", "#0072B2", "#003B5C", "#009E73", "#E69F00", "#CC79A7")
GPU, CPU, DEMAND, PREFETCH, SWAP = "#009E73", "#E69F00", "#D55E00", "#56B4E9", "#CC79A7"
OTHER = "#BBBBBB"


@dataclass(frozen=True)
class Drawing:
    """A figure of a results folder: a verb writes it as PNG, `dali report` draws it anew as SVG.

    name     of its file without suffix, once in a folder
    caption  what it shows
    draw     makes the figure, in matplotlib's settings of that moment
    data     the numbers that are drawn
    title    what stands above it; drawings beside each other that have the same belong together
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    data: pd.DataFrame
    title: str = ""

    @property
    def file(self) -> str:
        """Its file in the folder."""
        return f"{self.name}.png"

    def write(self, path: Path) -> None:
        """As PNG."""
        figure = self.draw()
        figure.suptitle(self.title, fontsize=10)
        with open(path, "wb") as file:
            FigureCanvasAgg(figure).print_png(file)


def save_all(drawings: Iterable[Drawing], place: Path) -> list[str]:
    """Write each into a folder; the names of their files."""
    names = []
    for drawing in drawings:
        drawing.write(place / drawing.file)
        names.append(drawing.file)
    return names


def logarithmic(axis: Axis, base: float = 10, between: Sequence[float] = (1,)) -> None:
    """A logarithmic axis with plain numbers: matplotlib's powers are formulas, which a report does not typeset.

    between  multiples of each power of the base that get a number
    """
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log", base=base)
    axis.set_major_locator(LogLocator(base, between))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def bare(axes: Axes) -> None:
    """Axes with less ink: no frame, thin lines across, behind everything else."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
