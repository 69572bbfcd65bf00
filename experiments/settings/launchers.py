"""Hydra's launchers, which run jobs here, on all cores or on a cluster: hydra/launcher=basic, joblib, submitit_slurm.

A launcher is a plugin that composes a configuration for each job and calls a task with it.  What hydra does not offer
to others of its machinery is named here, and in `compose`, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from dali.experiments.settings.compose import composing
from dali.experiments.settings.shorthand import quoted

# No log files, no folder a job: what a job has to say is the task's own business.
_QUIET = (
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
    "hydra.output_subdir=null",
    "hydra.sweep.subdir=.",
)


class LauncherStopped(Exception):
    """A launcher ended before all of its jobs had: one of them died, or there is no cluster.  The message says why."""


def launcher_name(overrides: Sequence[str]) -> str:
    """The launcher that overrides choose (`shorthand.is_launcher`)."""
    chosen = [override.partition("=")[2] for override in overrides if override.startswith("hydra/launcher=")]
    return chosen[-1] if chosen else "basic"


def launch(
    overrides: Sequence[str], task: Callable[[DictConfig], None], jobs: Sequence[Sequence[str]], place: Path, logs: Path
) -> None:
    """Run one job for each entry of `jobs`, its overrides, and wait for them: `task` gets what these compose to.

    overrides  those of `shorthand.is_launcher`, which choose the launcher and set it
    place      an existing folder; logs  where submitit keeps what its jobs print

    Raises LauncherStopped, and what a task raised.
    """
    mine = [*_QUIET, f"hydra.sweep.dir={quoted(str(place))}"]
    if launcher_name(overrides).startswith("submitit"):
        mine.append(f"hydra.launcher.submitit_folder={quoted(str(logs))}")
    # A group's file has to be chosen before its values are set.
    ordered = sorted([*mine, *overrides], key=lambda override: not override.startswith("hydra/"))
    with composing(job="dali_sweep") as hydra:
        loader = hydra.config_loader
        launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=task,
            config=loader.load_configuration(None, ordered, RunMode.MULTIRUN),
        )
        try:
            returns = launcher.launch([list(job) for job in jobs], 0)
        # What joblib and submitit raise for a dead job, and submitit where there is no Slurm.
        except RuntimeError as error:
            raise LauncherStopped(" ".join(str(error).split()) or type(error).__name__) from error
    for each in returns:
        if each.status is JobStatus.FAILED:
            raise each._return_value
