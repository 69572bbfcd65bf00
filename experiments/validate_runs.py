"""One policy on one setting, run by the executor and simulated on what it recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import build
from policies.cost import CostModel
from policies.measured import Geometry, Profile
from policies.planner import Planner, Policy, replay_log
from policies.types import Floats, InputError, Shape
from runtime.arena import Arena
from runtime.calibrate import geometry_of
from runtime.calibrate_forward import passes
from runtime.calibrate_probe import CPU, GPU, Every, Part, Probe
from runtime.layer_steps import ForcedRouting, ForcedSteps
from runtime.layout import unit_layout
from runtime.moe_layers import moe_layers
from runtime.offloading import Offload
from sim.engine import Engine
from sim.timeline import DENSE, LANE_CPU, LANE_GPU, LANE_LINK, Spans
from traces.trace import Trace
from traces.workload import Workload

# Layer steps that `speed` looks at.
SHOTS = 9
# The first round warms kernels, threads and caches up; the last one is timed.  Both are simulated.
ROUNDS = 2
KINDS = ("demand", "prefetch", "swap")
COUNTED = ("lookups", "hits", "gpu_units", "cpu_units")
EXACT = (*COUNTED, *(f"bytes_{kind}" for kind in KINDS), *(f"copies_{kind}" for kind in KINDS))
TERMS = ("dense part", "GPU units", "CPU units", "link", "all waiting")

Decisions = list[tuple[int, int, list[int], list[int]]]


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
class Side:
    """One round, as it ran or as it was simulated.

    columns    one array a column, an entry a step: see `sim.engine.Simulation`
    spans      of all its steps, on the clock of the columns
    decisions  (step, layer, CPU units, GPU units) of every layer step of all rounds, units sorted
    counts     `EXACT` and "late" of all rounds
    """

    columns: dict[str, NDArray[Any]]
    spans: Spans
    decisions: Decisions
    counts: dict[str, int]

    def seconds(self, phase: str) -> Floats:
        """Of each step of a phase."""
        chosen = self.columns["phase"] == phase
        found: Floats = (self.columns["end"] - self.columns["start"])[chosen]
        return found

    def layer_seconds(self, phase: str) -> Floats:
        """Of each layer step of a phase, from join to join; the last of a step, which has no next, is left out."""
        what, time = self.spans.what, self.spans.time
        dense = what[:, 3] == DENSE
        steps = self.columns["step"][self.columns["phase"] == phase]
        found = [np.diff(np.sort(time[dense & (what[:, 1] == step), 0])) for step in steps.tolist()]
        return np.concatenate(found) if found else np.zeros(0)

    def terms(self, phase: str) -> dict[str, float]:
        """Busy seconds of each machine in a step of a phase, on average.

        dense part   of the step, outside layer steps; all waiting: in layer steps, while no machine works for them
        """
        found = dict.fromkeys(TERMS, 0.0)
        columns = self.columns
        chosen = np.flatnonzero(columns["phase"] == phase)
        for row in chosen.tolist():
            start, end = columns["start"][row], columns["end"][row]
            inside = (self.spans.time[:, 0] >= start - 1e-9) & (self.spans.time[:, 0] < end)
            time, what = self.spans.time[inside], self.spans.what[inside]
            lane, unit = what[:, 0], what[:, 3]
            length = time[:, 1] - time[:, 0]
            units = (lane == LANE_GPU) & (unit >= 0)
            dense = end - start - columns["moe_time"][row]
            found["dense part"] += dense
            found["GPU units"] += length[units].sum()
            found["CPU units"] += length[lane == LANE_CPU].sum()
            found["link"] += length[lane >= LANE_LINK].sum()
            working = units | (lane == LANE_CPU) | (lane == LANE_LINK)
            found["all waiting"] += max(columns["moe_time"][row] - covered(time[working]), 0.0)
        return {name: float(value) / max(len(chosen), 1) for name, value in found.items()}


def covered(spans: Floats) -> float:
    """Seconds during which some span runs; float64 [n, 2]."""
    total, until = 0.0, -np.inf
    for start, end in spans[np.argsort(spans[:, 0], kind="stable")].tolist():
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


@dataclass(frozen=True)
class Outcome:
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
    """Slots for what stays: the setting's share of all units, less the policy's staging area."""
    slots = round(setting.cache_share * shape.layers * shape.units)
    if slots <= policy.staging:
        raise InputError(
            f"policy {policy.name}: found GPU memory for {slots} units, expected more than its staging area of "
            f"{policy.staging} (cache_share)"
        )
    return slots - policy.staging


def assess(machine: Machine, cut: Cut, setting: Setting, name: str, make: Any, offloads: list[Offload]) -> Outcome:
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
    return Outcome(
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
    popularity, _ = build.expert_popularity(cut.trace, routing.workload(machine.slices))
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


# ---- decisions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far two runs of one planner's policy agree.

    layer_steps, differing  how many there are, and in how many some unit is elsewhere
    first                   the first of these in words; "" if there is none
    counts                  name: (ran, simulated) of what differs in total
    """

    layer_steps: int
    differing: int
    first: str
    counts: dict[str, tuple[int, int]]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differing and not self.counts


def agreement(ran: Side, simulated: Side) -> Agreement:
    """Assignments of every layer step, and totals of hits, bytes and copies by kind."""
    if len(ran.decisions) != len(simulated.decisions):
        raise RuntimeError(f"found {len(ran.decisions)} layer steps, simulated {len(simulated.decisions)}")
    differing, first = 0, ""
    for number, (mine, theirs) in enumerate(zip(ran.decisions, simulated.decisions, strict=True)):
        if mine != theirs:
            differing += 1
            first = first or _difference(number, ran.decisions, mine, theirs)
    counts = {
        name: (ran.counts[name], simulated.counts[name]) for name in EXACT if ran.counts[name] != simulated.counts[name]
    }
    return Agreement(len(ran.decisions), differing, first, counts)


def _difference(number: int, decisions: Decisions, mine: Any, theirs: Any) -> str:
    step, layer, _, on_gpu = mine
    round_ = sum(1 for each in decisions[:number] if each[:2] == (step, layer))
    if mine[:2] != theirs[:2]:
        return f"round {round_}: ran step {step}, layer {layer}; simulated step {theirs[0]}, layer {theirs[1]}"
    only_ran, only_simulated = (sorted(set(a) - set(b)) for a, b in ((on_gpu, theirs[3]), (theirs[3], on_gpu)))
    place = f"round {round_}, step {step}, layer {layer}"
    return f"{place}: on the GPU only as run {only_ran}, only as simulated {only_simulated}"


def has_early_copies(sides: Sequence[Side]) -> bool:
    """Whether some copy was no demand copy: then what is resident when a layer step begins depends on times."""
    return any(side.counts["copies_prefetch"] + side.counts["copies_swap"] > 0 for side in sides)
