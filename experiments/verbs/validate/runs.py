"""One policy on one setting, run by the executor and simulated on what it recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.experiments.scene import expert_popularity
from dali.experiments.settings.gpu_memory import slots_of, units_that_stay
from dali.experiments.verbs.validate.sides import EXACT, Side
from dali.policies.costs.measured import Geometry, Profile
from dali.policies.costs.model import CostModel
from dali.policies.planner import Planner, Policy, replay_log
from dali.policies.types import Shape
from dali.runtime.calibrate.calibration import geometry_of
from dali.runtime.calibrate.forward import passes
from dali.runtime.calibrate.probe import CPU, GPU, Every, Part, Probe
from dali.runtime.device.arena import Arena
from dali.runtime.execute.layer_steps import ForcedRouting, ForcedSteps
from dali.runtime.execute.offload import Offload
from dali.runtime.model.layout import unit_layout
from dali.runtime.model.moe_layers import moe_layers
from dali.sim.engine import Engine
from dali.sim.timeline import Spans
from dali.traces.trace import Trace
from dali.traces.workload import Workload

# Layer steps that `speed` looks at.
SHOTS = 9
# The first round warms kernels, threads and caches up; the last one is timed.  Both are simulated.
ROUNDS = 2


@dataclass(frozen=True)
class Setting:
    """What is the same for all policies of one comparison: batch, and the share of the units that fits the GPU."""

    batch: int
    cache_share: float

    def __str__(self) -> str:
        return f"batch {self.batch}, cache {self.cache_share:g}"


@dataclass(frozen=True)
class Machine:
    """A model on a device, and what was measured of them."""

    model: Any
    arena: Arena
    profile: Profile
    slices: int
    cpu_threads: int | None

    @property
    def geometry(self) -> Geometry:
        """Of the model's units."""
        return Geometry(**geometry_of(unit_layout(moe_layers(self.model)[0], self.slices)))


@dataclass(frozen=True)
class Cut:
    """Which of a trace's tokens run."""

    trace: Trace
    prompt: int
    generate: int
    chunk: int | None
    seed: int

    def routing(self, batch: int) -> ForcedRouting:
        """For the executor."""
        return ForcedRouting(
            self.trace, batch=batch, prompt=self.prompt, generate=self.generate, chunk=self.chunk, seed=self.seed
        )


@dataclass(frozen=True)
class RanAndSimulated:
    """A policy on a setting: repeats of what ran, and what was simulated.

    drift     position in the executor's log where a fresh planner answers otherwise; None = nowhere
    routing   whether the recorded routing is the one that was forced
    planning  seconds charged for the planner in a layer step; forced: for looking the routing up, in a step
    """

    policy: str
    setting: Setting
    ran: list[Side]
    simulated: Side
    drift: int | None
    routing: bool
    planning: float
    forced: float
    layers: int


def capacity_units(machine: Machine, setting: Setting, policy: Policy, shape: Shape) -> int:
    """Slots for what stays, of the setting's share of all units; InputError if the staging area leaves none."""
    units = shape.layers * shape.units
    slots = slots_of(setting.cache_share, units, "cache_share")
    return units_that_stay(policy.name, policy.staging, slots, units, "cache_share")


def assess(
    machine: Machine, cut: Cut, setting: Setting, name: str, make: Any, offloads: list[Offload]
) -> RanAndSimulated:
    """Simulate what the repeats of a policy ran; `make` gives a fresh policy object for each planner."""
    routing = cut.routing(setting.batch)
    workload = routing.workload(machine.slices)
    first = offloads[0]
    forced = forced_seconds(first, cut, setting, routing, machine)
    believed = first.planner.view.cost

    def fresh() -> Planner:
        return Planner(make(), first.shape, first.capacity, believed, cut.seed, log=True)

    planning = planning_seconds(fresh(), workload)
    charged = _charged(machine, first.shape, workload.max_tokens, planning, forced)
    live, same = _recorded(first, cut, workload)
    return RanAndSimulated(
        policy=name,
        setting=setting,
        ran=[_ran(each) for each in offloads],
        simulated=_simulate(fresh(), charged, live, cut, setting, machine.slices),
        drift=replay_log(first.log, fresh()),
        routing=same,
        planning=planning,
        forced=forced,
        layers=first.shape.layers,
    )


def costs(machine: Machine, shape: Shape, max_tokens: int, planning: float | None = None) -> CostModel:
    """What the profile says of this model."""
    sizes = shape.unit_bytes.tolist()
    return machine.profile.costs(machine.geometry, sizes, max_tokens, planning)


def _charged(machine: Machine, shape: Shape, max_tokens: int, planning: float, forced: float) -> CostModel:
    found = costs(machine, shape, max_tokens, planning)

    def per_step(tokens: int, sequences: int, context: float) -> float:
        return found.per_step(tokens, sequences, context) + forced

    return replace(found, per_step=per_step)


