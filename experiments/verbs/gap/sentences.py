"""What a waterfall, the proven bound and the gaps of assignments say, in a few plain sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dali.experiments.output.wording import ORACLE, listed, phases, span
from dali.experiments.verbs.gap.figures import BOUND, MS, STAGE

CASE = ["scene", "cache_share", "batch"]


def policies(results: pd.DataFrame) -> list[str]:
    """For each phase who is fastest, and how much of the bound's speed that is; then the second policy over the first.

    results  rows of `dali gap`; of the policies (kind "policy") the first is what the second is compared with
    """
    names = list(dict.fromkeys(results.loc[results["kind"] == "policy", "name"]))
    said = [_phase(results[results["phase"] == phase], names) for phase in phases(results)]
    speeds = results[results["name"].isin(names[:2])].pivot(
        index=[*CASE, "phase"], columns="name", values="tokens_per_s"
    )
    ratio = speeds[names[1]] / speeds[names[0]]
    mean = float(np.exp(np.log(ratio).mean()))
    said.append(
        f"{names[1]} is {mean:.2f} times as fast as {names[0]} in the geometric mean of {_cases(len(ratio))}, "
        f"{span(ratio, '{:.2f}'.format)} times."
    )
    return said


def _phase(part: pd.DataFrame, names: list[str]) -> str:
    speeds = part.pivot(index=CASE, columns="name", values="tokens_per_s")
    real = [name for name in names if name != ORACLE] or names
    best, who = speeds[real].max(axis=1), speeds[real].idxmax(axis=1)
    counts = who.value_counts()
    wins = listed(f"{name} in {count}" for name, count in counts.items()) if len(counts) > 1 else str(counts.index[0])
    reached = best / speeds[BOUND]
    scene, share, batch = speeds.index[int(reached.argmin())]
    text = (
        f"{part['phase'].iloc[0].capitalize()}: the fastest policy of {_cases(len(best))} is {wins}, with "
        f"{span(reached, '{:.0%}'.format)} of the speed of the bound ({reached.median():.0%} in the median), which no "
        f"policy can beat and perhaps none can reach; farthest from it with {scene}, {share:.0%} of the experts "
        f"cached, batch {batch}"
    )
    if ORACLE in names and len(real) < len(names):
        text += f". {ORACLE}, which knows the future, has {span(speeds[ORACLE] / speeds[BOUND], '{:.0%}'.format)} of it"
    return f"{text}."


def waterfall(fall: pd.DataFrame) -> list[str]:
    """How far the first stage is from the bound, and which step on the way saves the most.

    fall  a row a stage, in order, `STAGE` and `MS`; other columns tell cases apart; what follows the bound is left out
    """
    keys = [column for column in fall.columns if column not in (STAGE, MS)]
    cases = [rows for _, rows in fall.groupby(keys, sort=False)] if keys else [fall]
    if any(BOUND not in list(rows[STAGE])[1:] for rows in cases):
        return []
    down = [rows.set_index(STAGE)[MS].loc[:BOUND] for rows in cases]
    stages = list(down[0].index)
    if any(list(each.index) != stages for each in down):
        return []
    times = pd.Series([each.iloc[0] / each.iloc[-1] for each in down])
    saved = pd.DataFrame([-each.diff().iloc[1:] / each.iloc[0] for each in down])
    mean = saved.mean().sort_values(ascending=False, kind="stable")
    largest = saved.idxmax(axis=1).value_counts()
    steps = [f"{stage} {mean[stage]:.0%}{_cost(saved[stage])}" for stage in mean.index if stage != BOUND]
    named = [f"{stage if stage != BOUND else 'what is left to the bound'} in {n}" for stage, n in largest.items()]
    between = f", and what {stages[-2]} leaves to the bound is {mean[BOUND]:.0%}" if steps else ""
    return [
        f"{stages[0]} takes {span(times, '{:.2f}'.format)} times as long as the bound, {times.median():.2f} times in "
        f"the median of {_cases(len(down))}. On average, of its time, {f'these save: {listed(steps)}' if steps else ''}"
        f"{between or f'{mean[BOUND]:.0%} is what is left to the bound'}. The largest part is {listed(named)} of "
        f"{_cases(len(down))}."
    ]


def _cost(saved: pd.Series) -> str:
    longer = int((saved < 0).sum())
    return f" (it costs time in {longer})" if longer else ""


def assignments(gaps: pd.DataFrame) -> list[str]:
    """Each assignment's makespan over the exact one's; every case counts alike."""
    parts = [
        f"{name} {_percent(rows['gap_mean'].mean())} (at worst {_percent(rows['gap_max'].max())})"
        for name, rows in gaps.groupby("assignment", sort=False)
        if name not in ("exact", "ilp")
    ]
    count = len(gaps.drop_duplicates([*CASE, "phase"]))
    if not parts:
        return []
    return [f"Longer than the exact makespan of a layer step, mean of {_cases(count)}: {listed(parts)}."]


def _percent(gap: float) -> str:
    """Enough digits to tell a small gap from none."""
    return f"{gap:.0%}" if gap >= 0.1 else f"{100 * gap:.2g}%" if gap >= 1e-9 else "nothing"


def _cases(count: int) -> str:
    return f"{count} case" + ("" if count == 1 else "s")
