"""The one place that names numba, so that kernels stay typed Python to readers and to the type checker.

Calling a kernel from Python costs about 0.1 us for each array argument, and passing a tuple of arrays
between kernels copies and reference-counts all of them.  State that many kernels share therefore travels
as one small array of addresses (`pack`), and each kernel turns back what it uses (`array_at`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")

Packed = NDArray[np.int64]
"""Address and length of each of a list of arrays, [2 * n]; whoever holds it keeps the arrays alive."""


def _cache_folder() -> Path:
    """A folder named after the source of every kernel.

    numba recompiles a kernel when its own file changes, not when a kernel that it calls does: without this
    an edit to `policies.state` would leave the simulator running the old code.
    """
    packages = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for name in ("policies", "traces", "sim"):
        for file in sorted((packages / name).rglob("*.py")):
            digest.update(file.read_bytes())
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dali-moe" / digest.hexdigest()[:16]


CACHE_FOLDER = _cache_folder()
numba.config.CACHE_DIR = str(CACHE_FOLDER)  # type: ignore[attr-defined]


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` on first call (cached on disk); it releases the interpreter lock while it runs."""
    compiled: Callable[P, R] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return compiled


def pack(arrays: Iterable[NDArray[Any]]) -> Packed:
    """Addresses and lengths of contiguous arrays, seen flat."""
    numbers: list[int] = []
    for array in arrays:
        if not array.flags.c_contiguous:
            raise ValueError("pack: expected contiguous arrays")
        numbers += [array.ctypes.data, array.size]
    return np.array(numbers, np.int64)


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


@numba.njit(inline="always")
def array_at(packed: Packed, position: int, dtype: Any) -> Any:
    """Flat array number `position` of `packed`; for use in kernels only."""
    return numba.carray(_pointer(packed[2 * position]), (packed[2 * position + 1],), dtype)  # type: ignore
