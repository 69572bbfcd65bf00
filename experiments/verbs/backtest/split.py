"""Which series an engine's constants are fitted on: the others are held out.

The rule, which was written before anything was fitted: of each engine the series are sorted by name, and the first,
the third, the fifth ... are fitted on.  So an engine with a single series is fitted on that one and has nothing held
out: constants that come from nowhere would make a prediction that says nothing.  A series is fitted on or held out as
a whole, and belongs to the engine of its first row.

What counts in a backtest is the list that stands with the constants, `fitted_on` in a file of conf/engine: a series
that no such list names is held out, so that all of a file of other rows is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from omegaconf import ListConfig, OmegaConf

from dali.experiments.settings.folders import folders, names
from dali.experiments.verbs.backtest.case import MeasuredCase
from dali.policies.types import InputError


def for_fitting(cases: Iterable[MeasuredCase]) -> dict[str, list[str]]:
    """By engine, the series that the rule puts among those to fit on."""
    engine: dict[str, str] = {}
    for case in cases:
        engine.setdefault(case.series, case.engine)
    series = defaultdict(list)
    for name in sorted(engine):
        series[engine[name]].append(name)
    return {engine: found[::2] for engine, found in sorted(series.items())}


def fitted_series() -> frozenset[str]:
    """All series that files of conf/engine were fitted on; of two files of one name the user's counts."""
    found: set[str] = set()
    for name in names("engine"):
        file = next(path for folder in folders() if (path := folder / "engine" / f"{name}.yaml").is_file())
        listed = OmegaConf.select(OmegaConf.load(file), "fitted_on")
        if listed is None:
            continue
        if not isinstance(listed, ListConfig) or not all(isinstance(each, str) for each in listed):
            raise InputError(f"{file}: fitted_on: found {listed!r}, expected a list of series")
        found.update(listed)
    return frozenset(found)
