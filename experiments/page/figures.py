"""The figures of a results folder in the page: drawn anew as SVG, each with its data table."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import groupby

from dali.experiments.drawing.figure import Drawing
from dali.experiments.page import svg
from dali.experiments.page.markup import attribute, details, escape, frame


def figures(drawings: Sequence[Drawing], pictures: dict[str, bytes]) -> str:
    """The drawings under their titles; then those pictures of the folder whose data are not in it, as they are."""
    parts: list[str] = []
    for title, group in groupby(enumerate(drawings), key=lambda each: each[1].title):
        parts += [f"<h3>{escape(title)}</h3>"] if title else []
        parts += [_drawn(drawing, f"figure-{i}") for i, drawing in group]
    drawn = {each.file for each in drawings}
    return "\n".join([*parts, *(_as_it_is(name, pictures[name]) for name in pictures if name not in drawn)])


def _drawn(drawing: Drawing, name: str) -> str:
    with svg.style():
        figure = drawing.draw()
    image = svg.inline(figure, name, f"{drawing.caption}. The numbers are in the table below.")
    return _figure(image, drawing.caption, details("Data of this figure", frame(drawing.data, limit=None)))


def _as_it_is(name: str, picture: bytes) -> str:
    code = base64.b64encode(picture).decode()
    caption = f"{name}, as it is in the folder, which does not hold its data"
    return _figure(f'<img alt="{attribute(caption)}" src="data:image/png;base64,{code}">', caption)


def _figure(image: str, caption: str, data: str = "") -> str:
    return (
        f'<figure><div class="scroll picture" tabindex="0" role="region" aria-label="{attribute(caption)}">'
        f"{image}</div>\n<figcaption>{escape(caption)}</figcaption>\n{data}</figure>"
    )
