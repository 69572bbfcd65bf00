"""Fits the constants of conf/engine to published speeds, and writes them and the series they were fitted on there.

    python tools/fit_engines.py [engine ...]

Which series count is the rule of `experiments/verbs/backtest/split.py`.  Takes minutes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from dali.experiments.settings.folders import CONF
from dali.experiments.verbs.backtest.case import MeasuredCase
from dali.experiments.verbs.backtest.fit import Speeds, fit
from dali.experiments.verbs.backtest.predict import predict
from dali.experiments.verbs.backtest.price import engines, machine_of, model_of
from dali.experiments.verbs.backtest.rows import PUBLISHED, read_rows
from dali.experiments.verbs.backtest.split import for_fitting
from dali.experiments.verbs.backtest.understand import understood
from dali.policies.columns import DECODE, PREFILL
from dali.policies.costs.constants import constant
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.model_shape import ModelShape
from dali.policies.costs.roofline import Platform
from dali.policies.types import Floats, InputError

Priced = tuple[MeasuredCase, ModelShape, Platform]


def main(chosen: list[str]) -> None:
    """Fit the chosen engines, or all."""
    cases = [case for case in understood(read_rows(PUBLISHED)) if isinstance(case, MeasuredCase)]
    rule = for_fitting(cases)
    for name in chosen or rule:
        engine = engines(OmegaConf.create({"engines": {}}))[name]
        rows = [row for case in cases if case.series in rule[name] and case.engine == name for row in _priced(case)]
        fitted, series = fitted_engine(engine, rows), sorted({case.series for case, *_ in rows})
        values = {each: constant(fitted, each) for each in engine.fitted}
        file = Path(CONF) / "engine" / f"{name}.yaml"
        file.write_text(written(file.read_text(encoding="utf-8"), values, series), encoding="utf-8")
        print(name, {each: float(f"{value:.3g}") for each, value in values.items()})


def _priced(case: MeasuredCase) -> list[Priced]:
    """The case with its model and machine; nothing where there is none."""
    try:
        return [(case, model_of(case), machine_of(case)[0])]
    except InputError as error:
        print(f"{case.id}: {error}")
        return []


def fitted_engine(engine: ServingEngine, rows: list[Priced]) -> ServingEngine:
    """The engine with its constants fitted to the rows."""
    timed = [
        (case, phase, speed)
        for case, *_ in rows
        for phase, speed in ((PREFILL, case.prefill), (DECODE, case.decode))
        if speed is not None
    ]
    groups = {key: i for i, key in enumerate(dict.fromkeys((case.series, phase) for case, phase, _ in timed))}
    speeds = Speeds(
        np.array([speed.tokens_per_s for *_, speed in timed]),
        np.array([groups[case.series, phase] for case, phase, _ in timed]),
        np.array([case.absolute for case, *_ in timed]),
    )
    with tqdm(desc=engine.name, unit="evaluation") as bar:

        def predicted(tried: ServingEngine) -> Floats:
            bar.update()
            found = {case.id: predict(case, model, platform, tried) for case, model, platform in rows}
            return np.array([found[case.id][phase] for case, phase, _ in timed])

        return fit(engine, speeds, predicted)


def written(text: str, values: dict[str, float], series: list[str]) -> str:
    """The text of a file of conf/engine with other values of constants, and the series that they were fitted on."""
    for name, value in values.items():
        text = _with_value(text, name.split("."), f"{value:.3g}")
    text = re.sub(r"^fitted_on:.*\n(?:  - .*\n)*", "", text, flags=re.MULTILINE).rstrip("\n")
    return "\n".join([text, "fitted_on:", *(f"  - {each}" for each in series), ""])


def _with_value(text: str, path: list[str], value: str) -> str:
    if len(path) == 1:
        changed, count = re.subn(rf"^{path[0]}: [\d.e+-]+", f"{path[0]}: {value}", text, flags=re.MULTILINE)
    else:
        block, table, key = path
        pattern = rf"(^{block}:\n(?:  .*\n)*?  {table}: \{{[^}}\n]*\b{key}: )[\d.e+-]+"
        changed, count = re.subn(pattern, rf"\g<1>{value}", text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{'.'.join(path)}: found {count} lines with it, expected 1")
    return changed


if __name__ == "__main__":
    main(sys.argv[1:])
