"""What an evaluation of predictors says, in a few plain sentences."""

from __future__ import annotations

import pandas as pd

from dali.experiments.output.wording import listed


def sentences(results: pd.DataFrame) -> list[str]:
    """The best predictor of a token's experts by distance, and its lead.

    results  of `Evaluation.results`; intervals are of 95 %
    """
    part = results[(results["metric"] == "recall_topk") & (results["layer"] == "all")]
    part = part[part["batch"] == part["batch"].min()]
    said = []
    for ahead, rows in part.groupby("ahead"):
        best, *others = rows.sort_values("value", ascending=False, kind="stable").to_dict("records")
        where = "One layer ahead" if ahead == 1 else f"{ahead} layers ahead"
        text = (
            f"{where} {best['predictor']} foresees the largest share of a token's experts, {best['value']:.1%} "
            f"(95 % interval {best['low']:.1%} to {best['high']:.1%})"
        )
        if others:
            text += f"; then {listed(_share(each) for each in others)}"
            if others[0]["high"] >= best["low"]:
                text += f". The intervals of {best['predictor']} and {others[0]['predictor']} overlap"
        said.append(f"{text}.")
    return said


def _share(row: dict) -> str:
    return f"{row['predictor']} {row['value']:.1%}"
