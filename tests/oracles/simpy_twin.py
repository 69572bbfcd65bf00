"""The simulator's machine model once more, as SimPy processes that drive the same planner.

It has two uses.  The tests compare it with `sim.engine`, whose compiled loop finds start times without an
event queue: both must give the same times, copies and calls of the planner.  `dali bench` times the two in
one run, so that the speed of the simulator is stated against a model of the same machine.

GPU, CPU and link are a process each, the forward pass is a fourth one.  Jobs wait in FIFO stores; a unit's
landing is an event that its GPU job waits for.  At one moment of time a landing comes before everything
else and the link asks the planner for a copy after the units that could start then; only a dense part is
after that.  Needs simpy, which only the tests and the benchmark install.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import simpy
from simpy.events import EventPriority

from dali.policies.costs.model import CostModel
from dali.policies.planner import Planner
from dali.policies.types import Copy, CopyKind, Ints, LayerPlan, Status
from dali.traces.step import Step
from dali.traces.workload import Workload

# Ranks of events at the same moment, for SimPy's queue; its own events have rank 1.
FIRST, LAST, AFTER = EventPriority(0), EventPriority(2), EventPriority(3)

Process = Generator[simpy.Event, Any, None]


@dataclass
class TwinOutcome:
    """What `simulate` measured.

    ends      seconds at which each step ended
    moe_time  seconds from the router's end to the join, over all layers and steps
    busy      seconds each machine worked: "gpu" (dense parts too), "cpu", "link"
    copies    copies issued by kind; bytes, what they carried
    """

    ends: list[float] = field(default_factory=list)
    moe_time: float = 0.0
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("gpu", "cpu", "link"), 0.0))
    copies: dict[CopyKind, int] = field(default_factory=lambda: dict.fromkeys(CopyKind, 0))
    bytes: dict[CopyKind, int] = field(default_factory=lambda: dict.fromkeys(CopyKind, 0))


class Job(NamedTuple):
    """One unit to compute: it may start after `ready`, and `done` happens at its end."""

    unit: int
    tokens: int
    launch: float
    ready: simpy.Event
    done: simpy.Event
    landing: simpy.Event | None = None


class Ranked(simpy.Event):
    """A timeout with a rank among the events of its moment."""

    def __init__(self, env: simpy.Environment, delay: float, rank: EventPriority) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, rank, delay)


def simulate(workload: Workload, planner: Planner, charged: CostModel) -> TwinOutcome:
    """Run all steps of `workload` with a fresh planner; `charged` says what jobs and copies cost."""
    return _Machines(planner, charged).run(workload)


class _Machines:
    """The processes and what they share."""

    def __init__(self, planner: Planner, charged: CostModel) -> None:
        self.planner = planner
        self.charged = charged
        self.env = simpy.Environment()
        self.gpu_jobs = simpy.Store(self.env)
        self.cpu_jobs = simpy.Store(self.env)
        self.computing = False  # the CPU has a job
        self.copying = False  # the link has a copy
        self.cpu_left = 0  # CPU jobs of the layer step that have not started
        self.gpu_left: list[
            int
        ] = []  # units of the GPU jobs of the layer step that have not started, the next one last
        self.cpu_until = self.gpu_until = 0.0  # the end of the job under way
        self.landings: dict[tuple[int, int], simpy.Event] = {}  # of units that GPU jobs wait for
        self.in_layer = False  # between a begin and the moment at which both sides are done
        self.arrival = self.env.event()  # the end of the copy under way
        self.past = self.env.event().succeed()  # for what need not be waited for
        self.news = self.env.event()  # something happened after which the planner may have a copy
        self.outcome = TwinOutcome()

    def run(self, workload: Workload) -> TwinOutcome:
        for server in (self._link(), self._gpu(), self._cpu()):
            self.env.process(server)
        self.env.run(until=self.env.process(self._forward_passes(workload)))
        return self.outcome

    # ---- servers -----------------------------------------------------------------------------------

    def _link(self) -> Process:
        while True:
            yield Ranked(self.env, 0.0, LAST)
            copy = self.planner.next_copy() if self._may_copy() else None
            if copy is None:
                yield self.news
            else:
                yield from self._carry(copy)

    def _may_copy(self) -> bool:
        """Whether it is the link's turn, where GPU and link take turns."""
        return self.charged.copies_overlap or (self.in_layer and not self._gpu_works())

    def _carry(self, copy: Copy) -> Process:
        times = self.charged.copy_contended if self.computing else self.charged.copy
        time = float(times[copy.layer])
        self.outcome.copies[copy.kind] += 1
        self.outcome.bytes[copy.kind] += int(self.planner.shape.unit_bytes[copy.layer])
        self.outcome.busy["link"] += time
        self.copying, self.arrival = True, self.env.event()
        yield Ranked(self.env, time, FIRST)
        self.copying = False
        self.planner.landed(copy)
        self.arrival.succeed()
        landing = self.landings.pop((copy.layer, copy.unit), None)
        if landing is not None:
            landing.succeed(self.env.now)
        yield self.env.timeout(self.charged.overheads.issue_gap)

    def _gpu(self) -> Process:
        while True:
            job = yield self.gpu_jobs.get()
            yield job.ready
            if job.landing is not None:
                noticed = job.landing.value + self.charged.overheads.late_notice
                yield self.env.timeout(max(noticed - self.env.now, 0.0))
            contention = self.charged.contention
            time = float(self.charged.gpu[job.tokens])
            if self.copying:
                time *= contention.gpu_beside_copy
            if self.cpu_left or self.cpu_until > self.env.now:
                time *= contention.gpu_beside_cpu
            time += job.launch
            self.gpu_left.pop()
            self.gpu_until = self.env.now + time
            yield self.env.timeout(time)
            self.outcome.busy["gpu"] += time
            self.planner.computed(job.unit)
            job.done.succeed()
            self._tell_link()

    def _cpu(self) -> Process:
        while True:
            job = yield self.cpu_jobs.get()
            yield job.ready
            table = self.charged.cpu_contended if self.copying else self.charged.cpu
            time = float(table[job.tokens])
            if self._gpu_works():
                time *= self.charged.contention.cpu_beside_gpu
            time += job.launch
            self.cpu_left -= 1
            self.cpu_until = self.env.now + time
            self.computing = True
            yield self.env.timeout(time)
            self.computing = False
            self.outcome.busy["cpu"] += time
            job.done.succeed()

    def _gpu_works(self) -> bool:
        """Whether a unit is under way, or the next one need not wait for a copy."""
        view = self.planner.view
        resident = bool(self.gpu_left) and view.status[view.layer, self.gpu_left[-1]] == Status.RESIDENT
        return self.gpu_until > self.env.now or resident

    def _tell_link(self) -> None:
        self.news.succeed()
        self.news = self.env.event()

    # ---- the forward pass --------------------------------------------------------------------------

    def _forward_passes(self, workload: Workload) -> Process:
        for step in workload.steps(**self.planner.annotations):
            for layer in range(self.planner.shape.layers):
                yield from self._layer_step(step, layer)
            outside = self.charged.per_step(step.tokens, step.sequences, step.context)
            yield from self._work(outside)
            self.outcome.ends.append(self.env.now)

    def _work(self, time: float) -> Process:
        """A dense part, longer if a copy is under way once the link has asked for one."""
        slower = self.charged.contention.dense_beside_copy
        if slower > 1:
            yield Ranked(self.env, 0.0, AFTER)
            time *= slower if self.copying else 1
        self.outcome.busy["gpu"] += time
        yield self.env.timeout(time)

    def _layer_step(self, step: Step, layer: int) -> Process:
        env, overheads = self.env, self.charged.overheads
        dense = self.charged.dense(step.tokens, step.sequences, step.context)
        yield from self._work(dense)
        router_done = env.now
        yield env.timeout(overheads.readback + overheads.planning)
        plan = self.planner.begin(step.layer_step(layer))
        self.in_layer = True
        self._tell_link()
        workload = step.workload[layer]
        self.cpu_left = plan.cpu.size if plan.overlap and self.charged.parallel else 0
        gpu_done = self._submit_gpu(layer, plan, workload)
        if not (plan.overlap and self.charged.parallel):
            yield gpu_done
        cpu_side = env.process(self._cpu_side(plan, workload, step.tokens))
        yield gpu_done & cpu_side
        self.in_layer = False
        if self.copying and not self.charged.copies_overlap:
            yield self.arrival
        if plan.cpu.size:
            yield env.timeout(overheads.merge)
        self.outcome.moe_time += env.now - router_done
        self.planner.end()
        self._tell_link()

    def _submit_gpu(self, layer: int, plan: LayerPlan, workload: Ints) -> simpy.Event:
        """Queue the GPU jobs; the event of the last one's end."""
        overheads = self.charged.overheads
        for unit in plan.gpu.tolist():
            if self.planner.view.here[unit] != Status.RESIDENT:
                self.landings[layer, unit] = self.env.event()
        self.gpu_left = plan.gpu.tolist()[::-1]
        handed_over = self.past
        if plan.cpu.size and plan.gpu.size:
            handed_over = self.env.timeout(overheads.dispatch)
        done = self.past
        for place, unit in enumerate(plan.gpu.tolist()):
            landing = self.landings.get((layer, unit))
            launch = overheads.gpu_launch if landing or place == 0 else 0.0
            ready, done = handed_over & landing if landing else handed_over, self.env.event()
            self.gpu_jobs.put(Job(unit, int(workload[unit]), launch, ready, done, landing))
        return done

    def _cpu_side(self, plan: LayerPlan, workload: Ints, tokens: int) -> Process:
        """Activations to the CPU, its jobs, results back."""
        if plan.cpu.size == 0:
            return
        overheads = self.charged.overheads
        self.cpu_left = plan.cpu.size
        crossing = min(int(workload[plan.cpu].sum()), tokens)
        transfer = overheads.transfer_latency + crossing * overheads.transfer_per_token
        yield self.env.timeout(transfer)
        done = self.past
        for place, unit in enumerate(plan.cpu.tolist()):
            done = self.env.event()
            launch = overheads.cpu_launch if place == 0 else 0.0
            self.cpu_jobs.put(Job(unit, int(workload[unit]), launch, self.past, done))
        yield done
        yield self.env.timeout(transfer)
