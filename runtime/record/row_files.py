"""Arrays that grow on disk: one raw file each, written row by row at any place, mapped at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 24


class RowFiles:
    """Raw files of equally many rows in a folder that exists.

    rows  type and shape of one row, by array name

    Writes go through `pwrite` and not through a map: on a full disk that is an OSError and not a dead process.
    """

    def __init__(self, folder: Path, rows: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        self._rows = rows
        self._paths = {name: folder / name for name in rows}
        self._files: dict[str, int] = {}
        try:
            for name, path in self._paths.items():
                self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError:
            self.close()
            raise

    def put(self, name: str, rows: NDArray[Any], at: int) -> None:
        """Write rows [n, ...] of one array from row `at` on."""
        dtype, shape = self._rows[name]
        if rows.dtype != dtype or rows.shape[1:] != shape:
            raise ValueError(f"{name}: found {rows.dtype} {rows.shape}, expected {dtype} rows of {shape}")
        _write(self._files[name], np.ascontiguousarray(rows).tobytes(), at * self._size(name))

    def move(self, source: int, target: int, count: int) -> None:
        """Move `count` rows of all arrays towards the start of the files: target <= source."""
        for name, file in self._files.items():
            size = self._size(name)
            done, total = 0, count * size
            while done < total and source != target:
                data = os.pread(file, min(_CHUNK, total - done), source * size + done)
                if not data:
                    raise ValueError(f"{name}: found {done} bytes from row {source} on, expected {total}")
                _write(file, data, target * size + done)
                done += len(data)

    def arrays(self, count: int) -> dict[str, Any]:
        """The first `count` rows of every array, mapped (copy-on-write)."""
        return {
            name: np.asarray(np.memmap(self._paths[name], dtype=dtype, mode="c", shape=(count, *shape)))
            for name, (dtype, shape) in self._rows.items()
        }

    def close(self) -> None:
        """Close the files; who owns the folder removes them."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _size(self, name: str) -> int:
        dtype, shape = self._rows[name]
        return np.dtype(dtype).itemsize * int(np.prod(shape))


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
