"""`dali report`: one self-contained HTML page from a results folder."""

from __future__ import annotations

import importlib
from pathlib import Path

from omegaconf import DictConfig

from dali.experiments.output.json_file import brief
from dali.experiments.output.manifest import MANIFEST
from dali.experiments.page.contents import Contents, measured_machine, of_profiles, of_timelines
from dali.experiments.page.page import render
from dali.experiments.page.reading import Folder
from dali.experiments.settings import read
from dali.experiments.verbs.table import VERBS
from dali.policies.types import InputError
from dali.traces.files import check_writable, replacing

UNKNOWN = f"There is no {MANIFEST} here, so that the verb is not known: tables, values and pictures as they are."


def run(config: DictConfig, overrides: list[str]) -> None:
    """Read the folder whole, write the page whole, say what the numbers say."""
    place = Path(read.text(config, "results"))
    folder = Folder.read(place)
    output = check_writable(place / "report.html" if config.output is None else read.text(config, "output"))
    found = contents(folder)
    page = render(folder, found)
    with replacing(output) as temporary:
        # A name that is no text (half of a surrogate pair) is a character reference in HTML.
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, everything in one file")
    for sentence in found.sentences:
        print(f"- {sentence}")


def contents(folder: Folder) -> Contents:
    """What the verb named by the manifest makes of the folder; without a manifest, what any folder has."""
    if folder.manifest is None:
        drawings = [*of_timelines(folder), *of_profiles(folder)]
        return Contents(drawings, [UNKNOWN], machine=measured_machine(folder))
    name = folder.manifest.verb
    module = VERBS[name].shown if name in VERBS else None
    if module is None:
        known = ", ".join(verb for verb in VERBS if VERBS[verb].shown is not None)
        raise InputError(f"{folder.place / MANIFEST}: found verb {brief(name)}, expected one of {known}")
    made: Contents = importlib.import_module(module).contents(folder)
    return made
