"""Random small scenes to simulate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dali.policies.assign.fixed import AllGPU
from dali.policies.assign.greedy import Greedy
from dali.policies.assign.hybrimoe import HybriMoE
from dali.policies.cache.classic import LFU, LRU, Belady
from dali.policies.cache.fixed import Static, WholeLayers
from dali.policies.cache.mrs import MRS
from dali.policies.cache.workload import WorkloadAware
from dali.policies.costs.model import Contention, CostModel, Overheads
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.gain import GainPrefetch
from dali.policies.prefetch.predicted import OraclePrefetch, PredictedPrefetch
from dali.policies.prefetch.simple import FrequencyPrefetch, NextLayer, NoPrefetch, RandomPrefetch
from dali.policies.types import Bools, Capacity, Shape
from dali.policies.view import LayerView
from dali.traces.trace import Trace
from dali.traces.workload import Workload


class RandomAssignment:
    """Every unit to the GPU with probability `share`."""

    def __init__(self, share: float, overlap: bool) -> None:
        self.share = share
        self.overlap = overlap

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        self.units, self.rng = shape.units, rng

    def assign(self, view: LayerView) -> Bools:
        return self.rng.random(self.units) < self.share


@dataclass(frozen=True)
class Scene:
    """What to simulate.  Planners own their policy's objects, so each gets new ones."""

    workload: Workload
    make_policy: Callable[[], Policy]
    shape: Shape
    capacity: Capacity
    charged: CostModel

    def planner(self, log: bool = False, believed: CostModel | None = None) -> Planner:
        return Planner(self.make_policy(), self.shape, self.capacity, believed or self.charged, seed=1, log=log)


def draw_costs(rng: np.random.Generator, layers: int, tokens: int) -> CostModel:
    """Random tables.  In half of the draws whole numbers, so that events coincide; often no overheads at all."""
    whole, free = rng.random(2) < 0.5

    def draw(size: int | None = None, least: int = 0) -> Any:
        return rng.integers(least, 4, size).astype(float) if whole else rng.uniform(0.01, 4, size)

    def table() -> Any:
        # Jobs that take no time would start and end at one moment, in an order that no model says.
        return np.concatenate([[0.0], np.cumsum(draw(tokens, least=1))])

    cpu, copy = table() / 2, draw(layers, least=1)
    dense, per_step, *overheads = (0.0 if free else float(draw()) for _ in range(12))
    return CostModel(
        cpu=cpu,
        cpu_contended=cpu * rng.integers(1, 3),
        gpu=table() / 4,
        copy=copy,
        copy_contended=copy * rng.integers(1, 3),
        overheads=Overheads(*overheads),
        dense=lambda tokens, sequences, context: dense,
        per_step=lambda tokens, sequences, context: per_step,
        contention=Contention(*rng.integers(1, 3, 4).astype(float)),
        copies_overlap=bool(rng.random() < 0.7),
        parallel=bool(rng.random() < 0.8),
    )


def draw_capacity(rng: np.random.Generator, scope: str, layers: int, units: int, unit_bytes: Any) -> Capacity:
    if rng.random() < 0.5:
        return Capacity.in_units(int(rng.integers(1, layers * units + 1)), scope, layers)
    least = unit_bytes.max() if scope == "global" else layers * unit_bytes.min()
    return Capacity.in_bytes(int(rng.integers(least, unit_bytes.sum() * units + 1)), scope, unit_bytes)


@pytest.fixture(scope="session")
def random_scene(random_trace: Callable[..., Trace]) -> Callable[[int], Scene]:
    """Function (seed) -> Scene with random routing, costs, policies and memory."""

    def make(seed: int) -> Scene:
        rng = np.random.default_rng(seed)

        def pick(*choices: Any) -> Any:
            return choices[rng.integers(len(choices))]

        layers, experts, top_k, slices = (int(rng.integers(*bounds)) for bounds in ((2, 7), (4, 17), (1, 4), (1, 3)))
        trace = random_trace(seed, (16, 16, 16), layers, experts, top_k)
        trace = trace.with_predictor("gate", 0.7, rng, ahead=layers - 1)
        batch, prompt, generate = (int(rng.integers(*bounds)) for bounds in ((1, 4), (0, 5), (1, 8)))
        workload = Workload.from_trace(trace, batch, prompt, generate, chunk=pick(None, 2), slices=slices)
        units, ahead = workload.units, int(rng.integers(1, layers))
        unit_bytes = rng.integers(1, 20, layers)
        scope, fill, overlap, share, size = (
            pick("layer", "global"),
            pick("empty", "random", "popular"),
            bool(pick(True, False)),
            float(rng.random()),
            int(rng.integers(1, 4)),
        )
        cache = pick(
            lambda: LRU(scope, fill),
            lambda: LFU(scope, fill),
            lambda: MRS(scope, fill),
            lambda: WorkloadAware(scope, fill, w_size=1, u_size=2),
            lambda: WorkloadAware(scope, fill, w_size=2, u_size=1),
            lambda: Belady(scope, fill),
            lambda: Static(scope, fill),
            WholeLayers,
        )
        prefetch = pick(
            NoPrefetch,
            lambda: RandomPrefetch(size),
            lambda: FrequencyPrefetch(size),
            NextLayer,
            lambda: PredictedPrefetch("gate", size, ahead),
            lambda: OraclePrefetch(size, ahead, recall=0.6),
            lambda: GainPrefetch(size, "gate", ahead),
        )
        assignment = pick(
            lambda: RandomAssignment(share, overlap),
            lambda: RandomAssignment(share, overlap),
            AllGPU,
            Greedy,
            HybriMoE,
        )
        staging, swaps_first = int(rng.integers(2, 7)), bool(pick(True, False))
        scope = "global" if cache is WholeLayers else scope
        return Scene(
            workload,
            lambda: Policy("random", assignment(), prefetch(), cache(), staging, swaps_first),
            Shape(layers, units, unit_bytes, popularity=rng.random((layers, units))),
            draw_capacity(rng, scope, layers, units, unit_bytes),
            draw_costs(rng, layers, workload.max_tokens),
        )

    return make
