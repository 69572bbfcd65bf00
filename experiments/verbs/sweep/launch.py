"""Jobs of a sweep on one of hydra's launchers: hydra/launcher=basic, joblib, submitit_local, submitit_slurm, ...

A launcher is a plugin that composes a configuration for each job and calls hydra's task function with it; ours is
`sweep_job.work`.  A job whose process dies takes the launcher down with it: the others are then waited for,
what nobody had begun is launched again, and what was begun is tried once more, each point by itself.  submitit learns
from Slurm's accounting (sacct) that a job was killed: on a cluster without it, such a job is waited for until Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode

from dali.experiments.settings.shorthand import quoted
from dali.experiments.verbs.sweep.job import RunFolder, work
from dali.policies.types import InputError

_SLURM_JOBS = 32
# A job costs hydra about as long to start as a point to simulate; several for each core still end at about one time.
_JOBLIB_JOBS_A_CORE = 16
# No log files, no folder a job: what a job has to say is in the run folder.
_QUIET = (
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
    "hydra.output_subdir=null",
    "hydra.sweep.subdir=.",
)


class Launcher:
    """A launcher as the overrides choose and set it.

    overrides  those of `build.is_launcher`
    jobs       how many to deal points to; None = as suits the launcher
    """

    def __init__(self, overrides: Sequence[str], jobs: int | None) -> None:
        self.overrides = list(overrides)
        chosen = [override.partition("=")[2] for override in overrides if override.startswith("hydra/launcher=")]
        self.name = chosen[-1] if chosen else "basic"
        self.jobs = jobs

    def deal(self, points: Sequence[int]) -> list[list[int]]:
        """Points of each job; neighbours, which share a trace, stay together."""
        cores = os.cpu_count() or 1
        usual = {
            "basic": 1,
            "joblib": _JOBLIB_JOBS_A_CORE * cores,
            "submitit_local": cores,
            "submitit_slurm": _SLURM_JOBS,
        }
        jobs = self.jobs or usual.get(self.name, len(points))
        return [part.tolist() for part in np.array_split(np.array(points), min(jobs, len(points)))]

    def run(self, folder: RunFolder, points: Sequence[int]) -> None:
        """Answer the requests `points` of a run folder, until each is stored or failed.

        Raises InputError if the launcher cannot begin, and what a job could not record, such as a full disk.
        """
        left, begun, why = list(points), [], ""
        while left:
            why = self._launch(folder, self.deal(left))
            unfinished = [point for point in left if not folder.ended(point)]
            begun += [point for point in unfinished if folder.started(point)]
            missing = [point for point in unfinished if not folder.started(point)]
            if missing == left:
                raise InputError(f"hydra/launcher: found that {self.name} ran no job: {why}")
            left = missing
        for point in begun:
            why = self._launch(folder, [[point]])
            if not folder.ended(point):
                folder.fail(point, f"its job died: {why}")

    def _launch(self, folder: RunFolder, jobs: list[list[int]]) -> str:
        """Launch jobs and wait for them; what ended a launcher early, "" if nothing did."""
        GlobalHydra.instance().clear()
        with initialize_config_module("dali.conf", version_base="1.3", job_name="dali_sweep"):
            launcher = self._plugin(folder)
            try:
                returns = launcher.launch([[f"+points={job}"] for job in jobs], 0)
            # What joblib and submitit raise for a dead job, and submitit where there is no Slurm.
            except RuntimeError as error:
                _wait(folder, self.name)
                return " ".join(str(error).split()) or type(error).__name__
        for each in returns:
            if each.status is JobStatus.FAILED:
                raise each._return_value
        return ""

    def _plugin(self, folder: RunFolder) -> Any:
        """Hydra's launcher, ready to launch `work`."""
        place = str(folder.path)
        mine = [*_QUIET, f"hydra.sweep.dir={quoted(place)}"]
        if self.name.startswith("submitit"):
            mine.append(f"hydra.launcher.submitit_folder={quoted(str(_logs(folder)))}")
        # A group's file has to be chosen before its values are set.
        ordered = sorted([*mine, *self.overrides], key=lambda override: not override.startswith("hydra/"))
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks()),
            task_function=partial(work, place, str(folder.store)),
            config=hydra.config_loader.load_configuration(None, ordered, RunMode.MULTIRUN),
        )


def _logs(folder: RunFolder) -> Path:
    return folder.path / "submitit"


def _wait(folder: RunFolder, name: str) -> None:
    """Until the jobs that submitit left running have ended; a broken pool of joblib has none."""
    jobs = sorted(file.name.removesuffix("_submitted.pkl") for file in _logs(folder).glob("*_submitted.pkl"))
    for job in jobs:
        if name == "submitit_slurm":
            from submitit import SlurmJob

            SlurmJob(_logs(folder), job).wait()
        else:
            # A local job's id is that of a child process, which may be gone already.
            with suppress(ChildProcessError):
                os.waitpid(int(job), 0)
