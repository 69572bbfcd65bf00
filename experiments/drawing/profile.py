"""The figures of measured costs: points, the curves through them, the roofline of the largest point."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dali.experiments.drawing.figure import CPU, DEMAND, GPU, OTHER, Drawing, logarithmic
from dali.policies.costs.measured import Curve, Profile, Surface

UNITS = ("cpu", "cpu_contended", "gpu")
COPIES = {"copy": "two outstanding", "copy_alone": "one outstanding", "copy_contended": "beside CPU units"}


def drawings(profile: Profile) -> list[Drawing]:
    """Of a measured profile."""
    title = f"{profile.name}: {profile.model}"
    of_dense = [
        pd.DataFrame(surface.rows, columns=["tokens", "sequences", "context", "seconds", "spread"]).assign(phase=phase)
        for phase, surface in profile.dense.items()
    ]
    return [
        Drawing(
            "units",
            "Time of a unit by tokens: points measured, the curve through them, the roofline through its ends",
            partial(units, profile),
            _points(profile, {name: name.replace("_", ", ") for name in UNITS}, "tokens"),
            title,
        ),
        Drawing(
            "copies", "Time of a copy by bytes", partial(copies, profile), _points(profile, COPIES, "bytes"), title
        ),
        Drawing(
            "dense",
            "Time of the dense part of a layer by tokens, for the shortest and the longest context",
            partial(dense, profile),
            pd.concat(of_dense)[["phase", "tokens", "sequences", "context", "seconds", "spread"]],
            title,
        ),
    ]


def _points(profile: Profile, curves: dict[str, str], what: str) -> pd.DataFrame:
    """A row a point: measured, and on the curve, which never falls."""
    parts = []
    for name, label in curves.items():
        curve: Curve = getattr(profile, name)
        columns = {what: curve.at, "us measured": 1e6 * curve.measured, "us on the curve": 1e6 * curve.seconds}
        parts.append(pd.DataFrame({"curve": label, **columns, "spread": curve.spread}))
    return pd.concat(parts)


def units(profile: Profile) -> Figure:
    """Seconds of a unit against tokens: CPU and GPU, the CPU's also while copies run, and each one's roofline."""
    figure = Figure(figsize=(9, 4), layout="constrained", dpi=130)
    for axes, which, colour in zip(figure.subplots(1, 2), ("cpu", "gpu"), (CPU, GPU), strict=True):
        idle: Curve = getattr(profile, which)
        _curve(axes, idle, colour, "idle")
        if which == "cpu":
            _curve(axes, profile.cpu_contended, DEMAND, "while copies run")
        _roofline(axes, idle)
        _log(axes, f"{which.upper()} unit, tokens")
    return figure


def copies(profile: Profile) -> Figure:
    """Seconds of a copy against its bytes."""
    figure = Figure(figsize=(5, 4), layout="constrained", dpi=130)
    axes = figure.subplots()
    for (name, label), colour in zip(COPIES.items(), (GPU, OTHER, DEMAND), strict=True):
        _curve(axes, getattr(profile, name), colour, label)
    _log(axes, "copy, bytes")
    return figure


def dense(profile: Profile) -> Figure:
    """Seconds of the dense part of a layer against tokens, a line for the shortest and the longest context."""
    figure = Figure(figsize=(9, 4), layout="constrained", dpi=130)
    for axes, (phase, surface) in zip(figure.subplots(1, 2), profile.dense.items(), strict=True):
        _surface(axes, surface)
        _log(axes, f"dense part of a layer, {phase}, tokens")
    return figure


def _curve(axes: Axes, curve: Curve, colour: str, label: str) -> None:
    at = np.unique(np.geomspace(curve.at[0], curve.at[-1], 200))
    axes.plot(at, 1e6 * curve(at), color=colour, linewidth=1.2, label=label)
    half = 0.5 * curve.spread * curve.measured
    axes.errorbar(curve.at, 1e6 * curve.measured, 1e6 * half, fmt="o", color=colour, markersize=3, linewidth=0.8)


def _roofline(axes: Axes, curve: Curve) -> None:
    """The fewest tokens' time (reading the weights) and the most tokens' rate (arithmetic), whichever is longer."""
    at = np.geomspace(curve.at[0], curve.at[-1], 200)
    line = np.maximum(curve.seconds[0], curve.seconds[-1] * at / curve.at[-1])
    axes.plot(at, 1e6 * line, color="black", linewidth=0.8, linestyle=":", label="roofline through its ends")


def _surface(axes: Axes, surface: Surface) -> None:
    for context, colour in ((surface.rows[:, 2].min(), GPU), (surface.rows[:, 2].max(), DEMAND)):
        seconds = [1e6 * surface(int(tokens), context) for tokens in surface.tokens]
        axes.plot(surface.tokens, seconds, color=colour, linewidth=1.2, label=f"context {context:.0f}")
    axes.scatter(surface.rows[:, 0], 1e6 * surface.rows[:, 3], color=OTHER, s=9, zorder=3, label="measured")


def _log(axes: Axes, what: str) -> None:
    logarithmic(axes.xaxis, base=2)
    logarithmic(axes.yaxis, between=(1, 2, 5))
    axes.set_xlabel(what)
    axes.set_ylabel("microseconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend(frameon=False, fontsize=8)
