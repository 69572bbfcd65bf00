"""The folder a verb leaves behind, and tables for people."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy
from omegaconf import DictConfig, OmegaConf


@contextmanager
def folder(output: str, verb: str, config: DictConfig) -> Iterator[Path]:
    """A new folder `output/verb/TIME` with the configuration in it; it gets its name when all in it is written.

    Until then, and for good if the block raises, there is nothing under a name that looks complete.
    Yields the folder to write to; `finished` says what it will be called.
    """
    parent = Path(output) / verb
    parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    unfinished = parent / f".{now}.part"
    unfinished.mkdir()
    try:
        OmegaConf.save(config, unfinished / "config.yaml", resolve=True)
        yield unfinished
        unfinished.rename(finished(unfinished))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def finished(unfinished: Path) -> Path:
    """The name a folder of `folder` will have."""
    return unfinished.with_name(unfinished.name.removeprefix(".").removesuffix(".part"))


def stamp() -> str:
    """One line saying which code and libraries produced a result."""
    return f"dali-moe {version('dali-moe')}, numpy {numpy.__version__}, numba {version('numba')}"


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
