"""Calibrated profiles as files of conf/platform, or of `platform` in a folder of the user's own (DALI_CONF)."""

from __future__ import annotations

from pathlib import Path

import yaml
from omegaconf import OmegaConf

from dali.experiments.settings.aliases import current
from dali.experiments.settings.folders import folders
from dali.policies.costs.measured import VERSION, Profile
from dali.policies.types import InputError
from dali.traces.files import check_writable, replacing

TARGET = "dali.policies.costs.measured.Profile"


def profile_path(name: str, file: str | None) -> Path:
    """Where a profile goes; InputError for a place that cannot be written to."""
    if not name.replace("_", "").isalnum() or not name.isascii():
        raise InputError(f"name: found {name!r}, expected letters, digits and underscores")
    return check_writable(file if file is not None else str(folders()[0] / "platform" / f"{name}.yaml"))


def save(profile: Profile, path: Path, command: str) -> None:
    """Write a profile as a file of conf/platform."""
    head = f"# Measured: {command}\n_target_: {TARGET}\n_convert_: all\n"
    text = yaml.safe_dump(profile.to_config(), sort_keys=False, default_flow_style=None, width=118)
    with replacing(path) as temporary:
        Path(temporary).write_text(head + text, encoding="utf-8")


def load(name: str) -> Profile:
    """A profile by the name of its file, or by its path."""
    places = [Path(name)] if name.endswith(".yaml") else [each / "platform" / f"{name}.yaml" for each in folders()]
    path = next(filter(Path.is_file, places), places[-1])
    if not path.is_file():
        raise InputError(f"profile: found no file {path}, expected one that dali calibrate wrote")
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"profile {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or current(str(found.pop("_target_", None))) != TARGET:
        raise InputError(f"profile {path}: found no measured costs, expected a file that dali calibrate wrote")
    found.pop("_convert_", None)
    if found.get("version") != VERSION:
        raise InputError(f"profile {path}: found version {found.get('version')}, expected {VERSION}: calibrate again")
    try:
        return Profile(**{str(name): value for name, value in found.items()})
    except TypeError as error:
        raise InputError(f"profile {path}: {error}") from error
