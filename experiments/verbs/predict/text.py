"""What `dali predict` says: printed table, document and summary.json from a table of results."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dali.experiments.output.document import Document, Paragraph, Picture, Section, Table
from dali.experiments.settings.routing import about_routing
from dali.experiments.verbs.predict.evaluation import ALL, COSINE, PER_TOKEN, Evaluation

SHOWN = (1, 8, 32)  # batch sizes of the printed table
DEFINITIONS = """\
Recall of a token's experts: share of the true ids among the predicted ones. Recall of the top n by workload: of the n
units with the largest predicted workload of the batch, the share whose true workload is at least the n-th largest;
where predictions tie, the mean over the ways to choose. At batch 1 all workloads are 1: any active unit is right, and
recall of the top n <= K is that of a token. Small batches tie often, so any guess is right more often: read them
beside `random`. Not evaluated: the first token of a sequence and, h layers ahead, the first h layers."""

# What others report, by a pattern of the model's name; they measured on other text, mostly with other definitions.
_DALI = "DALI, arXiv 2602.03495"
_NVMOE = "nvmoe's runtime/README.md (github.com/BrianBoitano/nvmoe), norm weights folded in"
_UNTRACED = "original source not traced"
PUBLISHED = (
    ("qwen3-30b", "raw next-layer gate, recall of the true top-k 88.6 %", _UNTRACED),
    ("qwen3-30b", "previous token, recall of the true top-k 43 %", _UNTRACED),
    ("qwen3-30b", "next-layer gate, recall of the true top-k 85.9 %", _NVMOE),
    ("qwen3-30b", "prefetch accuracy residual 93.3 %, raw gate 77.6 %, mean of four tasks", _DALI),
    ("qwen3-30b", "cosine residual .93, raw gate .79, mean of all layers", f"{_DALI}, Table 8"),
    ("olmoe", "raw next-layer gate, recall of the true top-k 83.6 %; 66 % four layers ahead", _UNTRACED),
    ("olmoe", "next-layer gate, recall of the true top-k 85.8 %", _NVMOE),
    ("deepseek-v2-lite", "raw next-layer gate, recall of the true top-k 78.8 %", _UNTRACED),
    ("deepseek-v2-lite", "next-layer gate, recall of the true top-k 86.4 %", _NVMOE),
    ("deepseek-v2-lite", "prefetch accuracy residual 79.5 %, raw gate 72.6 %, mean of four tasks", _DALI),
    ("gpt-oss-120b", "next-layer gate, recall of the true top-k 84.9 %", _NVMOE),
    ("mixtral-8x7b", "cosine residual .89, raw gate .79, mean of all layers", f"{_DALI}, Table 8"),
)


def published(model: str) -> list[str]:
    """What others report of this model, one line each; empty if nothing is known."""
    name = re.sub(r"[^a-z0-9.]+", "-", model.lower())
    return [f"Published: {what} ({source})." for pattern, what, source in PUBLISHED if pattern in name]


def as_json(results: pd.DataFrame, evaluation: Evaluation) -> dict[str, Any]:
    """Recall one layer ahead over all layers, by batch size and predictor; intervals under METRIC_95."""
    trace = evaluation.trace
    rows = results[(results["layer"] == ALL) & (results["ahead"] == 1) & (results["batch"] > 0)]
    by_batch: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        entry = by_batch.setdefault(str(row["batch"]), {}).setdefault(row["predictor"], {})
        entry[row["metric"]] = None if np.isnan(row["value"]) else row["value"]
        entry[f"{row['metric']}_95"] = None if np.isnan(row["low"]) else [row["low"], row["high"]]
    return {
        "trace": trace.metadata.model,
        "phase": evaluation.settings.phase,
        "layers": trace.layers,
        "experts": trace.experts_count,
        "top_k": trace.top_k,
        "sequences": trace.sequences,
        "ahead": 1,
        "batch": by_batch,
    }


def overview(results: pd.DataFrame, evaluation: Evaluation) -> Table:
    """One layer ahead: per token, the busiest units by batch size, cosine."""
    usual = [batch for batch in SHOWN if batch in evaluation.groups]
    batches = usual if len(usual) > 1 else list(evaluation.groups)[:3]
    columns = _headline(evaluation, batches)
    if COSINE in set(results["metric"]):
        columns["cosine"] = (COSINE, 0, 1)
    return _table(results, evaluation.names, columns, first="predictor, 1 layer ahead")


# A column of a table: metric, batch size (0 = of whole sequences), layers ahead.
Column = tuple[str, int, int]


def _headline(evaluation: Evaluation, batches: Sequence[int]) -> dict[str, Column]:
    size = min(evaluation.settings.sizes)
    columns: dict[str, Column] = {f"top-{evaluation.trace.top_k} of a token": (PER_TOKEN, min(evaluation.groups), 1)}
    return columns | {f"top-{size}, batch {batch}": (f"recall_top{size}", batch, 1) for batch in batches}


def _table(
    results: pd.DataFrame,
    names: Sequence[str],
    columns: Mapping[str, Column],
    cell: Callable[[Any], str] | None = None,
    first: str = "predictor",
) -> Table:
    """A row for each name, all layers together; a dash where a predictor has no such number."""
    whole = results[results["layer"] == ALL]
    cells = []
    for metric, batch, ahead in columns.values():
        part = whole[(whole["metric"] == metric) & (whole["ahead"] == ahead) & (whole["batch"] == batch)]
        cells.append({row.predictor: (cell or _value)(row) for row in part.itertuples()})
    return Table([first, *columns], [[name, *(column.get(name, "–") for column in cells)] for name in names])


def _value(row: Any) -> str:
    """Share in per cent (a cosine as it is) and its interval."""
    scale, form = (1, "{:.3f}") if row.metric == COSINE else (100, "{:.1f}")
    value, low, high = (form.format(scale * number) for number in (row.value, row.low, row.high))
    return value if np.isnan(row.low) else f"{value} ({low}–{high})"


def _gain(row: Any) -> str:
    value, low, high = (f"{100 * number:+.1f}" for number in (row.gain, row.gain_low, row.gain_high))
    return "–" if np.isnan(row.gain) else value if np.isnan(row.gain_low) else f"{value} ({low} to {high})"


def about(evaluation: Evaluation) -> list[str]:
    """What was evaluated, two lines."""
    trace, settings = evaluation.trace, evaluation.settings
    sources = ", ".join(f"{name} (to +{ahead})" for name, ahead in trace.sources.items()) or "none"
    return [
        f"{trace.layers} MoE layers x {trace.experts_count} experts, top-{trace.top_k}; {trace.tokens} tokens in "
        f"{trace.sequences} sequences; recorded predictors: {sources}.",
        f"Phase: {settings.phase}. Intervals: 95 %, {settings.count} bootstrap resamples of sequences (recall of a "
        f"token, cosine) or of batches (recall by workload), seed {settings.seed}.",
    ]


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader has to know, and what others report of the model."""
    metadata = evaluation.trace.metadata
    return [*about_routing(metadata), *evaluation.notes, *published(metadata.model)]


