"""The figures of a results folder in the page: drawn anew as SVG, each with its data table."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dali.experiments.drawing.figure import Drawing
from dali.experiments.page import svg
from dali.experiments.page.grid import Grid


@dataclass(frozen=True)
class ShownFigure:
    """An SVG (as markup) with the table of its data, or a PNG (base64) without."""

    caption: str
    image: str = ""
    png: str = ""
    grid: Grid | None = None


@dataclass(frozen=True)
class FigureGroup:
    """Figures under one title."""

    title: str
    figures: list[ShownFigure]


def groups(drawings: Sequence[Drawing], pictures: Mapping[str, bytes]) -> list[FigureGroup]:
    """The drawings under their titles; then those pictures of the folder whose data are not in it, as they are."""
    found = [
        FigureGroup(title, [_drawn(drawing, f"figure-{i}") for i, drawing in group])
        for title, group in groupby(enumerate(drawings), key=lambda each: each[1].title)
    ]
    drawn = {each.file for each in drawings}
    rest = [_as_it_is(name, picture) for name, picture in pictures.items() if name not in drawn]
    return [*found, FigureGroup("", rest)] if rest else found


def _drawn(drawing: Drawing, name: str) -> ShownFigure:
    with svg.style():
        figure = drawing.draw()
    image = svg.inline(figure, name, f"{drawing.caption}. The numbers are in the table below.")
    return ShownFigure(drawing.caption, image, grid=Grid.of_frame(drawing.data, limit=None))


def _as_it_is(name: str, picture: bytes) -> ShownFigure:
    caption = f"{name}, as it is in the folder, which does not hold its data"
    return ShownFigure(caption, png=base64.b64encode(picture).decode())
