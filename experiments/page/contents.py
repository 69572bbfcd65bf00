"""What a results folder has to show, and what every folder with such files has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dali.experiments.drawing import profile, timeline
from dali.experiments.drawing.figure import Drawing
from dali.experiments.output.document import Table
from dali.experiments.page.reading import Folder

DRAWN_LAYERS = 3


@dataclass(frozen=True)
class Contents:
    """What a verb makes of its folder.

    drawings   its figures; sentences: what its numbers say
    tables     to begin with, where they are others than the document's
    machine    what was measured on; None where all is simulated
    first      the timeline that the page opens with; "" = the first
    """

    drawings: Sequence[Drawing] = ()
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    machine: Mapping[str, Any] | None = None
    first: str = ""


def of_timelines(folder: Folder, layers: int = DRAWN_LAYERS) -> list[Drawing]:
    """The figure of one step, if the folder has timelines."""
    step = folder.shown_step
    if step is None:
        return []
    spans = {each.name: each.spans for each in folder.timelines if step in each.steps}
    return [timeline.drawing(spans, step, layers)]


def of_profiles(folder: Folder) -> list[Drawing]:
    """The figures of the measured costs that are in the folder."""
    return [drawing for each in folder.profiles for drawing in profile.drawings(each)]


def measured_machine(folder: Folder, *names: str) -> Mapping[str, Any] | None:
    """The machine in one of these .json files, or that of measured costs; None where neither says it."""
    contents = [folder.values.get(name) for name in names]
    said = [content.get("machine") for content in contents if isinstance(content, Mapping)]
    found = [each for each in [*said, *(each.machine for each in folder.profiles)] if isinstance(each, Mapping)]
    return found[0] if found else None
