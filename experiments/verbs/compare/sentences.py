"""What the numbers of a comparison say, in a few plain sentences.

Each sentence restates columns of `results.parquet` and `what_if.parquet`, which the verb beside this module writes.
What would help is said only where it was simulated: busy shares alone do not carry that claim.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dali.experiments.output.wording import LEVEL, busiest, listed, phases, runnable, span


def baseline(results: pd.DataFrame) -> str | None:
    """The policy whose speed-up is 1 everywhere: the one that all are compared with."""
    for name, rows in results.groupby("policy", sort=False):
        if (rows["speedup"] == 1).all():
            return str(name)
    return None


def sentences(results: pd.DataFrame, what_if: pd.DataFrame | None = None) -> list[str]:
    """For each phase winner and lead, and the busiest machine; then what would help most.

    results  of `Comparison.results`, a row a policy, batch and phase
    what_if  columns policy, batch, phase, change and gain (times tokens/s); None where none was simulated
    """
    said = []
    for phase in phases(results):
        part = results[results["phase"] == phase]
        best = fastest(part)
        said.append(f"{phase.capitalize()}: {_winners(part, best)}. {_busiest(part, best)}.")
    if what_if is not None and len(what_if):
        said.append(_helps(what_if))
    return said


def winner(results: pd.DataFrame) -> str:
    """The policy that is fastest at the largest batch, in decode if there is any."""
    best = fastest(results[results["phase"] == phases(results)[0]])
    return str(best.at[best.index.max(), "policy"])


def fastest(part: pd.DataFrame) -> pd.DataFrame:
    """The fastest policy by batch size in a table of one phase; those that know the future do not take part.

    Index batch; columns policy, tokens_per_s, speedup, second (None if there is none) and lead (share over the second).
    """
    rows = []
    for batch, candidates in part[runnable(part)].groupby("batch"):
        ranked = candidates.sort_values("tokens_per_s", ascending=False, kind="stable")
        first = ranked.iloc[0]
        second = ranked.iloc[1] if len(ranked) > 1 else None
        rows.append(
            {
                "batch": batch,
                **first[["policy", "tokens_per_s", "speedup"]],
                "second": None if second is None else second["policy"],
                "lead": 0.0 if second is None else first["tokens_per_s"] / second["tokens_per_s"] - 1,
            }
        )
    return pd.DataFrame(rows).set_index("batch")


def _winners(part: pd.DataFrame, best: pd.DataFrame) -> str:
    compared_with = baseline(part)
    said = []
    for name, rows in best.groupby("policy", sort=False):
        where, speed = _at(list(rows.index), list(best.index)), span(rows["tokens_per_s"])
        text = f"{name} is the fastest {where}, {speed} tokens/s"
        if compared_with not in (None, name):
            text += f", {span(rows['speedup'], '{:.2f}'.format)} times {compared_with}"
        said.append(text + _lead(rows))
    for name, rows in part[~runnable(part)].groupby("policy", sort=False):
        ratio = rows.set_index("batch")["tokens_per_s"] / best["tokens_per_s"]
        reached = span(ratio, "{:.2f}".format)
        said.append(f"{name}, which knows the future and so cannot be run, reaches {reached} times that")
    return "; ".join(said)


def _lead(rows: pd.DataFrame) -> str:
    if rows["second"].isna().any():
        return ""
    names = rows["second"].unique()
    runner_up = names[0] if len(names) == 1 else "the next"
    low, high = rows["lead"].min(), rows["lead"].max()
    if high < LEVEL:
        return f", level with {runner_up} (within {LEVEL:.0%})"
    if low < LEVEL:
        return f", at most {high:.0%} ahead of {runner_up}"
    return f", {span(rows['lead'], '{:.0%}'.format)} ahead of {runner_up}"


def _busiest(part: pd.DataFrame, best: pd.DataFrame) -> str:
    """Busy shares of the fastest policy at the largest batch."""
    batch = best.index.max()
    name = str(best.at[batch, "policy"])
    row = part[(part["policy"] == name) & (part["batch"] == batch)].iloc[0]
    return f"With {name} at batch {batch} {busiest(row)}"


def _helps(what_if: pd.DataFrame) -> str:
    ranked = what_if.sort_values("gain", ascending=False, kind="stable")
    where = ranked.iloc[0]
    better = ranked[ranked["gain"] >= 1 + LEVEL]
    worse = ranked[ranked["gain"] <= 1 - LEVEL]
    level = ranked.drop([*better.index, *worse.index])
    said = [", then ".join(_gains(better)) or "none of what was tried"]
    if len(level):
        said.append(f"within {LEVEL:.0%} of no change: {', '.join(level['change'])}")
    if len(worse):
        said.append(f"slower: {', '.join(_gains(worse))}")
    return (
        f"What would help {where['policy']} most in {where['phase']} at batch {where['batch']}, "
        f"simulated one by one: {'; '.join(said)}."
    )


def _gains(rows: pd.DataFrame) -> list[str]:
    return [f"{change} ({gain:.2f}x)" for change, gain in zip(rows["change"], rows["gain"], strict=True)]


def _at(batches: Sequence[int], of: Sequence[int]) -> str:
    if len(of) > 1 and len(batches) == len(of):
        return "at every batch size"
    return f"at batch {listed(map(str, batches))}"
