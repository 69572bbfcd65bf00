"""manifest.json: which verb wrote a results folder, what it says, and what is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from dali.experiments.output.document import Document
from dali.experiments.output.json_file import brief, fields, read_json, text, texts
from dali.policies.types import InputError

MANIFEST = "manifest.json"
FORMAT, VERSION = "dali-results", 1
TABLES, FIGURES, TIMELINES = "*.parquet", "*.png", "*timeline.json.gz"
_FIELDS = ("verb", "release", "stamp", "command", "document", "tables", "figures", "timelines")


@dataclass(frozen=True)
class Manifest:
    """What is in manifest.json.

    verb       its name, and no more than that: code is found by a table of ours
    release    of dali-moe; stamp: that and the libraries it ran on
    command    as it was typed; None where it is not known
    tables     columns of each table, by the name of its file
    figures, timelines  names of files
    """

    verb: str
    release: str
    stamp: str
    command: str | None
    document: Document
    tables: dict[str, list[str]]
    figures: list[str]
    timelines: list[str]

    @classmethod
    def of(cls, place: Path, verb: str, release: str, stamp: str, command: str | None, document: Document) -> Manifest:
        """Of a folder in which everything else has been written."""
        tables = {path.name: pyarrow.parquet.read_schema(path).names for path in _files(place, TABLES)}
        figures, timelines = ([path.name for path in _files(place, kind)] for kind in (FIGURES, TIMELINES))
        return cls(verb, release, stamp, command, document, tables, figures, timelines)

    def to_text(self) -> str:
        """The file, a line a field."""
        content = {"format": FORMAT, "version": VERSION} | {name: getattr(self, name) for name in _FIELDS}
        content["document"] = self.document.to_json()
        lines = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """InputError in one line for a file that is not there, damaged, of another format or newer than this code."""
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        found = fields(read_json(path), str(path), ("format", "version"))
        if found["format"] != FORMAT:
            raise InputError(f"{path}: found format {brief(found['format'])}, expected {FORMAT}")
        version = found["version"]
        if type(version) is not int or not 1 <= version <= VERSION:
            raise InputError(f"{path}: found version {brief(version)}, expected {VERSION}: another dali-moe wrote it")
        try:
            return cls._of_fields(fields(found, "manifest", _FIELDS))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def _of_fields(cls, found: dict[str, Any]) -> Manifest:
        tables = fields(found["tables"], "tables")
        return cls(
            text(found["verb"], "verb"),
            text(found["release"], "release"),
            text(found["stamp"], "stamp"),
            None if found["command"] is None else text(found["command"], "command"),
            Document.from_json(found["document"]),
            {name: texts(columns, f"tables.{name}") for name, columns in tables.items()},
            texts(found["figures"], "figures"),
            texts(found["timelines"], "timelines"),
        )


def _files(place: Path, kind: str) -> list[Path]:
    return sorted(path for path in place.glob(kind) if not path.name.startswith("."))
