"""What `dali report` shows of a comparison with the optimum."""

from __future__ import annotations

import pandas as pd

from dali.experiments.page.contents import Contents
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.gap import sentences
from dali.experiments.verbs.gap.figures import BOUND, KEYS, MS, STAGE, drawings
from dali.experiments.verbs.gap.text import speeds
from dali.policies.types import InputError

CASE = (*sentences.CASE, "phase")
WORDS, NUMBERS = ("scene", "phase"), ("cache_share", "batch")
OF_CALLS = ("layer_steps", "gap_mean", "gap_max", "call_median")


def contents(folder: Folder) -> Contents:
    """Figures and sentences of results.parquet, assignments.parquet and waterfall.parquet; who comes near the bound."""
    results = folder.table("results", (*WORDS, "name", "kind"), (*NUMBERS, "tokens_per_s"), once=(*CASE, "name"))
    gaps = folder.table("assignments", (*WORDS, "assignment"), (*NUMBERS, *OF_CALLS), once=KEYS)
    fall = folder.table("waterfall", (STAGE,), (MS,))
    names = _policies(folder, results)
    about = f"Tokens/s, in brackets over {names[0]}'s; and {names[1]}'s share of the bound, which no policy can pass."
    return Contents(
        drawings(gaps, fall),
        [*sentences.policies(results), *sentences.waterfall(fall), *sentences.assignments(gaps)],
        [speeds(results, names, about)],
    )


def _policies(folder: Folder, results: pd.DataFrame) -> list[str]:
    """The policies compared, two or more; InputError if one of them, or the bound, is missing in a case."""
    names = list(dict.fromkeys(results.loc[results["kind"] == "policy", "name"]))
    file = folder.place / "results.parquet"
    if len(names) < 2:
        raise InputError(f"{file}: found policies {names}, expected two or more")
    for _, case in results.groupby([*CASE], sort=False):
        missing = [name for name in (*names, BOUND) if name not in set(case["name"])]
        if missing:
            raise InputError(
                f"{file}: found a case without {missing[0]}, expected {', '.join((*names, BOUND))} in each"
            )
    return names
