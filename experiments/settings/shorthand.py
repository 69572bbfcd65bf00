"""Overrides as people write them, and as hydra reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from dali.experiments.settings.folders import names
from dali.experiments.shapes.catalogue import find_model
from dali.policies.types import InputError

MACHINE = ("gpu", "cpu", "ram", "link", "gpus", "sockets", "host_gbs")
"""Parts that a machine is composed of: `gpu=rtx_5080` is a setting of conf/platform/parts.yaml."""
_ON_A_MACHINE = ("compare", "gap", "bench", "sweep", "validate", "calibrate")


def spelled_out(verb: str, override: str) -> list[str]:
    """An override of a verb in hydra's words: short forms are what hydra would take for the name of a file in conf.

    `trace=FILE` is the group's option `file` with a path, and so is `platform=FILE`; what has a dot or a slash in it is
    a file.  `model=` is a file of conf/model, a model by any of its names, or a path of a config.json; of a recording
    it is a checkpoint; of a run it is one too, unless it names a file of conf/model.  `policy=` of a run is its only
    one.  `gpu=` and others of `MACHINE` choose the platform `parts` and set it.
    """
    if is_part(override) and verb in _ON_A_MACHINE:
        return ["platform=parts", f"platform.{override}"]
    match = re.fullmatch(r"(trace|platform|model|policy)=(['\"]?)(.*)\2", override)
    if match is None:
        return [override]
    name, value = match[1], match[3]
    if name in ("trace", "platform"):
        field = "path" if name == "trace" else "name"
        is_file = re.search(r"[./\\]", value)
        return [f"{name}=file", f"{name}.{field}={quoted(value)}"] if is_file else [override]
    if name == "policy":
        return [f"policies=[{quoted(value)}]"] if verb == "run" else [override]
    if verb == "run" and value in names("model"):
        return [f"model={value}", "checkpoint=null"]
    return [f"checkpoint={quoted(value)}"] if verb in ("record", "run") else _model(override, value)


def _model(override: str, value: str) -> list[str]:
    """`model=` of a simulation: a name of a model may have dots in it, a path has slashes or is there."""
    if value in names("model"):
        return [override]
    if re.search(r"[/\\]|\.json$", value) or Path(value).is_dir():
        return ["model=file", f"model.path={quoted(value)}"]
    try:
        return [f"model={find_model(value).name}"]
    except InputError:
        return [override]  # hydra says what there is


def is_part(override: str) -> bool:
    """Whether an override is that of a part of the machine."""
    return override.partition("=")[0] in MACHINE and "=" in override


def as_typed(name: str) -> str:
    """A setting by the shortest name that it has on the command line."""
    short = name.removeprefix("platform.")
    return short if short in MACHINE else name


def is_platform(override: str) -> bool:
    """Whether an override chooses the machine, changes it or names a part of it."""
    return is_part(override) or re.match(r"[+~]*platform\b", override) is not None


def is_launcher(override: str) -> bool:
    """Whether an override chooses or sets hydra's launcher, the one part of hydra that `dali sweep` has settings of."""
    return override.lstrip("+~").startswith(("hydra/launcher=", "hydra.launcher."))


def quoted(text: str) -> str:
    """A string as the value of an override, whatever is in it."""
    # Hydra reads a backslash as such, except before a quote: one at the end would escape ours.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def spelled(name: str, value: Any) -> str:
    """A Python value as the value of the override `name`; InputError for one that no setting takes."""
    if value is None:
        return "null"
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | float | np.integer | np.floating):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, PathLike):
        return quoted(str(Path(value)))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(name, key)}:{spelled(name, each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple | range | np.ndarray):
        return "[" + ",".join(spelled(name, each) for each in value) + "]"
    raise InputError(f"{name}: found {type(value).__name__}, expected a number, text, a list or a dictionary of these")


def _key(name: str, key: object) -> str:
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_]\w*", key):
        raise InputError(f"{name}: found {key!r} in a dictionary, expected a name")
    return key
