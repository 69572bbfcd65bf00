"""`dali replay`: which lookups of a trace hit under one cache policy, without a clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from dali.experiments.output.text import table
from dali.experiments.scene import expert_popularity
from dali.experiments.settings import read
from dali.experiments.settings.objects import make
from dali.experiments.settings.routing import about_routing, make_routing
from dali.experiments.simulation import working_set_warning
from dali.policies.cache.base import Cache
from dali.policies.columns import DECODE, PREFILL
from dali.policies.types import Capacity, Floats, InputError, Shape
from dali.sim.replay import Lookups, replay, working_set
from dali.traces.files import check_writable, replacing
from dali.traces.trace import Trace
from dali.traces.workload import Workload, expert_counts, shares_of

SUFFIXES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def run(config: DictConfig, overrides: list[str]) -> None:
    """Replay every sequence (or one batch), print the hit rates, write the lookups if asked."""
    save = None if config.save is None else check_writable(read.text(config, "save"))
    trace = make_routing(config.trace, sum(read.whole_or_none(config, name, 0) or 0 for name in ("prompt", "generate")))
    slices = read.whole(config, "slices")
    settings = OmegaConf.to_container(config.cache)
    assert isinstance(settings, dict)
    capacity_text = settings.pop("capacity")
    cache: Cache = make(settings, "cache")
    workloads = _workloads(trace, config, slices)
    unit_bytes = _unit_bytes(trace, slices)
    capacity = parse_capacity(capacity_text, cache.scope, workloads[0].layers, workloads[0].units, unit_bytes)
    measure = np.ones(workloads[0].layers, np.int64) if unit_bytes is None else unit_bytes
    known, origin = known_popularity(trace, workloads) if cache.needs_popularity else ([None] * len(workloads), "")
    notes = about_routing(trace.metadata) + _notes(cache, capacity, workloads)
    if origin:
        notes.append(f"Popularity is measured on {origin}.")
    parts = []
    with tqdm(total=sum(workload.n_steps for workload in workloads), unit="step", desc="replaying") as bar:
        for workload, shares in zip(workloads, known, strict=True):
            shape = Shape(workload.layers, workload.units, measure, shares)
            parts.append(
                replay(workload, cache, capacity, shape, read.whole(config, "seed", 0), lambda step: bar.update())
            )
    lookups = Lookups.concatenate(parts)
    if save is not None:
        _save(parts, save)
    print(
        f"{trace.metadata.model}: {type(cache).__name__}, scope {cache.scope}, capacity {capacity_text} "
        f"({int(capacity.slots.sum())} slots or fewer), {len(workloads)} replay(s) from {cache.fill}"
    )
    for note in notes:
        print(f"Note: {note}")
    rows = [
        [name, str(int(chosen.sum())), str(int(lookups.hit[chosen].sum())), f"{lookups.hit[chosen].mean():.2%}"]
        for name, chosen in (
            ("all", np.ones(lookups.hit.size, np.bool_)),
            (PREFILL, ~lookups.decode),
            (DECODE, lookups.decode),
        )
        if chosen.any()
    ]
    print(table(["phase", "lookups", "hits", "hit rate"], rows))


def parse_capacity(value: Any, scope: str, layers: int, units: int, unit_bytes: np.ndarray | None) -> Capacity:
    """Capacity of a number of units, a share of all units ("25%") or a size ("4000MiB")."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Capacity.in_units(value, scope, layers)
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%|[KMG]i?B|B)", str(value))
    if match is None:
        raise InputError(
            f"cache.capacity: found {value!r}, expected units (1500), a share (25%) or a size (4000MiB, 3.5GB)"
        )
    amount = float(match[1])
    if match[2] == "%":
        if amount > 100:
            raise InputError(f"cache.capacity: found {value!r}, expected a share of at most 100%")
        return Capacity.in_units(round(amount / 100 * layers * units), scope, layers)
    if unit_bytes is None:
        raise InputError(
            f"cache.capacity: found {value!r}, the trace does not say how large an expert is: expected units or a share"
        )
    return Capacity.in_bytes(round(amount * SUFFIXES[match[2]]), scope, unit_bytes)


def _unit_bytes(trace: Trace | Workload, slices: int) -> np.ndarray | None:
    sizes = trace.metadata.unit_bytes
    return None if sizes is None else np.array(sizes, np.int64) // slices


def _workloads(trace: Trace | Workload, config: DictConfig, slices: int) -> list[Workload]:
    """One batch of the asked size, or every sequence by itself with its recorded prompt."""
    if isinstance(trace, Workload):
        return [trace]
    if config.batch is not None:
        prompt, generate = (read.whole(config, name, 0) for name in ("prompt", "generate"))
        return [Workload.from_trace(trace, read.whole(config, "batch"), prompt, generate, slices=slices)]
    if config.prompt is not None or config.generate is not None:
        raise InputError("prompt, generate: found a value but batch is null, expected batch=N with them")
    lengths = np.diff(trace.starts)
    return [
        Workload.from_trace(trace, 1, int(prompt), int(length - prompt), [sequence], slices=slices)
        for sequence, (prompt, length) in enumerate(zip(trace.prompt_length, lengths, strict=True))
    ]


def known_popularity(trace: Trace | Workload, workloads: list[Workload]) -> tuple[Sequence[Floats | None], str]:
    """`expert_popularity` of each workload; the whole trace is counted once, and what is evaluated taken off."""
    if isinstance(trace, Workload) or len(workloads) == 1:
        shares, origin = expert_popularity(trace, workloads[0])
        return [shares], origin
    everything = expert_counts(trace, range(trace.sequences))
    known = [
        shares_of(everything - expert_counts(trace, [sequence]), workload.slices)
        for sequence, workload in enumerate(workloads)
    ]
    return known, f"the {trace.sequences - 1} sequences that are not evaluated"


def _notes(cache: Cache, capacity: Capacity, workloads: list[Workload]) -> list[str]:
    if cache.scope != "global" or cache.fixed:
        return []
    smallest = min(int(working_set(workload).min()) for workload in workloads)
    return [working_set_warning("capacity", capacity.total, smallest)] if capacity.total < smallest else []


def _save(parts: list[Lookups], path: Path) -> None:
    frames = [
        pd.DataFrame({name: getattr(part, name) for name in Lookups.__dataclass_fields__}).assign(replay=i)
        for i, part in enumerate(parts)
    ]
    with replacing(path) as temporary:
        pd.concat(frames).to_parquet(temporary, index=False)
