"""What `dali report` shows of a run."""

from __future__ import annotations

from dali.experiments.output.columns import BUSY
from dali.experiments.page.contents import Contents, measured_machine, of_timelines
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.run.figures import SPEED, drawings
from dali.experiments.verbs.run.sentences import run
from dali.policies.types import InputError

NUMBERS = ("runs", *SPEED, "slots", *BUSY, "planner_share", "copy_bandwidth_share")


def contents(folder: Folder) -> Contents:
    """Figures and sentences of results.parquet and run.json."""
    results = folder.table("results", ("policy", "phase"), NUMBERS, once=("policy", "phase"))
    if not results.groupby("phase")["slots"].count().all():
        raise InputError(f"{folder.place}/results.parquet: found a phase without a policy, expected one or more")
    about = folder.values.get("run")
    return Contents(
        [*drawings(results), *of_timelines(folder)], run(results, about), machine=measured_machine(folder, "run")
    )
