"""What runs in a job of a sweep: some of its points, each result stored under its key."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from dali.experiments.output.summary import summarise
from dali.experiments.scene import Scene, make_workload, read_scene, tokens_asked, with_predictors
from dali.experiments.settings import outside, read
from dali.experiments.settings.objects import engine_named, make, policy_from, policy_of
from dali.experiments.settings.routing import lengthened
from dali.experiments.simulation import simulate, slots_that_stay
from dali.experiments.verbs.sweep.request import Request
from dali.policies.columns import PHASES
from dali.policies.costs.roofline import ModelShape
from dali.policies.planner import Policy
from dali.policies.types import InputError
from dali.sim.engine import Simulation
from dali.traces.expert_ids import none_id
from dali.traces.trace import Trace
from dali.traces.workload import Workload

# Tokens on which a predictor's recall is measured: an error of 0.001 at most, in little memory.
_RECALL_TOKENS = 4096


class RunFolder:
    """Where one run of a sweep and its jobs meet: the requests, and what became of each.

    All of it is in files, so that it is the same whichever launcher runs the jobs, and whichever of them dies.

    typed  code from outside that the sweep's user named: a request may name no other, as files are anybody's
    """

    def __init__(self, path: Path, store: Path, typed: Collection[str] = ()) -> None:
        self.path = path
        self.store = store
        self.typed = frozenset(typed)

    def ask(self, index: int, request: Request, again: bool) -> None:
        """Leave a request; `again` = run it even if its result is stored."""
        content = {"request": asdict(request), "key": request.key, "again": again}
        with replacing(self._file(index, "request")) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def answer(self, index: int) -> None:
        """Run a point and store its rows, or its error."""
        content = json.loads(self._file(index, "request").read_text(encoding="utf-8"))
        self._file(index, "started").touch()
        result = self.store / f"{content['key']}.parquet"
        # Another sweep may have stored it since this one was planned.
        if content["again"] or not result.exists():
            try:
                rows = simulate_request(Request(**content["request"]), self.typed)
            # Whatever a point runs into, the others are to go on; it is recorded with its traceback.
            except Exception as error:
                trace = "" if isinstance(error, InputError) else traceback.format_exc()
                self.fail(index, f"{type(error).__name__}: {error}" if trace else str(error), trace)
                return
            with replacing(result) as temporary:
                rows.to_parquet(temporary, index=False)
        self._file(index, "done").touch()

    def fail(self, index: int, error: str, trace: str = "") -> None:
        """Record a point as failed."""
        with replacing(self._file(index, "error")) as temporary:
            temporary.write_text(json.dumps({"error": " ".join(error.split()), "traceback": trace}), encoding="utf-8")

    def error(self, index: int) -> dict[str, str] | None:
        """What a failed point ran into."""
        file = self._file(index, "error")
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def started(self, index: int) -> bool:
        """Whether a job has come to the point."""
        return self._file(index, "started").exists()

    def ended(self, index: int) -> bool:
        """Whether the point is stored or failed."""
        return self._file(index, "done").exists() or self._file(index, "error").exists()

    def _file(self, index: int, what: str) -> Path:
        return self.path / f"{index}.{what}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path` to write to, which then takes its place: readers and other writers see whole files.

    Unlike `traces.files.replacing`, its names differ between machines too.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def work(path: str, store: str, typed: Collection[str], job: DictConfig) -> None:
    """A launcher's task: answer the requests `job.points` of a run folder."""
    folder = RunFolder(Path(path), Path(store), typed)
    for index in job.points:
        folder.answer(index)


def simulate_request(request: Request, typed: Collection[str]) -> pd.DataFrame:
    """One row a policy, batch size, seed and phase, in this order of the request; InputError for code not `typed`."""
    outside.check(request.nodes, "request", typed)
    rows = [row for seed in request.seeds for row in _simulate_seed(request, seed, typed)]
    return pd.DataFrame(rows)


