"""The figures of `dali predict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dali.experiments.drawing.figure import Drawing, bare

# Okabe and Ito's palette, which readers with any colour vision can tell apart; shapes say the same in print.
RECORDED = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKS = ("o", "s", "^", "v", "P", "X")
COMPUTED = {"frequency": ("#555555", "D", "--"), "previous": ("#888888", "d", "-."), "random": ("#BBBBBB", ".", ":")}
BY_LAYER, BY_BATCH, BY_AHEAD, COSINE = "recall_by_layer", "recall_by_batch", "recall_by_ahead", "cosine"
Styles = dict[str, dict[str, Any]]  # how each predictor is drawn
_SHOWN = ["predictor", "metric", "ahead", "batch", "layer", "value", "low", "high"]


def drawings(results: pd.DataFrame, title: str = "") -> list[Drawing]:
    """The figures that a table of results has the numbers for (`Evaluation.results`)."""
    styles = _styles(list(dict.fromkeys(results["predictor"])))

    def made(name: str, caption: str, draw: Callable[..., Figure], part: pd.DataFrame, data: pd.DataFrame) -> Drawing:
        used = [column for column in _SHOWN if data[column].nunique() > 1 or column not in ("ahead", "batch", "layer")]
        return Drawing(name, f"{caption}, with 95 % intervals", partial(draw, part, styles), data[used], title)

    of_token = results[(results["metric"] == "recall_topk") & (results["ahead"] == 1) & (results["layer"] != "all")]
    of_token = of_token[of_token["batch"] == of_token["batch"].min()]
    whole = results[results["layer"] == "all"]
    found = [made(BY_LAYER, "Recall of a token's experts by layer, one layer ahead", by_layer, of_token, of_token)]
    busiest = whole[(whole["ahead"] == 1) & _tops(whole)]
    if len(busiest):
        caption = "Recall of the busiest units by batch size, one layer ahead"
        found.append(made(BY_BATCH, caption, by_batch, busiest, busiest))
    if results["ahead"].nunique() > 1 and _tops(whole).any():
        shown = pd.concat([part for _, part in _ahead_panels(whole)])
        found.append(made(BY_AHEAD, "Recall by layers ahead", by_ahead, whole, shown))
    cosines = results[(results["metric"] == "cosine") & (results["layer"] != "all")]
    if len(cosines):
        caption = "Cosine of predicted and true gate input by layer, whole sequences"
        found.append(made(COSINE, caption, cosine, cosines, cosines))
    return found


def by_layer(part: pd.DataFrame, styles: Styles) -> Figure:
    """Recall of a token's experts by layer."""
    figure, (axes,) = _panels(1, width=7.5)
    _by_layer(axes, part, styles, 100)
    axes.set_ylabel("recall of a token's experts, %")
    axes.set_ylim(0, 103)
    return _with_legend(figure, axes)


def cosine(part: pd.DataFrame, styles: Styles) -> Figure:
    """Cosine of predicted and true gate input by layer; a panel for each distance."""
    distances = sorted(part["ahead"].unique())
    figure, panels = _panels(len(distances), width=max(4.0, 7.5 / len(distances)))
    for axes, ahead in zip(panels, distances, strict=True):
        _by_layer(axes, part[part["ahead"] == ahead], styles, 1)
        axes.set_title(_ahead(ahead), fontsize=9)
    panels[0].set_ylabel("cosine of predicted and true gate input")
    return _with_legend(figure, panels[0])


def by_batch(part: pd.DataFrame, styles: Styles) -> Figure:
    """Recall of the top n by workload against batch size, one layer ahead; a panel for each n."""
    metrics = list(dict.fromkeys(part["metric"]))
    figure, panels = _panels(len(metrics), width=3.4)
    batches = sorted(part["batch"].unique())
    for axes, metric in zip(panels, metrics, strict=True):
        _lines(axes, part[part["metric"] == metric], styles, "batch", list(map(int, batches)))
        axes.set_title(f"top {metric.removeprefix('recall_top')} by workload", fontsize=9)
        axes.set_xlabel("batch size")
    panels[0].set_ylabel("recall one layer ahead, %")
    return _with_legend(figure, panels[0])


