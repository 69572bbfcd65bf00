"""What a comparison with the optimum says: summary.json and tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dali.experiments.output.document import Document, Paragraph, Picture, Section, Table
from dali.experiments.output.text import number, share
from dali.experiments.verbs.gap.runs import WATERFALL
from dali.policies.columns import DECODE, PREFILL

# ---- what is said ----------------------------------------------------------------------------------


def summary(gaps: pd.DataFrame, results: pd.DataFrame, chosen: str, against: str) -> dict[str, Any]:
    """Fractions, over all cases and by scene, batch and cache share."""
    cells = [
        {**dict(zip(("scene", "batch", "phase", "cache_share"), key, strict=True)), **_figures(parts, chosen, against)}
        for key, parts in _cells(gaps, results)
    ]
    return {**_figures((gaps, results), chosen, against), "cases": cells}


def _cells(gaps: pd.DataFrame, results: pd.DataFrame) -> Any:
    keys = ["scene", "batch", "phase", "cache_share"]
    groups = [dict(list(frame.groupby(keys, sort=False))) for frame in (gaps, results)]
    return ((key, (groups[0][key], groups[1][key])) for key in groups[0])


def _figures(parts: tuple[pd.DataFrame, pd.DataFrame], chosen: str, against: str) -> dict[str, Any]:
    gaps, results = parts
    found: dict[str, Any] = {}
    for name in gaps["assignment"].unique():
        part = gaps[gaps["assignment"] == name]
        # Every case counts alike, however many layer steps it has.
        found[f"{name}_gap_mean"] = float(part["gap_mean"].mean())
        found[f"{name}_gap_max"] = float(part["gap_max"].max())
    speedup = _speedup(results, against, chosen)
    found[f"{against}_speedup_geomean"] = float(np.exp(np.log(speedup).mean()))
    found[f"{against}_speedup_min"] = float(speedup.min())
    return found


def _speedup(results: pd.DataFrame, name: str, over: str) -> pd.Series:
    keys = ["scene", "cache_share", "batch", "phase"]
    speeds = results[results["name"].isin([name, over])].pivot(index=keys, columns="name", values="tokens_per_s")
    return speeds[name] / speeds[over]


def waterfall(results: pd.DataFrame, chosen: str, against: str) -> pd.DataFrame:
    """Milliseconds of a decode step by case and stage, from the chosen policy to the bound; `dali report` draws it."""
    stages = [chosen, *(name for name, _ in WATERFALL), "bound", against]
    rows = results[(results["phase"] == DECODE) & results["name"].isin(stages)]
    found = rows.assign(stage=rows["name"], ms_per_token=1e3 * rows["seconds"] / rows["steps"])
    found["order"] = found["stage"].map(stages.index)
    keys = ["scene", "cache_share", "batch"]
    return found.sort_values([*keys, "order"])[[*keys, "stage", "ms_per_token"]].reset_index(drop=True)


def document(notes: list[str], found: list[Section], drawn: list[str]) -> Document:
    """All of it; `found` as of `sections`, `drawn` the files of the figures."""
    *before, last = found
    last = Section(last.heading, [*last.blocks, *map(Picture, drawn)])
    # Without notes their place stays empty.
    return Document("Gaps to the optimum", notes, [] if notes else [Paragraph("")], [*before, last])


def sections(gaps: pd.DataFrame, results: pd.DataFrame, found: dict[str, Any], names: list[str]) -> list[Section]:
    """What people read: tables."""
    chosen, against = names[:2]
    paper = "DALI's Table 4 (arXiv 2602.03495) puts greedy at 85 to 92 % of the optimum (MoE time, exact over greedy)."
    mean, least = (found[f"{against}_speedup_{kind}"] for kind in ("geomean", "min"))
    return [
        Section("Assignment: makespan over exact's", [_gaps(gaps), Paragraph(paper)]),
        Section(
            f"{against} over {chosen}, simulated tokens/s",
            [speeds(results, names), Paragraph(f"Geometric mean {mean:.2f}x, least {least:.2f}x.")],
        ),
        Section(
            "What each part is worth: tokens/s over the whole policy's, geometric mean",
            [_ablations(results, chosen, against)],
        ),
        Section(f"From {chosen} to the bound, ms a token", [_waterfall(results, names)]),
        Section("Scheduling: microseconds a call beside the makespan it finds", [_calls(gaps)]),
    ]


def _gaps(gaps: pd.DataFrame) -> Table:
    header = ["model, cache, batch", *(str(name) for name in gaps["assignment"].unique())]
    rows = []
    for label, part in _labelled(gaps):
        cells = [
            f"{row.gap_mean:.2%} / {row.gap_p99:.1%} / {row.gap_max:.1%} ({row.moe_ratio:.0%})"
            for row in part.itertuples()
        ]
        rows.append([label, *cells])
    caption = "Mean / 99th percentile / worst gap (sum of exact's makespans over the sum of the policy's)."
    return Table(header, rows, caption)


def speeds(results: pd.DataFrame, names: list[str], caption: str = "") -> Table:
    """Tokens/s of the named policies, over the first one's, and the second's share of the bound; a row a case."""
    rows = []
    for label, part in _labelled(results):
        speed = part.set_index("name")["tokens_per_s"]
        cells = [f"{number(speed[name])} ({speed[name] / speed[names[0]]:.2f}x)" for name in names]
        rows.append([label, *cells, share(speed[names[1]] / speed["bound"])])
    return Table(["model, cache, batch", *names, f"{names[1]} of bound"], rows, caption)


def _ablations(results: pd.DataFrame, chosen: str, against: str) -> Table:
    rows = []
    for kind, whole in (("without", against), ("with", chosen)):
        for name in results[results["kind"] == kind]["name"].unique():
            ratio = _speedup(results, name, whole)
            rows.append([f"{name}, over {whole}", f"{np.exp(np.log(ratio).mean()):.3f}x", f"{ratio.min():.2f}x"])
            rows[-1].append(f"{ratio.max():.2f}x")
    return Table(["", "mean", "least", "most"], rows)


def _waterfall(results: pd.DataFrame, names: list[str]) -> Table:
    bars = [names[0], *(f"+ {name}" for name, _ in WATERFALL), "bound", names[1]]
    rows = []
    for label, part in _labelled(results):
        each = part.set_index("name")
        times = 1e3 * each["seconds"] / (each["tokens"] if part["phase"].iloc[0] == PREFILL else each["steps"])
        rows.append([label, *(number(float(times[bar.removeprefix("+ ")])) for bar in bars)])
    return Table(["model, cache, batch", *bars], rows)


def _calls(gaps: pd.DataFrame) -> Table:
    rows = []
    for label, part in _labelled(gaps):
        times = zip(part["call_median"].to_numpy(), part["seconds_mean"].to_numpy(), strict=True)
        cells = [f"{1e6 * call:.0f} us, {1e3 * seconds:.2f} ms" for call, seconds in times]
        rows.append([label, *cells])
    return Table(["model, cache, batch", *(str(name) for name in gaps["assignment"].unique())], rows)


def _labelled(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    keys = ["scene", "cache_share", "batch", "phase"]
    return [
        (f"{scene}, {part:.0%}, {'prefill' if phase == PREFILL else batch}", rows)
        for (scene, part, batch, phase), rows in frame.groupby(keys, sort=False)
    ]
