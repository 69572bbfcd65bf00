"""What a run is judged by: rows for results.parquet, run.json, and the tables that people read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dali.experiments.output.columns import BYTES, LINK
from dali.experiments.output.document import Table
from dali.experiments.output.summary import MeasuredSteps, ratio, seconds, totals, work
from dali.experiments.output.text import number, share
from dali.policies.columns import DECODE, KINDS, PHASES, PLANNER, PREFILL

if TYPE_CHECKING:
    from dali.experiments.verbs.run.once import Timing
    from dali.experiments.verbs.run.session import PolicyRun


def rows(outcome: PolicyRun, tokens: int, sequences: int, copy_bandwidth: float, host_bandwidth: float) -> pd.DataFrame:
    """A row for each phase: speed as the user sees it, median over runs, and the metrics of the steps of all of them.

    tokens  of the prompts; bandwidths in bytes a second, as measured
    """
    found = []
    for phase in PHASES:
        speeds = [speed for timing in outcome.timings if (speed := _speed(timing, phase, tokens, sequences)) > 0]
        if speeds:
            row: dict[str, Any] = {"policy": outcome.name, "phase": phase, "runs": len(speeds), **_spread(speeds)}
            row["knows_future"] = outcome.knows_future
            found.append(row | (_metrics(outcome, phase, copy_bandwidth, host_bandwidth) if outcome.columns else {}))
    return pd.DataFrame(found)


def _speed(timing: Timing, phase: str, tokens: int, sequences: int) -> float:
    """Tokens a second; 0 where the phase has no step."""
    if phase == PREFILL:
        return tokens / timing.prefill
    return sequences * timing.steps / timing.decode if timing.steps else 0.0


def _spread(speeds: Sequence[float]) -> dict[str, float]:
    return {
        "tokens_per_s": float(np.median(speeds)),
        "tokens_per_s_min": min(speeds),
        "tokens_per_s_max": max(speeds),
    }


def _metrics(outcome: PolicyRun, phase: str, copy_bandwidth: float, host_bandwidth: float) -> dict[str, float]:
    """Shares are of the time inside forward passes; what lies between them (drawing a token) is not in it."""
    steps = MeasuredSteps(outcome.columns, outcome.layers, outcome.slices)
    count, duration, total = int((steps.columns["phase"] == phase).sum()), seconds(steps, phase), totals(steps, phase)
    link = ratio(sum(total[name] for name in BYTES), sum(total[name] for name in LINK))
    host = ratio(total["cpu_units"] * outcome.unit_bytes, total["cpu_busy"])
    return {
        "slices": outcome.slices,
        "slots": outcome.slots,
        "steps": count,
        "seconds": duration,
        **work(steps, phase),
        "planner_share": ratio(total[PLANNER], duration),
        "planner_us": ratio(total[PLANNER], count * outcome.layers) * 1e6,
        "link_gbs": link / 1e9,
        "copy_bandwidth_share": link / copy_bandwidth,
        "cpu_gbs": host / 1e9,
        "host_bandwidth_share": host / host_bandwidth,
    }


# ---- run.json --------------------------------------------------------------------------------------


def headline(results: pd.DataFrame) -> dict[str, Any]:
    """By policy, and of the fastest in decode that does not know the future: what a comparison of machines needs.

    `accelerate_ratio` is decode speed over accelerate's, absent where that did not run; `all_gpu_ratio` likewise.
    """
    speeds = {
        name: {row["phase"]: _figures(row) for _, row in part.iterrows()}
        for name, part in results.groupby("policy", sort=False)
    }
    decode = results[results["phase"] == (DECODE if DECODE in set(results["phase"]) else PREFILL)]
    decode = decode.set_index("policy")
    policies = decode[decode["slots"].notna()]
    real = policies if policies["knows_future"].all() else policies[~policies["knows_future"]]
    fastest = str(real["tokens_per_s"].idxmax())
    found: dict[str, Any] = {"tokens_per_s": speeds, "fastest": fastest}
    for name in ("planner_share", "copy_bandwidth_share", "host_bandwidth_share"):
        _add(found, name, fastest, {policy: _known(value) for policy, value in _column(policies, name).items()})
    for other in ("accelerate", "all_gpu"):
        if other in decode.index:
            base = _column(decode, "tokens_per_s")[other]
            ratios = {policy: speed / base for policy, speed in _column(policies, "tokens_per_s").items()}
            _add(found, f"{other}_ratio", fastest, ratios)
    return found


def _figures(row: Any) -> dict[str, float]:
    return {
        "median": row["tokens_per_s"],
        "min": row["tokens_per_s_min"],
        "max": row["tokens_per_s_max"],
        "runs": row["runs"],
    }


def _column(frame: pd.DataFrame, name: str) -> dict[str, float]:
    return dict(zip(map(str, frame.index), frame[name].tolist(), strict=True))


def _add(found: dict[str, Any], name: str, fastest: str, by_policy: dict[str, Any]) -> None:
    found[name], found[f"{name}_by_policy"] = by_policy[fastest], by_policy


def _known(value: float) -> float | None:
    """JSON has no NaN: what does not apply is null."""
    return None if value != value else float(value)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, with a last line end."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


# ---- for people ------------------------------------------------------------------------------------


def overview(results: pd.DataFrame) -> Table:
    """Speeds of both phases and what happened in the later of them."""
    header = ["policy", "prefill tokens/s", "decode tokens/s", "hits", "GPU busy", "CPU busy", "link busy", "planner"]
    header += ["link of its bandwidth", *(f"GB {kind}" for kind in KINDS)]
    body = []
    for name, part in results.groupby("policy", sort=False):
        by_phase = part.set_index("phase")
        last = by_phase.iloc[-1]
        speeds = [_with_spread(by_phase.loc[phase]) if phase in by_phase.index else "–" for phase in PHASES]
        if last["slots"] != last["slots"]:
            body.append([str(name), *speeds, *["–"] * 9])
            continue
        link = sum(last[name] for name in LINK)
        shares = [last["hit_rate"], last["gpu_busy"], last["cpu_busy"], link, last["planner_share"]]
        copied = [number(part[name].sum() / 1e9) for name in BYTES]
        body.append([str(name), *speeds, *map(share, shares), share(last["copy_bandwidth_share"]), *copied])
    return Table(header, body)


def _with_spread(row: Any) -> str:
    if row["runs"] == 1:
        return number(row["tokens_per_s"])
    return f"{number(row['tokens_per_s'])} ({number(row['tokens_per_s_min'])}–{number(row['tokens_per_s_max'])})"


def details(results: pd.DataFrame, phase: str) -> Table:
    """The other metrics of a phase."""
    header = ["policy", "steps", "on GPU", "prefetch recall", "imbalance", "planner us/layer", "link GB/s", "CPU GB/s"]
    part = results[(results["phase"] == phase) & results["slots"].notna()]
    body = [
        [
            row["policy"],
            str(int(row["steps"])),
            *(share(row[name]) for name in ("gpu_share", "prefetch_recall", "imbalance")),
            *(number(row[name]) for name in ("planner_us", "link_gbs", "cpu_gbs")),
        ]
        for _, row in part.iterrows()
    ]
    return Table(header, body)
