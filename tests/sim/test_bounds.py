"""No policy beats the bound, and where the optimum is known by hand the bound reaches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali import conf
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make, make_policy
from dali.policies.assign.fixed import AllCPU, AllGPU
from dali.policies.cache.base import Cache
from dali.policies.cache.classic import Belady
from dali.policies.cache.fixed import Static
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.costs.roofline import roofline
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.predicted import OraclePrefetch
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Bools, Capacity, InputError, Ints, Shape
from dali.policies.view import LayerView
from dali.sim.bounds import lower_bound
from dali.sim.engine import Engine, Simulation
from dali.sim.relaxation import Prices, Relaxation
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace
from dali.traces.workload import Workload

SEEDS = st.integers(0, 2**32 - 1)
ROUNDED = 1 + 1e-9
ROUNDS = 15
POLICIES = sorted(path.stem for path in (Path(conf.__file__).parent / "policy").glob("*.yaml"))


def seconds(simulation: Simulation, phase: str) -> float:
    columns = simulation.columns
    return float((columns["end"] - columns["start"])[columns["phase"] == phase].sum())


def check(workload: Workload, slots: int, charged: CostModel, found: Simulation, rounds: int = ROUNDS) -> None:
    """What `Bound` promises, against one simulation."""
    bound = lower_bound(workload, slots, charged, rounds)
    assert bound.seconds <= found.columns["end"][-1] * ROUNDED
    for phase, least in bound.phases.items():
        assert least <= seconds(found, phase) * ROUNDED
    assert np.all(bound.steps <= (found.columns["end"] - found.columns["start"]) * ROUNDED)
    assert list(bound.relaxations.values()) == sorted(bound.relaxations.values())
    assert bound.relaxations["contention"] == bound.seconds == pytest.approx(bound.serial + bound.moe)


# ---- no policy is faster ---------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=SEEDS)
def test_random_policies(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene = random_scene(seed)
    planner = scene.planner()
    check(scene.workload, planner.slots, scene.charged, Engine(planner, scene.charged).run(scene.workload))


@settings(max_examples=150)
@given(seed=SEEDS)
def test_any_prices_give_a_bound(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene, rng = random_scene(seed), np.random.default_rng(seed)
    planner = scene.planner()
    end = Engine(planner, scene.charged).run(scene.workload).columns["end"][-1]
    relaxation = Relaxation(list(scene.workload.steps()), planner.slots, scene.charged)
    spread = rng.choice([0.03, 1.0, 30.0])
    for _ in range(4):
        machines = rng.dirichlet(rng.uniform(0.1, 3, 3) * spread, relaxation.size).T
        slot = rng.exponential(rng.uniform(0, 0.5), relaxation.size) * (rng.random(relaxation.size) < rng.random())
        prices = Prices(*np.ascontiguousarray(machines), slot, float(rng.choice([0.0, 0.1, 1.0]) * rng.random()))
        assert relaxation.value(prices)[0] <= end * ROUNDED


class Greedy:
    """Moves units to the GPU, best ratio of times first, until it would be the slower side."""

    overlap = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        self.weight = rng.uniform(0, 1)

    def assign(self, view: LayerView) -> Bools:
        copied = np.where(view.here == 0, view.copy_time * self.weight, 0.0)
        chosen = np.zeros(view.workload.size, np.bool_)
        gpu, cpu = 0.0, float(view.cpu_time.sum())
        for unit in np.argsort((view.gpu_time + copied) / np.maximum(view.cpu_time, 1e-9)):
            if gpu + view.gpu_time[unit] + copied[unit] <= cpu and view.workload[unit] > 0:
                chosen[unit] = True
                gpu += view.gpu_time[unit] + copied[unit]
                cpu -= view.cpu_time[unit]
        return chosen


class Restless(Cache):
    """Admits, evicts and exchanges at random."""

    def admit(self, view: LayerView, unit: int) -> bool:
        return bool(self.rng.random() < 0.7)

    def victim(self, view: LayerView, unit: int, candidates: Ints) -> int | None:
        return int(self.rng.choice(candidates))

    def swaps(self, view: LayerView) -> Ints:
        status, state = view.status.ravel(), view.state
        group = state.group_of[view.layer]
        staying = np.flatnonzero((status == 2) & (state.group[state.slot] == group) & (state.slot >= 0))
        absent = np.flatnonzero((status == 0) & (state.group_of[np.arange(status.size) // view.shape.units] == group))
        n = min(2, staying.size, absent.size)
        pairs = [self.rng.choice(absent, n, replace=False), self.rng.choice(staying, n, replace=False)]
        return np.stack(pairs, axis=1).astype(np.int32)


@settings(max_examples=40)
@given(seed=SEEDS, foresight=st.booleans(), scope=st.sampled_from(("layer", "global")))
def test_foresight_and_restlessness(seed: int, foresight: bool, scope: str, random_scene: Callable[[int], Any]) -> None:
    """True hints, Belady's cache and many staging slots; or a cache that never rests."""
    scene = random_scene(seed)
    shape, layers = scene.shape, scene.shape.layers
    cache = Belady(scope, "random") if foresight else Restless(scope, "random")
    policy = Policy("test", Greedy(), OraclePrefetch(3, layers - 1), cache, staging=2 + seed % 9)
    capacity = Capacity.in_units(layers + seed % (shape.units * layers), scope, layers)
    planner = Planner(policy, shape, capacity, scene.charged, seed)
    check(scene.workload, planner.slots, scene.charged, Engine(planner, scene.charged).run(scene.workload))


