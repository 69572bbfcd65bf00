"""The shape of a model from the config.json of its folder, without its weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dali.experiments.shapes.config import shape_from_config
from dali.policies.costs.model_shape import ModelShape
from dali.policies.types import InputError


def shape_of_file(path: str) -> ModelShape:
    """Of a config.json or a folder with one; the shape is named after the folder.

    Where transformers is installed, its own class for the architecture adds what the file leaves to it; code that
    comes with a model is never run, and nothing is fetched.  InputError for a file that is not there or no JSON, and
    for an architecture whose fields are not known.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "config.json"
    if not file.is_file():
        raise InputError(f"model: found no file {file}, expected a config.json or a folder with one")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: {error}, expected JSON") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: found a {type(values).__name__}, expected an object with the fields of a model")
    name = file.absolute().parent.name if file.name == "config.json" else file.stem
    return shape_from_config(_with_defaults(values), name, str(file))


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file, and beneath them those of transformers' class for its architecture, if it has one."""
    if find_spec("transformers") is None:
        return values
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        return values
    try:
        known = CONFIG_MAPPING[kind](**{name: value for name, value in values.items() if name != "model_type"})
    except (ValueError, TypeError, AttributeError, KeyError):
        return values  # a file of another version: its own fields have to do
    filled = known.to_dict()
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        if isinstance(filled.get(name), dict) and isinstance(values.get(name), dict):
            filled[name] |= values[name]
            values = {**values, name: filled[name]}
    return filled | values
