"""The text that every Python installation has: the standard library's sources and their documentation strings."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dali.policies.types import InputError

# Not every installation has the tests, and they repeat themselves; the others are no part of the library.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_SEPARATOR = b"\0"
# One file in so many is held out.
_HELD_OUT = 40


@dataclass(frozen=True)
class Corpus:
    """Files of text split into those to train on and those held out.

    training, held_out  uint8 [n], the files one after the other, each ended by a zero byte
    files               number of files in (training, held out)
    digest              SHA-256 of both, so that two installations can be told apart
    source              one line for people
    """

    training: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    files: tuple[int, int]
    digest: str
    source: str

    def pieces(self, held_out: bool, count: int, size: int, seed: int) -> list[str]:
        """`count` different pieces of `size` ASCII bytes that start at a line, drawn without overlap from either part.

        Raises InputError if the part has fewer such pieces.
        """
        data = self.held_out if held_out else self.training
        lines = np.flatnonzero(data[:-size] == ord("\n")) + 1
        found: list[str] = []
        taken: list[int] = []
        for start in np.random.default_rng(seed).permutation(lines).tolist():
            piece = data[start : start + size]
            clear = all(abs(start - other) >= size for other in taken)
            if clear and piece.size == size and piece.min() > 0 and piece.max() < 128:
                text = bytes(piece).decode()
                if text.strip() and text not in found:
                    taken.append(start)
                    found.append(text)
            if len(found) == count:
                return found
        raise InputError(f"corpus: found {len(found)} pieces of {size} bytes, expected {count}")


def standard_library(root: Path | None = None) -> Corpus:
    """Sources below `root` (default: this interpreter's standard library), in order of their paths.

    A file is held out by the hash of its path, so that the split is the same on every machine.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if _LEFT_OUT & set(relative.parts):
            continue
        hashed = hashlib.sha256(relative.as_posix().encode()).digest()
        parts[hashed[0] * 256 + hashed[1] < 65536 // _HELD_OUT].append(path.read_bytes())
    if not parts[False] or not parts[True]:
        raise InputError(f"{root}: found {len(parts[False]) + len(parts[True])} sources, expected a standard library")
    joined = {which: b"".join(text + _SEPARATOR for text in texts) for which, texts in parts.items()}
    return Corpus(
        training=np.frombuffer(joined[False], np.uint8),
        held_out=np.frombuffer(joined[True], np.uint8),
        files=(len(parts[False]), len(parts[True])),
        digest=hashlib.sha256(joined[False] + joined[True]).hexdigest(),
        source=f"standard library of Python {platform.python_version()}, without its tests",
    )
