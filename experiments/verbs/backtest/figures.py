"""The figures of `dali backtest`."""

from __future__ import annotations

from functools import partial
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dali.experiments.drawing.figure import BATCH_COLOURS, DEMAND, OTHER, Drawing, bare, logarithmic
from dali.experiments.output.wording import phases
from dali.experiments.verbs.backtest.metrics import KEYS
from dali.experiments.verbs.backtest.phrases import leading

BAND = 0.2  # of the measured speed, to both sides
_SHOWN, _ABREAST = 12, 3
_COLOURS = (*BATCH_COLOURS[1:], DEMAND, BATCH_COLOURS[0])
_FAINT = 0.35


def drawings(table: pd.DataFrame) -> list[Drawing]:
    """Of a table `metrics.with_errors`."""
    shown, known, colours = _largest(table), table[table["absolute"].astype(bool)], _engine_colours(table)
    found = [
        Drawing(
            "predicted",
            "Predicted against measured tokens/s, a point a row; the line is where they agree, the band 20 % to both "
            "sides; faint where the row does not say enough of its machine for more than ratios",
            partial(predicted, table, colours),
            table[["id", "engine", "phase", "measured", "predicted", "absolute", "held_out"]],
        ),
    ]
    if not shown.empty:
        found.append(
            Drawing(
                "series",
                "The series with most points, over what varies in them: measured (black), predicted, and predicted "
                "with one scale for the series (dashed)",
                partial(series, shown, colours),
                shown[[*KEYS, "knob_value", "measured", "predicted"]],
            )
        )
    if not known.empty:
        found.append(
            Drawing(
                "errors",
                "Predicted over measured tokens/s by engine, a point a row, where the machine is known; the bar is the "
                "median, the band 20 % to both sides",
                partial(errors, known, colours),
                known[["id", "engine", "phase", "held_out", "error"]],
            )
        )
    return found


# ---- predicted against measured --------------------------------------------------------------------


