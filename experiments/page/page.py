"""The page: one HTML text in which everything stands, from style to timelines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dali.experiments.output.document import Block, Document, Items, Paragraph, Table
from dali.experiments.output.folder import stamp
from dali.experiments.output.wording import HEADING
from dali.experiments.page.contents import Contents
from dali.experiments.page.figures import groups
from dali.experiments.page.grid import Grid
from dali.experiments.page.reading import Folder
from dali.policies.columns import LANES
from dali.policies.costs.formats import quantised
from dali.policies.costs.model_shape import ModelShape
from dali.policies.types import InputError

ROOM = "dali.experiments.page"


def render(folder: Folder, contents: Contents) -> str:
    """The whole page of a results folder."""
    template = environment().get_template("page.html")
    document = folder.manifest.document if folder.manifest else Document(folder.name)
    step = folder.shown_step
    return template.render(
        title=document.title or folder.name,
        folder=folder.name,
        style=_file("page.css"),
        heading=HEADING,
        sentences=contents.sentences,
        results=_results(folder, contents, document),
        figures=groups(contents.drawings, folder.pictures),
        step="" if step is None else _step_name(folder, step),
        notes=document.notes,
        sections=[
            {"heading": section.heading, "passages": _passages(section.blocks)}
            for section in document.sections
            if section.heading != HEADING
        ],
        data=_data(folder),
        origin=folder.manifest,
        machine=_machine(folder, contents),
        config=None if folder.config is None else folder.config_text,
        stamp=stamp(),
        timelines=embedded(_packed(folder, step, contents.first)),
        script=_file("timeline.js"),
    )


@lru_cache
def environment() -> Environment:
    """Templates of this package: text is escaped, a name that is not given is an error."""
    made = Environment(
        loader=PackageLoader(ROOM, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["code"] = code
    return made


def code(text: str) -> Markup:
    """Text of a document: what stands between backticks is code."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def embedded(value: Any) -> Markup:
    """JSON that stands in a <script> element: no < that could end it."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _file(name: str) -> Markup:
    return Markup(files(ROOM).joinpath(name).read_text(encoding="utf-8"))


# ---- what the template is given --------------------------------------------------------------------


@dataclass(frozen=True)
class Passage:
    """A piece of running text; what it lacks is empty."""

    text: str = ""
    lines: Sequence[str] = ()
    grid: Grid | None = None


def _results(folder: Folder, contents: Contents, document: Document) -> list[Passage]:
    """The tables to begin with: the verb's own, or the document's, or the results themselves where there is neither."""
    found = _passages(contents.tables or document.blocks)
    if not found and "results" in folder.tables:
        return [Passage(grid=Grid.of_frame(folder.tables["results"], "results.parquet"))]
    return found


def _passages(blocks: Iterable[Block]) -> list[Passage]:
    """Without pictures: figures are drawn anew in a section of their own."""
    found = []
    for block in blocks:
        match block:
            case Paragraph(text) if text:
                found.append(Passage(text))
            case Items(lines):
                found.append(Passage(lines=lines))
            case Table():
                found.append(Passage(block.caption, grid=Grid.of_table(block)))
    return found


def _step_name(folder: Folder, step: int) -> str:
    steps = folder.tables.get("steps")
    known = steps is not None and {"step", "phase"} <= set(steps.columns)
    phases = set(steps.loc[steps["step"] == step, "phase"]) if steps is not None and known else set()
    return f"step {step}" + (f" ({phases.pop()})" if len(phases) == 1 else "")


def _packed(folder: Folder, step: int | None, first: str) -> dict[str, object]:
    """The timelines, and which of them the page begins with."""
    if step is None:
        return {"runs": []}
    runs = [each for each in folder.timelines if step in each.steps]
    names = [each.name for each in runs]
    size = _unit_bytes(folder.config)
    return {
        "lanes": LANES,
        "first": names.index(first) if first in names else 0,
        "runs": [each.packed(step, size) for each in runs],
    }


def _unit_bytes(config: Mapping[Any, Any] | None) -> int:
    """Bytes of one unit of the configured model; 0 (the page says "not known") where the folder does not say.

    Nothing is instantiated by name: a folder may come from anybody.
    """
    model = None if config is None else config.get("model")
    if config is None or not isinstance(model, Mapping):
        return 0
    try:
        shape = ModelShape(**{str(name): value for name, value in model.items() if not str(name).startswith("_")})
        if config.get("quant") is not None:
            shape = quantised(shape, str(config["quant"]))
        return shape.unit_bytes(config.get("slices", 1))
    except (TypeError, InputError):
        return 0  # a configuration of another version


def _data(folder: Folder) -> list[tuple[str, Grid]]:
    """Every .json file and table of the folder."""
    values = [(f"{name}.json", Grid.of_values(content)) for name, content in folder.values.items()]
    tables = [
        (f"{name}.parquet: {len(data)} rows, {len(data.columns)} columns", Grid.of_frame(data, f"{name}.parquet"))
        for name, data in folder.tables.items()
    ]
    return [*values, *tables]


def _machine(folder: Folder, contents: Contents) -> Grid | None:
    """What was measured has a machine of its own; the platform of its configuration is then of no account."""
    if contents.machine is not None:
        return Grid.of_values(contents.machine, "machine (measured)")
    platform = None if folder.config is None else folder.config.get("platform")
    if not isinstance(platform, Mapping):
        return None
    grid = Grid.of_values(platform, "machine (simulated)")
    return replace(grid, rows=[row for row in grid.rows if "_target_" not in row[0]])
