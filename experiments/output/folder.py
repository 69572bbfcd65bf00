"""The folder a verb leaves behind."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy
from omegaconf import DictConfig, OmegaConf

from dali.experiments.output.document import Document
from dali.experiments.output.manifest import MANIFEST, Manifest

SUMMARY, CONFIG = "summary.md", "config.yaml"


@dataclass
class ResultsFolder:
    """A folder that is being written.

    place     where to write; final: what that will be called when all is written
    document  what the folder says, to be set before the end
    """

    place: Path
    final: Path
    document: Document | None = None


@contextmanager
def folder(output: str, verb: str, config: DictConfig, overrides: Sequence[str]) -> Iterator[ResultsFolder]:
    """A new folder `output/verb/TIME`: the configuration, what the block writes, its document and its manifest.

    It gets its name when all of that is written.  Until then, and for good if the block raises, there is nothing under
    a name that looks complete.
    """
    parent = Path(output) / verb
    parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    unfinished = parent / f".{now}.part"
    unfinished.mkdir()
    try:
        OmegaConf.save(config, unfinished / CONFIG, resolve=True)
        made = ResultsFolder(unfinished, parent / now)
        yield made
        assert made.document is not None, f"{verb} has nothing to say"
        command = shlex.join(["dali", verb, *overrides])
        for name, content in described(unfinished, verb, command, made.document).items():
            (unfinished / name).write_text(content, encoding="utf-8")
        unfinished.rename(made.final)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def described(place: Path, verb: str, command: str, document: Document) -> dict[str, str]:
    """By file, what a folder says of itself once all else is in it: to people, and to `dali report`."""
    manifest = Manifest.of(place, verb, version("dali-moe"), stamp(), command, document)
    return {SUMMARY: document.markdown(stamp()), MANIFEST: manifest.to_text()}


def stamp() -> str:
    """One line saying which code and libraries produced a result."""
    return f"dali-moe {version('dali-moe')}, numpy {numpy.__version__}, numba {version('numba')}"
