"""The simulator: a timeline worked out by hand, and what holds for every run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.assign.fixed import AllCPU, AllGPU
from dali.policies.assign.greedy import Greedy
from dali.policies.assign.hybrimoe import HybriMoE
from dali.policies.cache.base import Cache
from dali.policies.cache.fixed import Static
from dali.policies.cache.workload import WorkloadAware
from dali.policies.columns import DENSE, LANE_GPU, LANE_LINK, LANES, METRICS
from dali.policies.core.state import NONE
from dali.policies.costs.model import Contention, CostModel, Overheads
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.gain import GainPrefetch
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Bools, Capacity, CopyKind, InputError, Ints, Shape
from dali.policies.view import AssignmentPolicy, LayerView, PrefetchPolicy
from dali.sim.engine import Engine, Simulation
from dali.sim.timeline import Spans, check_exclusive
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace
from dali.traces.workload import Workload

SEEDS = st.integers(0, 2**32 - 1)


# ---- by hand ---------------------------------------------------------------------------------------


class Scripted:
    """Assignment and prefetch policy in one: GPU units and hints as given for each layer."""

    source: str | None = None
    ahead = 0

    def __init__(self, gpu: list[set[int]], hints: list[list[tuple[int, int]]], overlap: bool = True) -> None:
        self.gpu, self.hints, self.overlap = gpu, hints, overlap

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        self.units = shape.units

    def assign(self, view: LayerView) -> Bools:
        return np.isin(np.arange(self.units), list(self.gpu[view.layer]))

    def rank(self, view: LayerView) -> Ints:
        return np.array(self.hints[view.layer], np.int32).reshape(-1, 2)


COSTS = CostModel(
    cpu=np.array([0.0, 4, 8]),
    cpu_contended=np.array([0.0, 6, 12]),
    gpu=np.array([0.0, 2, 3]),
    copy=np.array([10.0, 10]),
    copy_contended=np.array([14.0, 14]),
    overheads=Overheads(readback=1, planning=2, issue_gap=1, transfer_latency=1, transfer_per_token=0.5, merge=2),
    dense=lambda tokens, sequences, context: 5.0,
    per_step=lambda tokens, sequences, context: 7.0,
)


QUICK = replace(COSTS, dense=lambda tokens, sequences, context: 3.0)
ONE_LAYER = replace(
    COSTS,
    copy=COSTS.copy[:1],
    copy_contended=COSTS.copy_contended[:1],
    overheads=Overheads(),
    per_step=lambda tokens, sequences, context: 0.0,
)


def counted(counts: Any, tokens: int) -> Workload:
    """Steps of `tokens` tokens with workloads counts [steps, L, U]."""
    array = np.array(counts, np.int32)
    metadata = Metadata("test", array.shape[1], array.shape[2], top_k=array.shape[2])
    return Workload.from_counts(array, np.full(len(array), tokens, np.int32), metadata)


def make_planner(
    workload: Workload,
    assignment: AssignmentPolicy,
    prefetch: PrefetchPolicy,
    cache: Cache,
    slots: int,
    believed: CostModel,
    staging: int = 3,
) -> Planner:
    """Units take 100, 200, ... bytes by layer, and unit 0 of every layer is the most popular."""
    layers, units = workload.layers, workload.units
    popularity = np.tile(np.arange(units, 0, -1.0), (layers, 1))
    shape = Shape(layers, units, 100 * np.arange(1, layers + 1, dtype=np.int64), popularity)
    policy = Policy("test", assignment, prefetch, cache, staging)
    return Planner(policy, shape, Capacity.in_units(slots, cache.scope, layers), believed, log=True)


def run(planner: Planner, charged: CostModel, workload: Workload) -> Simulation:
    """Simulate and record every step."""
    return Engine(planner, charged).run(workload, record=range(workload.n_steps))


def timeline(simulation: Simulation) -> list[tuple[str, int, int, float, float]]:
    """(lane, layer, unit, start, end) by lane, then start."""
    spans = simulation.spans
    rows = [
        (LANES[lane], layer, unit, start, end)
        for (lane, _, layer, unit, _, _), (start, end) in zip(spans.what.tolist(), spans.time.tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: (LANES.index(row[0]), row[3]))


def two_layers(overlap: bool) -> tuple[Planner, Workload]:
    """One step of 2 tokens.  Unit 0 of each layer stays resident; three staging slots, two of them kept for demand.

    Layer 0: 0 (2 tokens, resident), 1 and 2 (1 token, copied) on the GPU, 3 (2 tokens) on the CPU; a hint for unit 2
    of layer 1.  Layer 1: 0 (1 token, resident) and 2 (2 tokens, hinted) on the GPU, 1 and 3 (1 token) on the CPU.
    """
    script = Scripted([{0, 1, 2}, {0, 2}], [[(1, 2)], []], overlap)
    workload = counted([[[2, 1, 1, 2], [1, 1, 2, 1]]], 2)
    return make_planner(workload, script, script, Static(), 2, COSTS), workload


def test_timeline_by_hand() -> None:
    # Layer 0.  Dense 0-3, read-back and planning to 6: begin.
    #   GPU   unit 0 at once: 6 + 3 = 9.  Unit 1 when it has landed.
    #   Link  unit 1 at 6, the CPU being idle: 6 + 10 = 16; a gap of 1; unit 2 at 17, the CPU at work (till 20):
    #         17 + 14 = 31; gap till 32.  The hint would leave one staging slot free besides itself while unit 2
    #         holds one, and two are kept: it waits.
    #   GPU   unit 1: 16-18, unit 2: 31-33.
    #   CPU   activations cross in 1 + 2 * 0.5 = 2: unit 3 starts at 8 while a copy runs: 8 + 12 = 20; back at 22.
    #   Link  at 33 unit 2's slot is free: the hint goes out, CPU idle: 33 + 10 = 43.
    #   Join  both sides are there at max(33, 22) = 33, merged at 35.
    # Layer 1.  Dense 35-38, begin at 41.
    #   GPU   unit 0: 41-43.  Unit 2 lands at 43: 43-46.
    #   CPU   2 tokens cross in 2: unit 1 at 43, the moment the copy lands, so it is alone: 43 + 4 = 47; unit 3: 47-51;
    #         back at 53, merged at 55 = join.
    # What lies outside the layers: 55 + 7 = 62.
    planner, workload = two_layers(overlap=True)
    found = run(planner, QUICK, workload)
    assert timeline(found) == [
        ("GPU", 0, DENSE, 0, 3),
        ("GPU", 0, 0, 6, 9),
        ("GPU", 0, 1, 16, 18),
        ("GPU", 0, 2, 31, 33),
        ("GPU", 1, DENSE, 35, 38),
        ("GPU", 1, 0, 41, 43),
        ("GPU", 1, 2, 43, 46),
        ("CPU", 0, 3, 8, 20),
        ("CPU", 1, 1, 43, 47),
        ("CPU", 1, 3, 47, 51),
        ("demand copies", 0, 1, 6, 16),
        ("demand copies", 0, 2, 17, 31),
        ("prefetches", 1, 2, 33, 43),
    ]
    assert {name: found.total(name) for name in METRICS} == pytest.approx(
        {
            "moe_time": (35 - 3) + (55 - 38),
            "gpu_busy": 3 + 3 + 2 + 2 + 3 + 2 + 3 + 7,  # merges are no units
            "cpu_busy": 12 + 4 + 4,
            "link_demand": 10 + 14,
            "link_prefetch": 10,
            "link_swap": 0,
            "bytes_demand": 2 * 100,
            "bytes_prefetch": 200,
            "bytes_swap": 0,
            "copies_demand": 2,
            "copies_prefetch": 1,
            "copies_swap": 0,
            "lookups": 4 + 4,
            "hits": 1 + 1,
            "late": 1,  # unit 2 of layer 1, under way at 41
            "staged": 1,  # the same
            "gpu_units": 3 + 2,
            "cpu_units": 1 + 2,
            # From begin to the last kernel the GPU takes 27 and 5; the CPU works 12 and 8.
            "imbalance": (27 - 12) / 27 + (8 - 5) / 8,
        }
    )
    assert (found.columns["start"].tolist(), found.columns["end"].tolist()) == ([0], [62])
    resident = {(layer, unit) for lane, _, layer, unit, _, hit in found.spans.what.tolist() if hit}
    assert resident == {(0, 0), (1, 0), (1, 2)}


def test_planner_is_told_in_order_of_time() -> None:
    # Keys are 4 * layer + unit.  Of the timeline above: unit 0 is computed at 9, before unit 1 lands at 16; the hint
    # goes out while the results are merged; key 6 lands at 43, when key 4 is computed: the landing is first.
    planner, workload = two_layers(overlap=True)
    run(planner, QUICK, workload)
    assert planner.log is not None
    told = [entry[: 3 if entry[0] == "next_copy" else 2] for entry in planner.log if entry[:2] != ("next_copy", NONE)]
    assert [entry for entry in told if entry[0] != "begin"] == [
        ("next_copy", CopyKind.DEMAND, 1),
        ("computed", 0),
        ("landed", 1),
        ("next_copy", CopyKind.DEMAND, 2),
        ("computed", 1),
        ("landed", 2),
        ("computed", 2),
        ("next_copy", CopyKind.PREFETCH, 6),
        ("end",),
        ("landed", 6),
        ("computed", 4),
        ("computed", 6),
        ("end",),
    ]


def test_taking_turns_by_hand() -> None:
    # As above, but the CPU waits for the GPU.  Layer 0: copies 8-18 and, the CPU idle, 19-29; GPU 8-11, 18-20, 29-31.
    # At 31 the staging slot of unit 2 is free: hint 31-41.  CPU: activations cross from 31 to 33, unit 3 while the
    # copy runs: 33 + 12 = 45, back and merged at 49 = join.
    # Layer 1: dense 49-54, begin at 57, units 2 and 0 are resident, heavier first: 57-60, 60-62.  CPU: from 62 + 2,
    # 64-68 and 68-72; joined at 76.  End at 83.
    planner, workload = two_layers(overlap=False)
    found = run(planner, COSTS, workload)
    assert timeline(found) == [
        ("GPU", 0, DENSE, 0, 5),
        ("GPU", 0, 0, 8, 11),
        ("GPU", 0, 1, 18, 20),
        ("GPU", 0, 2, 29, 31),
        ("GPU", 1, DENSE, 49, 54),
        ("GPU", 1, 2, 57, 60),
        ("GPU", 1, 0, 60, 62),
        ("CPU", 0, 3, 33, 45),
        ("CPU", 1, 1, 64, 68),
        ("CPU", 1, 3, 68, 72),
        ("demand copies", 0, 1, 8, 18),
        ("demand copies", 0, 2, 19, 29),
        ("prefetches", 1, 2, 31, 41),
    ]
    assert found.columns["end"].tolist() == [83]
    assert (found.total("hits"), found.total("late"), found.total("staged")) == (3, 0, 1)


def test_launches_and_contention() -> None:
    # Units 0 and 1 are resident, 2 is copied, 3 runs on the CPU.  Dense 0-5.  The CPU's unit starts before the copy is
    # asked for, while the GPU has work: 4 x 1.5 + launch 3, 5-14.  The copy starts beside it: 5-19.  GPU units wait 2
    # for the CPU's to be handed over: unit 0 beside copy and CPU 3 x 2 x 3 + launch 1, 7-26; unit 1 alone, 26-28; 2,
    # which was not there at the beginning, is noticed at 19 + 10 and launched alone, 2 + 1, 29-32.
    charged = replace(
        ONE_LAYER,
        overheads=Overheads(dispatch=2, cpu_launch=3, gpu_launch=1, late_notice=10),
        contention=Contention(gpu_beside_copy=2, gpu_beside_cpu=3, cpu_beside_gpu=1.5),
    )
    workload = counted([[[2, 1, 1, 1]]], 2)
    script = Scripted([{0, 1, 2}], [[]])
    found = run(make_planner(workload, script, script, Static(), 2, charged), charged, workload)
    assert timeline(found) == [
        ("GPU", 0, DENSE, 0, 5),
        ("GPU", 0, 0, 7, 26),
        ("GPU", 0, 1, 26, 28),
        ("GPU", 0, 2, 29, 32),
        ("CPU", 0, 3, 5, 14),
        ("demand copies", 0, 2, 5, 19),
    ]
    assert found.columns["end"].tolist() == [32]


@pytest.mark.parametrize("hints", [[(1, 1)], []])
def test_a_copy_slows_the_dense_part(hints: list[tuple[int, int]]) -> None:
    # Two layers of two units, unit 0 resident and in use.  Layer 0: dense 0-5, GPU 5-7, then a hint for layer 1: 5-15.
    # Layer 1: dense 7-12, or beside the copy 7-22; GPU 2 more.  Outside 7 more: no copy is under way any longer.
    charged = replace(COSTS, overheads=Overheads(), contention=Contention(dense_beside_copy=3))
    workload = counted([[[1, 0], [1, 0]]], 1)
    script = Scripted([{0}, {0}], [hints, []])
    found = run(make_planner(workload, script, script, Static(), 2, charged), charged, workload)
    assert [row[3:] for row in timeline(found) if row[2] == DENSE] == [(0, 5), (7, 22 if hints else 12)]
    assert found.columns["end"].tolist() == [31 if hints else 21]


@pytest.mark.parametrize(
    ("units", "dense", "swap", "end"),
    [
        ((1, 0), [(0, 1), (3, 6)], (3, 8), 11),  # the dense part of layer 1 takes 3 x 1 beside layer 0's swap
        ((0, 1), [(0, 1), (3, 4)], (6, 11), 15),  # what lies outside takes 3 x 3 beside layer 1's swap
    ],
)
def test_a_copy_is_before_a_dense_part_that_starts_with_it(
    units: tuple[int, int], dense: list[Any], swap: tuple[int, int], end: float
) -> None:
    # Two layers of two units, dense 1, CPU 2.  A layer that uses unit 1 exchanges it for unit 0 as soon as it is
    # joined, the moment at which the next dense part starts, or what lies outside the layers.
    charged = replace(
        COSTS,
        cpu=np.array([0.0, 2]),
        cpu_contended=np.array([0.0, 2]),
        gpu=np.array([0.0, 2]),
        copy=np.array([5.0, 5]),
        copy_contended=np.array([5.0, 5]),
        overheads=Overheads(),
        dense=lambda tokens, sequences, context: 1.0,
        per_step=lambda tokens, sequences, context: 3.0,
        contention=Contention(dense_beside_copy=3),
    )
    cache = WorkloadAware("layer", "popular", w_size=1, u_size=1)
    workload = counted([[[unit == 0, unit == 1] for unit in units]], 1)
    found = run(make_planner(workload, AllCPU(), NoPrefetch(), cache, 2, charged), charged, workload)
    assert [row[3:] for row in timeline(found) if row[2] == DENSE] == dense
    assert [row[3:] for row in timeline(found) if row[0] == "swaps"] == [swap]
    assert found.columns["end"].tolist() == [end]


# ---- what is beside what ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "spans"),
    [
        # Unit 0 is resident and waits only to be handed over: the CPU's unit is beside it, 4 x 3.
        ({0}, [("GPU", 7, 9), ("CPU", 5, 17)]),
        # Unit 1 waits for its copy, 5-19 beside the CPU: the GPU has nothing to do yet.
        ({1}, [("GPU", 19, 21), ("CPU", 5, 9), ("demand copies", 5, 19)]),
    ],
)
def test_a_cpu_unit_beside_a_gpu_unit_that_waits(gpu: set[int], spans: list[Any]) -> None:
    charged = replace(ONE_LAYER, overheads=Overheads(dispatch=2), contention=Contention(cpu_beside_gpu=3))
    workload = counted([[[0 in gpu, 1 in gpu, 0, 1]]], 1)
    script = Scripted([gpu], [[]])
    found = run(make_planner(workload, script, script, Static(), 1, charged), charged, workload)
    assert [(lane, start, end) for lane, _, unit, start, end in timeline(found) if unit != DENSE] == spans


def test_a_cpu_unit_beside_a_gpu_unit_under_way() -> None:
    # Unit 1 is copied from 5 on, beside the CPU, and runs 19-39, the last of the GPU.  The CPU's first unit starts with
    # the copy and is not slowed, 5-13; its next one beside the copy, 13-19; then one beside unit 1, 4 x 3, 19-31.
    charged = replace(ONE_LAYER, gpu=np.array([0.0, 20, 20]), overheads=Overheads())
    charged = replace(charged, contention=Contention(cpu_beside_gpu=3))
    workload = counted([[[0, 1, 2, 1, 1]]], 2)
    script = Scripted([{1}], [[]])
    found = run(make_planner(workload, script, script, Static(), 1, charged), charged, workload)
    spans = [(lane, unit, start, end) for lane, _, unit, start, end in timeline(found) if unit != DENSE]
    assert spans == [
        ("GPU", 1, 19, 39),
        ("CPU", 2, 5, 13),
        ("CPU", 3, 13, 19),
        ("CPU", 4, 19, 31),
        ("demand copies", 1, 5, 19),
    ]


@pytest.mark.parametrize(
    ("overlap", "spans"),
    [
        # Activations cross till 9: the CPU has a unit left, 3 x 3 for the GPU's first unit.  The copy is not slowed: it
        # starts while the CPU does not compute.
        (True, [("GPU", 5, 14), ("GPU", 15, 17), ("CPU", 9, 15), ("demand copies", 5, 15)]),
        # The CPU's unit has to wait for the GPU: it is beside nothing.
        (False, [("GPU", 5, 8), ("GPU", 15, 17), ("CPU", 21, 25), ("demand copies", 5, 15)]),
    ],
)
def test_a_gpu_unit_beside_a_cpu_unit_that_waits(overlap: bool, spans: list[Any]) -> None:
    charged = replace(ONE_LAYER, overheads=Overheads(transfer_latency=4), contention=Contention(gpu_beside_cpu=3))
    workload = counted([[[2, 1, 0, 1]]], 2)
    script = Scripted([{0, 1}], [[]], overlap)
    found = run(make_planner(workload, script, script, Static(), 1, charged), charged, workload)
    assert [(lane, start, end) for lane, _, unit, start, end in timeline(found) if unit != DENSE] == spans


def test_a_unit_is_before_a_copy_that_starts_with_it() -> None:
    # Unit 0 is resident and starts as unit 1's copy does, 5-7.  Unit 1 runs 15-17, and starts as unit 2's copy does,
    # which is then under way for nobody: 2 and not 4 each.
    charged = replace(ONE_LAYER, contention=Contention(gpu_beside_copy=2))
    workload = counted([[[1, 1, 1]]], 1)
    script = Scripted([{0, 1, 2}], [[]])
    found = run(make_planner(workload, script, script, Static(), 1, charged), charged, workload)
    assert [row[2:] for row in timeline(found) if row[0] == "GPU"] == [
        (DENSE, 0, 5),
        (0, 5, 7),
        (1, 15, 17),
        (2, 25, 27),
    ]


# ---- GPU and link in turn --------------------------------------------------------------------------


def test_copies_that_do_not_overlap_by_hand() -> None:
    # Layer 0.  Dense 0-5, begin at 8.
    #   GPU   unit 0, which is resident, 8-11.  Only then it is the link's turn.
    #   CPU   unit 3 from 10, no copy being under way: 10-18; back at 20.
    #   Link  unit 1 beside the CPU, 11-25; GPU 25-27; unit 2 27-37, the CPU idle; GPU 37-39.
    #   Join  copies and GPU units together: 3 + 14 + 2 + 10 + 2 = 31 = 39 - 8.  Merged at 41.
    # Layer 1.  Dense 41-46: the hint's copy was not made, and is not made here.  Begin at 49.
    #   GPU   unit 0: 49-51.
    #   CPU   unit 1 from 51 on, before the copy: 51-55; unit 3 beside the copy: 55-61; back at 63.
    #   Link  unit 2 beside the CPU, 51-65; GPU 65-68.
    #   Join  2 + 14 + 3 = 19 = 68 - 49.  Merged at 70.  Outside till 77.
    planner, workload = two_layers(overlap=True)
    found = run(planner, replace(COSTS, copies_overlap=False), workload)
    assert timeline(found) == [
        ("GPU", 0, DENSE, 0, 5),
        ("GPU", 0, 0, 8, 11),
        ("GPU", 0, 1, 25, 27),
        ("GPU", 0, 2, 37, 39),
        ("GPU", 1, DENSE, 41, 46),
        ("GPU", 1, 0, 49, 51),
        ("GPU", 1, 2, 65, 68),
        ("CPU", 0, 3, 10, 18),
        ("CPU", 1, 1, 51, 55),
        ("CPU", 1, 3, 55, 61),
        ("demand copies", 0, 1, 11, 25),
        ("demand copies", 0, 2, 27, 37),
        ("demand copies", 1, 2, 51, 65),
    ]
    assert found.columns["end"].tolist() == [77]


def test_a_machine_whose_cpu_waits_for_its_gpu_is_a_policy_that_takes_turns() -> None:
    planner, workload = two_layers(overlap=True)
    waiting = run(planner, replace(COSTS, parallel=False), workload)
    planner, workload = two_layers(overlap=False)
    taking_turns = run(planner, COSTS, workload)
    assert timeline(waiting) == timeline(taking_turns)
    planner, workload = two_layers(overlap=True)
    assert run(planner, COSTS, workload).columns["end"][0] < waiting.columns["end"][0]


def test_a_hint_beside_the_cpu_holds_up_the_merge() -> None:
    # Dense 0-5, GPU 5-7, CPU 5-13.  The link's turn comes at 7: a hint for layer 1, 7-21.  The CPU is done at 13, the
    # merge waits: 21-23.  Layer 1: dense 23-28, unit 1 is there, 28-30; outside 37.
    charged = replace(COSTS, overheads=Overheads(merge=2), copies_overlap=False)
    workload = counted([[[1, 0, 0, 2], [0, 1, 0, 0]]], 2)
    script = Scripted([{0}, {1}], [[(1, 1)], []])
    found = run(make_planner(workload, script, script, Static(), 2, charged), charged, workload)
    assert timeline(found) == [
        ("GPU", 0, DENSE, 0, 5),
        ("GPU", 0, 0, 5, 7),
        ("GPU", 1, DENSE, 23, 28),
        ("GPU", 1, 1, 28, 30),
        ("CPU", 0, 3, 5, 13),
        ("prefetches", 1, 1, 7, 21),
    ]
    assert found.columns["end"].tolist() == [37]


@settings(max_examples=40)
@given(seed=SEEDS)
def test_no_copy_is_beside_the_gpu(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene = random_scene(seed)
    charged = replace(scene.charged, copies_overlap=False)
    spans = Engine(scene.planner(), charged).run(scene.workload, record=range(scene.workload.n_steps)).spans
    what = spans.what.copy()
    what[what[:, 0] >= LANE_LINK, 0] = LANE_GPU
    check_exclusive(Spans(spans.time, what))


@settings(max_examples=20)
@given(seed=SEEDS)
def test_a_layer_step_is_its_copies_and_its_gpu_units(seed: int, random_scene: Callable[[int], Any]) -> None:
    """Where all units run on the GPU and nothing else takes time, however few slots there are."""
    scene = random_scene(seed)
    free = lambda *_: 0.0  # noqa: E731
    charged = replace(scene.charged, overheads=Overheads(), dense=free, per_step=free, copies_overlap=False)
    cache = Static("layer" if scene.capacity.room.size > 1 else "global")
    planner = Planner(Policy("on demand", AllGPU(), NoPrefetch(), cache), scene.shape, scene.capacity, charged)
    found = Engine(planner, charged).run(scene.workload)
    length = found.columns["end"] - found.columns["start"]
    assert length == pytest.approx(found.columns["link_demand"] + found.columns["gpu_busy"])


@pytest.mark.parametrize(("outside", "hits"), [(3.0, 0), (4.0, 1)])
def test_link_works_outside_the_layers(outside: float, hits: int) -> None:
    # One layer of two units, the CPU computes.  Step 0 uses unit 1: dense 0-1, CPU 1-3, and then unit 1 is to take
    # the place of unit 0: swap 3-8.  Step 1: outside till 3 + outside, dense 1: unit 1 is there at 4 + outside
    # or is not.
    charged = CostModel(
        cpu=np.array([0.0, 2]),
        cpu_contended=np.array([0.0, 2]),
        gpu=np.array([0.0, 2]),
        copy=np.array([5.0]),
        copy_contended=np.array([5.0]),
        overheads=Overheads(),
        dense=lambda tokens, sequences, context: 1.0,
        per_step=lambda tokens, sequences, context: outside,
    )
    cache = WorkloadAware("layer", "popular", w_size=1, u_size=1)
    workload = counted([[[0, 1]], [[0, 1]]], 1)
    found = run(make_planner(workload, AllCPU(), NoPrefetch(), cache, 1, charged), charged, workload)
    assert ("swaps", 0, 1, 3.0, 8.0) in timeline(found)
    assert found.columns["copies_swap"].tolist() == [1, 0]  # counted in the step that asked for it
    assert found.columns["hits"].tolist() == [0, hits]
    assert found.columns["late"].tolist() == [0, 1 - hits]


def test_copies_wait_for_staging_slots() -> None:
    # Three demand copies of 1 through two staging slots, kernels of 10: unit 0 copied 0-1, computed 1-11; unit 1 copied
    # 1-2, computed 11-21; unit 2 waits for the first kernel's slot: copied 11-12, computed 21-31.
    charged = CostModel(
        cpu=np.zeros(2),
        cpu_contended=np.zeros(2),
        gpu=np.array([0.0, 10]),
        copy=np.ones(1),
        copy_contended=np.ones(1),
        overheads=Overheads(),
        dense=lambda *_: 0.0,
        per_step=lambda *_: 0.0,
    )
    workload = counted([[[1, 1, 1]]], 1)
    planner = make_planner(workload, AllGPU(), NoPrefetch(), Static("layer", "empty"), 1, charged, staging=2)
    assert timeline(run(planner, charged, workload)) == [
        ("GPU", 0, DENSE, 0, 0),
        ("GPU", 0, 0, 1, 11),
        ("GPU", 0, 1, 11, 21),
        ("GPU", 0, 2, 21, 31),
        ("demand copies", 0, 0, 0, 1),
        ("demand copies", 0, 1, 1, 2),
        ("demand copies", 0, 2, 11, 12),
    ]


# ---- what is believed, and what is charged ---------------------------------------------------------


def test_a_wrong_belief_decides_and_the_truth_is_charged() -> None:
    # One layer with two absent units of 1 token.  In truth each takes 4 on the CPU, or a copy of 10 and 2 on the GPU.
    # A planner that believes in 400 on the CPU puts both on the GPU (10 <= 400, 20 <= 400).  Charged: begin at 8,
    # copies 8-18 and 19-29, kernels 18-20 and 29-31, 7 outside the layers: 38.
    # One that knows puts both on the CPU (10 > 4, 10 > 4 + 4): 2 to cross, 10-14 and 14-18, 2 back, 2 to merge: 22 + 7.
    truth = replace(COSTS, copy=np.array([10.0]), copy_contended=np.array([14.0]))
    wrong = replace(truth, cpu=np.array([0.0, 400, 800]))
    workload = counted([[[0, 1, 1, 0]]], 2)
    mistaken, informed = (
        run(make_planner(workload, Greedy(), NoPrefetch(), Static(), 1, believed), truth, workload)
        for believed in (wrong, truth)
    )
    assert (mistaken.total("gpu_units"), mistaken.columns["end"].tolist()) == (2, [38])
    assert (informed.total("cpu_units"), informed.columns["end"].tolist()) == (2, [29])


@settings(max_examples=30)
@given(seed=SEEDS)
def test_belief_alone_changes_nothing(seed: int, random_scene: Callable[[int], Any]) -> None:
    """Where no policy looks at costs, only what is charged counts."""
    scene = random_scene(seed)
    policy = scene.make_policy()
    if isinstance(policy.assignment, Greedy | HybriMoE):
        policy = replace(policy, assignment=AllGPU())
    if isinstance(policy.prefetch, GainPrefetch):
        policy = replace(policy, prefetch=NoPrefetch())
    belief = replace(scene.charged, cpu=7 * scene.charged.cpu, gpu=3 * scene.charged.gpu, copy=9 * scene.charged.copy)
    ends = [
        Engine(Planner(policy, scene.shape, scene.capacity, believed, seed=1), scene.charged)
        .run(scene.workload)
        .columns["end"]
        for believed in (scene.charged, belief)
    ]
    np.testing.assert_array_equal(*ends)


# ---- every run -------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=SEEDS)
def test_machines_do_one_thing_at_a_time(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene = random_scene(seed)
    # What lies outside the layers has no span: its length must be known.
    charged = replace(scene.charged, contention=replace(scene.charged.contention, dense_beside_copy=1.0))
    found = Engine(scene.planner(), charged).run(scene.workload, record=range(scene.workload.n_steps))
    spans, end = found.spans, found.columns["end"][-1]
    check_exclusive(spans)
    assert np.all(spans.time[:, 1] >= spans.time[:, 0])
    # Nothing but the copy that is under way at the end lasts longer than the run.
    slack = max(scene.charged.copy.max(), scene.charged.copy_contended.max())
    busy = {"GPU": found.total("gpu_busy"), "CPU": found.total("cpu_busy")}
    assert max(busy.values()) <= end * (1 + 1e-12)
    outside = scene.workload.n_steps * scene.charged.per_step(1, 1, 1.0)
    for lane, name in enumerate(LANES):
        length = np.diff(spans.time[spans.what[:, 0] == lane]).sum()
        if name in busy:
            assert length == pytest.approx(busy[name] - outside * (name == "GPU"), abs=1e-9)
        else:
            kind = CopyKind(lane - LANE_LINK).name.lower()
            assert length == pytest.approx(found.total(f"link_{kind}"), abs=1e-9)
            assert length <= end + slack
    copies = spans.time[spans.what[:, 0] >= LANE_LINK]
    copies = copies[np.argsort(copies[:, 0])]
    assert np.all(copies[1:, 0] >= copies[:-1, 1] + scene.charged.overheads.issue_gap - 1e-9)


@settings(max_examples=40)
@given(seed=SEEDS)
def test_every_active_unit_is_computed_once(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene = random_scene(seed)
    found = Engine(scene.planner(), scene.charged).run(scene.workload, record=range(scene.workload.n_steps))
    what = found.spans.what
    jobs = what[(what[:, 0] < LANE_LINK) & (what[:, 3] != DENSE)]
    computed = np.zeros((scene.workload.n_steps, scene.workload.layers, scene.workload.units), np.int64)
    np.add.at(computed, tuple(jobs[:, 1:4].T), jobs[:, 4])
    assert len(jobs) == np.count_nonzero(computed) == found.total("gpu_units") + found.total("cpu_units")
    np.testing.assert_array_equal(computed, np.stack([step.workload for step in scene.workload.steps()]))
    for kind in CopyKind:
        layers = what[what[:, 0] == LANE_LINK + kind, 2]
        assert found.total(f"copies_{kind.name.lower()}") == layers.size
        assert found.total(f"bytes_{kind.name.lower()}") == scene.shape.unit_bytes[layers].sum()


@settings(max_examples=40)
@given(seed=SEEDS)
def test_recording_changes_nothing_and_runs_repeat(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene = random_scene(seed)
    plain = Engine(scene.planner(), scene.charged).run(scene.workload)
    recorded = Engine(scene.planner(), scene.charged).run(scene.workload, record=range(scene.workload.n_steps))
    last = scene.workload.n_steps - 1
    partly = Engine(scene.planner(), scene.charged).run(scene.workload, record={last})
    for name, column in plain.columns.items():
        np.testing.assert_array_equal(column, recorded.columns[name], err_msg=name)
        np.testing.assert_array_equal(column, partly.columns[name], err_msg=name)
    assert plain.spans.time.size == 0
    of_last = recorded.spans.what[:, 1] == last
    np.testing.assert_array_equal(partly.spans.what, recorded.spans.what[of_last])
    np.testing.assert_array_equal(partly.spans.time, recorded.spans.time[of_last])


@settings(max_examples=40)
@given(seed=SEEDS, faster=st.sampled_from(("copy", "gpu", "dense", "issue_gap")))
def test_a_faster_machine_is_never_slower(seed: int, faster: str, random_scene: Callable[[int], Any]) -> None:
    """All units on the GPU, nothing hinted, nothing moved: then every start is a maximum of sums of times.

    With choices that depend on time there is no such law: an earlier copy may take the slot of a better one, or
    slow a GPU job down that would have started before it.
    """
    scene = random_scene(seed)
    charged = replace(scene.charged, contention=Contention())
    overheads = charged.overheads
    quicker = {
        "copy": lambda: replace(charged, copy=charged.copy / 2),
        "gpu": lambda: replace(charged, gpu=charged.gpu / 2),
        "dense": lambda: replace(charged, dense=lambda *about: charged.dense(*about) / 2),
        "issue_gap": lambda: replace(charged, overheads=replace(overheads, issue_gap=overheads.issue_gap / 2)),
    }[faster]()
    staging = scene.make_policy().staging
    ends = []
    for costs in (charged, quicker):
        scope = "layer" if scene.capacity.room.size > 1 else "global"
        policy = Policy("on demand", AllGPU(), NoPrefetch(), Static(scope), staging)
        engine = Engine(Planner(policy, scene.shape, scene.capacity, costs), costs)
        ends.append(engine.run(scene.workload).columns["end"])
    assert np.all(ends[1] <= ends[0] * (1 + 1e-12))


def test_progress_and_totals_by_phase(random_trace: Callable[..., Trace]) -> None:
    workload = Workload.from_trace(random_trace(0), 2, 3, 4, chunk=2)
    charged = replace(COSTS, **{name: np.arange(5.0) for name in ("cpu", "cpu_contended", "gpu")})
    charged = replace(charged, copy=np.ones(3), copy_contended=np.ones(3))
    planner = Planner(
        Policy("test", AllGPU(), NoPrefetch(), Static("layer", "random")),
        Shape(3, 8, np.ones(3, np.int64)),
        Capacity.in_units(9, "layer", 3),
        charged,
    )
    seen: list[int] = []
    found = Engine(planner, charged).run(workload, progress=seen.append)
    assert seen == list(range(6))
    assert found.columns["phase"].tolist() == ["prefill"] * 2 + ["decode"] * 4
    assert found.columns["tokens"].tolist() == [4, 2, 2, 2, 2, 2]
    assert found.columns["start"].tolist() == [0, *found.columns["end"][:-1]]
    lookups = found.columns["lookups"]
    assert found.total("lookups", "decode") == lookups[2:].sum() > 0
    assert found.total("lookups", "prefill") + found.total("lookups", "decode") == found.total("lookups")


def test_cost_tables_that_are_too_short_are_refused(random_trace: Callable[..., Trace]) -> None:
    workload = Workload.from_trace(random_trace(0), 3, 1, 2)  # 3 tokens a step
    shape, charged = Shape(3, 8, np.ones(3, np.int64)), replace(COSTS, copy=np.ones(3), copy_contended=np.ones(3))
    planner = Planner(
        Policy("test", AllGPU(), NoPrefetch(), Static("layer", "random")),
        shape,
        Capacity.in_units(9, "layer", 3),
        charged,
    )
    with pytest.raises(InputError, match="covers workloads up to 2 tokens, found 3"):
        Engine(planner, charged).run(workload)
