"""What a results folder holds, read whole before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from experiments.report_page.timeline import SUFFIX, Timeline
from policies.types import InputError

RESULTS, SUMMARY = "results.parquet", "summary.json"  # every verb writes one of them, or both


@dataclass(frozen=True)
class Folder:
    """A results folder.

    tables     every .parquet file by its name without suffix, results first
    values     every .json file by its name without suffix
    summary    summary.md, or nothing
    config     config.yaml; None where the folder has none
    pictures   .png files by name
    timelines  one a process of every timeline file
    """

    place: Path
    tables: dict[str, pd.DataFrame]
    values: dict[str, Any]
    summary: str
    config: DictConfig | None
    pictures: dict[str, bytes]
    timelines: list[Timeline]

    @classmethod
    def read(cls, place: Path) -> Folder:
        """Read a folder; InputError if there is none, if it is no results folder, or if a file in it is damaged."""
        _check(place)
        parquet = sorted(place.glob("*.parquet"), key=lambda path: (path.name != RESULTS, path.name))
        summary = place / "summary.md"
        config = place / "config.yaml"
        tables = {path.stem: _table(path) for path in parquet}
        return cls(
            place,
            tables,
            {path.stem: _json(path) for path in sorted(place.glob("*.json"))},
            _text(summary) if summary.is_file() else "",
            _config(config) if config.is_file() else None,
            {path.name: path.read_bytes() for path in sorted(place.glob("*.png"))},
            _ordered([each for path in sorted(place.glob(f"*{SUFFIX}")) for each in Timeline.read(path)], tables),
        )

    @property
    def name(self) -> str:
        """Its name and its parent's: `compare/2026-01-31_12-00-00-000`."""
        return "/".join(self.place.resolve().parts[-2:])


def _check(place: Path) -> None:
    if not place.is_dir():
        raise InputError(
            f"results: {place}: {'found a file' if place.exists() else 'no such folder'}, expected a folder"
        )
    if any((place / name).is_file() for name in (RESULTS, SUMMARY)):
        return
    inside = sorted({path.parent for name in (RESULTS, SUMMARY) for path in place.rglob(name)})
    hint = f"; there are {len(inside)} in it, such as {inside[-1]}" if inside else ""
    raise InputError(f"results: {place} is no results folder: found neither {RESULTS} nor {SUMMARY} in it{hint}")


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