def predicted(table: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """A panel for each phase, a colour for each engine; full marks are held out, open ones were fitted on."""
    shown = phases(table)
    figure = Figure(figsize=(1.0 + 4.4 * len(shown), 6.0), layout="constrained", dpi=130)
    for axes, phase in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        part = table[table["phase"] == phase]
        _agreement(axes, part)
        for engine, colour in colours.items():
            _points(axes, part[part["engine"] == engine], colour)
        axes.set(title=phase, xlabel="measured tokens/s", ylabel="predicted tokens/s", aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
    marks = [Line2D([], [], linestyle="", marker="o", color=colour, label=name) for name, colour in colours.items()]
    marks.append(Line2D([], [], linestyle="", marker="o", color="black", label="held out"))
    marks.append(Line2D([], [], linestyle="", marker="o", color="black", fillstyle="none", label="fitted on"))
    figure.legend(handles=marks, loc="outside lower left", ncols=5, frameon=False, fontsize=8)
    return figure


def _agreement(axes: Axes, part: pd.DataFrame) -> None:
    """The same limits on both axes, the line and the band."""
    speeds = part[["measured", "predicted"]].to_numpy(float)
    ends = np.array([speeds.min() / 1.4, speeds.max() * 1.4])
    axes.fill_between(ends, (1 - BAND) * ends, (1 + BAND) * ends, color=OTHER, alpha=0.35, linewidth=0)
    axes.plot(ends, ends, color="black", linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        logarithmic(axis, between=(1, 3))
    axes.set(xlim=ends, ylim=ends)


def _points(axes: Axes, part: pd.DataFrame, colour: str) -> None:
    for (held_out, absolute), rows in part.groupby(["held_out", "absolute"]):
        axes.plot(
            rows["measured"],
            rows["predicted"],
            "o",
            color=colour,
            markersize=5,
            fillstyle="full" if held_out else "none",
            alpha=1 if absolute else _FAINT,
        )


# ---- within series ---------------------------------------------------------------------------------


def series(table: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """A panel for each series and phase of the table."""
    panels = list(table.groupby(KEYS, sort=False))
    abreast = min(_ABREAST, len(panels))
    down = -(-len(panels) // abreast)
    figure = Figure(figsize=(0.6 + 3.6 * abreast, 0.4 + 2.5 * down), layout="constrained", dpi=130)
    grid = figure.subplots(down, abreast, squeeze=False).ravel()
    for axes, ((name, phase), rows) in zip(grid, panels, strict=False):
        _over_knob(axes, rows, colours[rows["engine"].iloc[0]])
        error = rows["series_error"].abs().mean()
        axes.set_title(f"{name}, {phase}: {error:.0%} off within", fontsize=8, loc="left")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _over_knob(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    numbers = [leading(str(value)) for value in rows["knob_value"]]
    plain = [value for value in numbers if value is not None]
    scaled = len(set(plain)) == len(rows)
    if scaled:
        rows = rows.assign(at=plain).sort_values("at")
    at = rows["at"].to_numpy(float) if scaled else np.arange(len(rows))
    measured, guess = rows["measured"].to_numpy(float), rows["predicted"].to_numpy(float)
    scale = np.exp(np.mean(np.log(measured / guess)))
    axes.plot(at, measured, "o-", color="black", markersize=3.5, linewidth=1)
    axes.plot(at, guess, "o-", color=colour, markersize=3.5, linewidth=1)
    axes.plot(at, scale * guess, "--", color=colour, linewidth=1)
    if scaled and at.min() > 0 and at.max() > 20 * at.min():
        logarithmic(axes.xaxis, between=(1, 3))
    elif not scaled:
        axes.set_xticks(at, [str(value)[:26] for value in rows["knob_value"]], rotation=20, ha="right", fontsize=6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(str(rows["knob"].iloc[0])[:44], fontsize=7)
    axes.tick_params(labelsize=7)
    bare(axes)


def _largest(table: pd.DataFrame) -> pd.DataFrame:
    """The series and phases with most points, two or more of them."""
    sizes = table.groupby(KEYS, sort=False).size().sort_values(ascending=False, kind="stable")
    kept = sizes[sizes > 1].index[:_SHOWN]
    return table[pd.MultiIndex.from_frame(table[KEYS]).isin(kept)]


# ---- errors ----------------------------------------------------------------------------------------


def errors(known: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """A panel for each phase, a line for each engine."""
    shown = phases(known)
    names = [name for name in colours if name in set(known["engine"])]
    figure = Figure(figsize=(1.6 + 3.8 * len(shown), 1.3 + 0.4 * max(len(names), 2)), layout="constrained", dpi=130)
    for axes, phase in zip(figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown, strict=True):
        for at, name in enumerate(names):
            rows = known[(known["engine"] == name) & (known["phase"] == phase)]
            _strip(axes, rows, at, colours[name])
        axes.axvspan(1 - BAND, 1 + BAND, color=OTHER, alpha=0.35, linewidth=0)
        axes.axvline(1, color="black", linewidth=0.8)
        logarithmic(axes.xaxis, between=(1, 1.5, 2, 3, 5, 7))
        axes.set(title=phase, xlabel="predicted over measured", ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _strip(axes: Axes, rows: pd.DataFrame, at: int, colour: str) -> None:
    ratio = 1 + rows["error"].to_numpy(float)
    for held_out in (True, False):
        part = ratio[rows["held_out"].to_numpy(bool) == held_out]
        style = "full" if held_out else "none"
        axes.plot(part, np.full(len(part), at), "o", color=colour, fillstyle=style, markersize=5, alpha=0.8)
    if len(ratio):
        axes.plot([np.median(ratio)] * 2, [at - 0.32, at + 0.32], color=colour, linewidth=2.5)


def _engine_colours(table: pd.DataFrame) -> dict[str, str]:
    """Of all figures."""
    return dict(zip(sorted(table["engine"].unique()), cycle(_COLOURS), strict=False))
