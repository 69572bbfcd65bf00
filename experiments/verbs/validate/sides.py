"""One round as it ran or as it was simulated, and how far two of them agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.experiments.output.columns import BYTES, COPIES
from dali.policies.columns import DENSE, LANE_CPU, LANE_GPU, LANE_LINK
from dali.policies.types import Floats
from dali.sim.timeline import Spans

COUNTED = ("lookups", "hits", "gpu_units", "cpu_units")
EXACT = (*COUNTED, *BYTES, *COPIES)
TERMS = ("dense part", "GPU units", "CPU units", "link", "all waiting")

Decisions = list[tuple[int, int, list[int], list[int]]]


@dataclass(frozen=True)
class Side:
    """One round, as it ran or as it was simulated.

    columns    one array a column, an entry a step: see `sim.engine.Simulation`
    spans      of all its steps, on the clock of the columns
    decisions  (step, layer, CPU units, GPU units) of every layer step of all rounds, units sorted
    counts     `EXACT` and "late" of all rounds
    """

    columns: dict[str, NDArray[Any]]
    spans: Spans
    decisions: Decisions
    counts: dict[str, int]

    def seconds(self, phase: str) -> Floats:
        """Of each step of a phase."""
        chosen = self.columns["phase"] == phase
        found: Floats = (self.columns["end"] - self.columns["start"])[chosen]
        return found

    def layer_seconds(self, phase: str) -> Floats:
        """Of each layer step of a phase, from join to join; the last of a step, which has no next, is left out."""
        what, time = self.spans.what, self.spans.time
        dense = what[:, 3] == DENSE
        steps = self.columns["step"][self.columns["phase"] == phase]
        found = [np.diff(np.sort(time[dense & (what[:, 1] == step), 0])) for step in steps.tolist()]
        return np.concatenate(found) if found else np.zeros(0)

    def terms(self, phase: str) -> dict[str, float]:
        """Busy seconds of each machine in a step of a phase, on average.

        dense part   of the step, outside layer steps; all waiting: in layer steps, while no machine works for them
        """
        found = dict.fromkeys(TERMS, 0.0)
        columns = self.columns
        chosen = np.flatnonzero(columns["phase"] == phase)
        for row in chosen.tolist():
            start, end = columns["start"][row], columns["end"][row]
            inside = (self.spans.time[:, 0] >= start - 1e-9) & (self.spans.time[:, 0] < end)
            time, what = self.spans.time[inside], self.spans.what[inside]
            lane, unit = what[:, 0], what[:, 3]
            length = time[:, 1] - time[:, 0]
            units = (lane == LANE_GPU) & (unit >= 0)
            dense = end - start - columns["moe_time"][row]
            found["dense part"] += dense
            found["GPU units"] += length[units].sum()
            found["CPU units"] += length[lane == LANE_CPU].sum()
            found["link"] += length[lane >= LANE_LINK].sum()
            working = units | (lane == LANE_CPU) | (lane == LANE_LINK)
            found["all waiting"] += max(columns["moe_time"][row] - covered(time[working]), 0.0)
        return {name: float(value) / max(len(chosen), 1) for name, value in found.items()}


def covered(spans: Floats) -> float:
    """Seconds during which some span runs; float64 [n, 2]."""
    total, until = 0.0, -np.inf
    for start, end in spans[np.argsort(spans[:, 0], kind="stable")].tolist():
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


# ---- decisions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far two runs of one planner's policy agree.

    layer_steps, differing  how many there are, and in how many some unit is elsewhere
    first                   the first of these in words; "" if there is none
    counts                  name: (ran, simulated) of what differs in total
    """

    layer_steps: int
    differing: int
    first: str
    counts: dict[str, tuple[int, int]]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differing and not self.counts


def agreement(ran: Side, simulated: Side) -> Agreement:
    """Assignments of every layer step, and totals of hits, bytes and copies by kind."""
    if len(ran.decisions) != len(simulated.decisions):
        raise RuntimeError(f"found {len(ran.decisions)} layer steps, simulated {len(simulated.decisions)}")
    differing, first = 0, ""
    for number, (mine, theirs) in enumerate(zip(ran.decisions, simulated.decisions, strict=True)):
        if mine != theirs:
            differing += 1
            first = first or _difference(number, ran.decisions, mine, theirs)
    counts = {
        name: (ran.counts[name], simulated.counts[name]) for name in EXACT if ran.counts[name] != simulated.counts[name]
    }
    return Agreement(len(ran.decisions), differing, first, counts)


def _difference(number: int, decisions: Decisions, mine: Any, theirs: Any) -> str:
    step, layer, _, on_gpu = mine
    round_ = sum(1 for each in decisions[:number] if each[:2] == (step, layer))
    if mine[:2] != theirs[:2]:
        return f"round {round_}: ran step {step}, layer {layer}; simulated step {theirs[0]}, layer {theirs[1]}"
    only_ran, only_simulated = (sorted(set(a) - set(b)) for a, b in ((on_gpu, theirs[3]), (theirs[3], on_gpu)))
    place = f"round {round_}, step {step}, layer {layer}"
    return f"{place}: on the GPU only as run {only_ran}, only as simulated {only_simulated}"


def has_early_copies(sides: Sequence[Side]) -> bool:
    """Whether some copy was no demand copy: then what is resident when a layer step begins depends on times."""
    return any(side.counts["copies_prefetch"] + side.counts["copies_swap"] > 0 for side in sides)
