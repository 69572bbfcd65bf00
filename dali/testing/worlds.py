"""Random models, their memory, and what they are asked to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dali.policies.costs.model import CostModel, Overheads
from dali.policies.types import NEVER, Capacity, LayerStep, Shape

MOST_TOKENS = 40


def cost_model(
    layers: int,
    cpu: float = 1.0,
    gpu: float = 0.25,
    copy: float | list[float] | np.ndarray = 2.0,
    most: int = MOST_TOKENS,
) -> CostModel:
    """CPU job: `cpu` a token; GPU job: `gpu` whatever its tokens; copy: `copy` in every layer, or one a layer."""
    tokens = np.arange(most + 1.0)
    copies = np.full(layers, copy) if np.isscalar(copy) else np.array(copy, np.float64)
    jobs = cpu * tokens
    return CostModel(jobs, jobs, gpu * np.minimum(tokens, 1.0), copies, copies, Overheads(), _free, _free)


def _free(tokens: int, sequences: int, context: float) -> float:
    return 0.0


@dataclass
class World:
    """A random model, its memory, and what it is asked to run.

    capacity  by scope of the cache; staging  slots of the staging area
    """

    shape: Shape
    capacity: Callable[[str], Capacity]
    cost: CostModel
    staging: int
    steps: list[LayerStep]


def random_world(rng: np.random.Generator, passes: int = 8, ahead: int = 4, uneven: float = 0.4) -> World:
    """Up to 4 layers of up to 9 units; memory of one unit up to more than all, with chance `uneven` in bytes."""
    layers, units = int(rng.integers(1, 5)), int(rng.integers(2, 10))
    by_bytes = rng.random() < uneven
    sizes = rng.integers(1, 4, layers) if by_bytes else np.ones(layers, np.int64)
    popularity = rng.dirichlet(np.ones(units), layers)
    room = int(rng.integers(sizes.max(), int(sizes.sum()) * units + 3))

    def capacity(scope: str) -> Capacity:
        if not by_bytes:
            return Capacity.in_units(room, scope, layers)
        return Capacity.in_bytes(room if scope == "global" else max(room, layers * int(sizes.min())), scope, sizes)

    cost = cost_model(layers, cpu=rng.uniform(0.1, 2), gpu=rng.uniform(0.01, 1), copy=rng.uniform(0.1, 4, layers))
    shape = Shape(layers, units, sizes.astype(np.int64), popularity)
    return World(shape, capacity, cost, int(rng.integers(2, 6)), random_steps(rng, layers, units, passes, ahead))


def random_steps(rng: np.random.Generator, layers: int, units: int, passes: int, ahead: int) -> list[LayerStep]:
    """Layer steps with everything a policy may ask for; predictions are the truth with a fifth of it redrawn."""
    share = rng.choice([0.2, 0.5, 1.0])
    truth = rng.integers(1, MOST_TOKENS // 2, (passes, layers, units)) * (rng.random((passes, layers, units)) < share)
    truth[rng.random((passes, layers)) < 0.05] = 0  # layer steps without any token
    guess = np.where(rng.random(truth.shape) < 0.2, rng.permuted(truth, axis=2), truth)
    steps = []
    for step in range(passes):
        for layer in range(layers):
            later = np.zeros((ahead, units), np.float32)
            known = guess[step, layer + 1 : layer + 1 + ahead]
            later[: len(known)] = known
            future = truth[step + 1 :, layer] > 0
            workload = truth[step, layer].astype(np.int32)
            active = np.flatnonzero(workload).astype(np.int32)
            steps.append(
                LayerStep(
                    step,
                    layer,
                    tokens=int(rng.integers(1, MOST_TOKENS)),
                    workload=workload,
                    predicted=later,
                    router_scores=rng.random(units).astype(np.float32),
                    next_use=np.where(future.any(0), step + 1 + future.argmax(0), NEVER).astype(np.int32)
                    if len(future)
                    else np.full(units, NEVER, np.int32),
                    order=rng.permutation(active) if rng.random() < 0.5 else None,
                )
            )
    return steps
