"""GPU, CPU and link as FIFO servers, and the compiled loop that advances them through one layer step.

FIFO servers need no event heap: a job starts at max(its ready time, its server's free time).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali.policies.columns import LANE_CPU, LANE_GPU, LANE_LINK, METRICS
from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed, array_at
from dali.policies.core.state import (
    HITS,
    IN_STAGING,
    LATE,
    N_ACTIVE,
    N_CPU,
    N_GPU,
    N_TO_COPY,
    NONE,
    OUT_KEY,
    RESIDENT,
    unpack,
)
from dali.policies.core.transitions import computed, landed, next_copy
from dali.policies.types import Floats, Ints

NEVER = np.inf

# Positions in `Servers.t` (seconds) and `Servers.i`.
LINK_FREE, LANDS, NOW, GPU_FREE, CPU_FREE, CPU_BUSY_UNTIL, TIMES = range(7)
IN_FLIGHT, KIND, SPAN_COUNT, RECORDING, STEP, GPU_NEXT, CPU_NEXT, REPORTED, GPU_READY, CPU_WAITS, NUMBERS = range(11)

# What `Servers.overhead` and `Servers.contention` hold, by position: fields of `policies.costs.model`.
OVERHEADS = (
    "issue_gap",
    "transfer_latency",
    "transfer_per_token",
    "merge",
    "dispatch",
    "cpu_launch",
    "gpu_launch",
    "late_notice",
)
ISSUE_GAP, LATENCY, PER_TOKEN, MERGE, DISPATCH, CPU_LAUNCH, GPU_LAUNCH, LATE_NOTICE = range(len(OVERHEADS))
CONTENTION = ("gpu_beside_copy", "gpu_beside_cpu", "cpu_beside_gpu")
GPU_BESIDE_COPY, GPU_BESIDE_CPU, CPU_BESIDE_GPU = range(len(CONTENTION))

# Positions of `METRICS`.
(
    MOE_TIME,
    GPU_BUSY,
    CPU_BUSY,
    LINK_BUSY,
    _,
    _,
    BYTES,
    _,
    _,
    COPIES,
    _,
    _,
    M_LOOKUPS,
    M_HITS,
    M_LATE,
    M_STAGED,
    M_GPU_UNITS,
    M_CPU_UNITS,
    M_IMBALANCE,
) = range(len(METRICS))


class Servers(NamedTuple):
    """The machines' clocks, what jobs are charged, and what is counted.

    t, i        float64 and int64, see the positions above
    cpu, cpu_contended, gpu, copy, copy_contended   the charged cost model's tables
    unit_bytes  float64 [L]
    overhead    float64 [len(OVERHEADS)]; contention float64 [len(CONTENTION)]
    finish      float64 [U], finish time of the n-th GPU job of the running layer step
    landed      float64 [U], landing time of the running layer's units that landed since its `begin`
    metrics     float64 [len(METRICS)], of the running step
    span_time   float64 [rows, 2], span_what int32 [rows, 6]: see `sim.timeline.Spans`
    """

    t: Floats
    i: NDArray[np.int64]
    cpu: Floats
    cpu_contended: Floats
    gpu: Floats
    copy: Floats
    copy_contended: Floats
    unit_bytes: Floats
    overhead: Floats
    contention: Floats
    finish: Floats
    landed: Floats
    metrics: Floats
    span_time: Floats
    span_what: Ints


@kernel
def unpack_servers(servers: Packed) -> Servers:
    """The servers whose arrays `policies.core.packing.pack` packed."""
    return Servers(
        t=array_at(servers, 0, np.float64),
        i=array_at(servers, 1, np.int64),
        cpu=array_at(servers, 2, np.float64),
        cpu_contended=array_at(servers, 3, np.float64),
        gpu=array_at(servers, 4, np.float64),
        copy=array_at(servers, 5, np.float64),
        copy_contended=array_at(servers, 6, np.float64),
        unit_bytes=array_at(servers, 7, np.float64),
        overhead=array_at(servers, 8, np.float64),
        contention=array_at(servers, 9, np.float64),
        finish=array_at(servers, 10, np.float64),
        landed=array_at(servers, 11, np.float64),
        metrics=array_at(servers, 12, np.float64),
        span_time=array_at(servers, 13, np.float64),
        span_what=array_at(servers, 14, np.int32),
    )


@kernel
def _span(servers: Packed, lane: int, start: float, end: float, layer: int, unit: int, tokens: int, hit: bool) -> None:
    c = unpack_servers(servers)
    if c.i[RECORDING]:
        row = c.i[SPAN_COUNT]
        c.span_time[2 * row + 0] = start
        c.span_time[2 * row + 1] = end
        c.span_what[6 * row + 0] = lane
        c.span_what[6 * row + 1] = c.i[STEP]
        c.span_what[6 * row + 2] = layer
        c.span_what[6 * row + 3] = unit
        c.span_what[6 * row + 4] = tokens
        c.span_what[6 * row + 5] = hit
        c.i[SPAN_COUNT] = row + 1


@kernel
def _land(raw: Packed, servers: Packed, now: float) -> None:
    """Report the copy under way if it has ended by `now`."""
    c = unpack_servers(servers)
    if c.i[IN_FLIGHT] != NONE and c.t[LANDS] <= now:
        landed(raw, c.i[IN_FLIGHT])
        c.i[IN_FLIGHT] = NONE


@kernel
def _tell(raw: Packed, servers: Packed, layer: int, now: float) -> None:
    """Report what happened by `now` in order of time: GPU jobs done, and the landing; at a draw that is first.

    The order counts: it is the order in which staging slots are used again.
    """
    s = unpack(raw)
    c = unpack_servers(servers)
    base = layer * (s.status.size // s.group_of.size)
    if c.i[IN_FLIGHT] != NONE and c.t[LANDS] <= now:
        while c.i[REPORTED] < c.i[GPU_NEXT] and c.finish[c.i[REPORTED]] < c.t[LANDS]:
            computed(raw, base + s.gpu[c.i[REPORTED]])
            c.i[REPORTED] += 1
        _land(raw, servers, now)
    while c.i[REPORTED] < c.i[GPU_NEXT] and c.finish[c.i[REPORTED]] <= now:
        computed(raw, base + s.gpu[c.i[REPORTED]])
        c.i[REPORTED] += 1


@kernel
def _issue(raw: Packed, servers: Packed, layer: int, now: float, contended: bool) -> bool:
    """Ask for a copy and start it at `now`; False if there is none."""
    s = unpack(raw)
    c = unpack_servers(servers)
    kind = next_copy(raw, layer)
    if kind == NONE:
        return False
    units = s.status.size // s.group_of.size
    key = s.n[OUT_KEY]
    target = key // units
    time = c.copy_contended[target] if contended else c.copy[target]
    c.i[IN_FLIGHT] = key
    c.i[KIND] = kind
    c.t[LANDS] = now + time
    c.t[LINK_FREE] = now + time + c.overhead[ISSUE_GAP]
    c.metrics[LINK_BUSY + kind] += time
    c.metrics[BYTES + kind] += c.unit_bytes[target]
    c.metrics[COPIES + kind] += 1
    _span(servers, LANE_LINK + kind, now, now + time, target, key % units, 0, False)
    return True


@kernel
def copying(raw: Packed, servers: Packed, layer: int) -> bool:
    """Whether a copy is under way at `t[NOW]`, one that starts there included."""
    c = unpack_servers(servers)
    now = c.t[NOW]
    _land(raw, servers, now)
    if c.i[IN_FLIGHT] == NONE and c.t[LINK_FREE] <= now:
        _issue(raw, servers, layer, now, False)
    return bool(c.i[IN_FLIGHT] != NONE)


@kernel
def drain(raw: Packed, servers: Packed, layer: int, until: float) -> None:
    """Let the link work through hints and swaps from `t[NOW]` up to (not including) `until`."""
    c = unpack_servers(servers)
    ask = max(c.t[LINK_FREE], c.t[NOW])
    while ask < until:
        _land(raw, servers, ask)
        if not _issue(raw, servers, layer, ask, False):
            break
        ask = c.t[LINK_FREE]
    _land(raw, servers, until)
    c.t[NOW] = until


@kernel
def _ready(raw: Packed, layer: int, units: int) -> int:
    """How many GPU jobs, from the first on, have their unit resident."""
    s = unpack(raw)
    count = 0
    while count < s.n[N_GPU] and s.status[layer * units + s.gpu[count]] == RESIDENT:
        count += 1
    return count


@kernel
def _gpu_start(raw: Packed, servers: Packed, layer: int, units: int) -> float:
    """When the next GPU job starts; `NEVER` if there is none, or its unit has yet to land."""
    s = unpack(raw)
    c = unpack_servers(servers)
    job = c.i[GPU_NEXT]
    start: float = NEVER
    if job < s.n[N_GPU] and s.status[layer * units + s.gpu[job]] == RESIDENT:
        start = c.t[GPU_FREE]
        if job >= c.i[GPU_READY]:
            start = max(start, c.landed[s.gpu[job]] + c.overhead[LATE_NOTICE])
    return start


@kernel
def _copying(servers: Packed, now: float) -> bool:
    """Whether a copy is under way."""
    c = unpack_servers(servers)
    return bool(c.i[IN_FLIGHT] != NONE and c.t[LANDS] > now)


@kernel
def _start_gpu_job(raw: Packed, servers: Packed, layer: int, workload: Ints, start: float) -> None:
    """Start the next GPU job."""
    s = unpack(raw)
    c = unpack_servers(servers)
    job = c.i[GPU_NEXT]
    unit = s.gpu[job]
    time = c.gpu[workload[unit]]
    if _copying(servers, start):
        time *= c.contention[GPU_BESIDE_COPY]
    if c.i[CPU_WAITS] == 0 and (c.i[CPU_NEXT] < s.n[N_CPU] or c.t[CPU_BUSY_UNTIL] > start):
        time *= c.contention[GPU_BESIDE_CPU]
    if job == 0 or job >= c.i[GPU_READY]:
        time += c.overhead[GPU_LAUNCH]
    c.t[GPU_FREE] = c.finish[job] = start + time
    c.metrics[GPU_BUSY] += time
    hit = job < s.n[N_GPU] - s.n[N_TO_COPY]
    _span(servers, LANE_GPU, start, c.finish[job], layer, unit, workload[unit], hit)
    c.i[GPU_NEXT] += 1


@kernel
def _start_cpu_job(raw: Packed, servers: Packed, layer: int, workload: Ints) -> None:
    """Start the next CPU job as soon as the CPU is free."""
    s = unpack(raw)
    c = unpack_servers(servers)
    unit = s.cpu[c.i[CPU_NEXT]]
    start = c.t[CPU_FREE]
    time = c.cpu_contended[workload[unit]] if _copying(servers, start) else c.cpu[workload[unit]]
    if c.t[GPU_FREE] > start or _gpu_start(raw, servers, layer, workload.size) != NEVER:
        time *= c.contention[CPU_BESIDE_GPU]
    if c.i[CPU_NEXT] == 0:
        time += c.overhead[CPU_LAUNCH]
    _span(servers, LANE_CPU, start, start + time, layer, unit, workload[unit], False)
    c.metrics[CPU_BUSY] += time
    c.t[CPU_FREE] = c.t[CPU_BUSY_UNTIL] = start + time
    c.i[CPU_NEXT] += 1


@kernel
def _serve_link(raw: Packed, servers: Packed, layer: int, ask: float) -> float:
    """The link is free at `ask`, or what it waits for happens then; when to ask again."""
    c = unpack_servers(servers)
    _tell(raw, servers, layer, ask)
    again: float = NEVER
    if _issue(raw, servers, layer, ask, c.t[CPU_BUSY_UNTIL] > ask):
        again = c.t[LINK_FREE]
    elif c.i[REPORTED] < c.i[GPU_NEXT]:
        again = c.finish[c.i[REPORTED]]
    return again


@kernel
def run_layer(raw: Packed, servers: Packed, layer: int, workload: Ints, tokens: int, overlap: bool) -> bool:
    """Carry out the plan that `begin` left in the state, from `t[NOW]` to the join; False on a deadlock."""
    s = unpack(raw)
    c = unpack_servers(servers)
    begin = c.t[NOW]
    n_cpu = s.n[N_CPU]
    moved = 0
    for i in range(n_cpu):
        moved += workload[s.cpu[i]]
    transfer = c.overhead[LATENCY] + min(moved, tokens) * c.overhead[PER_TOKEN] if n_cpu > 0 else 0.0
    c.t[CPU_BUSY_UNTIL] = begin
    c.t[GPU_FREE] = begin + c.overhead[DISPATCH] if n_cpu > 0 and s.n[N_GPU] > 0 else begin
    c.t[CPU_FREE] = begin + transfer
    c.i[GPU_NEXT] = c.i[CPU_NEXT] = c.i[REPORTED] = 0
    c.i[GPU_READY] = _ready(raw, layer, workload.size)
    cpu_work = c.metrics[CPU_BUSY]
    c.i[CPU_WAITS] = not overlap and n_cpu > 0
    ask = max(c.t[LINK_FREE], begin)
    while True:
        gpu_known = c.i[GPU_NEXT] == s.n[N_GPU]
        if c.i[CPU_WAITS] and gpu_known:
            c.i[CPU_WAITS] = 0
            c.t[CPU_FREE] = c.t[GPU_FREE] + transfer
        if gpu_known and c.i[CPU_NEXT] == n_cpu:
            join = c.t[GPU_FREE]
            if n_cpu > 0:
                join = max(join, c.t[CPU_FREE] + transfer + c.overhead[MERGE])
            if ask >= join:
                break
        lands = c.t[LANDS] if c.i[IN_FLIGHT] != NONE else NEVER
        gpu_start = _gpu_start(raw, servers, layer, workload.size)
        cpu_start = c.t[CPU_FREE] if c.i[CPU_NEXT] < n_cpu and c.i[CPU_WAITS] == 0 else NEVER
        first = min(lands, gpu_start, cpu_start, ask)
        if first == NEVER:
            return False
        if first == lands:
            if c.i[IN_FLIGHT] // workload.size == layer:
                c.landed[c.i[IN_FLIGHT] % workload.size] = lands
            _tell(raw, servers, layer, lands)
        elif first == gpu_start:
            _start_gpu_job(raw, servers, layer, workload, gpu_start)
            if ask == NEVER:
                ask = c.finish[c.i[REPORTED]]  # the planner may have a copy once it is told of this job's end
        elif first == cpu_start:
            _start_cpu_job(raw, servers, layer, workload)
        else:
            ask = _serve_link(raw, servers, layer, ask)
    _tell(raw, servers, layer, join)
    _count(raw, servers, c.t[GPU_FREE] - begin, c.metrics[CPU_BUSY] - cpu_work)
    c.t[NOW] = join
    return True


@kernel
def _count(raw: Packed, servers: Packed, gpu_time: float, cpu_time: float) -> None:
    """Add a layer step to the metrics."""
    s = unpack(raw)
    c = unpack_servers(servers)
    c.metrics[M_LOOKUPS] += s.n[N_ACTIVE]
    c.metrics[M_HITS] += s.n[HITS]
    c.metrics[M_LATE] += s.n[LATE]
    c.metrics[M_STAGED] += s.n[IN_STAGING]
    c.metrics[M_GPU_UNITS] += s.n[N_GPU]
    c.metrics[M_CPU_UNITS] += s.n[N_CPU]
    longest = max(gpu_time, cpu_time)
    c.metrics[M_IMBALANCE] += abs(gpu_time - cpu_time) / longest if longest > 0 else 0.0
