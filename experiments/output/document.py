"""What a results folder says in words and tables: Markdown for people, plain JSON for `dali report`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dali.experiments.output.json_file import brief, fields, items, text, texts
from dali.experiments.output.text import table
from dali.policies.types import InputError


@dataclass(frozen=True)
class Paragraph:
    """Plain text in which backticks stand around `names`."""

    text: str

    def markdown(self) -> str:
        """As it is."""
        return self.text


@dataclass(frozen=True)
class Items:
    """A list, a line each."""

    lines: list[str]

    def markdown(self) -> str:
        """With dashes."""
        return "\n".join(f"- {line}" for line in self.lines)


@dataclass(frozen=True)
class Table:
    """Rows as long as the header; the first column is set to the left, the others to the right.

    caption  a sentence that stands above it
    """

    header: list[str]
    rows: list[list[str]]
    caption: str = ""

    def markdown(self) -> str:
        """Its columns line up on a screen too."""
        body = table(self.header, self.rows)
        return f"{self.caption}\n\n{body}" if self.caption else body


@dataclass(frozen=True)
class Picture:
    """A figure of the folder, by the name of its file."""

    file: str

    def markdown(self) -> str:
        """Shown where Markdown is rendered beside it."""
        return f"![{self.file}]({self.file})"


Block = Paragraph | Items | Table | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    heading: str
    blocks: list[Block]

    def markdown(self) -> str:
        """A heading of the second level."""
        return "\n\n".join([f"## {self.heading}", *(block.markdown() for block in self.blocks)])


@dataclass(frozen=True)
class Document:
    """All that a verb has to say.

    notes   what went in, and what a reader has to know of it
    blocks  what comes first of the results
    """

    title: str
    notes: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def markdown(self, stamp: str) -> str:
        """summary.md; `stamp` is its last line."""
        notes = [Items(self.notes).markdown()] if self.notes else []
        parts = [*self.blocks, *self.sections]
        return "\n\n".join([f"# {self.title}", *notes, *(part.markdown() for part in parts), stamp]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Mappings, lists and text; `from_json` reads it back."""
        return {
            "title": self.title,
            "notes": self.notes,
            "blocks": [_block_to_json(block) for block in self.blocks],
            "sections": [
                {"heading": section.heading, "blocks": [_block_to_json(block) for block in section.blocks]}
                for section in self.sections
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Document:
        """InputError that names the first field that is not what `to_json` writes."""
        whole = fields(value, "document", ("title", "notes", "blocks", "sections"))
        return cls(
            text(whole["title"], "document.title"),
            texts(whole["notes"], "document.notes"),
            _blocks(whole["blocks"], "document.blocks"),
            [_section(each, where) for each, where in items(whole["sections"], "document.sections")],
        )


def markdown(blocks: Iterable[Block | Section]) -> str:
    """Blocks as they stand in summary.md."""
    return "\n\n".join(block.markdown() for block in blocks)


# ---- as JSON ---------------------------------------------------------------------------------------


def _block_to_json(block: Block) -> dict[str, Any]:
    match block:
        case Paragraph(said):
            return {"paragraph": said}
        case Items(lines):
            return {"list": lines}
        case Picture(file):
            return {"picture": file}
        case Table(header, rows, caption):
            return {"table": {"header": header, "rows": rows, "caption": caption}}


def _section(value: Any, where: str) -> Section:
    found = fields(value, where, ("heading", "blocks"))
    return Section(text(found["heading"], f"{where}.heading"), _blocks(found["blocks"], f"{where}.blocks"))


def _blocks(value: Any, where: str) -> list[Block]:
    return [_block(each, place) for each, place in items(value, where)]


def _block(value: Any, where: str) -> Block:
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in _KINDS:
        raise InputError(f"{where}: found {brief(value)}, expected one of {', '.join(_KINDS)}")
    ((kind, content),) = value.items()
    return _KINDS[kind](content, f"{where}.{kind}")


def _table(value: Any, where: str) -> Table:
    found = fields(value, where, ("header", "rows", "caption"))
    header = texts(found["header"], f"{where}.header")
    rows = [texts(row, place) for row, place in items(found["rows"], f"{where}.rows")]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(f"{where}.rows[{number}]: found {len(row)} cells, expected {len(header)} as in the header")
    return Table(header, rows, text(found["caption"], f"{where}.caption"))


_KINDS: dict[str, Callable[[Any, str], Block]] = {
    "paragraph": lambda value, where: Paragraph(text(value, where)),
    "list": lambda value, where: Items(texts(value, where)),
    "table": _table,
    "picture": lambda value, where: Picture(text(value, where)),
}
