"""The figures of `dali calibrate`: points measured, the curves through them, the roofline of the largest point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.figures import CPU, DEMAND, GPU, OTHER
from policies.measured import Curve, Profile, Surface

NAMES = ("units.png", "copies.png", "dense.png")


def save_all(profile: Profile, place: Path) -> None:
    """Write the figures of `NAMES`."""
    for name, figure in zip(NAMES, (units(profile), copies(profile), dense(profile)), strict=True):
        figure.suptitle(f"{profile.name}: {profile.model}", fontsize=10)
        FigureCanvasAgg(figure).print_png(str(place / name))


def units(profile: Profile) -> Figure:
    """Seconds of a unit against tokens: CPU and GPU, idle and contended, and each one's roofline."""
    figure = Figure(figsize=(9, 4), layout="constrained", dpi=130)
    for axes, which, colour in zip(figure.subplots(1, 2), ("cpu", "gpu"), (CPU, GPU), strict=True):
        idle: Curve = getattr(profile, which)
        _curve(axes, idle, colour, "idle")
        _curve(axes, getattr(profile, f"{which}_contended"), DEMAND, "contended")
        _roofline(axes, idle)
        _log(axes, f"{which.upper()} unit, tokens")
    return figure


def copies(profile: Profile) -> Figure:
    """Seconds of a copy against its bytes."""
    figure = Figure(figsize=(5, 4), layout="constrained", dpi=130)
    axes = figure.subplots()
    _curve(axes, profile.copy, GPU, "two outstanding")
    _curve(axes, profile.copy_alone, OTHER, "one outstanding")
    _curve(axes, profile.copy_contended, DEMAND, "beside CPU units")
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
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(what)
    axes.set_ylabel("microseconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend(frameon=False, fontsize=8)
