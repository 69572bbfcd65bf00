"""`dali report`: one self-contained HTML page from a results folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from experiments import build
from experiments.report_page.page import render
from experiments.report_page.reading import Folder
from experiments.report_page.verbs import contents
from traces.container import check_writable, replacing


def run(config: DictConfig, overrides: list[str]) -> None:
    """Read the folder whole, write the page whole, say what the numbers say."""
    place = Path(build.text(config, "results"))
    folder = Folder.read(place)
    output = check_writable(place / "report.html" if config.output is None else build.text(config, "output"))
    page = render(folder)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, everything in one file")
    for sentence in contents(folder).sentences:
        print(f"- {sentence}")
