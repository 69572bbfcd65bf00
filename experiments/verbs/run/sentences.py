"""What a run on a machine says, in a few plain sentences."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dali.experiments.output.text import number
from dali.experiments.output.wording import busiest, listed, phases, runnable


def run(results: pd.DataFrame, about: object = None) -> list[str]:
    """For each phase the fastest policy, its lead, what ran beside it, and the busiest machine.

    results  of `report.rows`, a row a policy and phase, rows without `slots` being other ways to run the model
    about    run.json; its `device` says whether there was a GPU
    """
    said = [_ran(results[results["phase"] == phase]) for phase in phases(results)]
    if isinstance(about, Mapping) and about.get("device") == "cpu":
        said.append("Host memory stood for the GPU's here: these times say nothing of a GPU's speed.")
    return said


def _ran(part: pd.DataFrame) -> str:
    policies = part[part["slots"].notna()]
    ranked = policies[runnable(policies)].sort_values("tokens_per_s", ascending=False, kind="stable")
    best = ranked.iloc[0]
    text = f"{best['phase'].capitalize()}: {best['policy']} is the fastest, {number(best['tokens_per_s'])} tokens/s"
    if len(ranked) > 1:
        text += _ahead(best, ranked.iloc[1])
    others = [
        f"{name} {number(speed)} ({number(best['tokens_per_s'] / speed)} times that)"
        for name, speed in part.loc[part["slots"].isna(), ["policy", "tokens_per_s"]].to_numpy()
    ]
    text += f"; beside it {listed(others)}" if others else ""
    return (
        f"{text}. With {best['policy']} {busiest(best)}; the planner takes {best['planner_share']:.1%} of the time"
        + (
            f", and the link, while it copies, reaches {best['copy_bandwidth_share']:.0%} of its speed."
            if best["copy_bandwidth_share"] == best["copy_bandwidth_share"]
            else "."
        )
    )


def _ahead(best: pd.Series, second: pd.Series) -> str:
    lead = best["tokens_per_s"] / second["tokens_per_s"] - 1
    text = f", {lead:.0%} ahead of {second['policy']}"
    if second["tokens_per_s_max"] >= best["tokens_per_s_min"]:
        text += " (single runs of the two overlap)" if min(best["runs"], second["runs"]) > 1 else " (of one run each)"
    return text
