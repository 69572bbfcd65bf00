"""What the simulator says of a published row: its texts resolved to a model, a machine and an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from dali.experiments.parts.finding import find_cpu, find_gpu, unnamed_cpu
from dali.experiments.parts.finding_host import find_link, find_ram
from dali.experiments.parts.machine import compose
from dali.experiments.settings.objects import engine_named
from dali.experiments.shapes.catalogue import find_model
from dali.experiments.verbs.backtest.case import ENGINES, MeasuredCase
from dali.experiments.verbs.backtest.fit import STEP
from dali.experiments.verbs.backtest.predict import predict
from dali.policies.costs.constants import constant, with_constants
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.formats import quantised
from dali.policies.costs.model_shape import ModelShape
from dali.policies.costs.roofline import Platform
from dali.policies.types import InputError

# What an engine decides; all else is what it costs.
RULES = (
    *("copy_from", "copy_from_scaled", "copies_whole_layer", "caches_by_copy", "global_cache"),
    *("tensor_parallel", "streams_from", "prefill_chunk"),
)
# Parts of a row that does not name its own: what it says counts in comparison with its own series alone.
UNNAMED_GPU = "RTX 4090"
UNNAMED_RAM = "DDR5-5600 2ch"


@dataclass(frozen=True)
class Prediction:
    """What the simulator says of one phase.

    data_sheet  the same by data sheets alone: the engine's rules without its costs
    notes   what the row does not say and was taken, a phrase each
    slopes  change of the speed's logarithm with that of each constant that was fitted to the row's series; empty where
            none was
    """

    tokens_per_s: float
    data_sheet: float
    notes: tuple[str, ...] = ()
    slopes: Mapping[str, float] = field(default_factory=dict)


def price(case: MeasuredCase, config: DictConfig) -> dict[str, Prediction]:
    """Predictions by phase; InputError, with the reason, for a row that cannot be priced."""
    model = model_of(case)
    machine, taken = machine_of(case)
    engine = engines(config)[case.engine]
    found = predict(case, model, machine, engine)
    bare = predict(case, model, machine, without_costs(engine))
    changed = {
        name: predict(case, model, machine, with_constants(engine, {name: constant(engine, name) * (1 + STEP)}))
        for name in (engine.fitted if case.series in engine.fitted_on else ())
    }
    return {
        phase: Prediction(
            speed,
            bare[phase],
            taken,
            {name: np.log(other[phase] / speed) / np.log1p(STEP) for name, other in changed.items()},
        )
        for phase, speed in found.items()
    }


def without_costs(engine: ServingEngine) -> ServingEngine:
    """The rules of an engine at the costs of `engine=ideal`."""
    return ServingEngine(engine.name, **{rule: getattr(engine, rule) for rule in RULES})


def engines(config: DictConfig) -> Mapping[str, ServingEngine]:
    """Engines by name, with the constants that `config.engines` puts in the place of theirs.

    InputError for an engine or a constant that does not exist.
    """
    changed = cast(Mapping[str, Mapping[str, float]], OmegaConf.to_container(config.engines))
    found = _Engines(changed)
    for name in changed:
        if name not in ENGINES or not isinstance(changed[name], Mapping):
            raise InputError(f"engines: found {name}, expected constants of {', '.join(ENGINES)}")
        found[name]
    return found


class _Engines(dict[str, ServingEngine]):
    """Each is read once it is asked for."""

    def __init__(self, changed: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__()
        self._changed = changed

    def __missing__(self, name: str) -> ServingEngine:
        self[name] = with_constants(_engine(name), self._changed.get(name, {}))
        return self[name]


@lru_cache
def _engine(name: str) -> ServingEngine:
    return engine_named(name)


def model_of(case: MeasuredCase) -> ModelShape:
    """The row's model in its quantisation."""
    return quantised(find_model(case.model), case.quant, case.kv, case.bits_per_weight)


def machine_of(case: MeasuredCase) -> tuple[Platform, tuple[str, ...]]:
    """The row's machine, and what of it was taken because the row does not say it."""
    taken = []
    card = find_gpu(case.gpu or "", case.gpu_mem_gb)
    if card is None:
        card = find_gpu(UNNAMED_GPU)
        assert card is not None
        taken.append(f"GPU: {UNNAMED_GPU}")
    gpu, gpus = card
    processor = find_cpu(case.cpu or case.cpu_likely or "")
    if case.cpu_likely is not None:
        taken.append(f"CPU: {case.cpu_likely}")
    cpu, sockets = processor or (None, 1)
    ram = find_ram(case.ram, cpu, sockets, "" if case.ram_gbs is None else f"{case.ram_gbs:g}")
    if cpu is None:
        if ram is None or not ram.is_known:
            ram = find_ram(UNNAMED_RAM, None)
        cpu = unnamed_cpu(ram, case.cores)
        taken.append(f"CPU: a desktop's, {cpu.memory} {cpu.mts} x {cpu.channels}")
    link = find_link(case.pcie, gpu, cpu, gpus)
    taken += [*(ram.assumed if ram else ()), *(link.assumed if link else ())]
    if ram is not None and not ram.is_known:
        ram = None
    machine = compose(gpu, cpu, ram, link, gpus, min(sockets, cpu.sockets), cores=case.cores or case.threads)
    if case.gpu_mem_gb is not None and processor is not None:
        machine = replace(machine, gpu_memory_gb=case.gpu_mem_gb)
    if machine.gpu_memory_gb <= 0:
        raise InputError(f"gpu_mem_gb: found {machine.gpu_memory_gb}, expected more than 0")
    return machine, tuple(taken)