def document(title: str, drawn: Sequence[str], results: pd.DataFrame, evaluation: Evaluation) -> Document:
    """All of it; `drawn` are the files of the figures."""
    names, distances, batches = evaluation.names, evaluation.distances, list(evaluation.groups)
    top_k, sizes = evaluation.trace.top_k, evaluation.settings.sizes
    tables = {
        f"Difference to {evaluation.baseline}, one layer ahead (points; interval of the paired difference)": _table(
            results, [n for n in names if n != evaluation.baseline], _headline(evaluation, batches), _gain
        ),
        f"The true top-{top_k} of a token": _table(
            results, names, {f"{ahead} ahead": (PER_TOKEN, batches[0], ahead) for ahead in distances}
        ),
    }
    for ahead, size in itertools.product(distances, sizes):
        tables[f"The top {size} by workload, {ahead} ahead"] = _table(
            results, names, {f"batch {batch}": (f"recall_top{size}", batch, ahead) for batch in batches}
        )
    if COSINE in set(results["metric"]):
        tables["Cosine of predicted and true gate input, mean over whole sequences"] = _table(
            results, list(evaluation.recorded), {f"{ahead} ahead": (COSINE, 0, ahead) for ahead in distances}
        )
    said = Paragraph("Recall in per cent, all layers together, 95 % interval in brackets.")
    return Document(
        f"Recall of predictors: {title}",
        [*about(evaluation), *notes(evaluation)],
        [said, overview(results, evaluation), Paragraph(DEFINITIONS), *map(Picture, drawn)],
        [Section(heading, [table]) for heading, table in tables.items()],
    )
