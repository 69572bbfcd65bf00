"""The folder a verb leaves behind, and tables for people."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
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
