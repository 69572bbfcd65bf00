"""What `dali report` shows of a validation."""

from __future__ import annotations

from dali.experiments.page.contents import Contents, measured_machine, of_profiles, of_timelines
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.validate.figures import DRAWN_LAYERS, drawings
from dali.experiments.verbs.validate.sentences import errors, validate

NUMBERS = ("measured", "simulated", "error", "mape", "spread")


def contents(folder: Folder) -> Contents:
    """Figures and sentences of results.parquet and validation.json; costs, if the profile was put beside them."""
    results = folder.table(
        "results", ("policy", "setting", "phase", "largest"), NUMBERS, once=("policy", "setting", "phase")
    )
    return Contents(
        [*drawings(results), *of_timelines(folder, DRAWN_LAYERS), *of_profiles(folder)],
        validate(results),
        errors(results),
        measured_machine(folder, "validation"),
    )
