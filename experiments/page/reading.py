"""What a results folder holds, read whole before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import yaml

from dali.experiments.output.folder import CONFIG
from dali.experiments.output.json_file import read_json
from dali.experiments.output.manifest import FIGURES, MANIFEST, TABLES, TIMELINES, Manifest
from dali.experiments.page.timeline import Timeline
from dali.experiments.profiles import TARGET, load
from dali.experiments.settings.aliases import current
from dali.policies.columns import DECODE
from dali.policies.costs.measured import Profile
from dali.policies.types import InputError

# A results folder has one of these, or measured costs.
SIGNS = (MANIFEST, "results.parquet", "summary.json")


@dataclass(frozen=True)
class Folder:
    """A results folder.

    manifest   None where the folder has none
    tables     every .parquet file by its name without suffix, results first
    values     every other .json file by its name without suffix
    config     config.yaml as it stands, plain values: nothing that it names is looked up; None where there is none
    profiles   every other .yaml file that holds measured costs
    pictures   .png files by name
    timelines  one a process of every timeline file
    """

    place: Path
    manifest: Manifest | None
    tables: dict[str, pd.DataFrame]
    values: dict[str, Any]
    config: dict[Any, Any] | None
    config_text: str
    profiles: list[Profile]
    pictures: dict[str, bytes]
    timelines: list[Timeline]

    @classmethod
    def read(cls, place: Path) -> Folder:
        """Read a folder; InputError if there is none, if it is no results folder, or if a file in it is damaged."""
        _check(place)
        manifest, config = place / MANIFEST, place / CONFIG
        parquet = sorted(place.glob(TABLES), key=lambda path: (path.stem != "results", path.name))
        tables = {path.stem: _table(path) for path in parquet}
        text = _text(config) if config.is_file() else ""
        return cls(
            place,
            Manifest.read(manifest) if manifest.exists() else None,
            tables,
            {path.stem: read_json(path) for path in sorted(place.glob("*.json")) if path.name != MANIFEST},
            _config(config, text) if config.is_file() else None,
            text,
            [_profile(path) for path in sorted(place.glob("*.yaml")) if _measured(path)],
            {path.name: path.read_bytes() for path in sorted(place.glob(FIGURES))},
            _ordered([each for path in sorted(place.glob(TIMELINES)) for each in Timeline.read(path)], tables),
        )

    @property
    def name(self) -> str:
        """Its name and its parent's: `compare/2026-01-31_12-00-00-000`."""
        return "/".join(self.place.resolve().parts[-2:])

    def table(
        self, name: str, text: Sequence[str] = (), numbers: Sequence[str] = (), once: Sequence[str] = ()
    ) -> pd.DataFrame:
        """A table that the verb writes, with at least a row.

        text, numbers  columns it must have, by what is in them; once: no two rows have the same in all of these
        InputError for a table that is not there or not like that.
        """
        file = self.place / f"{name}.parquet"
        if name not in self.tables:
            raise InputError(f"{file}: no such file")
        found = self.tables[name]
        for column in (*text, *numbers):
            if column not in found:
                raise InputError(f"{file}: found no column {column}, expected {', '.join((*text, *numbers))}")
        if found.empty:
            raise InputError(f"{file}: found no rows, expected one or more")
        for column in text:
            if not all(isinstance(value, str) for value in found[column]):
                raise InputError(f"{file}: found {found[column].dtype} in column {column}, expected text")
        for column in numbers:
            kind = found[column].dtype
            if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind):
                raise InputError(f"{file}: found {kind} in column {column}, expected numbers")
        if once and found.duplicated([*once]).any():
            raise InputError(f"{file}: found rows with the same {', '.join(once)}, expected each once")
        return found

    @property
    def shown_step(self) -> int | None:
        """The step that timelines show: the last decode step that all of them have, or else the last that one has."""
        owned = [set(each.steps) for each in self.timelines]
        steps = self.tables.get("steps", pd.DataFrame())
        known = {"step", "phase"} <= set(steps.columns)
        decode = set(steps.loc[steps["phase"] == DECODE, "step"]) if known else set()
        common = set.intersection(*owned) if owned else set()
        return max(common & decode or common or set().union(*owned), default=None)


def _check(place: Path) -> None:
    if not place.is_dir():
        raise InputError(
            f"results: {place}: {'found a file' if place.exists() else 'no such folder'}, expected a folder"
        )
    if any((place / name).is_file() for name in SIGNS) or any(map(_measured, place.glob("*.yaml"))):
        return
    inside = sorted({path.parent for name in SIGNS for path in place.rglob(name)})
    hint = f"; there are {len(inside)} in it, such as {inside[-1]}" if inside else ""
    raise InputError(f"results: {place} is no results folder: found none of {', '.join(SIGNS)} in it{hint}")


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


def _config(path: Path, text: str) -> dict[Any, Any]:
    try:
        config = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a configuration ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: found {type(config).__name__}, expected a configuration")
    return config
