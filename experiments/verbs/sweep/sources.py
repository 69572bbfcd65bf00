"""Which sources a module's numbers can depend on: those that it imports, and those that these import."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from dali.experiments.settings.outside import current_folder_importable
from dali.policies.core.jit import CACHE_FOLDER
from dali.policies.types import InputError

# What a job runs.  Its settings name classes of policies, traces and sim; CACHE_FOLDER is named after all of these.
JOB = "dali.experiments.verbs.sweep.job"


@lru_cache
def code_version() -> str:
    """Digest of our sources that a simulation's numbers depend on."""
    return _digest(JOB, CACHE_FOLDER.name)


def source_digest(name: str) -> str:
    """Digest of the sources of code from outside, `module:attribute` or a dotted name, as far as in its package."""
    current_folder_importable()
    module = name.partition(":")[0] if ":" in name else name.rpartition(".")[0]
    if _file(module) is None:
        raise InputError(f"code {name}: found no module {module!r}, expected it installed or in the current folder")
    return _digest(module)


def _digest(module: str, more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for name, file in sorted(closure(module).items()):
        digest.update(name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def closure(module: str) -> dict[str, Path]:
    """By name, the file of a module and of all of its package that it imports, directly or not, anywhere in its source.

    Not by a graph of the folder of the package: an editable install finds modules by a map, in several folders.
    """
    found: dict[str, Path] = {}
    left = [module]
    while left:
        name = left.pop()
        inside = name.partition(".")[0] == module.partition(".")[0]
        file = _file(name) if inside and name not in found else None
        if file is not None:
            found[name] = file
            left.append(name.rpartition(".")[0])
            if file.suffix == ".py":
                package = name if file.name == "__init__.py" else name.rpartition(".")[0]
                left += _imports(ast.parse(file.read_bytes()), package)
    return found


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that may be modules; `from a import b` may name a module b or something in a."""
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        module = importlib.util.resolve_name("." * tree.level + (tree.module or ""), package)
        yield module
        yield from (f"{module}.{alias.name}" for alias in tree.names)
    # What only checkers read does not run.
    unread = isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING")
    for node in tree.orelse if isinstance(tree, ast.If) and unread else ast.iter_child_nodes(tree):
        yield from _imports(node, package)


def _file(name: str) -> Path | None:
    """Source of a module; None for what is none."""
    try:
        spec = importlib.util.find_spec(name) if name else None
    except ModuleNotFoundError:
        return None  # a class or function of a module, or a package that is not there
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin is not None else None
