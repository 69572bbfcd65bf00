"""The figure of README.md: one decode layer step under two policies, as the simulator times it.

    python tools/layer_step/draw.py

It writes docs/layer_step.png.  Routing is the shipped trace's, costs are those of `dali compare`.  Drawn is the layer
step whose two lengths are nearest to the policies' means, of those in which the second policy copies on demand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dali.experiments.drawing.figure import CPU, DEMAND, GPU, OTHER, PREFETCH, SWAP, Drawing
from dali.experiments.settings.compose import configuration
from dali.experiments.verbs.compare.comparison import Comparison
from dali.policies.columns import DECODE, DENSE, LANE_CPU, LANE_GPU, LANE_LINK
from dali.policies.types import Floats, Ints
from dali.sim.timeline import Spans

FIRST, SECOND, BATCH = "llama_cpp", "frontier", 3
TARGET = Path(__file__).parents[2] / "docs" / "layer_step.png"
# From the top: the GPU is beside the link, so that the arrow of a copy crosses nothing.
ROWS = {LANE_CPU: 0, LANE_GPU: 1, LANE_LINK: 2}
COPIES = (DEMAND, PREFETCH, SWAP)
INK, FAINT = "#222222", "#777777"
LEGEND = {
    "attention, router": OTHER,
    "expert in GPU memory": GPU,
    "expert copied for this step": DEMAND,
    "expert on the CPU": CPU,
    "copied ahead": PREFETCH,
}
# A box of fewer milliseconds takes two digits; one of LONG takes a sentence.
SHORT, LONG = 0.05, 0.2


@dataclass(frozen=True)
class Window:
    """What the machines of one run do in one layer step.

    time    float64 [n, 2], start and end in ms since it began
    what    int32 [n, 6], see `sim.timeline.Spans`
    length  ms until both sides are joined
    layer   of the step
    """

    time: Floats
    what: Ints
    length: float
    layer: int

    def units(self, lane: int) -> list[int]:
        """Rows of the units that the GPU or the CPU runs."""
        return np.flatnonzero((self.what[:, 0] == lane) & (self.what[:, 3] != DENSE)).tolist()

    def copied(self) -> list[int]:
        """Rows of the GPU's units that wait for a demand copy."""
        return [row for row in self.units(LANE_GPU) if not self.what[row, 5]]

    def landed(self, unit: int) -> float:
        """When the copy of a unit of this layer ends, ms."""
        of = (self.what[:, 0] >= LANE_LINK) & (self.what[:, 2] == self.layer) & (self.what[:, 3] == unit)
        return float(self.time[of, 1][0])


def starts(spans: Spans) -> tuple[Ints, Floats]:
    """Int32 [n, 2], step and layer of every layer step in order; float64 [n], when it begins, seconds."""
    dense = np.flatnonzero(spans.what[:, 3] == DENSE)
    dense = dense[np.lexsort((spans.what[dense, 2], spans.what[dense, 1]))]
    return spans.what[dense, 1:3], spans.time[dense, 0]


def window(spans: Spans, number: int) -> Window:
    """Layer step `number` of a run."""
    which, begin = starts(spans)
    left, right = begin[number], begin[number + 1]
    inside = (spans.time[:, 1] > left) & (spans.time[:, 0] < right)
    return Window(1e3 * (spans.time[inside] - left), spans.what[inside], 1e3 * (right - left), int(which[number, 1]))


def typical(runs: dict[str, Spans], decode: list[int], layers: int) -> int:
    """Number of the layer step that the module's docstring describes.

    The last layer of a step is left out: what follows it lies outside the MoE layers.
    """
    which, _ = starts(runs[FIRST])
    chosen = np.flatnonzero(np.isin(which[:, 0], decode) & (which[:, 1] < layers - 1))
    off = np.zeros(chosen.size)
    for spans in runs.values():
        lengths = np.diff(starts(spans)[1])[chosen]
        off += np.abs(lengths / lengths.mean() - 1)
    ranked: list[int] = chosen[np.argsort(off, kind="stable")].tolist()
    return next(number for number in ranked if window(runs[SECOND], number).copied())


