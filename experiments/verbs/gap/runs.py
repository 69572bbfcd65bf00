"""Assignments, whole policies and the bound on one case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dali.experiments.assignment_probe import CALL, AssignmentProbe
from dali.experiments.output.summary import summarise
from dali.experiments.scene import Scene, cost_model, in_policy_units
from dali.experiments.settings.objects import make_part
from dali.experiments.simulation import simulate
from dali.policies.planner import Policy
from dali.sim.bounds import lower_bound
from dali.traces.workload import Workload

EXACT, ILP, PARTS = "exact", "ilp", ("assignment", "prefetch", "cache")
# Bars of the waterfall: name, and the parts that are replaced so far.
WATERFALL = (("exact assignment", "assignment"), ("Belady cache", "cache"), ("perfect one-layer prefetch", "prefetch"))


@dataclass(frozen=True)
class Case:
    """One cell of the comparison: a scene with its GPU memory, and one workload on it."""

    name: str
    share: float
    scene: Scene
    workload: Workload
    batch: int
    phase: str

    @property
    def key(self) -> dict[str, Any]:
        """What rows of this case begin with."""
        return {"scene": self.name, "cache_share": self.share, "batch": self.batch, "phase": self.phase}


# ---- assignments -----------------------------------------------------------------------------------


def probe_assignments(case: Case, policy: Policy, names: list[str], every: int) -> pd.DataFrame:
    """Every call of every assignment policy on the layer steps of one run of `policy`."""
    parts = {name: make_part("assignment", name) for name in names}
    before = sum(step.phase != case.phase for step in case.workload.steps()) * case.workload.layers
    probe = AssignmentProbe(EXACT, parts, ILP, every, before)
    simulate(case.scene, case.scene.platform, replace(policy, assignment=probe), case.workload, ())
    calls = pd.DataFrame(probe.rows, columns=list(CALL))
    best = calls[calls["assignment"] == EXACT].set_index("layer_step")["makespan"]
    calls["exact"] = best.loc[calls["layer_step"]].to_numpy()
    return calls.assign(**case.key)


def gap_table(calls: pd.DataFrame) -> pd.DataFrame:
    """By case and assignment: gap of the makespan over exact's (mean, 99th percentile, worst), seconds of a call.

    moe_ratio is the sum of exact's makespans over the sum of the policy's: "per cent of the optimum".
    """
    rows = []
    keys = ["scene", "cache_share", "batch", "phase", "assignment"]
    for key, part in calls.groupby(keys, sort=False):
        gap = part["makespan"].to_numpy() / part["exact"].to_numpy() - 1
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "layer_steps": len(part),
                "gap_mean": gap.mean(),
                "gap_p99": np.quantile(gap, 0.99),
                "gap_max": gap.max(),
                "moe_ratio": part["exact"].sum() / part["makespan"].sum(),
                "seconds_mean": part["makespan"].mean(),
                "call_median": part["seconds"].median(),
                "call_p99": part["seconds"].quantile(0.99),
            }
        )
    return pd.DataFrame(rows)


# ---- whole policies --------------------------------------------------------------------------------


def whole_policies(case: Case, policies: dict[str, Policy], names: list[str]) -> list[dict[str, Any]]:
    """One row for every policy, every ablation and every bar of the waterfall."""
    chosen, against = policies[names[0]], policies[names[1]]
    wanted = [(name, "policy", policies[name]) for name in names]
    for part in PARTS:
        mixed = replace(against, **{part: getattr(chosen, part)})
        wanted.append((f"{names[1]} with {names[0]}'s {part}", "without", mixed))
    wanted.append((f"{names[1]} with whole experts", "without", replace(against, slices=1)))
    for part in PARTS:
        mixed = replace(chosen, **{part: getattr(against, part)})
        wanted.append((f"{names[0]} with {names[1]}'s {part}", "with", mixed))
    ideal = {"assignment": make_part("assignment", EXACT)}
    # As many hints as the chosen policy gives, so that what they are worth is a matter of prediction alone.
    size = [f"size={chosen.prefetch.size}"] if hasattr(chosen.prefetch, "size") else []
    # From the same first residents, for the same reason.
    fill = [f"fill={chosen.cache.fill}"] if hasattr(chosen.cache, "fill") else []
    ideal |= {"cache": make_part("cache", "belady", *fill), "prefetch": make_part("prefetch", "oracle", *size)}
    step = chosen
    for name, part in WATERFALL:
        step = replace(step, **{part: ideal[part]})
        wanted.append((name, "waterfall", step))
    rows = []
    for name, kind, policy in wanted:
        found = summarise(simulate(case.scene, case.scene.platform, policy, case.workload, ()), case.phase)
        rows.append({**case.key, "name": name, "kind": kind, **found})
    return [*rows, {**case.key, "name": "bound", "kind": "bound", **_bound(case, policies.values())}]


def _bound(case: Case, policies: Iterable[Policy]) -> dict[str, float]:
    """Of all policies: the least over the slices that they use."""
    seconds = np.inf
    for scene, workload in {
        scene.slices: (scene, workload)
        for scene, workload in (in_policy_units(case.scene, policy, case.workload) for policy in policies)
    }.values():
        cost = cost_model(scene.model, scene.platform, workload.max_tokens, scene.slices, engine=scene.engine)
        # Where no expert stays, staging slots are what a policy has.
        slots = scene.slots or max(policy.staging for policy in policies)
        seconds = min(seconds, lower_bound(workload, slots, cost).phases[case.phase])
    steps = [step for step in case.workload.steps() if step.phase == case.phase]
    tokens = sum(step.tokens for step in steps)
    return {"steps": len(steps), "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
