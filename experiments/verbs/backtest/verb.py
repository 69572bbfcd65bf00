"""`dali backtest`: published speeds of engines that offload experts, beside what the simulator makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.drawing.figure import save_all
from dali.experiments.output.document import markdown
from dali.experiments.output.folder import folder
from dali.experiments.settings import read
from dali.experiments.verbs.backtest import figures, price, pricing, text
from dali.experiments.verbs.backtest.case import MeasuredCase, Refusal
from dali.experiments.verbs.backtest.metrics import summary, with_errors
from dali.experiments.verbs.backtest.rows import PUBLISHED, read_rows
from dali.experiments.verbs.backtest.sentences import sentences
from dali.experiments.verbs.backtest.split import fitted_series
from dali.experiments.verbs.backtest.understand import understood
from dali.policies.types import InputError


def run(config: DictConfig, overrides: list[str]) -> None:
    """Read the rows, price what is understood, write the results folder, print the figures."""
    file = PUBLISHED if config.rows is None else Path(read.text(config, "rows"))
    workers = read.whole_or_none(config, "workers") or pricing.cores()
    price.engines(config)  # a constant that does not exist is said before anything runs
    rows, fitted = read_rows(file), fitted_series()
    found = understood(rows)
    cases = [each for each in found if isinstance(each, MeasuredCase)]
    priced = []
    with tqdm(total=len(cases), unit="row", desc="backtest") as bar:
        for case, each in zip(cases, pricing.price_all(cases, config, price.price, workers), strict=True):
            bar.set_postfix_str(case.id, refresh=False)
            bar.update()
            priced.append(each)
    table = pricing.with_left_out(pricing.predictions(cases, priced, fitted), price.engines(config))
    refused = pricing.refusals(cases, priced, [each for each in found if isinstance(each, Refusal)])
    whole_rows = refused.loc[refused["phase"] == "", "category"]
    if table.empty:
        reasons = ", ".join(f"{count} {name}" for name, count in whole_rows.value_counts().items())
        raise InputError(f"{file}: found no row that can be priced ({reasons}), expected one or more")
    table = with_errors(table)
    said, summed = sentences(table), summary(table, len(rows), whole_rows)
    with folder(read.text(config, "output"), "backtest", config, overrides) as made:
        place = made.place
        table.to_parquet(place / "results.parquet", index=False)
        refused.to_csv(place / "refused.csv", index=False)
        (place / "summary.json").write_text(json.dumps(summed, indent=1) + "\n", encoding="utf-8")
        drawn = save_all(figures.drawings(table), place)
        made.document = text.with_figures(text.document(table, refused, summed, said, file.name), drawn)
    shown = replace(text.overview(summed), caption="")
    print("\n".join([*made.document.notes, "", markdown([shown]), "", *(f"- {each}" for each in said)]))
    print(f"\nResults: {made.final}")
