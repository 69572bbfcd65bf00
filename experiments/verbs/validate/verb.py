"""`dali validate`: what the executor does and takes, against what the simulator says it does and takes."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.models.subject import arena, cpu_threads, subject
from dali.experiments.output.document import Document
from dali.experiments.output.folder import folder, stamp
from dali.experiments.profiles import load
from dali.experiments.scene import Scene, with_predictors
from dali.experiments.settings import read
from dali.experiments.settings.objects import make, policy_of
from dali.experiments.settings.routing import about_routing, make_routing
from dali.experiments.verbs.validate import figures
from dali.experiments.verbs.validate.report import Report
from dali.experiments.verbs.validate.runs import (
    Cut,
    Machine,
    RanAndSimulated,
    Setting,
    assess,
    capacity_units,
    execute,
    speed,
)
from dali.policies.planner import Policy
from dali.policies.types import InputError, Shape
from dali.runtime.device.machine import check_idle, check_same_machine, describe
from dali.runtime.execute.offload import Offload
from dali.runtime.model.layout import unit_layout
from dali.runtime.model.moe_layers import moe_layers
from dali.traces.trace import Trace
from dali.traces.workload import Workload


def run(config: DictConfig, overrides: list[str]) -> None:
    """Run, simulate, compare; write the results folder and print the tables."""
    plan = _ValidationPlan.read(config)
    machine, title, notes = _machine(config)
    cut = _cut(config, machine, plan)
    makers = {entry: _maker(config, entry, cut.trace) for entry in plan.policies}
    notes += about_routing(cut.trace.metadata)
    cut = _with_predictors(cut, config, makers, notes)
    _check_room(machine, plan, makers)
    outcomes: list[RanAndSimulated] = []
    with folder(read.text(config, "output"), "validate", config, overrides) as made:
        place = made.place
        moved = [speed(machine)]
        total = len(plan.settings) * len(makers) * plan.repeats
        with tqdm(total=total, unit="run", desc="validating", disable=None) as bar:
            for setting in plan.settings:
                ran: dict[str, list[Offload]] = {name: [] for name in makers}
                # Policy after policy and then again: a slow minute is no policy's.
                for _, (name, fresh) in itertools.product(range(plan.repeats), makers.items()):
                    bar.set_postfix_str(f"{setting}, {name}")
                    ran[name].append(execute(machine, cut, setting, fresh()))
                    bar.update()
                outcomes += [assess(machine, cut, setting, name, makers[name], runs) for name, runs in ran.items()]
        moved.append(speed(machine))
        notes += [_moved(when, ratios) for when, ratios in zip(("Before", "After"), moved, strict=True)]
        report = Report(outcomes)
        report.steps().to_parquet(place / "steps.parquet", index=False)
        report.table().to_parquet(place / "results.parquet", index=False)
        about: dict[str, Any] = {"speed": dict(zip(("before", "after"), moved, strict=True))}
        about |= {"profile": machine.profile.name, "model": title, "machine": machine.profile.machine, "notes": notes}
        (place / "validation.json").write_text(json.dumps(about | report.summary(), indent=1) + "\n", encoding="utf-8")
        figures.save(report.table(), report.shown(), place)
        head = f"{machine.profile.name}: measured against simulated, {title}"
        made.document = Document(head, notes, sections=report.sections())
    print(made.document.markdown(stamp()), end="")
    print(f"Results: {made.final}")


def _moved(when: str, ratios: dict[str, float]) -> str:
    sides = " and ".join(f"{ratio:.2f} times on the {side.upper()}" for side, ratio in ratios.items())
    return f"{when} the runs a unit of one token took {sides} what the profile says."


# ---- what is asked for -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _ValidationPlan:
    policies: list[str]
    settings: list[Setting]
    repeats: int

    @classmethod
    def read(cls, config: DictConfig) -> _ValidationPlan:
        policies = read.texts(config, "policies")
        shares = _shares(config, "cache_share")
        batches = read.wholes(config, "batch")
        for name, values in (("policies", policies), ("cache_share", shares), ("batch", batches)):
            tuned = set(config.tuned_on[name]) & set(values)
            if tuned:
                raise InputError(
                    f"tuned_on.{name}: found {sorted(tuned)} among what is reported, expected others: errors are for "
                    "settings that nothing was fitted to"
                )
        settings = [Setting(batch, share) for share in shares for batch in batches]
        return cls(policies, settings, read.whole(config, "repeats"))


def _shares(config: DictConfig, name: str) -> list[float]:
    found = config[name]
    values = [found] if isinstance(found, int | float) else list(found)
    if (
        not values
        or len(set(values)) < len(values)
        or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)
    ):
        raise InputError(f"{name}: found {values}, expected shares from 0 to 1, each once")
    return [float(value) for value in values]


def _machine(config: DictConfig) -> tuple[Machine, str, list[str]]:
    """The model on its device with the profile; InputError for a profile of another machine or geometry."""
    profile = load(read.text(config, "profile"))
    device = arena(config)
    check_idle(device.device)
    model, title = subject(config)
    machine = Machine(model, device, profile, read.whole(config, "slices"), cpu_threads(config))
    profile.check(machine.geometry)
    layout = unit_layout(moe_layers(model)[0], machine.slices)
    notes = check_same_machine(profile.name, profile.machine, describe(device, machine.cpu_threads, layout.dtype))
    if profile.model != title:
        notes.append(f"The dense part was measured on {profile.model}.")
    return machine, title, notes


def _cut(config: DictConfig, machine: Machine, plan: _ValidationPlan) -> Cut:
    trace = make_routing(config.trace, read.whole(config, "prompt", 0) + read.whole(config, "generate", 0))
    if isinstance(trace, Workload):
        raise InputError("trace: found counts only, expected the routing of each token")
    layers = moe_layers(machine.model)
    if trace.layers > len(layers):
        trace = trace.first_layers(len(layers))
    trace.check_model(len(layers), layers[0].count, type(machine.model).__name__)
    cut = Cut(
        trace,
        read.whole(config, "prompt", 0),
        read.whole(config, "generate", 0),
        read.whole_or_none(config, "chunk"),
        read.whole(config, "seed", 0),
    )
    for setting in plan.settings:
        cut.routing(setting.batch)
    return cut


def _maker(config: DictConfig, entry: str, trace: Trace) -> Any:
    """Function that makes the policy anew; what depends on the model's shape sees the routing's."""
    shape = replace(
        make(config.model, "model"),
        layers=trace.layers,
        experts=trace.experts_count,
        top_k=trace.top_k,
    )

    def fresh() -> Policy:
        made = policy_of(entry, config, shape)
        if made.slices not in (None, "auto", config.slices):
            raise InputError(
                f"policy {entry}: found slices={made.slices}, expected {config.slices} as the run, auto or null: "
                "a profile is for one number"
            )
        return made

    return fresh


def _with_predictors(cut: Cut, config: DictConfig, makers: dict[str, Any], notes: list[str]) -> Cut:
    """The trace with every predictor that a policy asks for, emulated where it was not recorded."""
    shape = make(config.model, "model")
    scene = Scene(shape, make(config.platform, "platform"), cut.trace, 1, 0, cut.seed, [])
    found = with_predictors(scene, [fresh() for fresh in makers.values()], config)
    notes.extend(found.notes)
    assert isinstance(found.trace, Trace)
    return replace(cut, trace=found.trace)


def _check_room(machine: Machine, plan: _ValidationPlan, makers: dict[str, Any]) -> None:
    """InputError before anything runs if a policy's staging area does not fit a setting."""
    layers = moe_layers(machine.model)
    layout = unit_layout(layers[0], machine.slices)
    shape = Shape(len(layers), layout.units, np.full(len(layers), layout.unit_bytes, np.int64))
    for fresh, setting in itertools.product(makers.values(), plan.settings):
        capacity_units(machine, setting, fresh(), shape)
