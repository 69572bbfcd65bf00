"""HTML from data: everything that comes from outside is escaped here and nowhere else."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

MOST_ROWS = 300  # of a table; the rest is in the folder


def escape(value: object) -> str:
    """Text that stands between tags."""
    return html.escape(str(value), quote=False)


def attribute(value: object) -> str:
    """Text that stands within double quotes in a tag."""
    return html.escape(str(value), quote=True)


def embedded(value: Any) -> str:
    """JSON that stands in a <script> element: no < that could end it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def number(value: object) -> str:
    """A value for people: four significant digits, a dash for what does not apply."""
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if not isinstance(value, float | np.floating):
        return str(value)
    number = float(value)
    if number != number:
        return "–"
    plain = abs(number) < 1e15 and (abs(number) >= 1e4 or number.is_integer())
    return f"{number:.0f}" if plain else f"{number:.4g}"


def details(summary: str, body: str, printed: bool = False) -> str:
    """A part that is folded away; `printed` ones are unfolded on paper."""
    kept = ' class="printed"' if printed else ""
    return f"<details{kept}><summary>{escape(summary)}</summary>\n{body}\n</details>"


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], numeric: Sequence[bool], caption: str = ""
) -> str:
    """A table that scrolls by itself where the page is too narrow; `numeric` columns are aligned to the right."""
    sides = [' class="n"' if right else "" for right in numeric]
    sides += [""] * (len(header) - len(sides))

    def cells(row: Sequence[object], tag: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        padded = [*sides, *[""] * (len(row) - len(sides))]
        return "".join(f"<{tag}{scope}{side}>{escape(cell)}</{tag}>" for cell, side in zip(row, padded, strict=False))

    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    label = attribute(caption or "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>{title}\n'
        f"<thead><tr>{cells(header, 'th')}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def frame(data: pd.DataFrame, source: str = "", limit: int | None = MOST_ROWS) -> str:
    """A data frame as a table; where rows are left out, `source` is the file that has them all."""
    shown = data if limit is None else data.head(limit)
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in data.dtypes]
    rows = ([number(value) for value in row] for row in shown.itertuples(index=False, name=None))
    made = table([str(column) for column in data.columns], rows, numeric)
    if len(shown) < len(data):
        made += f"\n<p>The first {len(shown)} of {len(data)} rows; all are in {escape(source)}.</p>"
    return made


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested mappings; lists of plain values stay together."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{prefix}[{i}]")
    elif isinstance(value, list):
        yield prefix, ", ".join(number(item) for item in value)
    else:
        yield prefix, number(value)


def values(nested: Any) -> str:
    """Nested mappings as a table of two columns."""
    return table(["name", "value"], list(flat(nested)), [False, True])


# ---- summary.md ------------------------------------------------------------------------------------


def sections(markdown: str) -> list[tuple[str, str]]:
    """Title and text of the parts that headings of the second level begin; the first part's title is the document's."""
    title = ""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in markdown.splitlines():
        if line.startswith("## "):
            parts.append((line[3:].strip(), []))
        elif line.startswith("# ") and not title:
            title = line[2:].strip()
        else:
            parts[-1][1].append(line)
    return [(heading or title, "\n".join(lines).strip()) for heading, lines in parts]


def blocks(markdown: str) -> str:
    """The Markdown that the verbs write, as HTML: headings, lists, tables, paragraphs; pictures are left out."""
    made = []
    kinds = [(_kind(line), line.strip()) for line in markdown.splitlines()]
    for kind, group in groupby(kinds, key=lambda pair: pair[0]):
        lines = [line for _, line in group]
        if kind == "list":
            made.append(f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>")
        elif kind == "table":
            made.append(_table(lines))
        elif kind == "heading":
            made += [f"<h3>{_inline(line.lstrip('# '))}</h3>" for line in lines]
        elif kind == "text":
            made.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(made)


def _kind(line: str) -> str:
    line = line.strip()
    if not line or line.startswith("!["):
        return ""
    starts = {"- ": "list", "* ": "list", "|": "table", "#": "heading"}
    return next((kind for start, kind in starts.items() if line.startswith(start)), "text")


def _inline(text: str) -> str:
    text = escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    ruled = len(rows) > 1 and all(re.fullmatch(r":?-+:?", cell) for cell in rows[1])
    right = [cell.endswith(":") for cell in rows[1]] if ruled else [False] * len(rows[0])
    return table(rows[0], rows[2 if ruled else 1 :], right)
