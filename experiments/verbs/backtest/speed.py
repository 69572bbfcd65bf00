"""Simulated tokens/s of a system: steps of prefill, and steps of decode after its cache has warmed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dali.experiments.verbs.backtest.systems import System
from dali.experiments.verbs.backtest.timed_steps import TimedStep, as_workload, calibration, routing
from dali.policies.columns import DECODE, PREFILL
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.model_shape import ModelShape
from dali.policies.costs.roofline import Platform, roofline
from dali.policies.planner import Planner
from dali.policies.types import Capacity, Floats, Shape
from dali.sim.engine import Engine
from dali.traces.workload import Workload, popularity

# A prompt of more steps is priced by this many of them, evenly taken.
MOST_STEPS = 6
WARM, TIMED = 96, 32
TIMED_FIXED = 8


@dataclass(frozen=True)
class Setup:
    """A system of a model on a machine in an engine."""

    model: ModelShape
    platform: Platform
    engine: ServingEngine
    system: System

    def seconds(self, steps: Sequence[TimedStep]) -> Floats:
        """Simulated time of each step, float64 [steps]; what happened in earlier ones is remembered."""
        longest = max(each.tokens // each.sequences for each in steps)
        trace = routing(self.model.layers, self.model.experts, self.model.top_k, longest > 1)
        workload = as_workload(trace, steps)
        cost = roofline(self.model, self.platform, workload.max_tokens, engine=self.engine)
        if self.engine.copies_whole_layer:
            carried = self.model.experts / _active(workload)
            cost = replace(cost, copy=cost.copy * carried, copy_contended=cost.copy_contended * carried)
        policy = self.system.policy
        shape = Shape(
            self.model.layers,
            self.model.experts,
            np.full(self.model.layers, self.model.unit_bytes(), np.int64),
            popularity(calibration(self.model.layers, self.model.experts, self.model.top_k), [0]),
        )
        capacity = Capacity.in_units(self.system.slots, policy.cache.scope, self.model.layers)
        run = Engine(Planner(policy, shape, capacity, cost, 0), cost).run(workload)
        return run.columns["end"] - run.columns["start"]


def _active(workload: Workload) -> float:
    return float(np.mean([(step.workload > 0).sum(axis=1).mean() for step in workload.steps()]))


def prefill_seconds(setup: Setup, prompt: int, ubatch: int, depth: int) -> float:
    """Seconds of a prompt in steps of `ubatch` tokens, after `depth` tokens that are in the cache already."""
    starts = np.arange(0, prompt, ubatch)
    sizes = np.minimum(ubatch, prompt - starts)
    full = int((sizes == ubatch).sum())
    chosen = (
        np.unique(np.linspace(0, full - 1, min(full, MOST_STEPS)).round().astype(int)) if full else np.zeros(0, int)
    )
    taken = [*chosen, *range(full, sizes.size)]
    steps = [TimedStep(PREFILL, int(sizes[i]), 1, depth + starts[i] + (sizes[i] + 1) / 2) for i in taken]
    seconds = setup.seconds(steps)
    weights = np.where([each.tokens == ubatch for each in steps], full / max(1, len(chosen)), 1.0)
    return float(seconds @ weights)


def decode_seconds(setup: Setup, sequences: int, depth: int) -> float:
    """Mean seconds of a decode step of `sequences` with `depth` tokens each in the cache."""
    fixed = setup.system.policy.cache.fixed
    warm, timed = (0, TIMED_FIXED) if fixed else (WARM, TIMED)
    steps = [TimedStep(DECODE, sequences, sequences, depth + i + 1.0) for i in range(warm + timed)]
    return float(setup.seconds(steps)[warm:].mean())