def execute(machine: Machine, cut: Cut, setting: Setting, policy: Policy) -> Offload:
    """Run all rounds; the offload is detached."""
    routing = cut.routing(setting.batch)
    popularity, _ = expert_popularity(cut.trace, routing.workload(machine.slices))
    layers = moe_layers(machine.model)
    units = layers[0].count * machine.slices
    sizes = np.array([unit_layout(layer, machine.slices).unit_bytes for layer in layers], np.int64)
    shape = Shape(len(layers), units, sizes)
    run = Offload(
        machine.model,
        policy,
        capacity=capacity_units(machine, setting, policy, shape),
        device=machine.arena,
        slices=machine.slices,
        believed=costs(machine, shape, routing.workload(machine.slices).max_tokens),
        popularity=popularity,
        routing=routing,
        seed=cut.seed,
        log=True,
        record=Every(),
        cpu_threads=machine.cpu_threads,
    )
    with run:
        for _ in range(ROUNDS):
            steps = passes(machine.model, machine.arena.device, setting.batch, cut.prompt, cut.generate + 1, cut.chunk)
            for _, _ in zip(range(routing.workload(1).n_steps), steps, strict=False):
                pass
        machine.arena.synchronize()
    return run


def _ran(run: Offload) -> Side:
    columns = run.columns()
    last = len(columns["step"]) // ROUNDS * (ROUNDS - 1)
    return _side(columns, last, Spans(*run.spans()), run.log)


def _side(columns: dict[str, NDArray[Any]], last: int, spans: Spans, log: list[tuple[Any, ...]]) -> Side:
    """The last round of a run, by the row it begins at; decisions and counts of all."""
    begin = columns["start"][last]
    kept = spans.time[:, 1] > begin
    decisions = [
        (entry[1].step, entry[1].layer, sorted(entry[2]), sorted(entry[3])) for entry in log if entry[0] == "begin"
    ]
    return Side(
        columns={name: values[last:] for name, values in columns.items()},
        spans=Spans(spans.time[kept], spans.what[kept]),
        decisions=decisions,
        counts={name: int(columns[name].sum()) for name in (*EXACT, "late")},
    )


def _recorded(run: Offload, cut: Cut, workload: Workload) -> tuple[Trace, bool]:
    """The live trace with the predictors of the forced one, and whether it holds the routing that was forced."""
    live, source = run.trace(), cut.trace
    length = cut.prompt + cut.generate
    rows = np.concatenate([int(source.starts[s]) + offset + np.arange(length) for s, offset in workload.sequences])
    rows = np.tile(rows, ROUNDS)
    same = np.array_equal(live.experts, source.experts[rows])
    predicted = {name: source.predicted[name][rows] for name in source.predicted}
    return replace(live, predicted=predicted), same


def _simulate(planner: Planner, charged: CostModel, live: Trace, cut: Cut, setting: Setting, slices: int) -> Side:
    engine = Engine(planner, charged)
    rounds = []
    for number in range(ROUNDS):
        workload = Workload.from_trace(
            live,
            setting.batch,
            cut.prompt,
            cut.generate,
            sequences=range(number * setting.batch, (number + 1) * setting.batch),
            chunk=cut.chunk,
            slices=slices,
        )
        # Spans of one engine add up over its runs.
        rounds.append(engine.run(workload, record=Every()))
    columns = {name: np.concatenate([each.columns[name] for each in rounds]) for name in rounds[0].columns}
    last = len(columns["step"]) // ROUNDS * (ROUNDS - 1)
    # Copies of the round before reach into the next: `_side` keeps them.
    return _side(columns, last, rounds[-1].spans, planner.log or [])


def speed(machine: Machine) -> dict[str, float]:
    """Seconds of a unit of one token on each side now, over what the profile says: how far the machine has moved."""
    profile, found = machine.profile, {}
    launches = {CPU: profile.overheads.cpu_launch, GPU: profile.overheads.gpu_launch}
    with Probe(machine.model, machine.arena, machine.slices, machine.cpu_threads, SHOTS) as probe:
        for side, curve in ((CPU, profile.cpu), (GPU, profile.gpu)):
            spans = [getattr(probe.shoot((Part(side, probe.top, 1),)), side) for _ in range(SHOTS)]
            expected = launches[side] + probe.top * machine.slices * float(curve(1))
            found[side] = float(np.median(spans)) / expected
    return found


# ---- what the simulator cannot know ----------------------------------------------------------------


def planning_seconds(planner: Planner, workload: Workload) -> float:
    """Median seconds of the planner's calls on the way of a layer step, alone: `begin`, two copies, `end`."""
    times = []
    for step in workload.steps(**planner.annotations):
        for layer in range(workload.layers):
            layer_step = step.layer_step(layer)
            start = perf_counter()
            plan = planner.begin(layer_step)
            copies = [planner.next_copy(), planner.next_copy()]
            spent = perf_counter() - start
            while any(copies):
                for copy in copies:
                    if copy is not None:
                        planner.landed(copy)
                        if copy.layer == layer and copy.unit in plan.gpu:
                            planner.computed(copy.unit)
                copies = [planner.next_copy()]
            start = perf_counter()
            planner.end()
            times.append(spent + perf_counter() - start)
    return float(np.median(times))


def forced_seconds(run: Offload, cut: Cut, setting: Setting, routing: ForcedRouting, machine: Machine) -> float:
    """Median seconds of looking a step's routing up in the trace, alone: a live run does not do that."""
    steps = ForcedSteps(routing, run.planner.annotations, machine.slices, machine.arena.device)
    sizes = [step.tokens for step in routing.workload(1).steps()]
    times = []
    for number, tokens in enumerate(sizes):
        start = perf_counter()
        steps.begin(tokens, fresh=number == 0)
        machine.arena.synchronize()
        times.append(perf_counter() - start)
    return float(np.median(times))