def draw(first: Window, second: Window) -> Figure:
    """Two panels on one scale."""
    figure = Figure(figsize=(10, 5.1), layout="constrained", dpi=100)
    panels = figure.subplots(2, 1, sharex=True)
    copied = len(second.copied())
    texts = (
        f"the experts of this layer stay in host memory: the CPU runs all {len(first.units(LANE_CPU))}",
        f"the GPU runs {len(second.units(LANE_GPU)) - copied} that it holds and {copied} that the link brings "
        f"meanwhile, the CPU the other {len(second.units(LANE_CPU))}",
    )
    for axes, shown, name, text in zip(panels, (first, second), (FIRST, SECOND), texts, strict=True):
        draw_boxes(axes, shown)
        draw_marks(axes, shown)
        axes.set_title(name, fontsize=12, loc="left", weight="bold", color=INK)
        axes.set_title(text, fontsize=11, loc="right", color=INK)
    panels[0].set_xlim(0, 1.1 * max(first.length, second.length))
    panels[1].set_xlabel("ms since the layer began", fontsize=10)
    patches = [Patch(color=colour) for colour in LEGEND.values()]
    figure.legend(patches, LEGEND, loc="outside lower center", ncols=len(LEGEND), frameon=False, fontsize=10)
    return figure


def draw_boxes(axes: Axes, shown: Window) -> None:
    """A box for whatever a machine does, as long as it takes."""
    for (start, end), (lane, _, layer, unit, tokens, hit) in zip(
        np.clip(shown.time, 0, shown.length).tolist(), shown.what.tolist(), strict=True
    ):
        long, text = end - start, f"{unit}"
        if lane >= LANE_LINK:
            colour = COPIES[lane - LANE_LINK]
            text = f"copy of {unit}" if layer == shown.layer else f"copy of {unit}, for layer {layer}"
            text = text if long > LONG else ""
        elif unit == DENSE:
            colour, text = OTHER, ""
        else:
            colour = CPU if lane == LANE_CPU else GPU if hit else DEMAND
            text += "" if tokens == 1 else f"\n×{tokens}" if long < SHORT else f" ×{tokens}"
        row = ROWS[min(lane, LANE_LINK)]
        axes.barh(row, long, 0.8, start, color=colour, edgecolor="white", linewidth=1)
        axes.text(start + long / 2, row, text, ha="center", va="center", fontsize=9, color=INK)


def draw_marks(axes: Axes, shown: Window) -> None:
    """An arrow from each copy to the unit that waits for it, which machine has nothing to do, and the join."""
    for row in shown.copied():
        landed, begin = shown.landed(int(shown.what[row, 3])), float(shown.time[row, 0])
        points = (begin + SHORT / 4, ROWS[LANE_GPU] + 0.38), (landed - SHORT / 4, ROWS[LANE_LINK] - 0.2)
        axes.annotate("", *points, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.5})
    at_work = set(np.minimum(shown.what[shown.what[:, 3] != DENSE, 0], LANE_LINK).tolist())
    for lane, row in ROWS.items():
        if lane not in at_work:
            axes.text(shown.length / 2, row, "idle", ha="center", va="center", fontsize=11, color=FAINT, style="italic")
    axes.axvline(shown.length, color=INK, linewidth=1.5, linestyle=(0, (4, 2)))
    text = f" joined\n {shown.length:.2f} ms"
    axes.text(shown.length, ROWS[LANE_GPU], text, va="center", fontsize=12, weight="bold", color=INK)
    axes.set_yticks(list(ROWS.values()), ["CPU", "GPU", "link"], fontsize=11)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=10)
    axes.set_ylim(2.5, -0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main() -> None:
    """Simulate, choose, draw and write."""
    overrides = [f"workload.batch={BATCH}", f"policies=[{FIRST},{SECOND}]"]
    comparison = Comparison.read(configuration("compare", overrides), overrides)
    workload = comparison.workloads[BATCH]
    comparison.run(range(workload.n_steps), BATCH)
    runs = {name: comparison.simulations[name, BATCH].spans for name in (FIRST, SECOND)}
    decode = [step.index for step in workload.steps() if step.phase == DECODE]
    number = typical(runs, decode, workload.layers)
    first, second = (window(runs[name], number) for name in (FIRST, SECOND))
    active = len(first.units(LANE_CPU)) + len(first.units(LANE_GPU))
    title = (
        f"One MoE layer of a decode step: the router sent {BATCH} tokens to {active} of {workload.units} experts. "
        "A box is one expert (×2: for two tokens)."
    )
    data = pd.DataFrame({"policy": [FIRST, SECOND], "ms": [first.length, second.length]})
    Drawing(TARGET.stem, title, partial(draw, first, second), data, title).write(TARGET)
    step, layer = starts(runs[FIRST])[0][number].tolist()
    print(f"{TARGET}: step {step}, layer {layer}\n{data.round(3).to_string(index=False)}")


if __name__ == "__main__":
    main()
