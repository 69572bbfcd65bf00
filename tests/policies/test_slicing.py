"""How many slices are chosen: expected times by hand, and the choice against whole experts in simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dali.policies.assign.frontier import Frontier
from dali.policies.cache.workload import WorkloadAware
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.costs.roofline import ModelShape, Platform, Processor, roofline
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.predicted import PredictedPrefetch
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.slicing import choose_slices, draw_resident, draw_workloads, expected_seconds
from dali.policies.types import Capacity, InputError, Shape
from dali.sim.engine import Engine
from dali.traces.synthetic import generate_profile
from dali.traces.workload import Workload

# Sizes of conf/model and conf/platform, which the tests of policies do not read.
MIXTRAL = ModelShape(
    name="mixtral_8x7b",
    layers=32,
    experts=8,
    top_k=2,
    hidden=4096,
    expert_width=14336,
    expert_bits=16,
    dense_bits=16,
    gated=True,
    shared_width=0,
    attention_params=41943040,
    attention_width=4096,
    kv_bytes=4096,
    dense_layers=0,
    dense_width=0,
    vocabulary=32000,
    predictor_recall={},
)
DEEPSEEK = replace(MIXTRAL, name="deepseek_v2_lite", layers=26, experts=64, top_k=6, hidden=2048, expert_width=1408)
QWEN = replace(MIXTRAL, name="qwen3_30b_a3b", layers=48, experts=128, top_k=8, hidden=2048, expert_width=768)
MACHINE = Platform(
    name="rtx3090_epyc7532",
    gpu=Processor(936, 71, 0.8, 0.6, 15),
    cpu=Processor(204.8, 1.69, 0.62, 0.43, 10),
    gpu_memory_gb=24,
    cpu_cores=16,
    link_gbs=25,
    copy_latency_us=10,
    issue_gap_us=3,
    readback_us=20,
    planning_us=15,
    merge_us=8,
)


def costs(cpu, gpu, copy, contended=1.0, **overheads):
    """One layer, workloads of 0 or 1."""
    nothing = lambda tokens, sequences, context: 0.0  # noqa: E731
    table = np.array([0.0, cpu])
    copies = np.array([float(copy)])
    return CostModel(
        table, table * contended, np.array([0.0, gpu]), copies, copies, Overheads(**overheads), nothing, nothing
    )


# ---- expected times by hand ------------------------------------------------------------------------

ONE_ABSENT = (np.array([[1, 0]], np.int32), np.array([[False, True]]), 1)


def test_slices_share_one_expert_between_the_devices():
    # One absent expert: CPU 8 against copy 8 + GPU 1.  As quarters of CPU 2, GPU 0.25, copy 2: two copied, GPU done
    # at 4.25; the other two on the CPU, 4.
    assert expected_seconds(costs(8, 1, 8), *ONE_ABSENT, slices=1) == 8
    assert expected_seconds(costs(2, 0.25, 2), *ONE_ABSENT, slices=4) == 4.25


def test_a_copy_under_way_is_waited_for():
    # Half a quarter's copy first: 1 + 2 + 2 + 0.25 = 5.25 with two copied; one copied: CPU 6.
    # Of the whole expert: CPU 8 either way.
    assert expected_seconds(costs(2, 0.25, 2), *ONE_ABSENT, slices=4, in_flight=0.5) == 5.25
    assert expected_seconds(costs(8, 1, 8), *ONE_ABSENT, slices=1, in_flight=0.5) == 8


def test_overheads_of_the_cpu_part_and_contention():
    # CPU part: 4 alone, at half speed while the link copies for 4: 2 of the work done then, 2 left after it, ends at 6.
    assert expected_seconds(costs(2, 0.25, 2, contended=2), *ONE_ABSENT, slices=4) == 6
    # Whole on the CPU, nothing is copied; activations cross twice (0.5 + 1 token * 0.25) and are merged (1).
    over = {"transfer_latency": 0.5, "transfer_per_token": 0.25, "merge": 1.0}
    assert expected_seconds(costs(8, 1, 8, contended=2, **over), *ONE_ABSENT, slices=1) == 8 + 2 * 0.75 + 1
    # Quarters on both sides, CPU 4 and GPU 4.25: the merge follows the longer one.
    assert expected_seconds(costs(2, 0.25, 2, merge=1.0), *ONE_ABSENT, slices=4) == 4.25 + 1
    # The resident expert alone: GPU 1, and nothing crosses.
    resident = (np.array([[0, 1]], np.int32), np.array([[False, True]]), 1)
    assert expected_seconds(costs(8, 1, 8, **over), *resident, slices=1) == 1


# ---- what is drawn ---------------------------------------------------------------------------------


def test_drawn_workloads():
    workloads = draw_workloads(DEEPSEEK, 16, None, np.random.default_rng(0))
    assert workloads.shape[1] == 64
    assert np.all(workloads.sum(axis=1) == 16 * 6)
    assert workloads.max() <= 16
    popularity = np.full((26, 64), 1e-6)
    popularity[:, :6] = 1 / 6
    assert np.all(draw_workloads(DEEPSEEK, 16, popularity, np.random.default_rng(0))[:, :6].sum(axis=1) > 90)
    with pytest.raises(InputError, match="popularity: found shape"):
        draw_workloads(DEEPSEEK, 16, popularity[:1], np.random.default_rng(0))


def test_drawn_residency():
    rng = np.random.default_rng(0)
    assert np.all(draw_resident((64, 8), 0.25, rng).sum(axis=1) == 2)
    held = draw_resident((400, 8), 0.3, rng).sum(axis=1)  # 2.4 of 8
    assert set(held) == {2, 3}
    assert 2.3 < held.mean() < 2.5
    assert not draw_resident((4, 8), 0.0, rng).any()
    assert draw_resident((4, 8), 1.0, rng).all()


# ---- the choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [QWEN, DEEPSEEK])
@pytest.mark.parametrize("tokens", [1, 16])
def test_many_small_experts_stay_whole(model, tokens):
    assert choose_slices(model, MACHINE, {tokens: 1}, 0.25) == 1


def test_large_experts_are_cut_where_hints_keep_the_link_busy():
    assert choose_slices(MIXTRAL, MACHINE, {1: 1}, 0.25) > 1
    # With nothing else on the link, what the copied part saves is lost to the CPU's contention.
    assert choose_slices(MIXTRAL, MACHINE, {1: 1}, 0.25, in_flight=0.0) == 1


def test_limits_of_the_choice():
    assert choose_slices(MIXTRAL, MACHINE, {1: 1}, 0.25, least_gain=0.9) == 1
    assert choose_slices(MIXTRAL, MACHINE, {1: 1}, 0.25, counts=(2,)) == 2
    assert choose_slices(replace(MIXTRAL, expert_width=14335), MACHINE, {1: 1}, 0.25, counts=(2, 4)) == 1
    # Many steps of one kind outweigh few of another: what suits them is chosen.
    alone = choose_slices(MIXTRAL, MACHINE, {1: 1}, 0.25)
    assert choose_slices(MIXTRAL, MACHINE, {1: 10**6, 16: 1}, 0.25) == alone


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("steps", {"steps": {}}),
        ("steps, tokens", {"steps": {0: 1}}),
        ("steps, number", {"steps": {1: 0}}),
        ("cache_share", {"cache_share": 1.5}),
        ("in_flight", {"in_flight": -0.1}),
        ("least_gain", {"least_gain": 1.0}),
    ],
)
def test_bad_input(field, changes):
    arguments = {"steps": {1: 1}, "cache_share": 0.25} | changes
    with pytest.raises(InputError, match=rf"choose_slices\.{field}: found .*, expected"):
        choose_slices(MIXTRAL, MACHINE, **arguments)


def simulated(model, batch, slices, prefetches, share=0.25, steps=8):
    """Seconds of decode steps under `Frontier`, with DALI's prefetch and swaps or with a cache that never moves."""
    trace = generate_profile(model.name, sequences=batch, prompt=0, length=steps, seed=2)
    workload = Workload.from_trace(trace, batch, 0, steps, slices=slices)
    units = model.experts * slices
    shape = Shape(model.layers, units, np.full(model.layers, model.unit_bytes(slices), np.int64))
    every = 4 if prefetches else 10**6
    policy = Policy(
        "test",
        Frontier(in_flight=0.5),
        PredictedPrefetch("residual", slices) if prefetches else NoPrefetch(),
        WorkloadAware(w_size=every, u_size=slices),
        staging=6 * slices,
    )
    capacity = Capacity.in_units(round(share * model.layers * units) - policy.staging, "layer", model.layers)
    cost = roofline(model, MACHINE, workload.max_tokens, slices)
    columns = Engine(Planner(policy, shape, capacity, cost), cost).run(workload).columns
    return float(columns["end"][-1])


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_where_slices_are_chosen_they_are_faster(batch):
    slices = choose_slices(MIXTRAL, MACHINE, {batch: 1}, 0.25)
    assert slices > 1
    assert simulated(MIXTRAL, batch, slices, True) < simulated(MIXTRAL, batch, 1, True)


@pytest.mark.parametrize(
    ("model", "prefetches"), [(MIXTRAL, False), (DEEPSEEK, True), (DEEPSEEK, False), (QWEN, True), (QWEN, False)]
)
def test_where_experts_stay_whole_slices_gain_little_or_nothing(model, prefetches):
    for batch in (1, 16):
        assert choose_slices(model, MACHINE, {batch: 1}, 0.25, in_flight=0.5 if prefetches else 0.0) == 1
        assert simulated(model, batch, 2, prefetches) > 0.95 * simulated(model, batch, 1, prefetches)
