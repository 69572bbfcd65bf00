"""How many units to cut an expert into, by what a layer step is expected to take.

A gated FFN is a sum over its inner width, so the slices of an expert may run on both devices at once, and a
slice runs while the next one is copied.  Where experts are few and large that evens out what whole experts
cannot (Mixtral at small batches).  Against it stand overheads: every slice is charged a launch or a dispatch,
its tokens' activations and, if copied, a copy's latency.  That is the pessimistic side: slices of one expert on
one device could share a launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dali.policies.assign.frontier import frontier
from dali.policies.costs.engine import IDEAL, ServingEngine
from dali.policies.costs.model import CostModel
from dali.policies.costs.roofline import ModelShape, Platform, roofline
from dali.policies.require import require_count
from dali.policies.types import Floats, InputError, Ints, Status

COUNTS = (1, 2, 4, 8)
NEARLY = 1.01
CORE = 8
# A layer step of t tokens costs t * experts random numbers; as many steps are drawn as fit, within these bounds.
NUMBERS = 1 << 20
FEWEST_DRAWS, MOST_DRAWS = 4, 64


def choose_slices(
    model: ModelShape,
    platform: Platform,
    steps: Mapping[int, int],
    cache_share: float,
    popularity: Floats | None = None,
    counts: Sequence[int] = COUNTS,
    in_flight: float = 0.5,
    least_gain: float = 0.03,
    seed: int = 0,
    engine: ServingEngine = IDEAL,
) -> int:
    """The count of least expected time, or the smallest one nearly as good; 1 if none saves `least_gain` of its time.

    Every count is timed on the same routing and the same resident experts (`expected_seconds`).

    Args:
        model, platform: what is timed, by roofline costs.
        steps: {tokens of a step: how many such steps}, of prefill and decode together.
        cache_share: share of the experts that is resident, 0 to 1.
        popularity: float64 [L, E], share of tokens by expert; None = all alike.
        counts: slices to choose from besides 1; those that do not divide the expert's inner width are left out.
        in_flight: share of a copy that is left, on average, of a prefetch or swap under way when a layer step begins;
            0 for policies that make neither.
        least_gain: share of the time of whole experts that slices must save.
        seed: of the routing that is drawn.
        engine: whose costs they are.

    Raises:
        InputError: `steps` is empty or holds a number below 1, or another argument is out of range.
    """
    if not steps:
        raise InputError("choose_slices.steps: found no step, expected at least one")
    for tokens, times in steps.items():
        require_count("choose_slices.steps, tokens", tokens)
        require_count("choose_slices.steps, number", times)
    for name, share in (("in_flight", in_flight), ("least_gain", least_gain)):
        if not 0 <= share < 1:
            raise InputError(f"choose_slices.{name}: found {share}, expected a share from 0 to below 1")
    possible = sorted({1} | {count for count in counts if count >= 1 and model.expert_width % count == 0})
    seconds = dict.fromkeys(possible, 0.0)
    for tokens, times in steps.items():
        rng = np.random.default_rng([seed, tokens])
        workloads = draw_workloads(model, tokens, popularity, rng)
        resident = draw_resident(workloads.shape, cache_share, rng)
        for count in possible:
            cost = roofline(model, platform, int(workloads.max()), count, engine=engine)
            seconds[count] += times * expected_seconds(cost, workloads, resident, tokens, count, in_flight)
    best = min(seconds.values())
    if best > seconds[1] * (1 - least_gain):
        return 1
    return next(count for count in possible if seconds[count] <= best * NEARLY)


def draw_workloads(model: ModelShape, tokens: int, popularity: Floats | None, rng: np.random.Generator) -> Ints:
    """int32 [draws, E], tokens routed to each expert in layer steps of `tokens` tokens that choose independently.

    A token's experts are drawn without replacement, in proportion to `popularity` (the largest of log share +
    Gumbel noise); each draw is of another layer, in turn.
    """
    experts, chosen = model.experts, model.top_k
    if popularity is not None and popularity.shape != (model.layers, experts):
        raise InputError(
            f"choose_slices.popularity: found shape {popularity.shape}, expected {(model.layers, experts)}"
        )
    draws = int(np.clip(NUMBERS // (tokens * experts), FEWEST_DRAWS, MOST_DRAWS))
    workloads = np.zeros((draws, experts), np.int32)
    for draw in range(draws):
        logits = rng.gumbel(size=(tokens, experts))
        if popularity is not None:
            logits += np.log(np.maximum(popularity[draw * model.layers // draws], 1e-9))
        ids = np.argpartition(-logits, chosen - 1, axis=1)[:, :chosen]
        workloads[draw] = np.bincount(ids.ravel(), minlength=experts)
    return workloads


def draw_resident(shape: tuple[int, ...], cache_share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Bool [draws, E]: which experts are resident, evenly drawn, `cache_share` of them in every row to rounding.

    What is left of a share that makes no whole expert goes to one more in as many of the rows.
    """
    if not 0 <= cache_share <= 1:
        raise InputError(f"choose_slices.cache_share: found {cache_share}, expected a share from 0 to 1")
    draws, experts = shape
    held = np.floor(cache_share * experts + rng.random((draws, 1)))
    places: NDArray[np.int64] = rng.random((draws, experts)).argsort(axis=1).argsort(axis=1)
    return places < held


def expected_seconds(
    cost: CostModel,
    workloads: Ints,
    resident: NDArray[np.bool_],
    tokens: int,
    slices: int,
    in_flight: float = 0.0,
) -> float:
    """Mean time of layer steps from router to join under the assignment of `Frontier`.

    On top of the makespan: crossing activations and the merge, where the CPU takes part, and the contended time of
    CPU jobs while the link works through a copy under way and the demand copies.

    Args:
        cost: of units, an expert being `slices` of them.
        workloads: int32 [draws, E]; resident: bool [draws, E], of whole experts.
        tokens: of a step.
        slices: units an expert.
        in_flight: share of a copy that is left of one under way at begin.
    """
    over = cost.overheads
    copy_time = float(cost.copy[0]) + over.issue_gap
    delay = in_flight * copy_time
    total = 0.0
    for workload, held in zip(np.repeat(workloads, slices, axis=1), np.repeat(resident, slices, axis=1), strict=True):
        status = np.where(held, np.int8(Status.RESIDENT), np.int8(Status.ABSENT))
        active = np.flatnonzero(workload).astype(np.int32)
        gpu = np.zeros(workload.size, np.bool_)
        cpu_time, gpu_time = cost.cpu[workload], cost.gpu[workload]
        seconds = frontier(active, workload, status, cpu_time, gpu_time, copy_time, delay, CORE, gpu)
        on_cpu = workload[active[~gpu[active]]]
        if on_cpu.size:
            copying = delay + copy_time * np.count_nonzero(gpu & ~held & (workload > 0))
            alone, contended = float(cost.cpu[on_cpu].sum()), float(cost.cpu_contended[on_cpu].sum())
            # The share of the work that is done while the link copies takes longer by contended / alone.
            cpu = alone + min(contended, copying) * (1 - alone / contended)
            crossing = over.transfer_latency + min(int(on_cpu.sum()), tokens) * over.transfer_per_token
            seconds = max(seconds, cpu + 2 * crossing) + over.merge
        total += seconds
    return total / len(workloads)
