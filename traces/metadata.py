"""What a trace or workload file says about itself, and its form as the strings of a header."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields

from dali.policies.types import InputError

VERSION = "1"
_NUMBERS = ("layers", "experts", "top_k", "seed")
_REQUIRED = ("model", "layers", "experts", "top_k")


@dataclass(frozen=True)
class Metadata:
    """Where a trace or workload comes from, and the shape of its model.

    model, revision  id of the model and its revision
    layers, experts  MoE layers L; routed experts E of each
    top_k            experts recorded for a token, K
    dtype            type the model was run in
    text             source of the text
    seed             of sampling or generation
    recorder         name and version of what wrote the data
    unit_bytes       bytes of one expert in each layer [L]; None if not known
    notes            anything else
    """

    model: str
    layers: int
    experts: int
    top_k: int
    revision: str = "unknown"
    dtype: str = "unknown"
    text: str = "unknown"
    seed: int = 0
    recorder: str = "unknown"
    unit_bytes: tuple[int, ...] | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "experts", "top_k"):
            if getattr(self, name) < 1:
                raise InputError(f"metadata {name}: found {getattr(self, name)}, expected at least 1")
        if self.top_k > self.experts:
            raise InputError(f"metadata top_k: found {self.top_k}, expected at most the {self.experts} experts")
        if self.unit_bytes is not None and (len(self.unit_bytes) != self.layers or min(self.unit_bytes) < 1):
            raise InputError(f"metadata unit_bytes: found {self.unit_bytes}, expected {self.layers} positive sizes")

    def to_strings(self, kind: str) -> dict[str, str]:
        """Header strings of a file of format `kind`."""
        strings = {name: str(value) for name, value in asdict(self).items() if value is not None}
        if self.unit_bytes is not None:
            strings["unit_bytes"] = json.dumps(list(self.unit_bytes))
        return {"format": kind, "format_version": VERSION, **strings}


def from_strings(strings: dict[str, str]) -> Metadata:
    """The inverse of `Metadata.to_strings`; anything missing, unknown or malformed is an InputError."""
    values: dict[str, str] = {name: value for name, value in strings.items() if name != "format"}
    version = values.pop("format_version", None)
    if version != VERSION:
        raise InputError(f"metadata format_version: found {version!r}, expected {VERSION!r}")
    known = {field.name for field in fields(Metadata)}
    for name in _REQUIRED:
        if name not in values:
            raise InputError(f"metadata {name}: missing")
    for name in values:
        if name not in known:
            raise InputError(f"metadata {name}: unknown, expected only {', '.join(sorted(known))}")
    numbers = {name: _number(name, values.pop(name)) for name in _NUMBERS if name in values}
    sizes = _sizes(values.pop("unit_bytes")) if "unit_bytes" in values else None
    return Metadata(unit_bytes=sizes, **numbers, **values)  # type: ignore[arg-type]


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise InputError(f"metadata {name}: found {text!r}, expected a whole number")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\[\d{1,18}(, ?\d{1,18})*\]", text, re.ASCII):
        raise InputError(f"metadata unit_bytes: found {text[:40]!r}, expected a list of whole numbers")
    return tuple(int(size) for size in text[1:-1].split(","))
