"""Policies on one trace, model, machine and GPU memory: read from a configuration, simulated, and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from dali.experiments.output.summary import summarise
from dali.experiments.scene import Scene, expert_popularity, make_workload, read_scene, with_predictors
from dali.experiments.settings import read
from dali.experiments.settings.objects import believed_platform, engine_named, policy_of
from dali.experiments.simulation import simulate, slots_that_stay, working_set_warning
from dali.policies.columns import PHASES
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import Platform
from dali.policies.planner import Policy
from dali.policies.types import InputError
from dali.sim.engine import Simulation
from dali.sim.replay import working_set
from dali.traces.trace import Trace
from dali.traces.workload import Workload


@dataclass
class Comparison:
    """What is compared, and the simulations so far.

    scene        the same for all
    policies     by name, in the order of the tables; a planner resets their objects
    workloads    by batch size
    believed     the machine whose costs policies believe; the scene's is charged
    believed_engine  and in which engine; None = the scene's
    baseline     the policy that speed-ups are over
    simulations  by policy and batch
    """

    scene: Scene
    policies: dict[str, Policy]
    workloads: dict[int, Workload]
    believed: Platform | Profile
    baseline: str
    believed_engine: ServingEngine | None = None
    simulations: dict[tuple[str, int], Simulation] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        config: DictConfig,
        overrides: list[str],
        policies: Sequence[str | Policy] | None = None,
        trace: Trace | Workload | None = None,
        platform: Platform | Profile | None = None,
    ) -> Comparison:
        """From the settings of `dali compare`, checked against each other.

        policies, trace, platform  in the place of those that the settings name
        """
        scene = read_scene(config, trace, platform)
        named: dict[str, Policy] = {}
        for each in read.texts(config, "policies") if policies is None else policies:
            name = each.name if isinstance(each, Policy) else each
            if name in named:
                raise InputError(f"policies: found {name!r} twice, expected each name once")
            named[name] = each if isinstance(each, Policy) else policy_of(each, config, scene.model)
        scene = with_predictors(scene, named.values(), config)
        baseline = read.text(config, "baseline")
        if baseline not in named:
            raise InputError(f"baseline: found {baseline!r}, expected one of the policies compared: {', '.join(named)}")
        believed = scene.platform
        if config.believed is not None:
            believed = believed_platform("compare", overrides, read.text(config, "believed"))
            scene.notes.append(f"Policies believe the costs of another machine: {config.believed}.")
        believed_engine = None
        if config.believed_engine is not None:
            believed_engine = engine_named(read.text(config, "believed_engine"))
            scene.notes.append(f"Policies believe the costs of another engine: {config.believed_engine}.")
        for name, policy in named.items():
            slots_that_stay(name, policy, scene)
        return cls(scene, named, _workloads(scene, config), believed, baseline, believed_engine)

    @property
    def count(self) -> int:
        """Steps to simulate, over all policies and batch sizes."""
        return sum(workload.n_steps for workload in self.workloads.values()) * len(self.policies)

    def run(self, recorded: Sequence[int] = (), shown: int | None = None, bar: Any = None) -> None:
        """Simulate every policy at every batch size; spans of the steps `recorded` are kept at batch `shown`."""
        for batch, workload in self.workloads.items():
            kept = recorded if batch == shown else ()
            for name, policy in self.policies.items():
                if bar is not None:
                    bar.set_postfix_str(f"batch {batch}, {name}")
                self.simulations[name, batch] = simulate(
                    self.scene, self.believed, policy, workload, kept, bar, self.believed_engine
                )

    def results(self) -> pd.DataFrame:
        """A row a policy, batch and phase: `experiments.output.summary`, and the speed-up over the baseline."""
        found = pd.DataFrame(
            [
                {"policy": name, "batch": batch, "phase": phase, **summarise(simulation, phase)}
                for (name, batch), simulation in self.simulations.items()
                for phase in PHASES
                if phase in simulation.columns["phase"]
            ]
        )
        found["speedup"] = speedups(found, self.baseline)
        return found.assign(
            knows_future=found["policy"].map({name: each.knows_future for name, each in self.policies.items()})
        )

    def steps(self) -> pd.DataFrame:
        """A row a policy, batch and step: columns of `policies.columns`."""
        return pd.concat(
            [
                pd.DataFrame(simulation.columns).assign(policy=name, batch=batch)
                for (name, batch), simulation in self.simulations.items()
            ]
        )

    def notes(self) -> list[str]:
        """What a reader of the results has to know."""
        notes = list(self.scene.notes)
        for batch, workload in self.workloads.items():
            if workload.resampled:
                notes.append(f"Batch {batch}: the trace is too short, its sequences are resampled with replacement.")
            for name, policy in self.policies.items():
                if policy.cache.scope == "global" and not policy.cache.fixed:
                    smallest, capacity = int(working_set(workload).min()), slots_that_stay(name, policy, self.scene)
                    if capacity < smallest:
                        notes.append(working_set_warning(f"{name}, batch {batch}", capacity, smallest))
        for batch, workload in self.workloads.items():
            _, origin = expert_popularity(self.scene.trace, workload)
            notes.append(f"Batch {batch}: popularity is measured on {origin}.")
        needed = any(policy.cache.needs_router_scores for policy in self.policies.values())
        if needed and next(iter(self.workloads.values())).equal_weights:
            notes.append("The trace has no router weights: router scores count each chosen expert alike.")
        return notes


def speedups(results: pd.DataFrame, baseline: str) -> pd.Series:
    """Tokens/s over the baseline's at the same batch and phase."""
    base = results[results["policy"] == baseline].set_index(["batch", "phase"])["tokens_per_s"]
    keys = pd.MultiIndex.from_frame(results[["batch", "phase"]])
    return pd.Series(results["tokens_per_s"].to_numpy() / base.loc[keys].to_numpy(), index=results.index)


def _workloads(scene: Scene, config: DictConfig) -> dict[int, Workload]:
    if isinstance(scene.trace, Workload):
        return {max(step.sequences for step in scene.trace.steps()): scene.trace}
    return {batch: make_workload(scene, config, batch) for batch in read.wholes(config, "workload.batch")}