def by_ahead(whole: pd.DataFrame, styles: Styles) -> Figure:
    """Recall against layers ahead: of a token's experts, and of the busiest units at two batch sizes."""
    shown = _ahead_panels(whole)
    figure, panels = _panels(len(shown), width=3.4)
    distances = sorted(whole["ahead"].unique())
    for axes, (what, rows) in zip(panels, shown, strict=True):
        _lines(axes, rows, styles, "ahead", distances)
        axes.set_title(what, fontsize=9)
        axes.set_xlabel("layers ahead")
    panels[0].set_ylabel("recall, %")
    return _with_legend(figure, panels[0])


def _ahead_panels(whole: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each panel of `by_ahead`."""
    of_batches = whole[_tops(whole)]
    sizes = sorted(of_batches["batch"].unique())
    busiest = of_batches["metric"].iloc[0]
    tokens = whole[whole["metric"] == "recall_topk"]
    panels = [("experts of a token", tokens[tokens["batch"] == tokens["batch"].min()])]
    # At batch 1 the busiest units are the experts of a token.
    for batch in dict.fromkeys((sizes[len(sizes) // 2], sizes[-1])):
        rows = of_batches[(of_batches["metric"] == busiest) & (of_batches["batch"] == batch)]
        panels.append((f"top {busiest.removeprefix('recall_top')} by workload, batch {batch}", rows))
    return panels


def _tops(results: pd.DataFrame) -> pd.Series:
    return results["metric"].str.startswith("recall_top") & (results["metric"] != "recall_topk")


def _ahead(layers: int) -> str:
    return "1 layer ahead" if layers == 1 else f"{layers} layers ahead"


def _by_layer(axes: Axes, part: pd.DataFrame, styles: Styles, scale: float) -> None:
    """A line a predictor with its interval as a band."""
    for name, rows in part.groupby("predictor", sort=False):
        layers = rows["layer"].astype(int)
        axes.plot(layers, scale * rows["value"], markersize=4, linewidth=1.4, label=str(name), **styles[str(name)])
        low, high = scale * rows["low"], scale * rows["high"]
        axes.fill_between(layers, low, high, color=styles[str(name)]["color"], alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("MoE layer that is predicted")
    bare(axes)


def _lines(axes: Axes, part: pd.DataFrame, styles: Styles, column: str, ticks: Sequence[int]) -> None:
    """A line a predictor over evenly spaced ticks, intervals as bars."""
    place = {tick: i for i, tick in enumerate(ticks)}
    for name, rows in part.groupby("predictor", sort=False):
        value, low, high = (100 * rows[each].to_numpy() for each in ("value", "low", "high"))
        axes.errorbar(
            [place[tick] for tick in rows[column]],
            value,
            # Rounding may put the end of an interval without width past the value.
            [(value - low).clip(min=0), (high - value).clip(min=0)],
            markersize=4,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=str(name),
            **styles[str(name)],
        )
    axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    axes.set_ylim(0, 103)
    bare(axes)


def _styles(names: Sequence[str]) -> Styles:
    styles = {}
    recorded = [name for name in names if name not in COMPUTED]
    for i, name in enumerate(recorded):
        styles[name] = {"color": RECORDED[i % len(RECORDED)], "marker": MARKS[i % len(MARKS)], "linestyle": "-"}
    for name, (colour, mark, line) in COMPUTED.items():
        styles[name] = {"color": colour, "marker": mark, "linestyle": line}
    return styles


def _panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.0 + width * count, 3.9), layout="constrained", dpi=130)
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True)[0])


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 6), frameon=False, fontsize=9)
    return figure