def _simulate_seed(request: Request, seed: int, typed: Collection[str]) -> Iterator[dict[str, Any]]:
    config = OmegaConf.create(request.config)
    config.seed = seed
    if "seed" in config.trace:
        config.trace.seed = seed
    routing = lengthened(config.trace, tokens_asked(config))
    node = json.dumps(OmegaConf.to_container(routing, resolve=True), sort_keys=True)
    scene = read_scene(config, _trace(node, request.trace))
    policies = {entry: _policy(request, entry, config, scene.model, typed) for entry in request.policies}
    scene = with_predictors(scene, policies.values(), config)
    for entry, policy in policies.items():
        slots_that_stay(entry, policy, scene)
    believed = scene.platform if request.believed is None else make(request.believed, "believed")
    believed_engine = None if config.believed_engine is None else engine_named(read.text(config, "believed_engine"))
    recalls = {entry: predictor_recall(scene.trace, policy.prefetch.source) for entry, policy in policies.items()}
    for batch in read.wholes(config, "workload.batch"):
        workload = make_workload(scene, config, batch)
        about = _about(scene, config, workload, batch, seed)
        for entry, policy in policies.items():
            simulation = simulate(scene, believed, policy, workload, (), believed_engine=believed_engine)
            for phase in PHASES:
                if phase in simulation.columns["phase"]:
                    yield {
                        "entry": entry,
                        "phase": phase,
                        **about,
                        **summarise(simulation, phase),
                        **hints(simulation, phase),
                        "predictor_recall": recalls[entry],
                    }


@lru_cache(maxsize=4)
def _trace(node: str, digest: str) -> Trace | Workload:
    """Points of one job often share a trace; `digest` tells versions of a file apart."""
    made: Trace | Workload = make(OmegaConf.create(json.loads(node)), "trace")
    return made


def _policy(request: Request, entry: str, config: DictConfig, model: ModelShape, typed: Collection[str]) -> Policy:
    if (model.layers, model.experts, model.top_k) != (config.model.layers, config.model.experts, config.model.top_k):
        return policy_of(entry, config, model, typed)
    return policy_from(request.policies[entry], entry, typed)


def _about(scene: Scene, config: DictConfig, workload: Workload, batch: int, seed: int) -> dict[str, Any]:
    notes = [*scene.notes, *(["Some sequences are resampled with replacement."] if workload.resampled else [])]
    length = config.workload.prompt + config.workload.generate
    return {
        "model": scene.model.name,
        "platform": scene.platform.name,
        "routing": scene.trace.metadata.model,
        "batch": batch,
        "seed": seed,
        "prompt": config.workload.prompt,
        "generate": config.workload.generate,
        "slices": scene.slices,
        "slots": scene.slots,
        "cache_share": scene.slots / scene.all_units,
        **gpu_memory(scene.model, scene.slots * scene.model.unit_bytes(scene.slices), batch, length),
        "notes": "\n".join(notes),
    }


def gpu_memory(model: ModelShape, expert_bytes: int, sequences: int, length: int) -> dict[str, float]:
    """GB of GPU memory: slots for experts, all other weights, the KV cache at the end, and their sum.

    Working memory of kernels and libraries is not in it.
    """
    embedding = 0.0 if model.tied else model.head_bytes
    parts = {
        "gpu_experts_gb": expert_bytes / 1e9,
        "gpu_dense_gb": (model.dense_bytes + embedding) / 1e9,
        "gpu_kv_gb": sequences * model.sequence_bytes(length) / 1e9,
    }
    return {**parts, "gpu_memory_gb": sum(parts.values())}


def hints(simulation: Simulation, phase: str) -> dict[str, float]:
    """Of the units that were prefetched, the share that the layer step they were meant for found staged."""
    copies = simulation.total("copies_prefetch", phase)
    return {"prefetch_used": simulation.total("staged", phase) / copies if copies else float("nan")}


def predictor_recall(trace: Trace | Workload, source: str | None) -> float:
    """Share of a token's true experts that a recorded or emulated predictor names one layer ahead; NaN without one."""
    if not isinstance(trace, Trace) or source not in trace.sources:
        return float("nan")
    true, guess = trace.experts[:_RECALL_TOKENS, 1:], trace.predicted[source][:_RECALL_TOKENS, 1:]
    known = true != none_id(true)
    found = (true[..., :, None] == guess[..., None, :]).any(axis=-1) & known
    return float(np.count_nonzero(found) / np.count_nonzero(known))
