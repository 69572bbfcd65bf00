"""What a run on a machine says, and what its comparison with the simulator says, in a few plain sentences."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from experiments.analysis import LINK, busiest, listed, phases, runnable, span
from experiments.results import number, table

RUN = {"policy", "phase", "runs", "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max", "slots"} | {
    "knows_future", "gpu_busy", "cpu_busy", *LINK, "planner_share", "copy_bandwidth_share",
}  # fmt: skip
VALIDATE = {"policy", "setting", "phase", "measured", "simulated", "error", "mape", "spread", "largest"}


def run(results: pd.DataFrame, about: object = None) -> list[str]:
    """For each phase the fastest policy, its lead, what ran beside it, and the busiest machine.

    results  columns `RUN`, a row a policy and phase, rows without `slots` being other ways to run the model
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


def validate(results: pd.DataFrame) -> list[str]:
    """For each phase the error by policy, its sign, the spread of what was measured, and the largest term.

    results  columns `VALIDATE`, a row a policy, setting and phase
    """
    said = []
    for phase in phases(results):
        part = results[results["phase"] == phase]
        by = part.groupby("policy", sort=False)["mape"].mean().sort_values(kind="stable")
        fast = int((part["error"] < 0).sum())
        terms = part["largest"].value_counts()
        text = (
            f"{phase.capitalize()}: a simulated step is off by {part['mape'].mean():.1%} (mean absolute error over "
            f"{len(part)} policies and settings, {span(part['mape'], '{:.1%}'.format)}), too fast in {fast} of them. "
        )
        if len(by) > 1:
            ends = [f"{by.index[i]} ({by.iloc[i]:.1%})" for i in (0, -1)]
            text += f"It is closest for {ends[0]}, farthest off for {ends[1]}. "
        text += f"The largest term of the error is {listed(f'{name} in {count}' for name, count in terms.items())}."
        if part["spread"].max() > 0:
            text += f" Repeats of one measurement differ by {part['spread'].median():.1%} in the median."
        said.append(text)
    return said


def errors(results: pd.DataFrame) -> str:
    """Signed error and mean absolute error of a step, a table a phase, Markdown."""
    parts = []
    for phase in phases(results):
        part = results[results["phase"] == phase]
        settings = list(dict.fromkeys(part["setting"]))
        rows = []
        for policy, own in part.groupby("policy", sort=False):
            each = own.set_index("setting")[["error", "mape"]].reindex(settings)
            cells = ["–" if error != error else f"{error:+.1%} ({mape:.1%})" for error, mape in each.to_numpy()]
            rows.append([str(policy), *cells])
        parts.append(
            f"{phase.capitalize()}, error of the simulated time (in brackets the mean of a step's, unsigned)\n\n"
            + table(["policy", *settings], rows)
        )
    return "\n\n".join(parts)
