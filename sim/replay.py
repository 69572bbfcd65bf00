"""Cache policies without a clock: which lookups hit, if copies took no time.

Event-atomic (arXiv 2608.07911): each active unit of a layer step is looked up once against what was
resident when the step began, and eviction never removes a unit of the running step.  When the step has ended,
units of it may make room for others of it, if the policy has it so (`Cache.OWN_VICTIMS`).  The same planner and
policy objects as in the simulator and the executor; only the driver differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dali.policies.assign.fixed import AllGPU
from dali.policies.cache.base import Cache
from dali.policies.columns import DECODE
from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed
from dali.policies.core.state import NONE, RESIDENT, unpack
from dali.policies.core.transitions import computed, landed, next_copy
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Bools, Capacity, Ints, Shape
from dali.traces.workload import Workload


@dataclass(frozen=True)
class Lookups:
    """One row a lookup, in the order they happen.  All arrays are [n].

    step, layer, unit  int32
    hit                bool
    decode             bool, False for lookups of prefill steps
    """

    step: Ints
    layer: Ints
    unit: Ints
    hit: Bools
    decode: Bools

    def hit_rate(self, decode_only: bool = False) -> float:
        """Share of hits; NaN where there was no lookup."""
        hit = self.hit[self.decode] if decode_only else self.hit
        return float(hit.mean()) if hit.size else float("nan")

    @staticmethod
    def concatenate(parts: list[Lookups]) -> Lookups:
        """All rows, part after part."""
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in Lookups.__dataclass_fields__]
        return Lookups(*columns)


def free_of_charge(layers: int, max_tokens: int) -> CostModel:
    """Costs for drivers without a clock: no job takes time (copies take an equal, meaningless one)."""
    nothing = np.zeros(max_tokens + 1)
    return CostModel(
        cpu=nothing,
        cpu_contended=nothing,
        gpu=nothing,
        copy=np.ones(layers),
        copy_contended=np.ones(layers),
        overheads=Overheads(),
        dense=lambda tokens, sequences, context: 0.0,
        per_step=lambda tokens, sequences, context: 0.0,
    )


@kernel
def carry_out(raw: Packed, layer: int, row: int, units: Ints, hits: Bools) -> int:
    """Look the active units up (from `row` of units and hits on), then make every copy at once; the next free row."""
    s = unpack(raw)
    for i in range(s.n.active):
        unit = s.active[i]
        units[row] = unit
        hits[row] = s.status[layer * s.units + unit] == RESIDENT
        row += 1
    while next_copy(raw, layer) != NONE:
        key = s.n.out_key
        landed(raw, key)
        if s.pinned[key]:
            computed(raw, key)
    return row


@kernel
def _swap_at_once(raw: Packed, layer: int) -> None:
    s = unpack(raw)
    while next_copy(raw, layer) != NONE:
        landed(raw, s.n.out_key)


def replay(
    workload: Workload,
    cache: Cache,
    capacity: Capacity,
    shape: Shape,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Lookups:
    """Every lookup of `workload` under `cache`, which is reset first.

    `capacity` is all there is: misses that do not stay pass through without taking room.  `progress` is
    called with the number of each step done.
    """
    # Any unit of the layer step may be one that stays, whatever the order of their copies.
    staging = max(2, shape.units) if cache.OWN_VICTIMS else 2
    policy = Policy(type(cache).__name__, AllGPU(), NoPrefetch(), cache, staging)
    planner = Planner(policy, shape, capacity, free_of_charge(shape.layers, workload.max_tokens), seed)
    raw = planner.raw
    units: Ints = np.zeros(0, np.int32)
    hits: Bools = np.zeros(0, np.bool_)
    ends = np.zeros(workload.n_steps * workload.layers, np.int64)
    phases: list[bool] = []
    row = event = 0
    for step in workload.steps(**planner.annotations):
        if row + workload.layers * workload.units > units.size:
            size = 2 * units.size + workload.layers * workload.units
            units, hits = np.resize(units, size), np.resize(hits, size)
        for layer in range(workload.layers):
            planner.begin(step.layer_step(layer))
            row = carry_out(raw, layer, row, units, hits)
            planner.end()
            _swap_at_once(raw, layer)
            ends[event] = row
            event += 1
        phases.append(step.phase == DECODE)
        if progress is not None:
            progress(step.index)
    lengths = np.diff(ends, prepend=0)
    return Lookups(
        step=np.repeat(np.arange(event, dtype=np.int32) // workload.layers, lengths),
        layer=np.repeat(np.arange(event, dtype=np.int32) % workload.layers, lengths),
        unit=units[:row].copy(),
        hit=hits[:row].copy(),
        decode=np.repeat(np.repeat(np.array(phases), workload.layers), lengths),
    )


def working_set(workload: Workload) -> NDArray[np.int64]:
    """Int64 [n_steps], units that each step uses over all layers: a global LRU below this never hits in decode."""
    return np.array([np.count_nonzero(step.workload) for step in workload.steps()], np.int64)
