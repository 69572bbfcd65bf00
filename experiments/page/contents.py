"""What a results folder has to show."""

from __future__ import annotations

from dataclasses import dataclass, field

from dali.experiments.drawing.figure import Drawing


@dataclass
class Contents:
    """What a folder has to show.

    drawings  its figures; sentences: what its numbers say
    headline  the tables to begin with, Markdown, where the summary does not begin with one
    """

    drawings: list[Drawing] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    headline: str = ""
