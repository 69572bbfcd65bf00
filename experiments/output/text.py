"""Tables and numbers for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up on a screen too: first column to the left, others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = (
        "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    )
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def number(value: float) -> str:
    """Three significant digits, without an exponent; a dash for what does not apply."""
    if value != value:
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - int(numpy.floor(numpy.log10(abs(value)))))
    return f"{value:.{digits}f}"


def share(value: float) -> str:
    """A share in per cent; a dash for what does not apply."""
    return "–" if value != value else f"{value:.1%}"