@pytest.fixture(scope="module")
def small_model(random_trace: Callable[..., Trace]) -> tuple[list[str], Workload]:
    """Overrides for a Qwen3-like model of 4 layers x 16 experts, and prefill and decode of 3 sequences."""
    trace = random_trace(0, (24, 24, 24), 4, 16, 3)
    for source in ("gate", "residual"):
        trace = trace.with_predictor(source, 0.8, np.random.default_rng(1), ahead=3)
    overrides = ["model.layers=4", "model.experts=16", "model.top_k=3"]
    return overrides, Workload.from_trace(trace, 3, 8, 12)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_conf(name: str, small_model: tuple[list[str], Workload]) -> None:
    overrides, workload = small_model
    config = configuration("compare", overrides)
    model, platform = make(config.model, "model"), make(config.platform, "platform")
    _, policy = make_policy("compare", overrides, name)
    charged = roofline(model, platform, workload.max_tokens, attention_on=policy.attention_on)
    popularity = np.random.default_rng(0).random((4, 16))
    shape = Shape(4, 16, np.full(4, model.unit_bytes(), np.int64), popularity)
    slots = 28
    capacity = Capacity.in_units(slots - policy.staging, policy.cache.scope, 4)
    found = Engine(Planner(policy, shape, capacity, charged), charged).run(workload)
    check(workload, slots, charged, found, rounds=60)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_memory_for_all_units_leaves_the_split(seed: int, random_scene: Callable[[int], Any]) -> None:
    """With every unit resident no price can lift the bound above the best split of each layer step."""
    scene = random_scene(seed)
    bound = lower_bound(scene.workload, scene.shape.layers * scene.shape.units, scene.charged, ROUNDS)
    assert bound.seconds == pytest.approx(bound.relaxations["compute"], rel=1e-9)
    assert bound.steps.sum() == pytest.approx(bound.seconds, rel=1e-9)


# ---- by hand ---------------------------------------------------------------------------------------

FREE = CostModel(
    cpu=np.array([0.0, 1000, 1000]),
    cpu_contended=np.array([0.0, 1000, 1000]),
    gpu=np.array([0.0, 2, 3]),
    copy=np.full(2, 10.0),
    copy_contended=np.full(2, 10.0),
    overheads=Overheads(),
    dense=lambda tokens, sequences, context: 5.0,
    per_step=lambda tokens, sequences, context: 7.0,
)


def counted(counts: Any, tokens: int) -> Workload:
    array = np.array(counts, np.int32)
    metadata = Metadata("test", array.shape[1], array.shape[2], top_k=array.shape[2])
    return Workload.from_counts(array, np.full(len(array), tokens, np.int32), metadata)


