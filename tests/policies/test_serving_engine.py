"""What an engine charges on top of a machine, by hand: one model, one machine, every constant on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dali.policies.costs.constants import constant, with_constants
from dali.policies.costs.engine import IDEAL, Kernels, ServingEngine
from dali.policies.costs.model_shape import ModelShape
from dali.policies.costs.roofline import Platform, Processor, roofline
from dali.policies.types import InputError

# A unit is 3 x 1,000 x 1,000 weights of 8 bits = 3 MB; a layer's dense part 2 M weights of 16 bits = 4 MB beside a
# router of 2 x 1,000 weights; a position of the cache is 1 kB.
MODEL = ModelShape(
    name="m", layers=2, experts=2, top_k=1, hidden=1000, expert_width=1000, expert_bits=8, dense_bits=16, gated=True,
    shared_width=0, attention_params=2_000_000, attention_width=1000, kv_bytes=1000, dense_layers=1, dense_width=0,
    vocabulary=1000, predictor_recall={}, expert_format="q8_0", dense_format="bf16",
)  # fmt: skip
# GPU 1,000 GB/s and 100 TFLOP/s, host 100 GB/s and 1 TFLOP/s, link 10 GB/s.
MACHINE = Platform(
    name="p", gpu=Processor(1000, 100, 1, 1, 10), cpu=Processor(100, 1, 1, 1, 20), gpu_memory_gb=24, cpu_cores=8,
    link_gbs=10, copy_latency_us=30, issue_gap_us=1, readback_us=2, planning_us=3, merge_us=4,
)  # fmt: skip


def costs(platform: Platform = MACHINE, **of_engine):
    return roofline(MODEL, platform, 100, engine=ServingEngine("e", **of_engine))


def test_the_ideal_engine_charges_what_the_machine_alone_does() -> None:
    alone, ideal = roofline(MODEL, MACHINE, 100), roofline(MODEL, MACHINE, 100, engine=IDEAL)
    for table in ("cpu", "cpu_contended", "gpu", "copy", "copy_contended"):
        np.testing.assert_array_equal(getattr(alone, table), getattr(ideal, table))
    assert alone.overheads == ideal.overheads


def test_kernels_reach_a_share_by_format() -> None:
    # One token moves 3 MB and 4 kB of activations: 30.04 us at 100 GB/s, twice that at half; dispatch 20 us.
    half = Kernels(bandwidth={"default": 1.0, "q8_0": 0.5})
    assert costs(cpu=half).cpu[1] == pytest.approx(2 * 30.04e-6 + 20e-6)
    other = Kernels(bandwidth={"default": 1.0, "iq1": 0.5})
    assert costs(cpu=other).cpu[1] == pytest.approx(30.04e-6 + 20e-6)


def test_a_block_of_tokens_that_is_not_full_takes_as_long() -> None:
    # Ten tokens in blocks of 16 take the arithmetic of 16: 96 us at 1 TFLOP/s.
    tiled = costs(cpu=Kernels(token_block=16))
    assert tiled.cpu[10] == tiled.cpu[16] == pytest.approx(96e-6 + 20e-6)
    assert tiled.cpu[17] == pytest.approx(192e-6 + 20e-6)


def test_only_formats_with_tiles_count_by_amx() -> None:
    amx = replace(MACHINE, cpu=replace(MACHINE.cpu, isa="amx"))
    # Ten tokens take 60 us of arithmetic at the machine's 1 TFLOP/s; AVX-512 reaches 0.2155 of what tiles do.
    assert costs(amx).cpu[10] == costs(amx, cpu=Kernels(amx=("q8_0",))).cpu[10] == pytest.approx(60e-6 + 20e-6)
    assert costs(amx, cpu=Kernels(amx=("bf16",))).cpu[10] == pytest.approx(60e-6 / 0.2155 + 20e-6, rel=1e-3)
    assert costs(cpu=Kernels(amx=())).cpu[10] == costs().cpu[10]


def test_memory_and_arithmetic_add_up_where_kernels_do_not_overlap_them() -> None:
    # Ten tokens: 3.04 MB in 30.4 us; 2 x 10 x 3 M operations at 1 TFLOP/s in 60 us, at twice the rate in 30.
    assert costs().cpu[10] == pytest.approx(60e-6 + 20e-6)
    assert costs(cpu=Kernels(overlap=False)).cpu[10] == pytest.approx(90.4e-6 + 20e-6)
    assert costs(cpu=Kernels(compute={"default": 2.0}, overlap=False)).cpu[10] == pytest.approx(60.4e-6 + 20e-6)


def test_a_layer_is_not_done_before_its_launches() -> None:
    # Dense part of one token: 2.002 M weights of 2 bytes at 1,000 GB/s = 4.004 us, and 1 kB of cache for one position.
    assert costs().dense(1, 1, 1.0) == pytest.approx(4.005e-6 + 10e-6)
    assert costs(launches=30, launch_us=5).dense(1, 1, 1.0) == pytest.approx(150e-6)
    # With enough work the launches hide behind it: 10,000 positions x 1 kB = 10 us more, at launches of 0.1 us.
    assert costs(launches=30, launch_us=0.1).dense(1, 1, 10_000.0) == pytest.approx(14.004e-6)


def test_attention_reaches_a_share_of_the_gpu() -> None:
    added = costs(attention=0.5).dense(1, 1, 10_000.0) - costs(attention=0.5).dense(1, 1, 0.0)
    assert added == pytest.approx(2 * 10e-6)


def test_a_copy_takes_the_link_s_share_and_its_own_latency() -> None:
    assert costs().copy[0] == pytest.approx(300e-6 + 30e-6)
    assert costs(link_share=0.5, copy_us=100).copy[0] == pytest.approx(600e-6 + 100e-6)
    # From pageable memory: at most 4 GB/s, however fast the link.
    assert costs(copy_gbs=4).copy[0] == pytest.approx(750e-6 + 30e-6)
    assert costs(copy_gbs=40).copy[0] == costs().copy[0]


def test_fixed_costs_replace_those_of_the_platform() -> None:
    of_platform = costs().overheads
    assert (of_platform.readback, of_platform.planning, of_platform.merge) == pytest.approx((2e-6, 3e-6, 4e-6))
    assert of_platform.transfer_latency == pytest.approx(30e-6)
    own = costs(readback_us=0, planning_us=7, merge_us=8, handover_us=9, cpu_start_us=11, unit_us=0)
    assert (own.overheads.readback, own.overheads.planning) == pytest.approx((0, 7e-6))
    assert (own.overheads.merge, own.overheads.transfer_latency) == pytest.approx((8e-6, 9e-6))
    # Waking the threads is charged once a layer step, in the place of a dispatch for every unit.
    assert own.overheads.cpu_launch == pytest.approx(11e-6)
    assert own.cpu[1] == pytest.approx(30.04e-6)
    assert own.gpu[1] == pytest.approx(3.004e-6)
    assert costs(step_us=500).per_step(1, 1, 1.0) - costs().per_step(1, 1, 1.0) == pytest.approx(500e-6)


def test_gpus_share_a_layer_only_in_an_engine_that_lets_them() -> None:
    two = replace(MACHINE, gpus=2)
    assert costs(two).gpu[1] == costs().gpu[1]
    shared = costs(two, tensor_parallel=True)
    assert shared.gpu[1] == pytest.approx(1.502e-6 + 10e-6)
    added = costs(two, tensor_parallel=True, allreduce_us=25).dense(1, 1, 1.0) - costs(two, tensor_parallel=True).dense(
        1, 1, 1.0
    )
    assert added == pytest.approx(50e-6)
    assert costs(two, allreduce_us=25).dense(1, 1, 1.0) == costs().dense(1, 1, 1.0)
    # Each copies its half of a unit over a link of its own.
    assert shared.copy[0] == pytest.approx(150e-6 + 30e-6)


def test_a_second_socket_adds_what_the_engine_makes_of_it() -> None:
    two = replace(MACHINE, sockets=2)  # 100 GB/s are of both
    assert costs(two).cpu[1] == costs().cpu[1]
    assert costs(two, further_sockets=0.0).cpu[1] == pytest.approx(2 * 30.04e-6 + 20e-6)
    assert costs(two, further_sockets=0.5).cpu[1] == pytest.approx(30.04e-6 / 0.75 + 20e-6)


def test_a_copy_rule_may_scale_with_how_thinly_tokens_spread() -> None:
    assert ServingEngine("e").copies_from(64, 6) is None
    assert ServingEngine("e", copy_from=32).copies_from(64, 6) == 32
    assert ServingEngine("e", copy_from=32, copy_from_scaled=True).copies_from(64, 6) == 341  # ik_llama.cpp, PR 520


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Kernels(bandwidth={"q8_0": 1.0}), "kernels.bandwidth: found q8_0, expected default"),
        (lambda: Kernels(compute={"default": 0.0}), "kernels.compute.default: found 0.0, expected a positive"),
        (lambda: ServingEngine("e", launch_us=-1), "engine.launch_us: found -1"),
        (lambda: ServingEngine("e", link_share=0), "engine.link_share: found 0"),
        (lambda: ServingEngine("e", cpu="fast"), "engine.cpu: found 'fast', expected kernels"),
        (lambda: ServingEngine("e", parallel="no"), "engine.parallel: found 'no', expected true or false"),
        (lambda: ServingEngine("e", launch_us="5us"), "engine.launch_us: found '5us', expected a number"),
        (lambda: ServingEngine("e", copy_us=True), "engine.copy_us: found True, expected a number"),
        (lambda: ServingEngine("e", attention=None), "engine.attention: found None, expected a number"),
    ],
)
def test_constants_out_of_range_are_refused(made, said: str) -> None:
    with pytest.raises(InputError, match=said):
        made()


def test_constants_by_name() -> None:
    engine = ServingEngine("e", cpu=Kernels(bandwidth={"default": 0.5, "iq1": 0.25}))
    assert constant(engine, "cpu.bandwidth.iq1") == 0.25
    changed = with_constants(engine, {"cpu.bandwidth.iq1": 0.75, "launch_us": 2})
    assert changed == ServingEngine("e", cpu=Kernels(bandwidth={"default": 0.5, "iq1": 0.75}), launch_us=2)
    for name in ("cpu.bandwidth.q8_0", "launchus", "copies_overlap", "copy_us", "cpu"):
        with pytest.raises(InputError, match=f"no number named {name}"):
            with_constants(engine, {name: 1.0})
