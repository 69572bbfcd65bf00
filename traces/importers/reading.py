"""What the importers share: lines with their place in the file, and checks that name it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dali.policies.types import InputError

Paths = Sequence[str | Path]


def single(paths: Paths) -> Path:
    """The only path."""
    if len(paths) != 1:
        raise InputError(f"import: found {len(paths)} files, expected one")
    return Path(paths[0])


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of each line that is not blank; a .gz file is unpacked on the way."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    where = str(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                where = f"{path}:{number}"
                if text.strip():
                    yield where, text.rstrip("\n")
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{where}: not a whole text file ({error})") from None


def parse_json(where: str, text: str) -> Any:
    """A JSON value."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        malformed(where, f"not JSON ({error.msg})")


def malformed(where: str, found: str) -> NoReturn:
    """Raise the InputError of a malformed line."""
    raise InputError(f"{where}: {found}")


def is_number(value: Any, below: int) -> bool:
    """Whether a JSON value is a whole number from 0 to below `below`."""
    return type(value) is int and 0 <= value < below
