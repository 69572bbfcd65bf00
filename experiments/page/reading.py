"""What a results folder holds, read whole before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from dali.experiments.page.timeline import SUFFIX, Timeline
from dali.experiments.profiles import TARGET, load
from dali.experiments.settings.aliases import current
from dali.policies.columns import DECODE
from dali.policies.costs.measured import Profile
from dali.policies.types import InputError

RESULTS, SUMMARY = "results.parquet", "summary.json"  # every verb writes one of them, or both; calibrate a profile
CONFIG = "config.yaml"
MEASURED = ("run", "validation")  # .json of verbs that measure, with the machine in them


@dataclass(frozen=True)
class Folder:
    """A results folder.

    tables     every .parquet file by its name without suffix, results first
    values     every .json file by its name without suffix
    summary    summary.md, or nothing
    config     config.yaml; None where the folder has none
    profiles   every other .yaml file that holds measured costs
    pictures   .png files by name
    timelines  one a process of every timeline file
    """

    place: Path
    tables: dict[str, pd.DataFrame]
    values: dict[str, Any]
    summary: str
    config: DictConfig | None
    profiles: list[Profile]
    pictures: dict[str, bytes]
    timelines: list[Timeline]

    @classmethod
    def read(cls, place: Path) -> Folder:
        """Read a folder; InputError if there is none, if it is no results folder, or if a file in it is damaged."""
        _check(place)
        parquet = sorted(place.glob("*.parquet"), key=lambda path: (path.name != RESULTS, path.name))
        summary = place / "summary.md"
        config = place / CONFIG
        tables = {path.stem: _table(path) for path in parquet}
        return cls(
            place,
            tables,
            {path.stem: _json(path) for path in sorted(place.glob("*.json"))},
            _text(summary) if summary.is_file() else "",
            _config(config) if config.is_file() else None,
            [_profile(path) for path in sorted(place.glob("*.yaml")) if _measured(path)],
            {path.name: path.read_bytes() for path in sorted(place.glob("*.png"))},
            _ordered([each for path in sorted(place.glob(f"*{SUFFIX}")) for each in Timeline.read(path)], tables),
        )

    @property
    def name(self) -> str:
        """Its name and its parent's: `compare/2026-01-31_12-00-00-000`."""
        return "/".join(self.place.resolve().parts[-2:])

    def table(self, name: str, columns: Set[str] = frozenset()) -> pd.DataFrame:
        """A table by its name; an empty one if it is not there, or not with these columns."""
        found = self.tables.get(name, pd.DataFrame())
        return found if columns <= set(found.columns) else pd.DataFrame()

    @property
    def machine(self) -> dict[str, Any] | None:
        """The machine of a run or a validation, or else of a profile; None where all is simulated."""
        said = [self.values[name].get("machine") for name in MEASURED if isinstance(self.values.get(name), dict)]
        known = [each for each in [*said, *(profile.machine for profile in self.profiles)] if isinstance(each, dict)]
        return known[0] if known else None

    @property
    def shown_step(self) -> int | None:
        """The step that timelines show: the last decode step that all of them have, or else the last that one has."""
        owned = [set(each.steps) for each in self.timelines]
        steps = self.table("steps", {"step", "phase"})
        decode = set() if steps.empty else set(steps.loc[steps["phase"] == DECODE, "step"])
        common = set.intersection(*owned) if owned else set()
        return max(common & decode or common or set().union(*owned), default=None)


def _check(place: Path) -> None:
    if not place.is_dir():
        raise InputError(
            f"results: {place}: {'found a file' if place.exists() else 'no such folder'}, expected a folder"
        )
    if any((place / name).is_file() for name in (RESULTS, SUMMARY)) or any(map(_measured, place.glob("*.yaml"))):
        return
    inside = sorted({path.parent for name in (RESULTS, SUMMARY) for path in place.rglob(name)})
    hint = f"; there are {len(inside)} in it, such as {inside[-1]}" if inside else ""
    raise InputError(f"results: {place} is no results folder: found neither {RESULTS} nor {SUMMARY} in it{hint}")


def _measured(path: Path) -> bool:
    """Whether a .yaml file holds measured costs; a run's own configuration may, and is no result."""
    target = re.search(r"^_target_: (\S+)$", _text(path), re.M)
    return path.name != CONFIG and target is not None and current(target[1]) == TARGET


def _profile(path: Path) -> Profile:
    try:
        return load(str(path))
    except InputError:
        raise
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: no measured costs of ours ({type(error).__name__}: {error})") from None


def _ordered(timelines: list[Timeline], tables: dict[str, pd.DataFrame]) -> list[Timeline]:
    """Timelines in the order that the results name their policies in."""
    results = tables.get("results", pd.DataFrame())
    rank = {str(name): i for i, name in enumerate(dict.fromkeys(results.get("policy", ())))}
    return sorted(timelines, key=lambda each: rank.get(each.name, len(rank)))


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (pyarrow.ArrowException, ValueError) as error:
        raise InputError(f"{path}: not a whole parquet file ({error})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text ({error})") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not a whole JSON file ({error})") from None


def _config(path: Path) -> DictConfig:
    try:
        config: DictConfig | ListConfig = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a configuration ({error})") from None
    if not isinstance(config, DictConfig):
        raise InputError(f"{path}: found a list, expected a configuration")
    return config
