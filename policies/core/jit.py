"""Compiled functions, which stay typed Python to readers and to the type checker."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def _cache_folder() -> Path:
    """A folder named after the source of every kernel.

    numba recompiles a kernel when its own file changes, not when a kernel that it calls does: without this
    an edit to `policies.core.state` would leave the simulator running the old code.
    """
    packages = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for name in ("policies", "traces", "sim"):
        for file in sorted((packages / name).rglob("*.py")):
            digest.update(file.read_bytes())
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dali-moe" / digest.hexdigest()[:16]


CACHE_FOLDER = _cache_folder()


@contextmanager
def _caching_there() -> Iterator[None]:
    """Functions compiled here are cached in `CACHE_FOLDER`.

    numba has one setting for the whole process and reads it when a function is decorated: it is given back at once,
    as functions of other packages are cached where their owners want them.
    """
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(CACHE_FOLDER)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` on first call (cached on disk); it releases the interpreter lock while it runs."""
    with _caching_there():
        compiled: Callable[P, R] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return compiled
