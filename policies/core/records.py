"""Numbers that have names, in one array: code in Python and in kernels reads and writes them by these names."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray


class Record:
    """Base of records.  A subclass annotates the names: all `int` (int64), or all `float` (float64).

    `Annotated[Floats, n]` stands for n numbers under one name, an array.

    numbers  int64 or float64, all of them in the order of the annotations; kernels work on the same memory
    """

    dtype: ClassVar[np.dtype[np.void]]
    numbers: NDArray[Any]

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls, include_extras=True)
        fields: list[tuple[str, Any, tuple[int, ...]]] = []
        first = 0
        for name in cls.__annotations__:
            kind, count = _kind(hints[name])
            setattr(cls, name, _row(first, count) if count else _number(first))
            fields.append((name, kind, (count,) if count else ()))
            first += count or 1
        if len({kind for _, kind, _ in fields}) != 1:
            raise TypeError(f"{cls.__name__}: expected names that are all int or all float")
        cls.dtype = np.dtype(fields, align=True)

    def __init__(self) -> None:
        self.numbers = np.zeros(1, self.dtype).view(self.dtype[0].base)
        self._cells = self.numbers.data  # faster to read one number from than the array

    @classmethod
    def of(cls, source: object) -> Self:
        """A record with the values that the attributes of `source` have under the same names."""
        record = cls()
        for name in cls.dtype.names or ():
            setattr(record, name, getattr(source, name))
        return record


def _kind(hint: Any) -> tuple[type[np.generic], int]:
    """Type of the numbers under a name, and how many if they are an array."""
    if get_origin(hint) is Annotated:
        return np.float64, get_args(hint)[1]
    return {int: np.int64, float: np.float64}[hint], 0


def _number(at: int) -> property:
    def read(record: Record) -> Any:
        return record._cells[at]

    def write(record: Record, value: Any) -> None:
        record.numbers[at] = value

    return property(read, write)


def _row(first: int, count: int) -> property:
    return property(lambda record: record.numbers[first : first + count])
