"""`dali bench`: how fast simulator, planner and replay are, beside the same model in SimPy in the same run.

The setting: 48 layers x 128 experts, top-8, batch 16 decode, the whole DALI
policy, one core.  Measurements take turns, so that a machine that changes speed changes it for all.
"""

from __future__ import annotations

import json
import os
import platform as machine
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.assignment_probe import CALL, AssignmentProbe
from dali.experiments.output.folder import stamp
from dali.experiments.output.text import table
from dali.experiments.scene import cost_model, read_scene, shape_of, with_predictors
from dali.experiments.settings import read
from dali.experiments.settings.objects import make_part, make_policy
from dali.experiments.simulation import simulate, slots_that_stay
from dali.experiments.verbs.bench.optional import recording, simpy_twin
from dali.policies.cache.classic import LRU
from dali.policies.costs.model import CostModel
from dali.policies.planner import Planner, Policy
from dali.policies.types import Capacity, Shape
from dali.sim.engine import Engine
from dali.sim.replay import carry_out, replay
from dali.traces.files import replacing
from dali.traces.trace import Trace
from dali.traces.workload import Workload

Rounds = dict[str, np.ndarray]
# Figure: what is aimed at, the measurement that it needs, and how it follows from those of all rounds.
FIGURES: dict[str, tuple[str, str, Callable[[Rounds], np.ndarray]]] = {
    "layer_steps_per_s": ("50,000 or more", "engine", lambda found: 1 / found["engine"]),
    "simpy_ratio": ("40 or more", "simpy", lambda found: found["simpy"] / found["engine"]),
    "planner_us": ("15 or less", "planner", lambda found: 1e6 * found["planner"]),
    "replay_lookups_per_s": ("5,000,000 or more", "replay", lambda found: 1 / found["replay"]),
    "greedy_us": ("for comparison", "greedy", lambda found: 1e6 * found["greedy"]),
    "hybrimoe_us": ("for comparison", "hybrimoe", lambda found: 1e6 * found["hybrimoe"]),
    "frontier_us": ("10 or less", "frontier", lambda found: 1e6 * found["frontier"]),
    "exact_us": ("1,000 or less", "exact", lambda found: 1e6 * found["exact"]),
    "recording_prefill": ("1.05 or less", "recording_prefill", lambda found: found["recording_prefill"]),
    "recording_decode": ("for comparison", "recording_decode", lambda found: found["recording_decode"]),
}
ASSIGNMENTS = ("greedy", "hybrimoe", "frontier", "exact")


class BenchSetting:
    """What is measured: one policy, one workload, one cost model."""

    def __init__(self, config: DictConfig, overrides: list[str]) -> None:
        name = read.text(config, "measured")
        self.config, self.overrides, self.name = config, overrides, name
        self.scene = read_scene(config)
        self.scene = with_predictors(self.scene, [self.policy()], config)
        slots_that_stay(name, self.policy(), self.scene)
        assert isinstance(self.scene.trace, Trace)
        batch, generate = read.whole(config, "batch"), read.whole(config, "generate")
        self.workload = self._workload(batch, generate)
        self.short = self._workload(batch, read.whole(config, "simpy_steps"))
        self.busy = self._workload(read.whole(config, "assignment_batch"), read.whole(config, "assignment_steps"))
        self.active = np.mean([np.count_nonzero(step.workload, axis=1).mean() for step in self.busy.steps()])
        self.shape: Shape = shape_of(self.scene, self.workload)[0]
        self.costs: CostModel = cost_model(self.scene.model, self.scene.platform, self.workload.max_tokens)

    def policy(self) -> Policy:
        """A fresh policy."""
        return make_policy("bench", self.overrides, self.name, self.scene.model)[1]

    def planner(self) -> Planner:
        """A fresh planner."""
        policy = self.policy()
        slots = slots_that_stay(self.name, policy, self.scene)
        capacity = Capacity.in_units(slots, policy.cache.scope, self.shape.layers)
        return Planner(policy, self.shape, capacity, self.costs)

    def _workload(self, batch: int, generate: int) -> Workload:
        assert isinstance(self.scene.trace, Trace)
        return Workload.from_trace(self.scene.trace, batch, 0, generate)


