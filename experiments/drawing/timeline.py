"""The figure of one step: what GPU, CPU and link do in it, a panel for each policy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dali.experiments.drawing.figure import CPU, DEMAND, GPU, OTHER, PREFETCH, SWAP, Drawing
from dali.policies.columns import DENSE, LANE_CPU, LANE_LINK, LANES
from dali.sim.timeline import Spans


def drawing(spans: Mapping[str, Spans], step: int, layers: int, title: str = "") -> Drawing:
    """The first `layers` layers of a step, by the name of the policy, or of the run."""
    first = "first layer" if layers == 1 else f"first {layers} layers"
    caption = f"What GPU, CPU and link do in the {first} of step {step}, on one scale"
    data = pd.DataFrame([{"policy": name, **_busy_ms(each, step, layers)} for name, each in spans.items()])
    return Drawing("timeline", caption, partial(draw, spans, step, layers), data, title)


def draw(spans: Mapping[str, Spans], step: int, layers: int) -> Figure:
    """A panel is as long as those layers take under its policy, so that their lengths compare."""
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
        [Patch(color=colour) for colour in legend.values()], legend, loc="outside lower left", ncols=6, frameon=False
    )
    return figure


def _drawn(spans: Spans, step: int, layers: int) -> tuple[np.ndarray, float, float]:
    """What GPU and CPU run for those layers, a mask of the spans; when the first of it begins and the last ends."""
    lane, owner, layer = spans.what[:, 0], spans.what[:, 1], spans.what[:, 2]
    run = (owner == step) & (lane <= LANE_CPU) & (layer < layers)
    return run, spans.time[run].min(), spans.time[run].max()


def _lanes(axes: Axes, spans: Spans, step: int, layers: int) -> None:
    lane, _, _, unit, _, hit = spans.what.T
    run, start, end = _drawn(spans, step, layers)
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


def _busy_ms(spans: Spans, step: int, layers: int) -> dict[str, float]:
    """Milliseconds from the first to the last job of the drawn layers, and what each lane was busy of them."""
    _, start, end = _drawn(spans, step, layers)
    inside = np.clip(spans.time, start, end)
    length = inside[:, 1] - inside[:, 0]
    busy = {f"{name}, ms busy": 1e3 * float(length[spans.what[:, 0] == i].sum()) for i, name in enumerate(LANES)}
    return {"ms": 1e3 * float(end - start), **busy}
