"""What `dali report` shows of a comparison."""

from __future__ import annotations

from dali.experiments.output.columns import BUSY, KEYS
from dali.experiments.page.contents import Contents, of_timelines
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.compare.figures import drawings
from dali.experiments.verbs.compare.sentences import baseline, sentences, winner

NUMBERS = ("batch", "tokens_per_s", "speedup", "hit_rate", *BUSY)


def contents(folder: Folder) -> Contents:
    """Figures and sentences of results.parquet and what_if.parquet."""
    results = folder.table("results", ("policy", "phase"), NUMBERS, once=KEYS)
    what_if = None
    if "what_if" in folder.tables:
        what_if = folder.table("what_if", ("policy", "phase", "change"), ("batch", "gain"))
    return Contents(
        [*drawings(results, baseline(results) or "the baseline"), *of_timelines(folder)],
        sentences(results, what_if),
        first=winner(results),
    )