def simulate(workload: Workload, assignment: Any, cached: int, charged: CostModel) -> tuple[float, int]:
    """End of a run whose `cached` units are resident from the start, and the slots it had."""
    layers, units = workload.layers, workload.units
    shape = Shape(layers, units, np.ones(layers, np.int64), np.tile(np.arange(units, 0, -1.0), (layers, 1)))
    policy = Policy("test", assignment, NoPrefetch(), Static("layer", "popular"))
    planner = Planner(policy, shape, Capacity.in_units(cached, "layer", layers), charged)
    return float(Engine(planner, charged).run(workload).columns["end"][-1]), planner.slots


def test_all_resident_and_a_fast_gpu_by_hand() -> None:
    # Two steps of two layers; GPU 3 + 2 and 2 + 2 + 2; dense 5 a layer, 7 a step: 2 * (2 * 5 + 7 + 5 + 6).
    workload = counted([[[2, 1, 0], [1, 1, 1]]] * 2, 2)
    end, slots = simulate(workload, AllGPU(), 6, FREE)
    bound = lower_bound(workload, slots, FREE)
    assert (bound.seconds, end, bound.serial) == pytest.approx((56, 56, 34))
    assert bound.steps.tolist() == pytest.approx([28, 28])
    assert bound.phases == pytest.approx({"prefill": 56})


def test_cpu_only_by_hand() -> None:
    # A GPU job takes longer than everything: the CPU runs 4 + 8 after 1 + 2 * 0.5 to cross, and 2 back, 2 to merge: 18
    # a layer; dense 5, read-back and planning 3.
    over = Overheads(readback=1, planning=2, issue_gap=1, transfer_latency=1, transfer_per_token=0.5, merge=2)
    slow = replace(
        FREE,
        cpu=np.array([0.0, 4, 8]),
        cpu_contended=np.array([0.0, 6, 12]),
        gpu=np.array([0.0, 900, 900]),
        overheads=over,
    )
    workload = counted([[[2, 1, 0], [1, 0, 2]]], 2)
    end, slots = simulate(workload, AllCPU(), 2, slow)
    bound = lower_bound(workload, slots, slow)
    assert (bound.seconds, end) == pytest.approx((2 * (5 + 3 + 18) + 7, 2 * (5 + 3 + 18) + 7))
    assert bound.relaxations["serial"] == pytest.approx(2 * 8 + 7)


@pytest.mark.parametrize(("most_splits", "least"), [(512, 5.0), (0, 27 / 7)])
def test_the_merge_follows_both_sides_by_hand(monkeypatch: Any, most_splits: int, least: float) -> None:
    # Two units, CPU 4, GPU 3, merge 1.  Whole: one on each side, max(4, 3) + 1, against 6 on the GPU alone and 8 + 1.
    # In fractions, x of both on the CPU: max(8 x, 6 - 6 x) + x is least at x = 3 / 7.
    monkeypatch.setattr("dali.sim.relaxation.MOST_SPLITS", most_splits)
    charged = replace(bare(1, 1, 1, cpu=[0, 4], cpu_contended=[0, 4], gpu=[0, 3]), overheads=Overheads(merge=1))
    with np.errstate(divide="ignore"):
        bound = lower_bound(counted([[[1, 1]]], 1), 4, charged, ROUNDS)
    assert bound.seconds == pytest.approx(least, rel=1e-9)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_the_best_split_attains_the_floor(seed: int) -> None:
    """One layer step, all resident: the best of all splits, simulated, takes exactly the bound."""
    rng = np.random.default_rng(seed)
    tokens, units = 5, 6
    cpu, gpu = np.cumsum(rng.uniform(0, 2, (2, tokens)), axis=1)
    charged = bare(1, 1, 1, cpu=[0, *cpu], cpu_contended=[0, *(2 * cpu)], gpu=[0, *gpu])
    charged = replace(charged, overheads=Overheads(*rng.random(6)))
    workload = counted([[rng.integers(0, tokens + 1, units)]], tokens)
    splits = [split for n in range(units + 1) for split in combinations(range(units), n)]

    class Chosen(AllGPU):
        def __init__(self, units: tuple[int, ...]) -> None:
            self.chosen = list(units)

        def assign(self, view: LayerView) -> Bools:
            return np.isin(np.arange(view.workload.size), self.chosen)

    ends = [simulate(workload, Chosen(split), units, charged)[0] for split in splits]
    assert lower_bound(workload, units + 2, charged, ROUNDS).seconds == pytest.approx(min(ends), rel=1e-9)


