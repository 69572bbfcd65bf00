"""The metrics of a phase, from the columns that simulator and executor count in each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from dali.experiments.output.columns import BYTES, COPIES, LINK
from dali.policies.columns import DECODE, METRICS, PLANNER, PREFILL


class Steps(Protocol):
    """Steps that were simulated (`sim.engine.Simulation`) or measured.

    columns   one array a column of `policies.columns`, an entry a step
    layers    MoE layers; slices: units an expert
    planning  seconds charged for the planner in each layer step; None where the columns say what it took
    """

    # fmt: off
    @property
    def columns(self) -> Mapping[str, NDArray[Any]]: ...  # noqa: D102
    @property
    def layers(self) -> int: ...  # noqa: D102
    @property
    def slices(self) -> int: ...  # noqa: D102
    @property
    def planning(self) -> float | None: ...  # noqa: D102
    # fmt: on


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps of a real run; columns as of `runtime.execute.account.Account`."""

    columns: Mapping[str, NDArray[Any]]
    layers: int
    slices: int = 1
    planning: None = None


def summarise(steps: Steps, phase: str) -> dict[str, float]:
    """Speed and work of one phase; seconds, bytes and shares between 0 and 1; NaN for what does not apply."""
    columns = steps.columns
    rows = columns["phase"] == phase
    count, duration = int(rows.sum()), seconds(steps, phase)
    tokens = int(columns["tokens"][rows].sum())
    sequences = int(columns["sequences"][rows].max())
    layer_steps = count * steps.layers
    planner = totals(steps, phase)[PLANNER] if steps.planning is None else steps.planning * layer_steps
    return {
        "slices": steps.slices,
        "steps": count,
        "tokens": tokens,
        "seconds": duration,
        "tokens_per_s": ratio(tokens, duration),
        "tokens_per_s_per_sequence": ratio(tokens, duration) / sequences,
        "time_to_first_token": duration if phase == PREFILL else float("nan"),
        "time_per_output_token": ratio(duration, count) if phase == DECODE else float("nan"),
        **work(steps, phase),
        "planning": ratio(planner, duration),
    }


def work(steps: Steps, phase: str) -> dict[str, float]:
    """What the machines did in one phase, and how well it was foreseen; shares are of the time inside the steps."""
    total, duration = totals(steps, phase), seconds(steps, phase)
    absent = total["lookups"] - total["hits"] - total["late"]
    return {
        "moe_time": total["moe_time"],
        "gpu_busy": ratio(total["gpu_busy"], duration),
        "cpu_busy": ratio(total["cpu_busy"], duration),
        **{name: ratio(total[name], duration) for name in LINK},
        **{name: total[name] for name in (*BYTES, *COPIES)},
        "hit_rate": ratio(total["hits"], total["lookups"]),
        # Of the units that were not cached, those that a prefetch had brought, or was bringing, in time.
        "prefetch_recall": ratio(total["staged"], total["staged"] + absent),
        "gpu_share": ratio(total["gpu_units"], total["lookups"]),
        "imbalance": ratio(total["imbalance"], int((steps.columns["phase"] == phase).sum()) * steps.layers),
    }


def totals(steps: Steps, phase: str) -> dict[str, float]:
    """Sum over a phase of each of `METRICS`, and of the planner's seconds where they were measured."""
    rows = steps.columns["phase"] == phase
    names = (*METRICS, PLANNER) if PLANNER in steps.columns else METRICS
    return {name: float(steps.columns[name][rows].sum()) for name in names}


def seconds(steps: Steps, phase: str) -> float:
    """Inside the steps of a phase."""
    rows = steps.columns["phase"] == phase
    return float((steps.columns["end"] - steps.columns["start"])[rows].sum())


def ratio(part: float, whole: float) -> float:
    """A share or a rate; NaN of nothing."""
    return part / whole if whole else float("nan")
