"""The compiled loop that advances the servers through one layer step.

FIFO servers need no event heap: a job starts at max(its ready time, its server's free time).
"""

from __future__ import annotations

import numpy as np

from dali.policies.columns import LANE_CPU, LANE_GPU, LANE_LINK
from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed
from dali.policies.core.state import NONE, RESIDENT, unpack
from dali.policies.core.transitions import computed, landed, next_copy
from dali.policies.types import Ints
from dali.sim.servers import unpack_servers

NEVER = np.inf


@kernel
def _span(servers: Packed, lane: int, start: float, end: float, layer: int, unit: int, tokens: int, hit: bool) -> None:
    c = unpack_servers(servers)
    if c.at.recording:
        row = c.at.span_count
        c.span_time[2 * row + 0] = start
        c.span_time[2 * row + 1] = end
        c.span_what[6 * row + 0] = lane
        c.span_what[6 * row + 1] = c.at.step
        c.span_what[6 * row + 2] = layer
        c.span_what[6 * row + 3] = unit
        c.span_what[6 * row + 4] = tokens
        c.span_what[6 * row + 5] = hit
        c.at.span_count = row + 1


@kernel
def _land(raw: Packed, servers: Packed, now: float) -> None:
    """Report the copy under way if it has ended by `now`."""
    c = unpack_servers(servers)
    if c.at.in_flight != NONE and c.clock.lands <= now:
        landed(raw, c.at.in_flight)
        c.at.in_flight = NONE


@kernel
def _tell(raw: Packed, servers: Packed, layer: int, now: float) -> None:
    """Report what happened by `now` in order of time: GPU jobs done, and the landing; at a draw that is first.

    The order counts: it is the order in which staging slots are used again.
    """
    s = unpack(raw)
    c = unpack_servers(servers)
    base = layer * s.units
    if c.at.in_flight != NONE and c.clock.lands <= now:
        while c.at.reported < c.at.gpu_next and c.finish[c.at.reported] < c.clock.lands:
            computed(raw, base + s.gpu[c.at.reported])
            c.at.reported += 1
        _land(raw, servers, now)
    while c.at.reported < c.at.gpu_next and c.finish[c.at.reported] <= now:
        computed(raw, base + s.gpu[c.at.reported])
        c.at.reported += 1


@kernel
def _issue(raw: Packed, servers: Packed, layer: int, now: float, contended: bool) -> bool:
    """Ask for a copy and start it at `now`; False if there is none."""
    s = unpack(raw)
    c = unpack_servers(servers)
    kind = next_copy(raw, layer)
    if kind == NONE:
        return False
    key = s.n.out_key
    target = key // s.units
    time = c.copy_contended[target] if contended else c.copy[target]
    c.at.in_flight = key
    c.at.kind = kind
    c.clock.lands = now + time
    c.clock.link_free = now + time + c.overhead.issue_gap
    c.metrics.link[kind] += time
    c.metrics.bytes[kind] += c.unit_bytes[target]
    c.metrics.copies[kind] += 1
    _span(servers, LANE_LINK + kind, now, now + time, target, key % s.units, 0, False)
    return True


@kernel
def copying(raw: Packed, servers: Packed, layer: int) -> bool:
    """Whether a copy is under way at `clock.now`, one that starts there included."""
    c = unpack_servers(servers)
    now = c.clock.now
    _land(raw, servers, now)
    if c.at.in_flight == NONE and c.clock.link_free <= now:
        _issue(raw, servers, layer, now, False)
    return bool(c.at.in_flight != NONE)


@kernel
def drain(raw: Packed, servers: Packed, layer: int, until: float) -> None:
    """Let the link work through hints and swaps from `clock.now` up to (not including) `until`."""
    c = unpack_servers(servers)
    ask = max(c.clock.link_free, c.clock.now)
    while ask < until:
        _land(raw, servers, ask)
        if not _issue(raw, servers, layer, ask, False):
            break
        ask = c.clock.link_free
    _land(raw, servers, until)
    c.clock.now = until


@kernel
def _ready(raw: Packed, layer: int) -> int:
    """How many GPU jobs, from the first on, have their unit resident."""
    s = unpack(raw)
    count = 0
    while count < s.n.gpu and s.status[layer * s.units + s.gpu[count]] == RESIDENT:
        count += 1
    return count


@kernel
def _gpu_start(raw: Packed, servers: Packed, layer: int) -> float:
    """When the next GPU job starts; `NEVER` if there is none, or its unit has yet to land."""
    s = unpack(raw)
    c = unpack_servers(servers)
    job = c.at.gpu_next
    start: float = NEVER
    if job < s.n.gpu and s.status[layer * s.units + s.gpu[job]] == RESIDENT:
        start = c.clock.gpu_free
        if job >= c.at.gpu_ready:
            start = max(start, c.landed[s.gpu[job]] + c.overhead.late_notice)
    return start


@kernel
def _copying(servers: Packed, now: float) -> bool:
    """Whether a copy is under way."""
    c = unpack_servers(servers)
    return bool(c.at.in_flight != NONE and c.clock.lands > now)


@kernel
def _start_gpu_job(raw: Packed, servers: Packed, layer: int, workload: Ints, start: float) -> None:
    """Start the next GPU job."""
    s = unpack(raw)
    c = unpack_servers(servers)
    job = c.at.gpu_next
    unit = s.gpu[job]
    time = c.gpu[workload[unit]]
    if _copying(servers, start):
        time *= c.contention.gpu_beside_copy
    if c.at.cpu_waits == 0 and (c.at.cpu_next < s.n.cpu or c.clock.cpu_busy_until > start):
        time *= c.contention.gpu_beside_cpu
    if job == 0 or job >= c.at.gpu_ready:
        time += c.overhead.gpu_launch
    c.clock.gpu_free = c.finish[job] = start + time
    c.metrics.gpu_busy += time
    hit = job < s.n.gpu - s.n.to_copy
    _span(servers, LANE_GPU, start, c.finish[job], layer, unit, workload[unit], hit)
    c.at.gpu_next += 1


