"""Single constants of an engine by name: `launch_us`, `cpu.bandwidth.q4_k`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dali.policies.costs.engine import ServingEngine
from dali.policies.types import InputError


def constant(engine: ServingEngine, name: str) -> float:
    """Value of one; InputError for a name that is none, and for one that is not set."""
    value: Any = engine
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"engine {engine.name}: found no number named {name}, expected one such as launch_us")
    return float(value)


def with_constants(engine: ServingEngine, values: Mapping[str, float]) -> ServingEngine:
    """The engine with other values of some."""
    for name, value in values.items():
        constant(engine, name)
        engine = _set(engine, name.split("."), value)
    return engine


def _set(owner: Any, path: list[str], value: float) -> Any:
    first, *rest = path
    if isinstance(owner, Mapping):
        return {**owner, first: _set(owner[first], rest, value) if rest else value}
    return replace(owner, **{first: _set(getattr(owner, first), rest, value) if rest else value})
