"""Routing recorded by others, as a `Trace` or a `Workload`: one module a format."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dali.policies.types import InputError
from dali.traces.importers.bigmoeonedge import import_bigmoeonedge
from dali.traces.importers.fiddler import import_fiddler
from dali.traces.importers.nvmoe import import_nvmoe
from dali.traces.importers.olmoe_prefill import import_olmoe_prefill
from dali.traces.trace import Trace
from dali.traces.workload import Workload

IMPORTERS: dict[str, Callable[..., Trace | Workload]] = {
    "bigmoeonedge": import_bigmoeonedge,
    "nvmoe": import_nvmoe,
    "fiddler": import_fiddler,
    "olmoe_prefill": import_olmoe_prefill,
}


def import_trace(format: str, paths: str | Path | Sequence[str | Path], **options: Any) -> Trace | Workload:
    """Read files of a format of `IMPORTERS`; see its importer for the options."""
    if format not in IMPORTERS:
        raise InputError(f"import format: found {format!r}, expected one of {', '.join(IMPORTERS)}")
    importer = IMPORTERS[format]
    known = list(inspect.signature(importer).parameters)[1:]
    for option in options:
        if option not in known:
            raise InputError(f"import {format}: found option {option!r}, expected one of {', '.join(known)}")
    return importer([paths] if isinstance(paths, str | Path) else list(paths), **options)
