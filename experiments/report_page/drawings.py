"""The figures of a results folder, drawn anew as SVG from its data; pictures without a drawing function as they are."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import analysis, figures
from experiments.compare import DRAWN_LAYERS
from experiments.report_page import svg
from experiments.report_page.markup import attribute, details, escape, frame
from experiments.report_page.reading import Folder
from experiments.report_page.timeline import Timeline
from sim.timeline import LANE_CPU, LANES, Spans

WATERFALL = "waterfall"  # waterfall.parquet: columns stage and ms_per_token, and any others that tell cases apart
STAGE, MS = "stage", "ms_per_token"
KEYS = ["policy", "batch", "phase"]


@dataclass(frozen=True)
class Drawing:
    """A figure as it stands in the page.

    stands_for  name of the .png in the folder that shows the same
    caption     what it shows; image  an <svg> or <img> element; data  its numbers, None for a picture as it was
    """

    stands_for: str
    caption: str
    image: str
    data: pd.DataFrame | None

    def html(self) -> str:
        """The <figure> element with its data table folded away."""
        data = "" if self.data is None else details("Data of this figure", frame(self.data, limit=None))
        return (
            f'<figure><div class="scroll picture" tabindex="0" role="region" aria-label="{attribute(self.caption)}">'
            f"{self.image}</div>\n<figcaption>{escape(self.caption)}</figcaption>\n{data}</figure>"
        )


def drawings(folder: Folder, step: int | None) -> Iterator[Drawing]:
    """Every figure of the folder; `step` is the one that timelines show, None where there is no timeline."""
    drawn = set()
    for drawing in _from_data(folder, step):
        drawn.add(drawing.stands_for)
        yield drawing
    for name, picture in folder.pictures.items():
        if name not in drawn:
            code = base64.b64encode(picture).decode()
            caption = f"{name}, as it is in the folder"
            yield Drawing(name, caption, f'<img alt="{attribute(caption)}" src="data:image/png;base64,{code}">', None)


def _from_data(folder: Folder, step: int | None) -> Iterator[Drawing]:
    results = folder.tables.get("results", pd.DataFrame())
    if analysis.compares(results):
        yield from _of_comparison(results)
    if step is not None:
        yield _timelines(folder.timelines, step)
    if WATERFALL in folder.tables and {STAGE, MS} <= set(folder.tables[WATERFALL].columns):
        data = folder.tables[WATERFALL]
        caption = "Milliseconds per output token, idea by idea down to the bound that no policy can beat"
        yield _drawing(f"{WATERFALL}.png", caption, lambda: waterfall(data), data)


def _of_comparison(results: pd.DataFrame) -> Iterator[Drawing]:
    compared_with = analysis.baseline(results) or "the baseline"
    columns = {
        "speedup.png": (
            f"Tokens/s as a multiple of {compared_with}'s, by policy and batch size",
            figures.speedup,
            ["tokens_per_s", "speedup"],
        ),
        "busy.png": (
            "Share of the time that GPU, CPU and link are busy, by policy and batch size",
            figures.busy,
            ["gpu_busy", "cpu_busy", *analysis.LINK],
        ),
        "hit_rate.png": (
            "Share of lookups that found their unit resident, by policy and batch size",
            figures.hit_rate,
            ["hit_rate"],
        ),
    }
    for name, (caption, draw, shown) in columns.items():
        yield _drawing(name, caption, partial(draw, results, compared_with), results[KEYS + shown])


def _drawing(stands_for: str, caption: str, draw: Callable[[], Figure], data: pd.DataFrame) -> Drawing:
    with svg.style():
        figure = draw()
    name = stands_for.removesuffix(".png").replace(".", "-")
    return Drawing(
        stands_for, caption, svg.inline(figure, name, f"{caption}. The numbers are in the table below."), data
    )


def _timelines(timelines: list[Timeline], step: int) -> Drawing:
    shown = {each.name: each.spans for each in timelines if step in each.steps}
    first = "first layer" if DRAWN_LAYERS == 1 else f"first {DRAWN_LAYERS} layers"
    caption = f"What GPU, CPU and link do in the {first} of step {step}, by policy, on one scale"
    data = pd.DataFrame([{"policy": name, **_busy_ms(spans, step)} for name, spans in shown.items()])
    return _drawing(figures.TIMELINE, caption, lambda: figures.draw_timeline(shown, step, DRAWN_LAYERS, ""), data)


def _busy_ms(spans: Spans, step: int) -> dict[str, float]:
    """Milliseconds from the first to the last job of the drawn layers, and what each lane was busy of them."""
    lane, owner, layer = spans.what[:, 0], spans.what[:, 1], spans.what[:, 2]
    run = (owner == step) & (lane <= LANE_CPU) & (layer < DRAWN_LAYERS)
    start, end = spans.time[run].min(), spans.time[run].max()
    inside = np.clip(spans.time, start, end)
    length = inside[:, 1] - inside[:, 0]
    busy = {f"{name}, ms busy": 1e3 * float(length[lane == i].sum()) for i, name in enumerate(LANES)}
    return {"ms": 1e3 * float(end - start), **busy}


def waterfall(data: pd.DataFrame) -> Figure:
    """Milliseconds per output token by stage, and what each stage saves over the one before; a panel for each case."""
    others = [column for column in data.columns if column not in (STAGE, MS)]
    cases = list(data.groupby(others, sort=False)) if others else [("", data)]
    stages = data[STAGE].nunique()
    figure = Figure(figsize=(8, len(cases) * (0.7 + 0.32 * stages)), layout="constrained", dpi=130)
    for axes, (case, rows) in zip(figure.subplots(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        places, ms = np.arange(len(rows)), rows[MS].to_numpy(float)
        saved = np.append(ms[:-1] - ms[1:], 0.0).clip(min=0)
        axes.barh(places, ms, 0.7, color=figures.BATCH_COLOURS[1])
        axes.barh(places[1:], saved[:-1], 0.7, left=ms[1:], color=figures.OTHER, alpha=0.5)
        for place, value in zip(places, ms, strict=True):
            axes.text(0, place, f" {value:.2f}", va="center", color="#ffffff", fontsize=8)
        axes.set_yticks(places, [str(stage) for stage in rows[STAGE]], fontsize=8)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(", ".join(map(str, case if isinstance(case, tuple) else (case,))), fontsize=9, loc="left")
        axes.set_xlabel("ms per output token", fontsize=8)
    return figure
