"""Where files of configuration are: conf, and before it a folder of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from dali import conf
from dali.policies.types import InputError

CONF = Path(conf.__file__).parent
OWN = "DALI_CONF"
"""Environment variable with the user's folder, which is laid out as conf: policy/mine.yaml, platform/mine.yaml, ..."""


def own_folder() -> Path | None:
    """The user's folder, or None where the variable is not set; InputError if it is no folder."""
    named = os.environ.get(OWN)
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{OWN}: found {named!r}, expected a folder with files such as policy/mine.yaml")
    return folder


def folders() -> list[Path]:
    """The user's, then ours: of two files of one name the first counts."""
    own = own_folder()
    return [CONF] if own is None else [own, CONF]


def names(group: str) -> list[str]:
    """Files of a group such as "model", by name."""
    return sorted({file.stem for folder in folders() for file in (folder / group).glob("*.yaml")})
