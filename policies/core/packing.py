"""Arrays of many fields as one argument of a kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Packed = NDArray[np.int64]
"""Address and length of each of a list of arrays, [2 * n]; whoever holds it keeps the arrays alive."""


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
