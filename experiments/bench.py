"""`dali bench`: how fast simulator, planner and replay are, beside the same model in SimPy in the same run.

The setting: 48 layers x 128 experts, top-8, batch 16 decode, the whole DALI
policy, one core.  Measurements take turns, so that a machine that changes speed changes it for all.
"""

from __future__ import annotations

import json
import os
import platform as machine
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from experiments import build
from experiments.compare import check_memory
from experiments.results import stamp, table
from experiments.simpy_model import simulate as simulate_in_simpy
from policies.cache_policies import LRU
from policies.cost import CostModel
from policies.planner import Planner, Policy
from policies.roofline import roofline
from policies.types import Capacity, Shape
from sim.engine import Engine
from sim.replay import carry_out, replay
from traces.container import replacing
from traces.trace import Trace
from traces.workload import Workload

AIMS = {
    "layer_steps_per_s": "50,000 or more",
    "simpy_ratio": "40 or more",
    "planner_us": "15 or less",
    "replay_lookups_per_s": "5,000,000 or more",
}


class Setting:
    """What is measured: one policy, one workload, one cost model."""

    def __init__(self, config: DictConfig, overrides: list[str]) -> None:
        name = build.text(config, "measured")
        self.config, self.overrides, self.name = config, overrides, name
        self.scene = build.scene(config)
        self.scene = build.with_predictors(self.scene, [self.policy()], config)
        check_memory(name, self.policy(), self.scene)
        assert isinstance(self.scene.trace, Trace)
        batch, generate = build.whole(config, "batch"), build.whole(config, "generate")
        self.workload = self._workload(batch, generate)
        self.short = self._workload(batch, build.whole(config, "simpy_steps"))
        self.shape: Shape = build.shape(self.scene, self.workload)[0]
        self.costs: CostModel = roofline(self.scene.model, self.scene.platform, self.workload.max_tokens)

    def policy(self) -> Policy:
        """A fresh policy."""
        return build.policy("bench", self.overrides, self.name, self.scene.model)[1]

    def planner(self) -> Planner:
        """A fresh planner."""
        policy = self.policy()
        capacity = Capacity.in_units(self.scene.slots - policy.staging, policy.cache.scope, self.shape.layers)
        return Planner(policy, self.shape, capacity, self.costs)

    def _workload(self, batch: int, generate: int) -> Workload:
        assert isinstance(self.scene.trace, Trace)
        return Workload.from_trace(self.scene.trace, batch, 0, generate)


def run(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print, write the JSON file."""
    repeats = build.whole(config, "repeats", 3)
    output = Path(build.text(config, "output"))
    setting = Setting(config, overrides)
    measurements: dict[str, Callable[[Setting], float]] = {
        "engine": engine_seconds,
        "planner": planner_seconds,
        "replay": lookup_seconds,
        "simpy": simpy_seconds,
    }
    for measure in measurements.values():  # compile kernels, fill caches
        measure(setting)
    seconds: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in tqdm(range(repeats), unit="round", desc="measuring"):
        for name, measure in measurements.items():
            seconds[name].append(measure(setting))
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    results = {
        "layer_steps_per_s": 1 / median["engine"],
        "simpy_ratio": float(np.median(np.array(seconds["simpy"]) / np.array(seconds["engine"]))),
        "planner_us": median["planner"] * 1e6,
        "replay_lookups_per_s": 1 / median["replay"],
    }
    ranges = {
        "layer_steps_per_s": _range(1 / np.array(seconds["engine"])),
        "simpy_ratio": _range(np.array(seconds["simpy"]) / np.array(seconds["engine"])),
        "planner_us": _range(np.array(seconds["planner"]) * 1e6),
        "replay_lookups_per_s": _range(1 / np.array(seconds["replay"])),
    }
    record = {
        **results,
        "spread": {name: {"min": low, "max": high} for name, (low, high) in ranges.items()},
        "simpy_us_per_layer_step": median["simpy"] * 1e6,
        "setting": f"{setting.workload.description}, policy {setting.name}, {setting.scene.slots} GPU slots",
        "repeats": repeats,
        "machine": f"{machine.machine()}, {os.cpu_count()} cores, Python {machine.python_version()}",
        "versions": stamp(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = [
        [name, f"{value:,.1f}", f"{ranges[name][0]:,.1f} to {ranges[name][1]:,.1f}", AIMS[name]]
        for name, value in results.items()
    ]
    print(f"{record['setting']}; median of {repeats} runs\n")
    print(table(["figure", "median", "range", "aim"], rows))
    print(f"\nSimPy: {record['simpy_us_per_layer_step']:,.0f} us a layer step.  Written: {output}")


def engine_seconds(setting: Setting) -> float:
    """Seconds of wall time a simulated layer step: workload, policies, planner and engine."""
    engine = Engine(setting.planner(), setting.costs)
    start = perf_counter()
    engine.run(setting.workload)
    return (perf_counter() - start) / (setting.workload.n_steps * setting.workload.layers)


def planner_seconds(setting: Setting) -> float:
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


def lookup_seconds(setting: Setting) -> float:
    """Seconds a lookup of cache-only replay: LRU per layer, from empty."""
    capacity = Capacity.in_units(setting.scene.slots, "layer", setting.shape.layers)
    start = perf_counter()
    lookups = replay(setting.workload, LRU(fill="empty"), capacity, setting.shape)
    return (perf_counter() - start) / lookups.hit.size


def simpy_seconds(setting: Setting) -> float:
    """Seconds a layer step of the same model, planner and policy in SimPy, over fewer steps."""
    planner = setting.planner()
    start = perf_counter()
    simulate_in_simpy(setting.short, planner, setting.costs)
    return (perf_counter() - start) / (setting.short.n_steps * setting.short.layers)


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
