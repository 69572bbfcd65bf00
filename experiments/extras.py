"""Modules that need the runtime extra."""

from __future__ import annotations

import importlib
from typing import Any

from dali.policies.types import InputError


def runtime_modules(*names: str) -> list[Any]:
    """Modules that run a model, imported; InputError where torch or transformers is not installed."""
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "transformers"):
            raise
        raise InputError("needs the runtime extra: pip install 'dali-moe[runtime]'") from None
