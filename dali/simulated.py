"""`dali.compare` and `dali.simulate`: what the commands simulate, as pandas tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.settings.compose import configuration, shape_node
from dali.experiments.settings.shorthand import is_part, spelled
from dali.experiments.verbs.compare.comparison import Comparison
from dali.policies.columns import METRICS, STEP
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import ModelShape, Platform
from dali.policies.planner import Policy
from dali.policies.types import InputError
from dali.traces.trace import Trace
from dali.traces.workload import Workload

AnyTrace = str | PathLike[str] | Trace | Workload
AnyPlatform = str | PathLike[str] | Platform | Profile


def compare(
    *overrides: str,
    trace: AnyTrace | None = None,
    model: str | ModelShape | None = None,
    platform: AnyPlatform | None = None,
    policies: Sequence[str | Policy] | None = None,
    progress: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Policies on the same routing, machine and GPU memory, in simulated time: what `dali compare` tells, as a table.

    overrides  settings as on the command line: "workload.batch=[1,8]"
    trace      the routing: a name of conf/trace, a file, a `dali.Trace` or a `Workload`
    model      whose times: a name of conf/model, a path of a config.json, or a `ModelShape`
    platform   the machine: a name of conf/platform, a file of `dali calibrate`, a `Platform` or a `Profile`
    policies   entries as on the command line ("dali cache.w_size=8", "mypackage:MyPolicy") and `dali.Policy` objects
    progress   show a bar
    settings   others of conf/compare.yaml: cache_share=0.5, workload={"batch": [1, 8], "generate": 32}

    What is None or not named is as in `dali compare`; speed-ups are over `baseline`, or over the first policy where
    llama_cpp is not among them.

    Returns a row a policy, batch and phase; columns as in `results.parquet` (seconds, bytes, shares from 0 to 1).
    Nothing is written.  Raises InputError, in one line, for what does not exist or does not fit.
    """
    comparison = _read(overrides, trace, model, platform, policies, settings)
    _run(comparison, progress)
    return comparison.results()


def simulate(
    policy: str | Policy,
    *overrides: str,
    batch: int | None = None,
    trace: AnyTrace | None = None,
    model: str | ModelShape | None = None,
    platform: AnyPlatform | None = None,
    progress: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """One policy in simulated time, step by step.

    policy     an entry as on the command line, or a `dali.Policy`
    batch      sequences that run together; None = 1, or as a `Workload` of counts has it
    overrides and all others: see `dali.compare`

    Returns a row a step; columns as in `steps.parquet` (`policies.columns`; seconds and bytes).  Nothing is written.
    Raises InputError, in one line, for what does not exist or does not fit.
    """
    if batch is not None and isinstance(trace, Workload):
        raise InputError(f"batch: found {batch} beside a workload of counts, expected none: its steps have theirs")
    sized = f"workload.batch={spelled('batch', [1 if batch is None else batch])}"
    comparison = _read((*overrides, sized), trace, model, platform, [policy], settings)
    _run(comparison, progress)
    return comparison.steps()[[*STEP, *METRICS]].reset_index(drop=True)


def _read(
    overrides: Sequence[str],
    trace: AnyTrace | None,
    model: str | ModelShape | None,
    platform: AnyPlatform | None,
    policies: Sequence[str | Policy] | None,
    settings: Mapping[str, Any],
) -> Comparison:
    parts = [*overrides, *_named("trace", trace, Trace | Workload), *_named("model", model, ModelShape)]
    parts += [*_named("platform", platform, Platform | Profile), *_spelled(settings)]
    if isinstance(platform, Platform | Profile) and any(map(is_part, parts)):
        raise InputError(f"platform: found {platform.name} beside {next(filter(is_part, parts))}, expected one of them")
    given = {"model": shape_node(model)} if isinstance(model, ModelShape) else None
    config = configuration("compare", parts, replaced=given)
    if policies is not None:
        _check(policies)
        _choose_baseline(config, parts, policies)
    return Comparison.read(
        config,
        parts,
        policies,
        trace if isinstance(trace, Trace | Workload) else None,
        platform if isinstance(platform, Platform | Profile) else None,
    )


def _run(comparison: Comparison, progress: bool) -> None:
    with tqdm(total=comparison.count, unit="step", desc="simulating", disable=not progress) as bar:
        comparison.run(bar=bar if progress else None)


def _named(field: str, value: Any, kinds: Any) -> Iterator[str]:
    """The override of a name or a file; none for what is given as an object."""
    if isinstance(value, PathLike):
        yield f"{field}={Path(fspath(value)).absolute()}"
    elif isinstance(value, str):
        yield f"{field}={value}"
    elif value is not None and not isinstance(value, kinds):
        raise InputError(f"{field}: found {type(value).__name__}, expected a name or an object of its kind")


def _spelled(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if name == "predictor_recall" and isinstance(value, Mapping):  # by source, of which there may be any
            yield from (f"++{name}.{source}={spelled(name, share)}" for source, share in value.items())
        else:
            yield f"{name}={spelled(name, value)}"


def _check(policies: Sequence[str | Policy]) -> None:
    if isinstance(policies, str | Policy) or not isinstance(policies, Sequence) or not policies:
        raise InputError(f"policies: found {policies!r}, expected a list of one or more")
    for each in policies:
        if not isinstance(each, str | Policy):
            raise InputError(f"policies: found {type(each).__name__}, expected names and dali.Policy objects")


def _choose_baseline(config: DictConfig, overrides: Sequence[str], policies: Sequence[str | Policy]) -> None:
    names = [each if isinstance(each, str) else each.name for each in policies]
    if config.baseline not in names and not any(override.startswith("baseline=") for override in overrides):
        config.baseline = names[0]
