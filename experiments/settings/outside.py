"""Code of the user's own, named in a setting as `module:attribute`.

Only what the user typed may name code: the command line, Python, and the folder of DALI_CONF.  What comes from a file
that others may have written, such as a sweep's request, is made with the names that were typed (`check`).
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dali.experiments.settings.compose import value_of
from dali.experiments.settings.folders import CONF
from dali.policies.cache.base import Cache
from dali.policies.planner import Policy
from dali.policies.types import InputError
from dali.policies.view import AssignmentPolicy, PrefetchPolicy

KINDS: dict[str, type] = {
    "policy": Policy,
    "assignment": AssignmentPolicy,
    "prefetch": PrefetchPolicy,
    "cache": Cache,
}
MADE = f"{__name__}.made"
# Written by `dali calibrate`; no file of conf names it until there is one.
_PROFILE = "dali.policies.costs.measured.Profile"


def is_code(name: str) -> bool:
    """Whether a name is that of code, and not of a file of configuration."""
    return ":" in name


def node(kind: str, name: str, changes: Iterable[str]) -> dict[str, Any]:
    """Configuration of an object of `KINDS` by the name of its code; changes are NAME=VALUE of its arguments."""
    settings = OmegaConf.create({})
    for change in changes:
        key, value = value_of(change)
        OmegaConf.update(settings, key, value)
    arguments = OmegaConf.to_container(settings)
    return {
        "_target_": MADE,
        "_recursive_": False,
        "_convert_": "all",
        "kind": kind,
        "name": name,
        "settings": arguments,
    }


def made(kind: str, name: str, settings: dict[str, Any]) -> Any:
    """The object of `KINDS` that code names: an attribute that is one, or what it returns when called with `settings`.

    InputError in one line for a module or an attribute that is not there, arguments that it refuses, and what is no
    such object.
    """
    found = _located(kind, name)
    if (callable(found) and not isinstance(found, KINDS[kind])) or isinstance(found, type):
        try:
            found = found(**settings)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{kind} {name}: {' '.join(str(error).split())}") from error
    elif settings:
        raise InputError(f"{kind} {name}: found settings {settings} for a finished object, expected none")
    if not isinstance(found, KINDS[kind]):
        wanted = f"{KINDS[kind].__module__}.{KINDS[kind].__name__}"
        raise InputError(f"{kind} {name}: found {type(found).__name__}, expected a {wanted}")
    return found


def _located(kind: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise InputError(f"{kind}: found {name!r}, expected module:attribute, such as mypackage.sub:MyPolicy")
    current_folder_importable()
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{kind} {name}: {error}, expected it installed or in the current folder") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            where = getattr(sys.modules[module], "__file__", None) or module
            raise InputError(f"{kind} {name}: found no {attribute} in {where}")
        found = getattr(found, part)
    return found


def current_folder_importable() -> None:
    """As with `python -m`, but after all that is installed: a folder may hold any names."""
    importlib.invalidate_caches()  # a file may have been written a moment ago
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


# ---- who may name code -----------------------------------------------------------------------------


def names(plain: Any) -> set[str]:
    """Code from outside that a plain configuration names: `module:attribute`, or `_target_`s that are not ours."""
    return {name for name in _named(plain) if is_code(name) or not name.startswith("dali.")}


def check(plain: Any, field: str, typed: Collection[str]) -> None:
    """InputError if a plain configuration names anything but `typed` and what files of conf do."""
    for name in _named(plain):
        if name not in typed and name not in _ours():
            raise InputError(f"{field}: found code {name!r} in a file, expected it on the command line or in Python")


def _named(plain: Any) -> Iterator[str]:
    if isinstance(plain, dict):
        target = plain.get("_target_")
        if isinstance(target, str):
            yield str(plain.get("name")) if target == MADE else target
        for value in plain.values():
            yield from _named(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from _named(value)


@lru_cache
def _ours() -> frozenset[str]:
    """`_target_`s of conf's own files."""
    found = {_PROFILE}
    for file in Path(CONF).rglob("*.yaml"):
        found.update(re.findall(r"_target_: *([\w.]+)", file.read_text(encoding="utf-8")))
    return frozenset(found)
