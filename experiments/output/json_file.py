"""JSON that may come from anybody: read whole, no deeper than needed, each field checked by whoever uses it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dali.policies.types import InputError

DEEPEST = 64  # of lists and mappings in each other; what verbs write is far from it
_LONGEST = 40  # characters of a value in an error's one line


def read_json(path: Path) -> Any:
    """The content of a file; InputError if it is damaged, or nested deeper than `DEEPEST`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # Half of a surrogate pair is valid JSON and no text.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a whole JSON file ({error})") from None
    level = [found]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return found
    raise InputError(f"{path}: found values nested deeper than {DEEPEST}, expected a file of ours")


# ---- fields ----------------------------------------------------------------------------------------


def text(value: Any, where: str) -> str:
    """Text, or InputError."""
    if not isinstance(value, str):
        raise InputError(f"{where}: found {brief(value)}, expected text")
    return value


def texts(value: Any, where: str) -> list[str]:
    """A list of text, or InputError."""
    return [text(each, place) for each, place in items(value, where)]


def items(value: Any, where: str) -> list[tuple[Any, str]]:
    """What is in a list and where each stands, or InputError."""
    if not isinstance(value, list):
        raise InputError(f"{where}: found {brief(value)}, expected a list")
    return [(each, f"{where}[{number}]") for number, each in enumerate(value)]


def fields(value: Any, where: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """A mapping with these names, or InputError; what else is in it is of no account."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {brief(value)}, expected {', '.join(names) or 'a mapping'}")
    missing = [name for name in names if name not in value]
    if missing:
        raise InputError(f"{where}: found no {missing[0]}, expected {', '.join(names)}")
    return value


def brief(value: Any) -> str:
    """A value in an error's one line, however long it is."""
    said = repr(value)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
