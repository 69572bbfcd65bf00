"""Which of our sources a module's numbers can depend on: those that it imports, and those that these import."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from dali.policies.core.jit import CACHE_FOLDER

PACKAGE = "dali"
# What a job runs.  Its settings name classes of policies, traces and sim; CACHE_FOLDER is named after all of these.
JOB = "dali.experiments.verbs.sweep.job"


@lru_cache
def code_version() -> str:
    """Digest of the sources that a simulation's numbers depend on."""
    digest = hashlib.sha256(CACHE_FOLDER.name.encode())
    for name, file in sorted(closure(JOB).items()):
        digest.update(name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def closure(module: str) -> dict[str, Path]:
    """By name, the file of a module of ours and of all that it imports, directly or not, at any place of its source.

    Not by a graph of the folder of the package: an editable install finds modules by a map, in several folders.
    """
    found: dict[str, Path] = {}
    left = [module]
    while left:
        name = left.pop()
        file = None if name in found else _file(name)
        if file is not None:
            found[name] = file
            left += _imports(ast.parse(file.read_bytes()))
            left.append(name.rpartition(".")[0])
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    """Names of ours that may be modules; `from a import b` may name a module b or something in a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(name: str) -> Path | None:
    """Source of a module of ours; None for everything else."""
    if name.partition(".")[0] != PACKAGE:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None  # a class or function of a module
    return Path(spec.origin) if spec is not None and spec.origin is not None else None
