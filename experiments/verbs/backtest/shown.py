"""What `dali report` shows of a backtest."""

from __future__ import annotations

from dali.experiments.page.contents import Contents
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.backtest.figures import drawings
from dali.experiments.verbs.backtest.metrics import with_errors
from dali.experiments.verbs.backtest.sentences import sentences
from dali.policies.columns import PHASES
from dali.policies.types import InputError

WORDS = ("id", "series", "engine", "machine", "phase", "knob", "knob_value")
NUMBERS = ("measured", "predicted")
FLAGS = ("absolute", "held_out")


def contents(folder: Folder) -> Contents:
    """Figures and sentences of results.parquet."""
    results = folder.table("results", WORDS, NUMBERS, once=("id", "phase"))
    file = folder.place / "results.parquet"
    for name in FLAGS:
        if name not in results or results[name].dtype != bool:
            raise InputError(f"{file}: found no true or false in column {name}, expected it in every row")
    if not set(results["phase"]) <= set(PHASES):
        raise InputError(f"{file}: found phases {sorted(set(results['phase']))}, expected {' and '.join(PHASES)}")
    if not (results[[*NUMBERS]] > 0).all().all():
        raise InputError(f"{file}: found speeds that are not above 0, expected tokens/s")
    table = with_errors(results)
    return Contents(drawings(table), sentences(table))
