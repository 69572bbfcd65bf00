"""Drives a planner through simulated time: GPU, CPU and link are FIFO servers.

A layer step, from when the previous one is joined:

    dense part on the GPU | router read-back, planning | begin | CPU and GPU jobs, copies | join, merge | end

CPU jobs run in plan order after the activations have crossed; GPU jobs in plan order, each once its unit
has landed.  Once the GPU is done and the CPU's results are back, they are merged: that is the join.  The link asks
the planner for the next copy whenever it is free, also while the dense part runs and between two steps; where
`CostModel.copies_overlap` is False it takes turns with the GPU.  What starts beside something else is charged the
contended time, as `policies.costs.model` says.

What could start at the same moment starts in this order: a GPU unit, a CPU unit, a copy, a dense part or what lies
outside the layers.  The copy is before the last two as the planner is told of the join at the end of the layer step:
the link has its answer before the model's code goes on.

The servers are in `sim.servers`, the compiled loop is in `sim.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.policies.columns import DENSE, LANE_GPU, METRICS
from dali.policies.core.packing import pack
from dali.policies.core.state import NONE
from dali.policies.costs.model import CostModel
from dali.policies.planner import Planner
from dali.policies.types import Floats
from dali.sim.loop import copying, drain, run_layer
from dali.sim.servers import (
    ChargedContention,
    ChargedOverheads,
    Clocks,
    Cursors,
    Metrics,
    Servers,
)
from dali.sim.timeline import Spans
from dali.traces.step import Step
from dali.traces.workload import Workload


@dataclass(frozen=True)
class Simulation:
    """What a run cost.

    columns  one array a step: step, phase, tokens, sequences, start, end (seconds), and `METRICS`
    spans    of the steps that were asked for
    layers   L; planning: seconds charged for the planner in each layer step; slices: units an expert
    """

    columns: dict[str, NDArray[Any]]
    spans: Spans
    layers: int
    planning: float
    slices: int

    def total(self, metric: str, phase: str | None = None) -> float:
        """Sum of a metric over the steps, or over those of one phase."""
        values = self.columns[metric]
        return float(values.sum() if phase is None else values[self.columns["phase"] == phase].sum())


class Engine:
    """Simulates one planner; `planner.policy` decides, `charged` says what its decisions cost."""

    def __init__(self, planner: Planner, charged: CostModel) -> None:
        units = planner.shape.units
        self.planner = planner
        self.charged = charged
        self._servers = Servers(
            clock=Clocks(),
            at=Cursors(),
            cpu=charged.cpu,
            cpu_contended=charged.cpu_contended,
            gpu=charged.gpu,
            copy=charged.copy,
            copy_contended=charged.copy_contended,
            unit_bytes=planner.shape.unit_bytes.astype(np.float64),
            overhead=ChargedOverheads.of(charged.overheads),
            contention=ChargedContention.of(charged.contention),
            finish=np.zeros(units),
            landed=np.zeros(units),
            metrics=Metrics(),
            span_time=np.zeros((0, 2)),
            span_what=np.zeros((0, 6), np.int32),
        )
        self._servers.at.in_flight = NONE
        self._packed = pack(self._servers)

    @property
    def now(self) -> float:
        """Simulated seconds so far."""
        return self._servers.clock.now

    def run(
        self,
        workload: Workload,
        record: Container[int] = (),
        progress: Callable[[int], object] | None = None,
    ) -> Simulation:
        """Simulate all steps; spans of the steps in `record` are kept; `progress` is called with each step's number."""
        columns: dict[str, list[Any]] = {name: [] for name in ("step", "phase", "tokens", "sequences", "start", "end")}
        metrics = np.zeros((workload.n_steps, len(METRICS)))
        self.planner.check_tokens(workload.max_tokens)
        overrun = np.zeros(len(METRICS))
        for row, step in enumerate(workload.steps(**self.planner.annotations)):
            start = self.now
            self._servers.metrics.numbers[:] = overrun
            self._servers.at.recording = step.index in record
            self._servers.at.step = step.index
            self.run_step(step)
            # What is left of the copy under way is time of the next step; the last step keeps it.
            overrun = self._overrun() if row + 1 < workload.n_steps else np.zeros(len(METRICS))
            metrics[row] = self._servers.metrics.numbers - overrun
            for name, value in (
                ("step", step.index),
                ("phase", step.phase),
                ("tokens", step.tokens),
                ("sequences", step.sequences),
                ("start", start),
                ("end", self.now),
            ):
                columns[name].append(value)
            if progress is not None:
                progress(step.index)
        kept = self._servers.at.span_count
        return Simulation(
            columns={name: np.array(values) for name, values in columns.items()}
            | dict(zip(METRICS, metrics.T, strict=True)),
            spans=Spans(self._servers.span_time[:kept].copy(), self._servers.span_what[:kept].copy()),
            layers=self.planner.shape.layers,
            planning=self.charged.overheads.planning,
            slices=workload.slices,
        )

    def run_step(self, step: Step) -> None:
        """Simulate one forward pass: all MoE layers, and what lies outside them."""
        planner, clock, metrics = self.planner, self._servers.clock, self._servers.metrics
        state, overlap = planner.raw, planner.policy.assignment.overlap and self.charged.parallel
        dense = self.charged.dense(step.tokens, step.sequences, step.context)
        outside = self.charged.per_step(step.tokens, step.sequences, step.context)
        waiting = self.charged.overheads.readback + self.charged.overheads.planning
        recording = bool(self._servers.at.recording)
        moe_time = 0.0
        busy = 0.0
        for layer in range(planner.shape.layers):
            if recording:
                self._make_room()
            took = dense * self._slowed(layer)
            busy += took
            router_done = clock.now + took
            if recording:
                self._record_dense(layer, router_done - took, router_done, step.tokens)
            self._pass(layer, router_done + waiting)
            planner.begin(step.layer_step(layer))
            if recording:
                self._make_room()
            work = step.workload[layer]
            if not run_layer(state, self._packed, layer, work, step.tokens, overlap, self.charged.copies_overlap):
                raise RuntimeError(
                    f"step {step.index}, layer {layer}: the planner gives no copy that a GPU unit waits for"
                )
            planner.end()
            moe_time += clock.now - router_done
        metrics.moe_time += moe_time
        if recording:
            self._make_room()
        outside *= self._slowed(planner.shape.layers - 1)
        metrics.gpu_busy += busy + outside
        self._pass(planner.shape.layers - 1, clock.now + outside)

    def _pass(self, layer: int, until: float) -> None:
        """Let time pass outside of a layer step's units; the link works on where copies overlap."""
        if self.charged.copies_overlap:
            drain(self.planner.raw, self._packed, layer, until)
        else:
            self._servers.clock.now = until

    def _slowed(self, layer: int) -> float:
        """How many times as long the dense part takes that begins now."""
        slower = self.charged.contention.dense_beside_copy
        if slower == 1 or not self.charged.copies_overlap:
            return 1.0
        return slower if copying(self.planner.raw, self._packed, layer) else 1.0

    def _overrun(self) -> Floats:
        """Metrics of what the link has yet to do of the copy under way."""
        left, clock, at = Metrics(), self._servers.clock, self._servers.at
        if at.in_flight != NONE:
            left.link[at.kind] = clock.lands - clock.now
        return left.numbers

    def _record_dense(self, layer: int, start: float, end: float, tokens: int) -> None:
        at = self._servers.at
        self._servers.span_time[at.span_count] = start, end
        self._servers.span_what[at.span_count] = LANE_GPU, at.step, layer, DENSE, tokens, 0
        at.span_count += 1

    def _make_room(self) -> None:
        """Room for the spans of one layer step: its dense part, every unit once, and all copies that are queued."""
        queued = self.planner.n.hint_tail + self.planner.n.swap_tail
        need = self._servers.at.span_count + 1 + 2 * self.planner.shape.units + queued
        rows = self._servers.span_time.shape[0]
        if need > rows:
            extra = max(need, 2 * rows) - rows
            self._servers = self._servers._replace(
                span_time=np.concatenate([self._servers.span_time, np.zeros((extra, 2))]),
                span_what=np.concatenate([self._servers.span_what, np.zeros((extra, 6), np.int32)]),
            )
            self._packed = pack(self._servers)
