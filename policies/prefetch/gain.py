"""HybriMoE's hints: the copy with the largest simulated gain (arXiv 2504.05897)."""

from __future__ import annotations

import numpy as np

from dali.policies.assign.base import sort_descending
from dali.policies.assign.hybrimoe import hybrid_order, hybrid_schedule
from dali.policies.core.jit import kernel
from dali.policies.prefetch.base import Scores, predicted_rows, require_source
from dali.policies.require import require_count
from dali.policies.types import Bytes, Capacity, Floats, Ints, Shape
from dali.policies.view import LayerView

# Two schedules of equal length may differ by rounding, as their sums run in another order.
NEGLIGIBLE = 1e-9


@kernel
def _makespan_with(
    order: Ints, cached: int, at: int, workload: Ints, cpu_time: Floats, gpu_time: Floats, copy_time: float
) -> float:
    """HybriMoE's makespan with the absent unit at position `at` of the queue resident instead."""
    unit = order[at]
    queue = order.copy()
    place = at
    # It moves ahead of the other absent units and of lighter cached ones; equals take equal times.
    while place > 0 and (place > cached or workload[queue[place - 1]] < workload[unit]):
        queue[place] = queue[place - 1]
        place -= 1
    queue[place] = unit
    return hybrid_schedule(queue, cached + 1, cpu_time, gpu_time, copy_time)[1]


@kernel
def rank_gains(
    predicted: Scores,
    rows: int,
    first_layer: int,
    status: Bytes,
    cpu_table: Floats,
    gpu_table: Floats,
    copy: Floats,
    candidates: int,
    pairs: Ints,
) -> int:
    """Rule of `GainPrefetch`: writes up to `len(pairs)` of (layer, unit) to `pairs`, returns how many."""
    layers, units = status.shape
    keys = np.empty(rows * candidates, np.int32)
    gains = np.empty(rows * candidates, np.float64)
    workload = np.zeros(units, np.int32)
    cpu_time = np.zeros(units, np.float64)
    gpu_time = np.zeros(units, np.float64)
    found = 0
    for row in range(min(rows, layers - first_layer)):
        layer = first_layer + row
        for unit in range(units):
            workload[unit] = min(int(np.ceil(predicted[row, unit])), cpu_table.size - 1)
            cpu_time[unit] = cpu_table[workload[unit]]
            gpu_time[unit] = gpu_table[workload[unit]]
        active = np.flatnonzero(workload > 0).astype(np.int32)
        order, cached = hybrid_order(active, workload, status[layer])
        before = hybrid_schedule(order, cached, cpu_time, gpu_time, copy[layer])[1]
        for at in range(cached, min(order.size, cached + candidates)):
            gain = before - _makespan_with(order, cached, at, workload, cpu_time, gpu_time, copy[layer])
            if gain > NEGLIGIBLE * before:
                keys[found] = layer * units + order[at]
                gains[found] = gain
                found += 1
    sort_descending(keys[:found], gains[:found])
    written = min(found, len(pairs))
    for i in range(written):
        pairs[i, 0] = keys[i] // units
        pairs[i, 1] = keys[i] % units
    return written


class GainPrefetch:
    """HybriMoE's impact-driven prefetch (arXiv 2504.05897): the copies that shorten later layers most.

    The gates of the next `ahead` layers (three in the paper) are applied to the current hidden state.  For
    each layer its schedule (`assignment.HybriMoE`) is simulated for the predicted workload and present
    residency, then again with one absent unit resident; the difference of the makespans is that unit's
    gain.  Hints come by gain descending, only gains above 0, at most `size` over all layers together; equal
    gains by nearer layer, then lower id.

    Ours, as the paper leaves it open: only the `candidates` absent units of a layer with the largest
    predicted workload are tried; gains are not simulated anew once a hint is taken; fractions of tokens
    are rounded up.
    """

    def __init__(self, size: int, source: str = "gate", ahead: int = 3, candidates: int = 8) -> None:
        require_source("GainPrefetch", source)
        require_count("GainPrefetch.size", size, least=1)
        require_count("GainPrefetch.ahead", ahead, least=1)
        require_count("GainPrefetch.candidates", candidates, least=1)
        self.size = size
        self.source: str | None = source
        self.ahead = ahead
        self.candidates = candidates

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._tried = min(self.candidates, shape.units)
        self._pairs: Ints = np.zeros((min(self.size, self.ahead * self._tried), 2), np.int32)

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), n <= size.

        Raises:
            ValueError: the driver predicted fewer than `ahead` layers.
        """
        cost = view.cost
        found = rank_gains(
            predicted_rows(self, view),
            self.ahead,
            view.layer + 1,
            view.status,
            cost.cpu,
            cost.gpu,
            cost.copy,
            self._tried,
            self._pairs,
        )
        return self._pairs[:found]
