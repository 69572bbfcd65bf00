"""Where a row's experts are, as a policy and its slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dali.experiments.verbs.backtest.case import (
    AllGpu,
    CpuLayers,
    FitMemory,
    Hot,
    Placement,
    Share,
    SlotCache,
)
from dali.policies.assign.fixed import AllGPU, LayerSplit
from dali.policies.cache.base import Cache
from dali.policies.cache.classic import LRU
from dali.policies.cache.fixed import Static, WholeLayers
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.model_shape import ModelShape
from dali.policies.planner import Policy
from dali.policies.prefetch.predicted import OraclePrefetch
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import InputError
from dali.policies.view import AssignmentPolicy

GB = 1e9
# Of a card's memory that the model cannot have: the driver's and the libraries' own, and compute buffers.  llama.cpp's
# `--fit` leaves 1 GiB free by default; its compute buffers at 512 tokens a step take about half of one.
KEPT_GB = 1.5
# Slots that demand copies step through.
STAGING = 8


@dataclass(frozen=True)
class System:
    """A policy, and its slots for what stays: `slots` in all, staging not included."""

    policy: Policy
    slots: int


def free_gb(model: ModelShape, engine: ServingEngine, gpu_memory_gb: float, context: int) -> float:
    """GPU memory left for experts beside dense weights, the KV cache of `context` tokens and what is kept free.

    The embedding stays in host memory.  An engine that streams layers keeps room for one.
    """
    dense = model.dense_bytes + model.sequence_bytes(context)
    buffer = 0 if engine.streams_from is None else model.experts * model.unit_bytes()
    return gpu_memory_gb - KEPT_GB - (dense + buffer) / GB


def system(
    placement: Placement, model: ModelShape, engine: ServingEngine, gpu_memory_gb: float | None, context: int
) -> System:
    """The policy of a placement; InputError where the row does not say enough."""
    layers, experts = model.layers, model.experts
    free = None if gpu_memory_gb is None else max(0.0, free_gb(model, engine, gpu_memory_gb, context))
    split = LayerSplit(engine.copies_from(experts, model.top_k))
    if isinstance(placement, AllGpu):
        return _made("all_on_gpu", split, WholeLayers(), layers * experts)
    if isinstance(placement, CpuLayers):
        on_cpu = layers - placement.on_gpu if placement.n is None else min(placement.n, layers)
        if placement.of is not None and placement.n is not None:
            # Of all layers, those without experts included; experts of the first n.
            on_cpu = min(layers, max(0, placement.n - max(0, placement.of - layers)))
        return _made("cpu_layers", split, WholeLayers(), (layers - on_cpu) * experts)
    if isinstance(placement, FitMemory):
        return _made("fit", split, WholeLayers(), _fitting(placement, model, engine, gpu_memory_gb, context) * experts)
    if isinstance(placement, Share):
        return _share(placement, model, split, free)
    if isinstance(placement, Hot):
        return _made("hot", split, Static("layer", "popular"), min(placement.n, experts) * layers)
    assert isinstance(placement, SlotCache)
    return _slot_cache(placement, model, engine, split, free)


def _made(name: str, assignment: AssignmentPolicy, cache: Cache, slots: int) -> System:
    return System(Policy(name, assignment, NoPrefetch(), cache, STAGING), slots)


def _fitting(
    placement: FitMemory, model: ModelShape, engine: ServingEngine, gpu_memory_gb: float | None, context: int
) -> int:
    memory = gpu_memory_gb if placement.gb is None else placement.gb + KEPT_GB
    if memory is None:
        raise InputError("GPU memory: found none said, expected GB for a placement that fills it")
    room = free_gb(model, engine, memory - (placement.spare_gb or 0.0), context)
    a_layer = model.experts * model.unit_bytes() / GB
    return int(min(model.layers, max(0.0, room / a_layer)))


def _share(placement: Share, model: ModelShape, split: LayerSplit, free: float | None) -> System:
    if placement.a_layer is not None:
        slots = min(placement.a_layer, model.experts) * model.layers
    elif placement.share is not None:
        slots = round(placement.share * model.layers * model.experts)
    elif free is not None:
        slots = min(model.layers * model.experts, int(free * GB / model.unit_bytes()))
    else:
        raise InputError("share of experts on the GPU: found none said, expected one or the GPU's memory")
    cache: Cache
    if placement.rule == "front-loading":
        slots, cache = round(slots / model.experts) * model.experts, WholeLayers()
    elif placement.rule == "uniform":
        cache = Static("layer", "random")
    elif placement.rule == "random":
        cache = Static("global", "random")
    else:
        cache = Static("global", "popular")
    return _made(placement.rule, split, cache, slots)


def _slot_cache(
    placement: SlotCache, model: ModelShape, engine: ServingEngine, split: LayerSplit, free: float | None
) -> System:
    if placement.slots is not None:
        a_layer = placement.slots / (3 if placement.of_matrices else 1)
        slots = round(a_layer * model.layers)
    elif placement.share is not None:
        slots = round(placement.share * model.layers * model.experts)
    elif placement.gb is not None:
        slots = int(placement.gb * GB / model.unit_bytes())
    elif free is not None:
        slots = int(free * GB / model.unit_bytes())
    else:
        raise InputError("slots of the expert cache: found none said, expected a number, a size or the GPU's memory")
    slots = min(slots, model.layers * model.experts)
    copied = engine.caches_by_copy if placement.misses is None else placement.misses == "copied"
    assignment = AllGPU() if copied else split
    scope, hit = "global" if engine.global_cache else "layer", _hit(placement)
    cache: Cache
    if hit is not None:
        # Its routing is not published and its hit rate is: slots that stay, drawn at random, hit as often.
        slots, cache = round(hit * model.layers * model.experts), Static(scope, "random")
    elif copied:
        cache = LRU(scope, "popular")
    else:
        # The CPU runs what the cache misses, and the cache changes on the side.
        cache = Static(scope, "popular")
    return _made("slot_cache", assignment, cache, slots)


def _hit(placement: SlotCache) -> float | None:
    """The measured hit rate, or the one between those measured at other numbers of slots."""
    if placement.hit is not None:
        return placement.hit
    if placement.slots is None or not placement.curve:
        return None
    slots, hits = zip(*sorted({(0, 0.0), *placement.curve}), strict=True)
    return float(np.interp(placement.slots, slots, hits))


def streaming(model: ModelShape) -> System:
    """Whole layers copied to the GPU one ahead of their use, into two buffers; nothing stays."""
    policy = Policy("streaming", AllGPU(), OraclePrefetch(model.experts), Static("layer", "empty"), 2 * model.experts)
    return System(policy, 0)
