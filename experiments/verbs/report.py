"""`dali report`: one self-contained HTML page from a results folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dali.experiments.page.page import render
from dali.experiments.page.reading import Folder
from dali.experiments.settings import read
from dali.experiments.verbs.reading import contents
from dali.traces.files import check_writable, replacing


def run(config: DictConfig, overrides: list[str]) -> None:
    """Read the folder whole, write the page whole, say what the numbers say."""
    place = Path(read.text(config, "results"))
    folder = Folder.read(place)
    output = check_writable(place / "report.html" if config.output is None else read.text(config, "output"))
    page = render(folder)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, everything in one file")
    for sentence in contents(folder).sentences:
        print(f"- {sentence}")
