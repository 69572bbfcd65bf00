"""What running costs: one row a step with the simulator's own metrics, and spans for its timeline."""

from __future__ import annotations

import threading
from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali.policies.columns import DECODE, DENSE, LANE_CPU, LANE_GPU, LANE_LINK, METRICS, PLANNER, PREFILL, STEP
from dali.policies.types import Copy, Floats, Ints
from dali.runtime.device.arena import Arena

COUNTED = (*METRICS, PLANNER)
Row = dict[str, Any]


class _Work(NamedTuple):
    """Something on the GPU between two marks, whose times are asked for later."""

    row: Row
    start: Any
    end: Any
    layer: int
    unit: int
    tokens: int
    hit: bool


class _Join(NamedTuple):
    """A layer step: marks of router done, last GPU unit and join, and the CPU's start and end."""

    row: Row
    start: Any
    gpu: Any
    end: Any
    cpu: tuple[float, float] | None


class Account:
    """Counts what happens in each step.

    arena   its clock
    units_bytes  int64 [L], bytes of a unit of each layer
    record  steps whose spans are kept

    A product of several units is one span: it has the id of the first of them and the tokens of all.
    """

    def __init__(self, arena: Arena, unit_bytes: NDArray[np.int64], record: Container[int]) -> None:
        self._arena, self._unit_bytes, self._record = arena, unit_bytes, record
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        # The running step's; between two steps that of the last one, as the link goes on.
        self._row: Row | None = None
        self._running = False
        self._start: Any = None
        self._last: Any = None
        self._works: list[_Work] = []
        self._joins: list[_Join] = []
        self._ends: list[tuple[Row, Any, Any]] = []
        self._span_time: list[tuple[float, float]] = []
        self._span_what: list[tuple[int, ...]] = []

    # ---- steps

    def begin_step(self, step: int, tokens: int, sequences: int, start: Any) -> None:
        """A forward pass began at a mark; one that was cut off is forgotten."""
        phase = PREFILL if tokens > sequences else DECODE
        about = {"step": step, "phase": phase, "tokens": tokens, "sequences": sequences}
        self._row = about | dict.fromkeys(COUNTED, 0.0)
        self._running = True
        self._start = self._last = start

    def end_step(self) -> None:
        """The forward pass is over."""
        if self._running and self._row is not None:
            self._rows.append(self._row)
            self._ends.append((self._row, self._start, self._arena.mark()))
        self._running = False

    # ---- events; the link's thread calls some of them

    def planned(self, seconds: float) -> None:
        """The planner took this long for a call."""
        self._add(PLANNER, seconds)

    def asked(self, copy: Copy) -> None:
        """The planner gave a copy."""
        name = copy.kind.name.lower()
        self._add(f"copies_{name}", 1)
        self._add(f"bytes_{name}", int(self._unit_bytes[copy.layer]))

    def landed(self, copy: Copy, start: float, end: float) -> None:
        """A copy has ended."""
        self._add(f"link_{copy.kind.name.lower()}", end - start)
        self._span(self._row, LANE_LINK + copy.kind, start, end, copy.layer, copy.unit, 0, False)

    def counted(self, **counts: int) -> None:
        """Add to metrics."""
        for name, count in counts.items():
            self._add(name, count)

    def dense(self, layer: int, tokens: int, router_done: Any) -> None:
        """The dense part of a layer is over: what lies between the join before it and its router."""
        self._work(self._last, router_done, layer, DENSE, tokens, False)

    def computed(self, start: Any, end: Any, layer: int, unit: int, tokens: int, hit: bool) -> None:
        """The GPU ran units."""
        self._work(start, end, layer, unit, tokens, hit)

    def joined(self, layer: int, start: Any, gpu: Any, cpu: tuple[float, float, int, int] | None) -> None:
        """A layer step is over: marks of router done and last GPU unit; the CPU's start, end, first unit, tokens."""
        self._last = self._arena.mark()
        if self._row is None:
            return
        self._joins.append(_Join(self._row, start, gpu, self._last, cpu[:2] if cpu else None))
        if cpu:
            self._add("cpu_busy", cpu[1] - cpu[0])
            self._span(self._row, LANE_CPU, cpu[0], cpu[1], layer, cpu[2], cpu[3], False)

    def resolve(self) -> None:
        """Look up the times of marks; all of them must have happened."""
        seconds = self._arena.seconds
        for work in self._works:
            start, end = seconds(work.start), seconds(work.end)
            work.row["gpu_busy"] += end - start
            self._span(work.row, LANE_GPU, start, end, work.layer, work.unit, work.tokens, work.hit)
        for join in self._joins:
            start = seconds(join.start)
            join.row["moe_time"] += seconds(join.end) - start
            gpu = seconds(join.gpu) - start if join.gpu is not None else 0.0
            cpu = join.cpu[1] - join.cpu[0] if join.cpu is not None else 0.0
            join.row["imbalance"] += abs(cpu - gpu) / max(cpu, gpu) if max(cpu, gpu) > 0 else 0.0
        for row, first, last in self._ends:
            row["start"], row["end"] = seconds(first), seconds(last)
        self._works, self._joins, self._ends = [], [], []

    # ---- results

    def columns(self) -> dict[str, NDArray[Any]]:
        """One array a column, an entry for each step that was finished: step, phase, tokens, sequences, start, end
        (seconds) and `COUNTED`."""
        self._arena.synchronize()
        self.resolve()
        return {name: np.array([row[name] for row in self._rows]) for name in (*STEP, *COUNTED)}

    def spans(self) -> tuple[Floats, Ints]:
        """Arguments of `sim.timeline.Spans`: float64 [n, 2] and int32 [n, 6], by start."""
        self._arena.synchronize()
        self.resolve()
        with self._lock:
            time = np.array(self._span_time, np.float64).reshape(-1, 2)
            what = np.array(self._span_what, np.int32).reshape(-1, 6)
        order = np.argsort(time[:, 0], kind="stable")
        return time[order], what[order]

    def forget(self) -> None:
        """Drop the rows and spans of all steps that were finished."""
        self._arena.synchronize()
        self.resolve()
        with self._lock:
            self._rows, self._span_time, self._span_what = [], [], []

    def _add(self, name: str, amount: float) -> None:
        with self._lock:
            if self._row is not None:
                self._row[name] += amount

    def _work(self, start: Any, end: Any, layer: int, unit: int, tokens: int, hit: bool) -> None:
        if self._row is not None:
            self._works.append(_Work(self._row, start, end, layer, unit, tokens, hit))

    def _span(
        self, row: Row | None, lane: int, start: float, end: float, layer: int, unit: int, tokens: int, hit: bool
    ) -> None:
        if row is not None and row["step"] in self._record:
            with self._lock:
                self._span_time.append((start, end))
                self._span_what.append((lane, row["step"], layer, unit, tokens, int(hit)))
