"""Short forms of overrides."""

from __future__ import annotations

import re
from importlib.resources import files


def is_launcher(override: str) -> bool:
    """Whether an override chooses or sets hydra's launcher, the one part of hydra that `dali sweep` has settings of."""
    return override.lstrip("+~").startswith(("hydra/launcher=", "hydra.launcher."))


def quoted(text: str) -> str:
    """A string as the value of an override, whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def spelled_out(verb: str, override: str) -> list[str]:
    """Short forms that hydra would take for the name of a file in conf.

    `trace=FILE` is the group's option `file` with a path, and so is `platform=FILE`; what has a dot or a slash in it is
    a file.  `model=` of a recording is a checkpoint; of a run it is one too, unless it names a file of conf/model.
    `policy=` of a run is its only one.
    """
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
    if verb == "run" and (files("dali.conf") / "model" / f"{value}.yaml").is_file():
        return [f"model={value}", "checkpoint=null"]
    return [f"checkpoint={quoted(value)}"] if verb in ("record", "run") else [override]
