"""Checks of hyper-parameters: each returns the value, or raises InputError with one line."""

from __future__ import annotations

import numpy as np

from dali.policies.types import InputError


def require_choice(owner: str, value: str, choices: tuple[str, ...]) -> str:
    """One of `choices`."""
    if value not in choices:
        raise InputError(f"{owner}: found {value!r}, expected one of {', '.join(choices)}")
    return value


def require_count(owner: str, value: int, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{owner}: found {value!r}, expected a whole number of at least {least}")
    return int(value)
