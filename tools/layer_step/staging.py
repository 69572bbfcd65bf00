"""What the objective leaves out: how much longer layer steps take where demand copies have two staging slots only.

    python tools/layer_step/staging.py

Printed is the simulated time of all layer steps over what `policies.assign.objective.makespan` says of their
assignments (`frontier`'s), and the same of the worst one.  Everything else takes no time here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dali.experiments.output.text import table
from dali.experiments.scene import Scene, cost_model, make_workload, read_scene, shape_of
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make_part
from dali.policies.assign.objective import makespan
from dali.policies.columns import DENSE
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Bools, Capacity, Floats, Shape
from dali.policies.view import LayerView
from dali.sim.engine import Engine
from dali.traces.workload import Workload

STAGING = 2
STEPS = 8


class Watched:
    """An assignment policy, and what the objective says of each of its answers."""

    overlap = True

    def __init__(self) -> None:
        self.policy = make_part("assignment", "frontier")
        self.expected: list[float] = []

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        self.policy.reset(shape, capacity, rng)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        on_gpu: Bools = self.policy.assign(view)
        self.expected.append(makespan(view, on_gpu))
        return on_gpu


def bare(cost: CostModel) -> CostModel:
    """The costs of jobs and copies alone."""

    def free(tokens: int, sequences: int, context: float) -> float:
        return 0.0

    return replace(
        cost, cpu_contended=cost.cpu, copy_contended=cost.copy, overheads=Overheads(), dense=free, per_step=free
    )


def longer(scene: Scene, workload: Workload, cache: str) -> Floats:
    """Simulated time over the objective's: of all layer steps together, and of the worst."""
    watched = Watched()
    policy = Policy("watched", watched, NoPrefetch(), make_part("cache", cache, "fill=random"), STAGING)
    shape, _ = shape_of(scene, workload)
    capacity = Capacity.in_units(scene.slots - STAGING, policy.cache.scope, shape.layers)
    costs = bare(cost_model(scene.model, scene.platform, workload.max_tokens))
    spans = Engine(Planner(policy, shape, capacity, costs), costs).run(workload, range(workload.n_steps)).spans
    begun = np.sort(spans.time[spans.what[:, 3] == DENSE, 0])
    took, expected = np.diff(begun), np.array(watched.expected)[:-1]
    return np.array([took.sum() / expected.sum(), (took / expected).max()])


def main() -> None:
    """Print the table."""
    rows = []
    for share in (0.25, 0.5):
        for batch in (16, 64):
            settings = [f"cache_share={share}", "workload.prompt=0", f"workload.generate={STEPS}"]
            config = configuration("compare", ["trace=qwen3_30b_a3b", *settings])
            scene = read_scene(config)
            workload = make_workload(scene, config, batch)
            found = [longer(scene, workload, cache) for cache in ("static", "lru", "frontier")]
            rows.append([f"{share:.0%}, batch {batch}", *(f"{both:.3f}, worst {worst:.2f}" for both, worst in found)])
    print(table(["cache", "static", "lru", "frontier"], rows))


if __name__ == "__main__":
    main()
