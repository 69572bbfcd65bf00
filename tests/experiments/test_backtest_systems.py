"""Placements as slots, and the time of a step, by hand: a model of four layers of ten experts."""

from __future__ import annotations

import numpy as np
import pytest

from dali.experiments.verbs.backtest.case import AllGpu, CpuLayers, FitMemory, Hot, Share, SlotCache
from dali.experiments.verbs.backtest.speed import Setup, decode_seconds, prefill_seconds
from dali.experiments.verbs.backtest.systems import free_gb, streaming, system
from dali.experiments.verbs.backtest.timed_steps import routing
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.model_shape import ModelShape
from dali.policies.costs.roofline import Platform, Processor
from dali.policies.types import InputError

# An expert is 3 x 1,000 x 1,000 weights of 8 bits: 3 MB; a layer of ten 30 MB beside 4.02 MB of dense weights.
MODEL = ModelShape(
    name="m", layers=4, experts=10, top_k=2, hidden=1000, expert_width=1000, expert_bits=8, dense_bits=16, gated=True,
    shared_width=0, attention_params=2_000_000, attention_width=1000, kv_bytes=1000, dense_layers=0, dense_width=0,
    vocabulary=1000, predictor_recall={},
)  # fmt: skip
MACHINE = Platform(
    name="p", gpu=Processor(1000, 100, 1, 1, 0), cpu=Processor(100, 1000, 1, 1, 0), gpu_memory_gb=24, cpu_cores=8,
    link_gbs=10, copy_latency_us=0, issue_gap_us=0, readback_us=0, planning_us=0, merge_us=0,
)  # fmt: skip
ENGINE = ServingEngine("e", copy_from=32, copies_overlap=False, parallel=False)


def slots(placement, engine=ENGINE, gpu_memory_gb=None, context=0):
    return system(placement, MODEL, engine, gpu_memory_gb, context).slots


def test_slots_of_placements():
    assert slots(AllGpu()) == 40
    assert slots(CpuLayers()) == 0
    assert slots(CpuLayers(3)) == 10
    assert slots(CpuLayers(on_gpu=1)) == 10
    # Of six layers two have no experts and come first: experts of five of six are those of three of four.
    assert slots(CpuLayers(5, of=6)) == 10
    assert slots(Share(0.25, "random")) == 10
    assert slots(Share(0.3, "front-loading")) == 10  # whole layers: 12 are 1.2 of them
    assert slots(Share(None, "uniform", a_layer=3)) == 12
    assert slots(Hot(4)) == 16
    assert slots(SlotCache(slots=6, of_matrices=True)) == 8  # a third of an expert each
    assert slots(SlotCache(gb=0.03)) == 10
    assert slots(SlotCache(share=0.5)) == 20


def test_what_fits_is_whole_layers_beside_all_else():
    # 1.5 GB are kept, dense weights take 4 x 4.02 MB + 2 MB of head, 10,000 positions 4 x 10 MB.
    assert free_gb(MODEL, ENGINE, 2.0, 10_000) == pytest.approx(2.0 - 1.5 - 0.01808 - 0.04, abs=1e-4)
    assert slots(FitMemory(), gpu_memory_gb=1.6, context=10_000) == 10  # 42 MB: one layer of 30
    assert slots(FitMemory(), gpu_memory_gb=9.0) == 40
    streams = ServingEngine("s", streams_from=32)
    assert free_gb(MODEL, streams, 2.0, 10_000) == pytest.approx(free_gb(MODEL, ENGINE, 2.0, 10_000) - 0.03)
    with pytest.raises(InputError, match="GPU memory: found none said"):
        slots(FitMemory())


def met(tokens):
    """Experts that the first tokens of a text meet, over all layers."""
    trace = routing(MODEL.layers, MODEL.experts, MODEL.top_k, prefill=True)
    return sum(np.unique(trace.experts[:tokens, layer]).size for layer in range(MODEL.layers))


def test_a_measured_hit_rate_is_taken():
    assert slots(SlotCache(slots=3, hit=0.75)) == 30
    assert slots(SlotCache(slots=3, curve=((2, 0.5), (4, 0.7)))) == 24  # half-way between
    copied = system(SlotCache(slots=3, misses="copied"), MODEL, ENGINE, None, 0)
    assert copied.slots == 12
    assert type(copied.policy.cache).__name__ == "LRU"


def test_decode_with_all_experts_on_the_cpu():
    """Dense part 4.02 MB + 1 kB a position at 1,000 GB/s; two experts of 3.004 MB at 100; activations twice 0.2 us."""
    found = decode_seconds(Setup(MODEL, MACHINE, ENGINE, system(CpuLayers(), MODEL, ENGINE, 24, 0)), 1, 0)
    layer = 4.024e-6 + 2 * 30.04e-6 + 2 * 0.2e-6
    assert found == pytest.approx(4 * layer + 2e-6, rel=0.01)


def test_prefill_copies_in_turn_with_computing():
    """A copy of 300 us for each expert that 64 tokens meet, and what the GPU takes for it: 3.03 us of reading."""
    setup = Setup(MODEL, MACHINE, ENGINE, system(CpuLayers(), MODEL, ENGINE, 24, 0))
    found = prefill_seconds(setup, 64, 64, 0)
    assert found == pytest.approx(met(64) * (300e-6 + 3.03e-6) + 4 * 4.1e-6, rel=0.01)
    # Two steps of 32 copy everything twice.
    assert prefill_seconds(setup, 64, 32, 0) == pytest.approx(2 * prefill_seconds(setup, 32, 32, 0), rel=0.05)


def test_long_prompts_are_priced_by_a_few_of_their_passes():
    setup = Setup(MODEL, MACHINE, ENGINE, system(AllGpu(), MODEL, ENGINE, 24, 0))
    whole = sum(prefill_seconds(setup, 64, 64, 64 * i) for i in range(20))
    assert prefill_seconds(setup, 20 * 64, 64, 0) == pytest.approx(whole, rel=0.06)


def test_streamed_layers_hide_the_shorter_of_copy_and_computing():
    engine = ServingEngine("s", streams_from=32)
    setup = Setup(MODEL, MACHINE, engine, streaming(MODEL))
    assert prefill_seconds(setup, 64, 64, 0) == pytest.approx(met(64) * 300e-6, rel=0.01)
