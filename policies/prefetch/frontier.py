"""Hints by the time they save: what a copy shortens in the layers to come, less what it costs while it runs.

A hint is worth a copy only if three things hold.  The unit shortens the layer it is for: a layer that waits for
its GPU gains nothing from a further unit there.  The copy lands in time: a unit under way counts as resident, so
the GPU waits for a late one.  And the copy does not cost more than it saves: CPU and link share host memory, so
CPU jobs that run beside it take their contended time.
"""

from __future__ import annotations

import numpy as np

from dali.policies.assign.base import sort_descending
from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed
from dali.policies.core.state import ABSENT, LANDING, unpack
from dali.policies.prefetch.base import Scores, predicted_rows, require_source
from dali.policies.require import require_count
from dali.policies.types import Bools, Bytes, Capacity, Floats, Ints, Shape
from dali.policies.view import LayerView

# A copy under way at `begin` started at a moment that nobody told: on average half of it is left.
LEFT_OF_COPY = 0.5
# Share of the old estimate that `trust` keeps in each layer step.
TRUST_KEPT = 0.98


@kernel
def running_step(
    raw: Packed, workload: Ints, cpu: Floats, cpu_contended: Floats, gpu: Floats, copy_time: float, issue_gap: float
) -> tuple[float, float, float, float]:
    """Seconds of the plan just made: CPU jobs, the same contended, GPU jobs, and until its demand copies are over."""
    s = unpack(raw)
    idle = 0.0
    contended = 0.0
    for unit in s.cpu[: s.n.cpu]:
        idle += cpu[workload[unit]]
        contended += cpu_contended[workload[unit]]
    link = LEFT_OF_COPY * copy_time if s.status[s.n.out_key] == LANDING else 0.0
    on_gpu = 0.0
    first_copy = s.n.gpu - s.n.to_copy
    for i in range(s.n.gpu):
        if i >= first_copy:
            on_gpu = max(on_gpu, link + copy_time)
            link += copy_time + issue_gap
        on_gpu += gpu[workload[s.gpu[i]]]
    return idle, contended, on_gpu, link


@kernel
def demand_copies(cpu_times: Floats, cpu_total: float, gpu_total: float, copy_time: float, gpu_time: float) -> int:
    """How many units, heaviest first, a layer would copy on demand: while the GPU ends with them before the CPU does.

    `cpu_times` [n] falling, of the absent units; `gpu_total` of the resident ones; `gpu_time` of a unit's job.
    """
    copies = 0
    left = cpu_total
    while copies < cpu_times.size:
        done = max((copies + 1) * copy_time, gpu_total + copies * gpu_time) + gpu_time
        if done >= left - cpu_times[copies]:
            break
        left -= cpu_times[copies]
        copies += 1
    return copies


@kernel
def judge(believed: Bools, layer: int, workload: Ints, trust: Floats) -> None:
    """Fold into `trust` [H] which of the units predicted active, by each row of believed [H, L * U], are."""
    units = workload.size
    for row in range(min(trust.size, layer)):
        predicted = 0
        right = 0
        for unit in range(units):
            if believed[row, layer * units + unit]:
                predicted += 1
                right += workload[unit] > 0
        if predicted > 0:
            trust[row] = TRUST_KEPT * trust[row] + (1 - TRUST_KEPT) * right / predicted


@kernel
def remember(predicted: Scores, layer: int, units: int, believed: Bools) -> None:
    """Note which units `predicted` [>= H, U] calls active in the layers after `layer`, for `judge`."""
    layers = believed.shape[1] // units
    for row in range(min(believed.shape[0], layers - 1 - layer)):
        base = (layer + 1 + row) * units
        for unit in range(units):
            believed[row, base + unit] = predicted[row, unit] > 0


