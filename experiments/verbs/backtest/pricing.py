"""All cases priced, on several cores, and beside what was measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from dali.experiments.verbs.backtest.case import MeasuredCase, Refusal
from dali.experiments.verbs.backtest.fit import Speeds, left_out
from dali.experiments.verbs.backtest.price import Prediction
from dali.experiments.verbs.backtest.refusing import DRAFTER, NOT_PRICED, PROMPT
from dali.policies.columns import DECODE, PREFILL
from dali.policies.costs.engine import ServingEngine
from dali.policies.types import InputError

Price = Callable[[MeasuredCase, DictConfig], Mapping[str, Prediction]]
Priced = Mapping[str, Prediction] | str
"""By phase, or why there is none."""

COLUMNS = [
    *("id", "series", "engine", "model", "quant", "machine", "knob", "knob_value"),
    *("phase", "measured", "predicted", "left_out", "data_sheet", "absolute", "held_out", "taken", "notes", "source"),
]
REFUSED = ["id", "phase", "category", "detail"]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def price_all(cases: Sequence[MeasuredCase], config: DictConfig, price: Price, workers: int) -> Iterator[Priced]:
    """Of each case, in order; the same whatever the number of processes."""
    if workers == 1 or len(cases) < 2:
        yield from (_one(price, config, case) for case in cases)
        return
    # Fresh processes: a fork would copy threads of numerical libraries in whatever state they are.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            yield from pool.map(partial(_one, price, config), cases)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(price: Price, config: DictConfig, case: MeasuredCase) -> Priced:
    try:
        found = price(case, config)
    except InputError as error:
        return str(error)
    for phase, prediction in found.items():
        if not 0 < prediction.tokens_per_s < float("inf"):
            return f"{phase}: found {prediction.tokens_per_s} tokens/s"
    return {phase: found[phase] for phase in _measured(case) if phase in found} or "neither prefill nor decode"


def _measured(case: MeasuredCase) -> dict[str, float]:
    """Tokens/s by phase."""
    timed = {PREFILL: case.prefill, DECODE: case.decode}
    return {phase: each.tokens_per_s for phase, each in timed.items() if each is not None}


# ---- as tables -------------------------------------------------------------------------------------


def predictions(cases: Sequence[MeasuredCase], priced: Sequence[Priced], fitted: Collection[str]) -> pd.DataFrame:
    """A row for each case and phase that was priced: `COLUMNS`; taken is what the row does not say and was taken."""
    rows: list[dict[str, Any]] = []
    for case, found in zip(cases, priced, strict=True):
        if isinstance(found, str):
            continue
        shared = {name: getattr(case, name) for name in COLUMNS if hasattr(case, name)}
        measured = _measured(case)
        for phase, prediction in found.items():
            rows.append(
                shared
                | {"phase": phase, "measured": measured[phase], "predicted": float(prediction.tokens_per_s)}
                | {"left_out": float(prediction.tokens_per_s), "data_sheet": float(prediction.data_sheet)}
                | {"slopes": prediction.slopes}
                | {"held_out": case.series not in fitted}
                | {"taken": "; ".join(dict.fromkeys([*case.assumed, *prediction.notes]))}
            )
    return pd.DataFrame(rows, columns=[*COLUMNS, "slopes"])


def with_left_out(table: pd.DataFrame, engines: Mapping[str, ServingEngine]) -> pd.DataFrame:
    """The table with `left_out` where there are slopes: what constants would predict that its series had no part in."""
    table = table.copy()
    for name, part in table[table["slopes"].map(bool).astype(bool)].groupby("engine"):
        engine = engines[str(name)]
        slopes = np.array([[row[constant] for constant in engine.fitted] for row in part["slopes"]])
        group = part.groupby(["series", "phase"]).ngroup().to_numpy()
        speeds = Speeds(part["measured"].to_numpy(), group, part["absolute"].to_numpy(bool))
        table.loc[part.index, "left_out"] = left_out(
            engine, speeds, part["predicted"].to_numpy(), slopes, list(part["series"])
        )
    return table[COLUMNS]


def refusals(cases: Sequence[MeasuredCase], priced: Sequence[Priced], others: Sequence[Refusal]) -> pd.DataFrame:
    """What was not priced: `REFUSED`; an empty phase is the whole row, which `others` are too."""
    rows = [(each.id, "", each.category, each.detail) for each in others]
    for case, found in zip(cases, priced, strict=True):
        if isinstance(found, str):
            rows.append((case.id, "", NOT_PRICED, found))
            continue
        rows += [(case.id, phase, NOT_PRICED, "no such prediction") for phase in _measured(case) if phase not in found]
        for each in case.left_out:
            phase, _, reason = each.partition(": ")
            rows.append((case.id, phase, PROMPT, "") if reason == PROMPT else (case.id, phase, DRAFTER, reason))
    return pd.DataFrame(rows, columns=REFUSED)
