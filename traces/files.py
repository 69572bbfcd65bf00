"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dali.policies.types import InputError


def check_writable(path: str | Path) -> Path:
    """The path, if a file may be written there; InputError otherwise.  Ask before long work."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{path}: found a folder, expected the name of a file")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name to write to; it becomes `path` at the end, so that `path` is either whole or untouched."""
    path = check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
