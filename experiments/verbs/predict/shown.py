"""What `dali report` shows of an evaluation of predictors."""

from __future__ import annotations

from dali.experiments.page.contents import Contents
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.predict.figures import drawings
from dali.experiments.verbs.predict.sentences import sentences
from dali.policies.types import InputError

KEYS = ("predictor", "ahead", "batch", "phase", "metric", "layer")
TEXT = ("predictor", "phase", "metric", "layer")
NUMBERS = ("ahead", "batch", "value", "low", "high", "gain")


def contents(folder: Folder) -> Contents:
    """Figures and sentences of results.parquet."""
    results = folder.table("results", TEXT, NUMBERS, once=KEYS)
    file = folder.place / "results.parquet"
    if not (results["metric"] == "recall_topk").any():
        raise InputError(f"{file}: found no row of metric recall_topk, expected one or more")
    if not results["layer"].str.fullmatch(r"all|\d+").all():
        raise InputError(f"{file}: found a layer that is no number, expected numbers and all")
    return Contents(drawings(results), sentences(results))