def bare(layers: int, copy: float, beside: float, **tables: list[float]) -> CostModel:
    """Costs where only copies (`beside` the CPU at work) and what `tables` says take time."""
    free = lambda *_: 0.0  # noqa: E731
    copies = {"copy": np.full(layers, copy, np.float64), "copy_contended": np.full(layers, beside, np.float64)}
    arrays = {name: np.array(table, np.float64) for name, table in tables.items()}
    return replace(FREE, dense=free, per_step=free, **copies, **arrays)


def test_copies_that_memory_forces_by_hand() -> None:
    # Four units, all used in each of 12 steps, on the GPU (the CPU takes 1000); 3 slots.  When a step begins at most 3
    # units own a slot, so at least one copy of 10 falls within each step: 120.  It is enough: nothing else takes time,
    # the CPU is idle, and the copy of one step overwrites what was computed first.
    bound = lower_bound(counted([[[1, 1, 1, 1]]] * 12, 1), 3, bare(1, 10, 20, gpu=[0, 0, 0]), rounds=1000)
    assert 0.97 * 120 <= bound.seconds <= 120 * ROUNDED
    assert bound.relaxations["compute"] == 0


def test_copies_hidden_behind_another_layer_by_hand() -> None:
    # Layer 0 keeps the CPU busy for 1000 (the GPU would take 9000).  Meanwhile two copies of 100 bring what layer 1
    # needs next into the two slots: units 0 and 1, or 2 and 3, in turn.  So 1000 a step is enough.
    charged = bare(2, 100, 100, cpu=[0, 900, 1000], cpu_contended=[0, 900, 1000], gpu=[0, 0, 9000])
    in_turn = [[[2, 0, 0, 0], [1, 1, 0, 0]], [[2, 0, 0, 0], [0, 0, 1, 1]]]
    bound = lower_bound(counted(in_turn * 4, 2), 2, charged, rounds=500)
    assert bound.seconds == pytest.approx(8 * 1000, rel=1e-9)


def test_copies_slow_the_cpu_down_by_hand() -> None:
    # The first of these with two more units of 1 token, which the CPU takes: 3 each, or 8 beside a copy.  Best is a job
    # that starts at the same moment as the copy, which is not slowed down, and then one that is: 3 + 8 = 11 a step.
    # The bound may shorten the second by as much as it keeps the link idle: 3 y longer for the link, 5 y shorter for
    # the CPU, 10 + 3 y = 11 - 5 y, 10.375.  If copies did not slow the CPU down, 10 would do.
    charged = bare(1, 10, 10, cpu=[0, 3, 1000], cpu_contended=[0, 8, 1000], gpu=[0, 0, 0])
    bound = lower_bound(counted([[[2, 2, 2, 2, 1, 1]]] * 50, 2), 3, charged, rounds=1000)
    assert bound.relaxations["link"] <= 500 * ROUNDED
    assert 1.01 * 500 <= bound.seconds <= 1.0375 * 500 * ROUNDED


# ---- bad input -------------------------------------------------------------------------------------


def test_bad_input() -> None:
    workload = counted([[[2, 1, 0], [1, 1, 1]]], 2)
    with pytest.raises(InputError, match="found -1 slots and 120 rounds, expected at least 0"):
        lower_bound(workload, -1, FREE)
    short = {name: np.array([0.0, 1]) for name in ("cpu", "cpu_contended", "gpu")}
    with pytest.raises(InputError, match="covers workloads up to 1 tokens, found 2"):
        lower_bound(workload, 6, replace(FREE, **short))
    with pytest.raises(InputError, match="copy times of 1 layers, expected 2"):
        lower_bound(workload, 6, replace(FREE, copy=np.ones(1), copy_contended=np.ones(1)))
