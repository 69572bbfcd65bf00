"""Values of a configuration, each checked: one line where it is not what it should be."""

from __future__ import annotations

from omegaconf import DictConfig, ListConfig, OmegaConf

from dali.policies.types import InputError


def whole(config: DictConfig, name: str, least: int = 1) -> int:
    """A whole number of at least `least` from a dotted name."""
    return _whole(name, OmegaConf.select(config, name), least)


def whole_or_none(config: DictConfig, name: str, least: int = 1) -> int | None:
    """The same, or None where the value is null."""
    return None if OmegaConf.select(config, name) is None else whole(config, name, least)


def wholes(config: DictConfig, name: str, least: int = 1) -> list[int]:
    """One or more whole numbers, each once."""
    value = OmegaConf.select(config, name)
    items = list(value) if isinstance(value, ListConfig) else [value]
    if not items or len(set(items)) < len(items):
        raise InputError(f"{name}: found {items}, expected one or more numbers, each once")
    return [_whole(name, item, least) for item in items]


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: found {value!r}, expected a whole number of at least {least}")
    return value


def positive(config: DictConfig, name: str, most: float = float("inf")) -> float:
    """A number above 0, at most `most`."""
    value = OmegaConf.select(config, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        limit = "" if most == float("inf") else f" and at most {most:g}"
        raise InputError(f"{name}: found {value!r}, expected a number above 0{limit}")
    return float(value)


def fraction(config: DictConfig, name: str) -> float:
    """A number from 0 to 1."""
    value = OmegaConf.select(config, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InputError(f"{name}: found {value!r}, expected a number from 0 to 1")
    return float(value)


def weight(config: DictConfig, name: str) -> float:
    """A finite number of at least 0."""
    value = OmegaConf.select(config, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise InputError(f"{name}: found {value!r}, expected a number of at least 0")
    return float(value)


def text(config: DictConfig, name: str) -> str:
    """A string that is not empty."""
    value = OmegaConf.select(config, name)
    if not isinstance(value, str) or not value:
        raise InputError(f"{name}: found {value!r}, expected text")
    return value


def text_or_none(config: DictConfig, name: str) -> str | None:
    """The same, or None where the value is null or the setting is not there."""
    return None if OmegaConf.select(config, name) is None else text(config, name)


def texts(config: DictConfig, name: str) -> list[str]:
    """One or more strings, each once; a single one need not be in a list."""
    value = OmegaConf.select(config, name)
    items = list(value) if isinstance(value, ListConfig) else [value]
    if not items or len(set(items)) < len(items) or not all(isinstance(item, str) and item.strip() for item in items):
        raise InputError(f"{name}: found {items}, expected one or more names, each once")
    return items
