"""Jobs of a sweep on one of hydra's launchers, and what is left when a launcher or a job dies.

Each job is a call of `job.work` with some of the points.  A job whose process dies takes the launcher down with it:
the others are then waited for, what nobody had begun is launched again, and what was begun is tried once more, each
point by itself.  submitit learns from Slurm's accounting (sacct) that a job was killed: on a cluster without it, such
a job is waited for until Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from dali.experiments.settings.launchers import LauncherStopped, launch, launcher_name
from dali.experiments.verbs.sweep.job import RunFolder, work
from dali.policies.types import InputError

_SLURM_JOBS = 32
# A job costs hydra about as long to start as a point to simulate; several for each core still end at about one time.
_JOBLIB_JOBS_A_CORE = 16


class Launcher:
    """A launcher as the overrides choose and set it.

    overrides  those of `settings.shorthand.is_launcher`
    jobs       how many to deal points to; None = as suits the launcher
    """

    def __init__(self, overrides: Sequence[str], jobs: int | None) -> None:
        self.overrides = list(overrides)
        self.name = launcher_name(overrides)
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
        """Launch jobs and wait for them; what ended the launcher early, "" if nothing did."""
        task = partial(work, str(folder.path), str(folder.store), sorted(folder.typed))
        try:
            launch(self.overrides, task, [[f"+points={job}"] for job in jobs], folder.path, _logs(folder))
        except LauncherStopped as stopped:
            _wait(folder, self.name)
            return str(stopped)
        return ""


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
