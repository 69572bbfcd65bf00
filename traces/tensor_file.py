"""Arrays and strings in one .safetensors file: mapped lazily when read, replaced whole when written.

Reading leaves every check of the container to the safetensors library and then maps the arrays, so that a
file larger than memory costs only the pages that are used.  Writing is done here because the library puts
the header's strings in random order: equal content must give equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dali.policies.types import InputError
from dali.traces.files import replacing

Arrays = dict[str, NDArray[Any]]

_TYPES = {"U8": "uint8", "U16": "uint16", "I32": "int32", "I64": "int64", "F16": "float16", "F32": "float32"}
_CODES = {name: code for code, name in _TYPES.items()}


def read_header(path: str | Path) -> dict[str, str]:
    """Strings of the header of a safetensors file.

    Raises InputError for a file that is missing, truncated or no safetensors file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="np") as file:
            strings: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None
    return strings


def read(path: str | Path, kind: str) -> tuple[Arrays, dict[str, str]]:
    """Mapped arrays and header strings of a safetensors file whose header says format = `kind`.

    The arrays are private (copy-on-write) maps: nothing written to them reaches the file.
    """
    strings = read_header(path)
    found = strings.get("format")
    if found != kind:
        raise InputError(f"{path}: header says format {found!r}, expected {kind!r}")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(file.read(size))
    header.pop("__metadata__")
    return {name: _map(path, name, entry, 8 + size) for name, entry in header.items()}, strings


def _map(path: str | Path, name: str, entry: dict[str, Any], start: int) -> NDArray[Any]:
    if entry["dtype"] not in _TYPES:
        raise InputError(f"{path}: {name} has type {entry['dtype']}, expected one of {', '.join(_TYPES)}")
    shape = tuple(entry["shape"])
    if 0 in shape:
        raise InputError(f"{path}: {name} is empty, shape {shape}")
    # mode "c" and not "r": kernels then meet one array type, whether an array was read or made.
    offset = start + entry["data_offsets"][0]
    mapped = np.memmap(path, dtype=_TYPES[entry["dtype"]], mode="c", offset=offset, shape=shape)
    return np.asarray(mapped)


def write(path: str | Path, arrays: Arrays, strings: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        # Widest items first keeps every array aligned to its item size.
        names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
        file.write(_header(arrays, names, strings))
        for name in names:
            np.ascontiguousarray(arrays[name]).tofile(file)


def _header(arrays: Arrays, names: list[str], strings: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(strings.items()))}
    end = 0
    for name in names:
        array = arrays[name]
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
