"""Tokens/s of a case by the simulator: its model on its machine, in an engine, by its placement."""

from __future__ import annotations

from dataclasses import replace

from dali.experiments.verbs.backtest.case import AllGpu, CpuLayers, GpuLayers, MeasuredCase
from dali.experiments.verbs.backtest.speed import Setup, decode_seconds, prefill_seconds
from dali.experiments.verbs.backtest.systems import GB, KEPT_GB, streaming, system
from dali.policies.columns import DECODE, PREFILL
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.model_shape import ModelShape
from dali.policies.costs.roofline import Platform


def predict(case: MeasuredCase, model: ModelShape, platform: Platform, engine: ServingEngine) -> dict[str, float]:
    """Tokens/s by phase, of the phases that were measured; InputError where the row does not say enough.

    platform.gpu_memory_gb is that of all GPUs together.
    """
    engine = as_set(engine, case)
    found: dict[str, float] = {}
    if case.prefill is not None:
        asked = case.prefill
        ubatch = min(asked.ubatch or engine.prefill_chunk or asked.prompt, asked.prompt)
        seconds = sum(
            prefill_seconds(setup, asked.prompt, ubatch, asked.depth)
            for setup in _setups(case, model, platform, engine, asked.prompt + asked.depth, ubatch)
        )
        found[PREFILL] = asked.prompt / seconds
    if case.decode is not None:
        sequences, depth = case.batch or 1, case.decode.depth
        setups = _setups(case, model, platform, engine, max(depth, case.context or 0), sequences)
        found[DECODE] = sequences / sum(decode_seconds(setup, sequences, depth) for setup in setups)
    return found


def as_set(engine: ServingEngine, case: MeasuredCase) -> ServingEngine:
    """The engine with the copy rule that the row says it ran with; a model on the GPU alone runs as one graph."""
    rule = case.copy_rule
    if rule.copies == "never":
        engine = replace(engine, copy_from=None)
    elif rule.tokens is not None:
        engine = replace(engine, copy_from=rule.tokens, copy_from_scaled=False)
    if rule.copies in ("all", "active"):
        engine = replace(engine, copies_whole_layer=rule.copies == "all")
    if isinstance(case.placement, AllGpu):
        engine = replace(engine, launch_us=engine.graphed_launch_us)
    return engine


def _setups(
    case: MeasuredCase, model: ModelShape, platform: Platform, engine: ServingEngine, context: int, tokens: int
) -> list[Setup]:
    """What runs one after the other: one system, or the layers of the GPU and those that are wholly with the CPU."""
    placement = case.placement
    if isinstance(placement, GpuLayers):
        on_gpu = _layers_on_gpu(placement, model, platform, context)
        copies_from = engine.copies_from(model.experts, model.top_k)
        if copies_from is None or tokens < copies_from:
            return _by_layers(on_gpu, model, platform, engine)
        # Of a large step the GPU also runs what is with the CPU, once it is copied.
        placement = CpuLayers(model.layers - on_gpu)
    if engine.streams_from is not None and tokens >= engine.streams_from:
        return [Setup(model, platform, engine, streaming(model))]
    return [Setup(model, platform, engine, system(placement, model, engine, platform.gpu_memory_gb, context))]


def _layers_on_gpu(placement: GpuLayers, model: ModelShape, platform: Platform, context: int) -> int:
    """As many as are said, or as whole layers fit its memory, attention and cache included."""
    if placement.n is not None:
        return min(model.layers, placement.n)
    layer = model.experts * model.unit_bytes() + model.layer_bytes + model.cache_bytes(context)
    room = (platform.gpu_memory_gb - KEPT_GB) * GB - model.outside_bytes
    return max(0, min(model.layers, int(room / layer)))


def _by_layers(on_gpu: int, model: ModelShape, platform: Platform, engine: ServingEngine) -> list[Setup]:
    """Layers of the GPU beside layers whose attention, too, runs on the CPU: each as a model of its own."""
    layers = model.layers
    setups = []
    if on_gpu:
        part = replace(model, layers=on_gpu)
        setups.append(Setup(part, platform, engine, system(AllGpu(), part, engine, None, 0)))
    if on_gpu < layers:
        rest = replace(model, layers=layers - on_gpu, dense_layers=0, vocabulary=1)
        host = replace(platform, gpu=platform.cpu)
        alone = replace(engine, dense=engine.cpu, gpu=engine.cpu, attention=1.0, launches=0, copy_from=None)
        setups.append(Setup(rest, host, alone, system(CpuLayers(), rest, alone, None, 0)))
    return setups