def run(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, write the JSON file."""
    repeats = read.whole(config, "repeats", 3)
    output = Path(read.text(config, "output"))
    setting = BenchSetting(config, overrides)
    measurements: list[Callable[[], dict[str, float]]] = [
        lambda: {"engine": engine_seconds(setting)},
        lambda: {"planner": planner_seconds(setting)},
        lambda: {"replay": lookup_seconds(setting)},
        lambda: call_seconds(setting),
    ]
    twin, recorded = simpy_twin(), recording()
    if not isinstance(twin, str):
        measurements.append(lambda: {"simpy": simpy_seconds(setting, twin)})
    if not isinstance(recorded, str):
        measurements.append(recorded)
    for needed in (twin, recorded):
        if isinstance(needed, str):
            print(f"Note: what needs {needed} is not measured.")
    for measure in measurements:  # compile kernels, fill caches
        measure()
    rounds = []
    for _ in tqdm(range(repeats), unit="round", desc="measuring"):
        rounds.append({name: value for measure in measurements for name, value in measure().items()})
    found = {name: np.array([each[name] for each in rounds]) for name in rounds[0]}
    values = {name: figure(found) for name, (_, needs, figure) in FIGURES.items() if needs in found}
    record = {
        **{name: float(np.median(value)) for name, value in values.items()},
        "spread": {name: {"min": float(value.min()), "max": float(value.max())} for name, value in values.items()},
        **({"simpy_us_per_layer_step": float(np.median(found["simpy"])) * 1e6} if "simpy" in found else {}),
        "setting": f"{setting.workload.description}, policy {setting.name}, {setting.scene.slots} GPU slots",
        "assignment_setting": f"{setting.busy.description}, {setting.active:.0f} of {setting.shape.units} units active",
        "repeats": repeats,
        "machine": f"{machine.machine()}, {os.cpu_count()} cores, Python {machine.python_version()}",
        "versions": stamp(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = [
        [name, _short(np.median(value)), f"{_short(value.min())} to {_short(value.max())}", FIGURES[name][0]]
        for name, value in values.items()
    ]
    print(f"{record['setting']}; assignments: {record['assignment_setting']}; median of {repeats} runs\n")
    print(table(["figure", "median", "range", "aim"], rows))
    if "simpy" in found:
        print(f"\nSimPy: {record['simpy_us_per_layer_step']:,.0f} us a layer step.")
    print(f"\nWritten: {output}")


def call_seconds(setting: BenchSetting) -> dict[str, float]:
    """Median seconds of a call of each assignment policy on the same layer steps of many active units."""
    probe = AssignmentProbe("exact", {name: make_part("assignment", name) for name in ASSIGNMENTS}, "", 1, 0)
    policy = replace(setting.policy(), assignment=probe)
    simulate(setting.scene, setting.scene.platform, policy, setting.busy, ())
    calls = pd.DataFrame(probe.rows, columns=list(CALL))
    return {str(name): float(seconds) for name, seconds in calls.groupby("assignment")["seconds"].median().items()}


def engine_seconds(setting: BenchSetting) -> float:
    """Seconds of wall time a simulated layer step: workload, policies, planner and engine."""
    engine = Engine(setting.planner(), setting.costs)
    start = perf_counter()
    engine.run(setting.workload)
    return (perf_counter() - start) / (setting.workload.n_steps * setting.workload.layers)


def planner_seconds(setting: BenchSetting) -> float:
    """Seconds a layer step inside the planner and its policies: begin, all copies, end."""
    planner = setting.planner()
    steps = setting.workload.steps(**planner.annotations)
    layer_steps = [step.layer_step(layer) for step in steps for layer in range(setting.workload.layers)]
    units, hits = np.zeros(setting.workload.units, np.int32), np.zeros(setting.workload.units, np.bool_)
    start = perf_counter()
    for layer_step in layer_steps:
        planner.begin(layer_step)
        carry_out(planner.raw, layer_step.layer, 0, units, hits)
        planner.end()
    return (perf_counter() - start) / len(layer_steps)


def lookup_seconds(setting: BenchSetting) -> float:
    """Seconds a lookup of cache-only replay: LRU per layer, from empty."""
    capacity = Capacity.in_units(setting.scene.slots, "layer", setting.shape.layers)
    start = perf_counter()
    lookups = replay(setting.workload, LRU(fill="empty"), capacity, setting.shape)
    return (perf_counter() - start) / lookups.hit.size


def simpy_seconds(setting: BenchSetting, twin: Any) -> float:
    """Seconds a layer step of the same model, planner and policy in SimPy, over fewer steps."""
    planner = setting.planner()
    start = perf_counter()
    twin.simulate(setting.short, planner, setting.costs)
    return (perf_counter() - start) / (setting.short.n_steps * setting.short.layers)


def _short(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
