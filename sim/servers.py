"""GPU, CPU and link as FIFO servers: their clocks, what their jobs are charged, and what is counted."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from dali.policies.core.packing import unpacker
from dali.policies.core.records import Record
from dali.policies.types import CopyKind, Floats, Ints


class Clocks(Record):
    """Seconds of simulated time.

    now             up to where everything is simulated
    link_free, gpu_free, cpu_free   from when each server may start its next job
    lands           when the copy under way does
    cpu_busy_until  end of the CPU's last job; before the first, the begin of the layer step
    """

    now: float
    link_free: float
    gpu_free: float
    cpu_free: float
    lands: float
    cpu_busy_until: float


class Cursors(Record):
    """Where each server is.

    in_flight, kind     key and `CopyKind` of the copy under way; in_flight is NONE if there is none
    gpu_next, cpu_next  place of the next job in the plan
    gpu_ready           how many GPU jobs, from the first on, had their unit resident at `begin`
    reported            how many ended GPU jobs the planner was told of
    cpu_waits           1 while the CPU waits for the end of all GPU jobs
    step, recording     the running step, and 1 if its spans are kept
    span_count          spans kept so far
    """

    in_flight: int
    kind: int
    gpu_next: int
    cpu_next: int
    gpu_ready: int
    reported: int
    cpu_waits: int
    step: int
    recording: int
    span_count: int


class ChargedOverheads(Record):
    """What the loop charges of `policies.costs.model.Overheads`."""

    issue_gap: float
    transfer_latency: float
    transfer_per_token: float
    merge: float
    dispatch: float
    cpu_launch: float
    gpu_launch: float
    late_notice: float


class ChargedContention(Record):
    """What the loop charges of `policies.costs.model.Contention`."""

    gpu_beside_copy: float
    gpu_beside_cpu: float
    cpu_beside_gpu: float


ByKind = Annotated[Floats, len(CopyKind)]
"""A number for each `CopyKind`, under one name: the kernel that counts copies has their kind in a variable."""


class Metrics(Record):
    """`policies.columns.METRICS` of the running step: `numbers` are in that order."""

    moe_time: float
    gpu_busy: float
    cpu_busy: float
    link: ByKind
    bytes: ByKind
    copies: ByKind
    lookups: float
    hits: float
    late: float
    staged: float
    gpu_units: float
    cpu_units: float
    imbalance: float


class Servers(NamedTuple):
    """The machines' clocks, what jobs are charged, and what is counted.

    cpu, cpu_contended, gpu, copy, copy_contended   the charged cost model's tables
    unit_bytes  float64 [L]
    finish      float64 [U], finish time of the n-th GPU job of the running layer step
    landed      float64 [U], landing time of the running layer's units that landed since its `begin`
    span_time   float64 [rows, 2], span_what int32 [rows, 6]: see `sim.timeline.Spans`
    """

    clock: Clocks
    at: Cursors
    cpu: Floats
    cpu_contended: Floats
    gpu: Floats
    copy: Floats
    copy_contended: Floats
    unit_bytes: Floats
    overhead: ChargedOverheads
    contention: ChargedContention
    finish: Floats
    landed: Floats
    metrics: Metrics
    span_time: Floats
    span_what: Ints


unpack_servers = unpacker(Servers)
