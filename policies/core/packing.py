"""Fields of a NamedTuple as one argument of a kernel.

Calling a kernel from Python costs about 0.1 us for each array argument, and passing a tuple of arrays
between kernels copies and reference-counts all of them.  State that many kernels share therefore travels
as one small array of numbers (`pack`), and each kernel turns back what it uses (`unpacker`).

Both follow the annotations of the tuple's class, so that a field stands in one place:

    NDArray[t]   address and length of an array, which kernels see flat
    a Record     address of its numbers
    int          the value itself
"""

# mypy: allow-untyped-calls
# numba's functions have no types.

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array
from numpy.typing import NDArray

from dali.policies.core.records import Record

Packed = NDArray[np.int64]
"""What `pack` makes of a tuple.  Whoever holds it keeps the tuple alive: it owns none of the memory."""

T = TypeVar("T", bound=tuple[Any, ...])


def pack(fields: tuple[Any, ...]) -> Packed:
    """The numbers from which `unpacker(type(fields))` makes the same tuple in a kernel.

    TypeError if a field is not what its annotation says: kernels would take its memory for something else.
    """
    owner = type(fields).__name__
    numbers: list[int] = []
    for (name, hint), value in zip(_hints(type(fields)).items(), fields, strict=True):
        numbers += _numbers(f"{owner}.{name}", hint, value)
    return np.array(numbers, np.int64)


def unpacker(kind: type[T]) -> Callable[[Packed], T]:
    """The function that makes a `kind` of its packed numbers; for use in kernels only.

    It is written out in each kernel that calls it: fields that a kernel does not use cost nothing, and records,
    which numba cannot return from one kernel to another, need not be returned.
    """
    fields = [_in_kernels(hint) for hint in _hints(kind).values()]

    @intrinsic
    def unpack(_: Any, packed: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers = make_array(packed)(context, builder, arguments[0]).data
            values = []
            at = 0
            for field in fields:
                first, *rest = (_load(builder, numbers, at + i) for i in range(_width(field)))
                values.append(_rebuild(context, builder, field, first, rest))
                at += _width(field)
            return context.make_tuple(builder, signature.return_type, values)

        return types.NamedTuple(fields, kind)(packed), generate

    return cast(Callable[[Packed], T], unpack)


@cache
def _hints(kind: type[tuple[Any, ...]]) -> dict[str, Any]:
    return get_type_hints(kind)


def _numbers(where: str, hint: Any, value: Any) -> list[int]:
    """What stands for a field in the packed array."""
    if hint is int:
        _require(isinstance(value, int), where, value, "an int")
        return [value]
    if _is_record(hint):
        _require(type(value) is hint, where, value, f"a {hint.__name__}")
        return [value.numbers.ctypes.data]
    dtype = _dtype(hint)
    fits = isinstance(value, np.ndarray) and value.dtype == dtype and value.flags.c_contiguous and value.flags.aligned
    _require(fits, where, value, f"a contiguous array of {dtype}")
    return [value.ctypes.data, value.size]


def _require(fits: bool, where: str, value: Any, expected: str) -> None:
    if not fits:
        array = isinstance(value, np.ndarray)
        found = f"an array of {value.dtype} with strides {value.strides}" if array else type(value).__name__
        raise TypeError(f"{where}: found {found}, expected {expected}")


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Record)


def _dtype(hint: Any) -> np.dtype[Any]:
    """That of an array, from its annotation: NDArray[t] is ndarray[shape, dtype[t]]."""
    dtype: np.dtype[Any] = np.dtype(get_args(get_args(hint)[1])[0])
    return dtype


def _in_kernels(hint: Any) -> Any:
    """Type of a field as numba knows it."""
    if hint is int:
        return types.int64
    if _is_record(hint):
        return numba.from_dtype(hint.dtype)
    return types.Array(numba.from_dtype(_dtype(hint)), 1, "C")


def _width(field: Any) -> int:
    """How many numbers stand for a field."""
    return 2 if isinstance(field, types.Array) else 1


def _load(builder: Any, numbers: Any, at: int) -> Any:
    return builder.load(cgutils.gep_inbounds(builder, numbers, at))


def _rebuild(context: Any, builder: Any, field: Any, first: Any, rest: list[Any]) -> Any:
    if isinstance(field, types.Integer):
        return first
    if isinstance(field, types.Record):
        return builder.inttoptr(first, context.get_value_type(field))
    array = make_array(field)(context, builder)
    itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(field.dtype)))
    data = builder.inttoptr(first, array.data.type)
    populate_array(array, data=data, shape=rest, strides=[itemsize], itemsize=itemsize, meminfo=None)
    return array._getvalue()
