"""Tables as the page shows them: cells of text, from data frames, nested values and documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dali.experiments.output.document import Table

MOST_ROWS = 300  # of a table; the rest is in the folder


@dataclass(frozen=True)
class Grid:
    """Rows as long as the header.

    right  of each column, whether it is aligned to the right
    label  what is read out for it; left_out: what is said of rows that are not shown
    """

    header: list[str]
    rows: list[list[str]]
    right: list[bool]
    label: str = "table"
    left_out: str = ""

    @classmethod
    def of_table(cls, table: Table) -> Grid:
        """A table of a document."""
        right = [False, *[True] * (len(table.header) - 1)]
        return cls(table.header, table.rows, right, table.caption or "table")

    @classmethod
    def of_frame(cls, data: pd.DataFrame, source: str = "", limit: int | None = MOST_ROWS) -> Grid:
        """A data frame; where rows are left out, `source` is the file that has them all."""
        kept = data if limit is None else data.head(limit)
        left_out = f"The first {len(kept)} of {len(data)} rows; all are in {source}." if len(kept) < len(data) else ""
        right = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in data.dtypes]
        rows = [[number(value) for value in row] for row in kept.itertuples(index=False, name=None)]
        return cls([str(column) for column in data.columns], rows, right, left_out=left_out)

    @classmethod
    def of_values(cls, nested: Any, name: str = "name") -> Grid:
        """Nested mappings, a row a value under its dotted name."""
        return cls([name, "value"], [list(row) for row in flat(nested)], [False, True])


def number(value: object) -> str:
    """A value for people: four significant digits, a dash for what does not apply."""
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if not isinstance(value, float | np.floating):
        return str(value)
    found = float(value)
    if found != found:
        return "–"
    plain = abs(found) < 1e15 and (abs(found) >= 1e4 or found.is_integer())
    return f"{found:.0f}" if plain else f"{found:.4g}"


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested mappings; lists of plain values stay together."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{prefix}[{i}]")
    elif isinstance(value, list):
        yield prefix, ", ".join(number(item) for item in value)
    else:
        yield prefix, number(value)
