"""Expert ids as a trace stores them, and the names of its predictors."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dali.policies.types import InputError

Ids = NDArray[np.uint8 | np.uint16]
BY_SOURCE = ("predicted", "cosine")


def none_id(ids: Ids) -> int:
    """The id that stands for "no expert" in an array of ids: the highest value of its type."""
    return int(np.iinfo(ids.dtype).max)


def id_type(experts: int) -> type[np.uint8 | np.uint16]:
    """Smallest type that holds `experts` ids and the none id."""
    return np.uint8 if experts <= np.iinfo(np.uint8).max else np.uint16


def predictor_name(source: str, ahead: int) -> str:
    """Key of `Trace.predicted` for a source and a distance."""
    return source if ahead == 1 else f"{source}.{ahead}"


def split_name(name: str, kind: str = "predicted") -> tuple[str, int]:
    """Source and distance of a predictor's name; InputError for what is none."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]*)(?:\.([2-9]|[1-9]\d))?", name, re.ASCII)
    if match is None or match[1] == "oracle":
        raise InputError(f"{kind}.{name}: expected a source other than oracle, optionally .h for h >= 2 layers ahead")
    return match[1], int(match[2] or 1)


def sources_of(names: Sequence[str] | dict[str, Ids]) -> dict[str, int]:
    """How many layers ahead each source reaches; InputError for a distance that is left out."""
    distances: dict[str, list[int]] = {}
    for name in names:
        source, ahead = split_name(name)
        distances.setdefault(source, []).append(ahead)
    for source, found in distances.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            raise InputError(f"predicted.{source}: found layers ahead {sorted(found)}, expected 1 to the largest")
    return {source: len(found) for source, found in sorted(distances.items())}