@kernel
def rank_savings(
    raw: Packed,
    layer: int,
    workload: Ints,
    predicted: Scores,
    trust: Floats,
    status: Bytes,
    cpu: Floats,
    cpu_contended: Floats,
    gpu: Floats,
    copy: Floats,
    issue_gap: float,
    between: float,
    crossing: float,
    merge: float,
    believed: Bools,
    pairs: Ints,
) -> int:
    """Rule of `SavingPrefetch`: writes up to `len(pairs)` of (layer, unit) to `pairs`, returns how many.

    `trust` [H] and `believed` [H, L * U] are brought up to date first.  `between` are the seconds from a layer step's
    join to the next one's begin; any CPU unit adds `crossing` to the CPU's side, and `merge` after both.

    Times count from now, the begin of `layer`: `start` is the begin of the layer looked at, `link` when the link
    is free for a next hint.
    """
    layers, units = status.shape
    judge(believed, layer, workload, trust)
    remember(predicted, layer, units, believed)
    idle, contended, on_gpu, link = running_step(raw, workload, cpu, cpu_contended, gpu, copy[layer], issue_gap)
    cpu_side = contended + crossing if contended > 0 else 0.0
    # A second of copying beside the CPU jobs makes them this much longer; it matters where the CPU is awaited.
    slowing = 1.0 - idle / contended if cpu_side >= on_gpu and contended > 0 else 0.0
    start = max(on_gpu, cpu_side) + (merge if contended > 0 else 0.0) + between
    ids = np.empty(units, np.int32)
    times = np.empty(units, np.float64)
    written = 0
    for row in range(min(trust.size, layers - 1 - layer)):
        target = layer + 1 + row
        n = 0
        cpu_total = 0.0
        idle_total = 0.0
        gpu_total = 0.0
        for unit in range(units):
            w = min(int(np.ceil(predicted[row, unit])), cpu.size - 1)
            if w > 0 and status[target, unit] == ABSENT:
                ids[n] = unit
                times[n] = cpu_contended[w]
                cpu_total += times[n]
                idle_total += cpu[w]
                n += 1
            elif w > 0:
                gpu_total += gpu[w]
        if n == 0:
            start += gpu_total + between
            continue
        cpu_total += crossing
        slowest = times[:n].max()
        if row > 0 and max(copy[target], gpu_total) + gpu[1] < cpu_total - slowest and link + copy[target] > start:
            break  # the link is behind, and nothing that is late pays in a layer with copies of its own
        sort_descending(ids[:n], times[:n])
        copies = demand_copies(times[:n], cpu_total, gpu_total, copy[target], gpu[1])
        if copies == 0:
            cpu_total = idle_total + crossing
        layer_time = max(gpu_total, cpu_total - times[:copies].sum()) + merge

        hinted = 0
        for i in range(n):
            w = min(int(np.ceil(predicted[row, ids[i]])), cpu.size - 1)
            seconds = times[i] if copies > 0 else cpu[w]
            last = i == n - 1
            rest = cpu_total - seconds - (crossing if last else 0.0)
            landing = link + copy[target]
            saved = max(cpu_total, gpu_total) - max(rest, gpu_total + gpu[w]) + (merge if last else 0.0)
            deadline = start + max(gpu_total, rest - gpu[w])
            if copies > 0:
                # CPU and link work the absent units off together, a unit in 1 / (1 / cpu + 1 / copy).
                saved = min(saved, seconds * copy[target] / (seconds + copy[target]))
                # What the next layer would copy anyway may be late; anything else has to be there.
                deadline = np.inf if i < copies and row == 0 else start
            beside = max(0.0, min(contended, landing) - link)
            if written == len(pairs) or landing > deadline or trust[row] * saved <= slowing * beside:
                break
            pairs[written, 0] = target
            pairs[written, 1] = ids[i]
            written += 1
            hinted += 1
            link = landing + issue_gap
            cpu_total = rest
            gpu_total += gpu[w]
        # What this layer still copies on demand goes before hints for later ones.
        if copies > hinted:
            link = max(link, start) + (copies - hinted) * (copy[target] + issue_gap)
        start += layer_time + between
    return written


class SavingPrefetch:
    """Hints ranked by the seconds that they are predicted to save, nearer layers first; what saves none is not copied.

    For each of the next `ahead` layers, from the workloads that predictor `source` expects, absent units are taken
    by CPU time, longest first, while all of this holds:

    - the copy lands in time, given the copies before it.  A unit that lands late is waited for: the copy must end
      before its layer is done without it.  Where the layer will copy on demand anyway, the copy must end before the
      layer begins, but the units that it would copy first may be under way by then: that is no copy more;
    - trust * saved > slowed.  `saved` is what the layer becomes shorter: max(CPU, GPU) without the hint less the same
      with it.  If the layer copies on demand, it is no more than 1 / (1 / cpu + 1 / copy) seconds: CPU and link work
      the absent units off together.  `slowed` is what CPU jobs of the running layer step become longer beside the
      copy (contended less idle time), if that step waits for its CPU;
    - fewer than `size` hints are given.

    `trust` [ahead] is the share of the units predicted active that were, so far (a running average that starts at 1):
    hints of a poor predictor end by themselves.  Copies are taken to need their contended time; so are the CPU jobs of
    the running layer step, and of a later one that copies on demand.
    """

    def __init__(self, source: str = "residual", ahead: int = 2, size: int = 8) -> None:
        require_source("SavingPrefetch", source)
        require_count("SavingPrefetch.ahead", ahead, least=1)
        require_count("SavingPrefetch.size", size, least=1)
        self.source: str | None = source
        self.ahead = ahead
        self.size = size

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._pairs: Ints = np.zeros((min(self.size, self.ahead * shape.units), 2), np.int32)
        self._trust: Floats = np.ones(self.ahead)
        self._believed: Bools = np.zeros((self.ahead, shape.layers * shape.units), np.bool_)
        self._between: dict[int, float] = {}

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), n <= size.

        Raises:
            ValueError: the driver predicted fewer than `ahead` layers.
        """
        cost, overheads = view.cost, view.cost.overheads
        found = rank_savings(
            view.raw,
            view.layer,
            view.workload,
            predicted_rows(self, view),
            self._trust,
            view.status,
            cost.cpu,
            cost.cpu_contended,
            cost.gpu,
            cost.copy_contended,
            overheads.issue_gap,
            self._time_between(view),
            2 * overheads.transfer_latency,
            overheads.merge,
            self._believed,
            self._pairs,
        )
        return self._pairs[:found]

    def _time_between(self, view: LayerView) -> float:
        """Seconds from the join of a layer step to the next begin: the dense part of so many tokens, and waiting."""
        if view.tokens not in self._between:
            cost = view.cost
            # How many sequences and how long is not told: one token each, and a context of one, is the least there is.
            dense = cost.dense(view.tokens, view.tokens, 1.0)
            self._between[view.tokens] = dense + cost.overheads.readback + cost.overheads.planning
        return self._between[view.tokens]
