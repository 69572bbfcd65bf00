"""The figures of `dali validate`: errors by policy, and one step as it ran above the same step as simulated."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dali.experiments.drawing import timeline
from dali.experiments.drawing.figure import BATCH_COLOURS, Drawing, save_all
from dali.experiments.verbs.validate.sides import Side
from dali.policies.columns import DECODE
from dali.sim.timeline import Spans
from dali.traces.files import replacing

PERFETTO = "timeline.json.gz"
DRAWN_LAYERS = 4


def save(results: pd.DataFrame, shown: tuple[str, Side, Side], place: Path) -> None:
    """Write errors, the two timelines of a step, and both as one file for Perfetto."""
    title, measured, simulated = shown
    row = _middle_decode_step(measured)
    both = {"measured": _step(measured, row), "simulated": _step(simulated, row)}
    step = int(measured.columns["step"][row])
    drawn = timeline.drawing(both, step, DRAWN_LAYERS, f"{title}: step {step}")
    save_all([*drawings(results), drawn], place)
    save_together(both, place / PERFETTO)


def drawings(results: pd.DataFrame) -> list[Drawing]:
    """Of a table of results (one row a policy, setting and phase)."""
    caption = "Simulated over measured time, less one, by policy and setting: below 0 the simulation is too fast"
    shown = results[["phase", "policy", "setting", "measured", "simulated", "error"]]
    return [Drawing("errors", caption, partial(errors, results), shown)]


def errors(results: pd.DataFrame) -> Figure:
    """Signed error of the time of each policy and setting; a panel for each phase."""
    phases = list(results["phase"].unique())
    settings = list(results["setting"].unique())
    policies = list(results["policy"].unique())
    figure = Figure(figsize=(3 + 1.1 * len(policies), 0.8 + 2.6 * len(phases)), layout="constrained", dpi=130)
    panels = figure.subplots(len(phases), 1, squeeze=False)[:, 0]
    width = 0.84 / len(settings)
    for axes, phase in zip(panels, phases, strict=True):
        part = results[results["phase"] == phase].pivot(index="policy", columns="setting", values="error")
        for i, setting in enumerate(settings):
            at = np.arange(len(policies)) + (i - (len(settings) - 1) / 2) * width
            colour = BATCH_COLOURS[i % len(BATCH_COLOURS)]
            axes.bar(at, 100 * part.reindex(policies)[setting], width * 0.94, color=colour, label=setting)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(np.arange(len(policies)), policies, rotation=20, ha="right")
        axes.set_ylabel(f"{phase}: simulated over\nmeasured time, %")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    return figure


def save_together(spans: dict[str, Spans], path: Path) -> None:
    """One Chrome trace with a process for each of several timelines, all beginning at 0."""
    events = []
    with TemporaryDirectory() as folder:
        for number, (name, each) in enumerate(spans.items(), start=1):
            file = Path(folder) / "one.json.gz"
            Spans(each.time - each.time.min(), each.what).save(file, name)
            with gzip.open(file, "rt", encoding="utf-8") as source:
                events += [event | {"pid": number} for event in json.load(source)["traceEvents"]]
    with replacing(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as target:
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, target)


def _middle_decode_step(side: Side) -> int:
    decode = np.flatnonzero(side.columns["phase"] == DECODE)
    return int(decode[len(decode) // 2]) if len(decode) else len(side.columns["step"]) - 1


def _step(side: Side, row: int) -> Spans:
    """Everything that ran while a step did."""
    start, end = side.columns["start"][row], side.columns["end"][row]
    inside = (side.spans.time[:, 1] > start) & (side.spans.time[:, 0] < end)
    return Spans(side.spans.time[inside], side.spans.what[inside])