@kernel
def _start_cpu_job(raw: Packed, servers: Packed, layer: int, workload: Ints) -> None:
    """Start the next CPU job as soon as the CPU is free."""
    s = unpack(raw)
    c = unpack_servers(servers)
    unit = s.cpu[c.at.cpu_next]
    start = c.clock.cpu_free
    time = c.cpu_contended[workload[unit]] if _copying(servers, start) else c.cpu[workload[unit]]
    under_way = c.at.gpu_next > 0 and c.clock.gpu_free > start
    if under_way or _gpu_start(raw, servers, layer) != NEVER:
        time *= c.contention.cpu_beside_gpu
    if c.at.cpu_next == 0:
        time += c.overhead.cpu_launch
    _span(servers, LANE_CPU, start, start + time, layer, unit, workload[unit], False)
    c.metrics.cpu_busy += time
    c.clock.cpu_free = c.clock.cpu_busy_until = start + time
    c.at.cpu_next += 1


@kernel
def _serve_link(raw: Packed, servers: Packed, layer: int, ask: float) -> float:
    """The link is free at `ask`, or what it waits for happens then; when to ask again."""
    c = unpack_servers(servers)
    _tell(raw, servers, layer, ask)
    again: float = NEVER
    if _issue(raw, servers, layer, ask, c.clock.cpu_busy_until > ask):
        again = c.clock.link_free
    elif c.at.reported < c.at.gpu_next:
        again = c.finish[c.at.reported]
    return again


@kernel
def run_layer(
    raw: Packed, servers: Packed, layer: int, workload: Ints, tokens: int, overlap: bool, copies_overlap: bool
) -> bool:
    """Carry out the plan that `begin` left in the state, from `clock.now` to the join; False on a deadlock.

    `overlap` is the plan's, `copies_overlap` the charged cost model's.
    """
    s = unpack(raw)
    c = unpack_servers(servers)
    begin = c.clock.now
    n_cpu = s.n.cpu
    moved = 0
    for i in range(n_cpu):
        moved += workload[s.cpu[i]]
    transfer = c.overhead.transfer_latency + min(moved, tokens) * c.overhead.transfer_per_token if n_cpu > 0 else 0.0
    merge = c.overhead.merge if n_cpu > 0 else 0.0
    c.clock.cpu_busy_until = begin
    c.clock.gpu_free = begin + c.overhead.dispatch if n_cpu > 0 and s.n.gpu > 0 else begin
    c.clock.cpu_free = begin + transfer
    c.at.gpu_next = c.at.cpu_next = c.at.reported = 0
    c.at.gpu_ready = _ready(raw, layer)
    cpu_work = c.metrics.cpu_busy
    c.at.cpu_waits = not overlap and n_cpu > 0
    ask = max(c.clock.link_free, begin)
    while True:
        gpu_known = c.at.gpu_next == s.n.gpu
        if c.at.cpu_waits and gpu_known:
            c.at.cpu_waits = 0
            c.clock.cpu_free = c.clock.gpu_free + transfer
        if gpu_known and c.at.cpu_next == n_cpu:
            done = max(c.clock.gpu_free, c.clock.cpu_free + transfer)
            if ask >= (done + merge if copies_overlap else done):
                break
        lands = c.clock.lands if c.at.in_flight != NONE else NEVER
        gpu_start = _gpu_start(raw, servers, layer)
        asks = ask if copies_overlap or gpu_start == NEVER else NEVER
        cpu_start = c.clock.cpu_free if c.at.cpu_next < n_cpu and c.at.cpu_waits == 0 else NEVER
        first = min(lands, gpu_start, cpu_start, asks)
        if first == NEVER:
            return False
        if first == lands:
            if c.at.in_flight // s.units == layer:
                c.landed[c.at.in_flight % s.units] = lands
            _tell(raw, servers, layer, lands)
        elif first == gpu_start:
            _start_gpu_job(raw, servers, layer, workload, gpu_start)
            if ask == NEVER:
                ask = c.finish[c.at.reported]  # the planner may have a copy once it is told of this job's end
            if not copies_overlap:
                ask = max(ask, c.clock.gpu_free)
        elif first == cpu_start:
            _start_cpu_job(raw, servers, layer, workload)
        else:
            ask = _serve_link(raw, servers, layer, ask)
    if c.at.in_flight != NONE and not copies_overlap:
        done = max(done, c.clock.lands)
    join = done + merge
    _tell(raw, servers, layer, join)
    _count(raw, servers, c.clock.gpu_free - begin, c.metrics.cpu_busy - cpu_work)
    c.clock.now = join
    return True


@kernel
def _count(raw: Packed, servers: Packed, gpu_time: float, cpu_time: float) -> None:
    """Add a layer step to the metrics."""
    s = unpack(raw)
    c = unpack_servers(servers)
    c.metrics.lookups += s.n.active
    c.metrics.hits += s.n.hits
    c.metrics.late += s.n.late
    c.metrics.staged += s.n.in_staging
    c.metrics.gpu_units += s.n.gpu
    c.metrics.cpu_units += s.n.cpu
    longest = max(gpu_time, cpu_time)
    c.metrics.imbalance += abs(gpu_time - cpu_time) / longest if longest > 0 else 0.0
