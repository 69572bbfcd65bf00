"""One policy on one workload of a scene, in simulated time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from dali.experiments.scene import Scene, cost_model, in_policy_units, shape_of
from dali.experiments.settings import read
from dali.experiments.settings.gpu_memory import units_that_stay
from dali.policies.columns import PREFILL
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import Platform
from dali.policies.planner import Planner, Policy
from dali.policies.types import Capacity
from dali.sim.engine import Engine, Simulation
from dali.traces.workload import Workload


def slots_that_stay(name: str, policy: Policy, scene: Scene) -> int:
    """Slots of the scene's GPU memory that a policy has for what stays: `settings.gpu_memory.units_that_stay`."""
    return units_that_stay(name, policy.staging, scene.slots, scene.all_units)


def simulate(
    scene: Scene,
    believed: Platform | Profile,
    policy: Policy,
    workload: Workload,
    recorded: Sequence[int],
    bar: Any = None,
    believed_engine: ServingEngine | None = None,
) -> Simulation:
    """One policy on one workload with the scene's GPU memory, its own staging slots included.

    The policy decides by the costs of `believed` in `believed_engine` (None = the scene's); the scene's platform and
    engine are charged.  Units are as fine as it asks for.
    """
    scene, workload = in_policy_units(scene, policy, workload)
    shape, _ = shape_of(scene, workload)
    capacity = Capacity.in_units(slots_that_stay(policy.name, policy, scene), policy.cache.scope, shape.layers)
    charged, expected = (
        cost_model(scene.model, platform, workload.max_tokens, scene.slices, policy.attention_on, engine)
        for platform, engine in ((scene.platform, scene.engine), (believed, believed_engine or scene.engine))
    )
    planner = Planner(policy, shape, capacity, expected, scene.seed)
    progress = None if bar is None else lambda step: bar.update()
    return Engine(planner, charged).run(workload, recorded, progress)


def recorded_steps(workload: Workload, config: DictConfig) -> list[int]:
    """The steps that timelines show: the last of prefill and the first of decode."""
    prefill = read.whole(config, "timeline.prefill_steps", 0)
    decode = read.whole(config, "timeline.decode_steps", 0)
    first_decode = sum(step.phase == PREFILL for step in workload.steps())
    return list(range(max(0, first_decode - prefill), min(workload.n_steps, first_decode + decode)))


def working_set_warning(what: str, capacity: int, needed: int) -> str:
    """The warning of a global cache that one step runs through (arXiv 2608.07911)."""
    return (
        f"{what}: a global cache of {capacity} units is below the {needed} that one step uses; "
        "a global LRU of that size never hits."
    )
