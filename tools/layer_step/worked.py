"""The worked layer step of DESIGN.md: what each assignment decides, and when each job starts and ends.

    python tools/layer_step/worked.py

Six experts, of which two are resident; numbers small enough to follow by hand.  Every makespan is printed twice, as
the objective says and as the simulator times it.
"""

from __future__ import annotations

import numpy as np

from dali.policies.assign.exact import Exact
from dali.policies.assign.frontier import Frontier
from dali.policies.assign.greedy import Greedy
from dali.policies.assign.hybrimoe import HybriMoE
from dali.policies.assign.objective import makespan, paper_makespan
from dali.policies.cache.base import ScoreCache
from dali.policies.columns import DENSE, LANES
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Capacity, Ints, LayerStep, Shape
from dali.policies.view import AssignmentPolicy
from dali.sim.engine import Engine
from dali.traces.metadata import Metadata
from dali.traces.workload import Workload

TOKENS = [4, 3, 2, 2, 1, 1]  # of each expert
RESIDENT = [2, 4]
CPU_MS, GPU_MS, COPY_MS = 3, 2, 3  # a token on the CPU; an expert on the GPU, whatever its tokens; a copy
STAGING = 4  # as many as the most copies below, so that none waits for a slot


class Given(ScoreCache):
    """What is resident is given, and stays."""

    ENTRY = "never"

    def initial(self) -> Ints:
        """Keys resident before the first step."""
        return np.array(RESIDENT, np.int32)


def costs() -> CostModel:
    """Seconds; nothing but jobs and copies takes time, and nobody slows anybody down."""
    tokens = np.arange(max(TOKENS) + 1.0)
    cpu, gpu, copy = 1e-3 * CPU_MS * tokens, 1e-3 * GPU_MS * np.minimum(tokens, 1), np.array([1e-3 * COPY_MS])

    def free(tokens: int, sequences: int, context: float) -> float:
        return 0.0

    return CostModel(cpu, cpu, gpu, copy, copy, Overheads(), free, free)


def planner(assignment: AssignmentPolicy) -> Planner:
    """Of one layer of these experts."""
    policy = Policy("worked", assignment, NoPrefetch(), Given(), STAGING)
    shape = Shape(1, len(TOKENS), np.ones(1, np.int64))
    return Planner(policy, shape, Capacity.in_units(len(RESIDENT), "layer", 1), costs())


def describe(assignment: AssignmentPolicy) -> str:
    """The two sides, the makespan by the paper's sum, by the objective and in the simulator, and all jobs."""
    workload = np.array(TOKENS, np.int32)
    asked = planner(assignment)
    plan = asked.begin(LayerStep(0, 0, max(TOKENS), workload))
    on_gpu = np.isin(np.arange(workload.size), plan.gpu)
    paper, objective = (1e3 * of(asked.view, on_gpu) for of in (paper_makespan, makespan))

    metadata = Metadata("worked", 1, workload.size, top_k=workload.size)
    counted = Workload.from_counts(workload[None, None], np.array([max(TOKENS)], np.int32), metadata)
    run = Engine(planner(assignment), costs()).run(counted, record=[0])
    joined = 1e3 * float(run.columns["end"][0])
    jobs = [
        f"  {LANES[lane]:13} expert {unit}  {1e3 * start:2.0f} to {1e3 * end:2.0f} ms"
        for (start, end), (lane, _, _, unit, _, _) in zip(run.spans.time, run.spans.what.tolist(), strict=True)
        if unit != DENSE
    ]
    sides = f"GPU {plan.gpu.tolist()}, CPU {plan.cpu.tolist()}"
    times = f"paper's sum {paper:.0f} ms, objective {objective:.0f} ms, simulated {joined:.0f} ms"
    return "\n".join([f"{type(assignment).__name__}: {sides}; {times}", *sorted(jobs)])


def main() -> None:
    """Print every assignment's layer step."""
    for assignment in (Greedy(), HybriMoE(), Frontier(), Exact()):
        print(describe(assignment))


if __name__ == "__main__":
    main()
