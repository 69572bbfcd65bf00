"""What a backtest says: its document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from dali.experiments.output.document import Block, Document, Items, Paragraph, Picture, Section, Table
from dali.experiments.output.text import number, share
from dali.experiments.output.wording import HEADING

TITLE = "Predicted against published speeds"
_MEASURES = ("decode_median_abs", "prefill_median_abs", "decode_series_mape", "prefill_series_mape", "pairs_right")
_HEADER = ["rows", "decode", "prefill", "decode in series", "prefill in series", "pairs right"]
_MEANING = (
    "Decode, prefill: median of |predicted / measured - 1|, over rows that name the CPU or the host's bandwidth. In "
    "series: mean of the same after one scale for each series and phase. Pairs right: of pairs in a series that differ "
    "by more than 5 %, those in the right order."
)
_WORST = 12


def document(table: pd.DataFrame, refused: pd.DataFrame, found: dict[str, Any], said: list[str], rows: str) -> Document:
    """All of it but the figures: `with_figures` adds them.

    table  of `metrics.with_errors`; refused  of `pricing.refusals`; found  `metrics.summary`; rows  the file's name
    """
    counts = f"Rows: {rows}, {found['rows_given']} given, {found['rows_priced']} priced, {_refused(found)} refused."
    held = _groups(found["held_out_by_engine"], "engine")
    of_held: list[Block] = [Paragraph("Held-out series alone:"), held] if held.rows else []
    sections = [
        Section(HEADING, [Items(said)]),
        Section("By engine", [_groups(found["by_engine"], "engine"), *of_held]),
        Section("By machine", [_groups(found["by_machine"], "machine")]),
        Section("Farthest from what was measured", [worst(table)]),
        Section("Rows that are not priced", [_reasons(refused)]),
        Section("Every row", [_every(table)]),
    ]
    return Document(TITLE, [counts], [overview(found)], sections)


def with_figures(made: Document, drawn: list[str]) -> Document:
    """The document with its pictures behind the first table."""
    blocks: list[Block] = [*made.blocks, *map(Picture, drawn)]
    return Document(made.title, made.notes, blocks, made.sections)


def overview(found: dict[str, Any]) -> Table:
    """Held-out series, fitted ones, and all."""
    names = {
        "held_out": "held-out series",
        "left_out": "all series, each left out of the fit",
        "fitted": "fitted series",
        "all": "all series",
        "data_sheet": "all series, by data sheets alone",
    }
    return Table(["", *_HEADER], [[name, *_cells(found[key])] for key, name in names.items()], _MEANING)


def worst(table: pd.DataFrame) -> Table:
    """Rows whose machine is known and whose speed is farthest off, as a factor."""
    known = table[table["absolute"].astype(bool)]
    factor = (known["predicted"] / known["measured"]).map(lambda ratio: max(ratio, 1 / ratio))
    rows = known.loc[factor.sort_values(ascending=False, kind="stable").index[:_WORST]]
    cells = [[*_speeds(row), row.machine, row.taken or "–"] for row in _records(rows)]
    return Table(["row", "phase", "measured", "predicted", "error", "machine", "taken, as the row does not say"], cells)


def _groups(groups: dict[str, dict[str, Any]], name: str) -> Table:
    return Table([name, *_HEADER], [[group, *_cells(found)] for group, found in groups.items()])


def _cells(found: dict[str, Any]) -> list[str]:
    return [str(found["rows_priced"]), *(percent(found[name]) for name in _MEASURES)]


def percent(value: float | None) -> str:
    """A share, or a dash where there is none."""
    return share(float("nan") if value is None else value)


def _refused(found: dict[str, Any]) -> int:
    return sum(found["rows_refused"].values())


def _reasons(refused: pd.DataFrame) -> Table:
    """By category, how many and which; a phase that is left out of a row that is priced has its name behind the id."""
    rows = []
    for category, part in refused.groupby("category", sort=False):
        ids = [f"{each.id} ({each.phase})" if each.phase else each.id for each in _records(part)]
        rows.append([str(category), str(len(part)), ", ".join(ids)])
    return Table(["reason", "rows", "which"], sorted(rows, key=lambda row: -int(row[1])))


def _every(table: pd.DataFrame) -> Table:
    cells = [
        [*_speeds(row), row.engine, "held out" if row.held_out else "fitted", "speed" if row.absolute else "ratios"]
        for row in _records(table)
    ]
    header = ["row", "phase", "measured", "predicted", "error", "engine", "series", "counts for"]
    return Table(
        header, cells, "Tokens/s. Where the machine is not known well enough only ratios within a series count."
    )


def _records(frame: pd.DataFrame) -> Iterable[Any]:
    """Rows with their columns as attributes."""
    return frame.itertuples()


def _speeds(row: Any) -> list[str]:
    return [str(row.id), row.phase, number(row.measured), number(row.predicted), f"{row.error:+.0%}"]
