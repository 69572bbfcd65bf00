"""The planner's log of a run as one .npz file, with what a fresh planner needs to replay it (the drift test)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import policy_of
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.planner import Planner, replay_log
from dali.policies.types import Capacity, InputError, LayerStep, Shape
from dali.traces.files import replacing

FORMAT, VERSION = "dali-planner-log", 2
Entry = tuple[Any, ...]
Arrays = dict[str, NDArray[Any]]

_WHAT = ("begin", "next_copy", "landed", "computed", "end")
_DENSE = ("workload", "predicted", "router_scores", "next_use")
_COSTS = ("cpu", "cpu_contended", "gpu", "copy", "copy_contended")


@dataclass(frozen=True)
class LogOrigin:
    """What the planner was made of.

    policy   an entry of `policies`: a file of conf/policy with its overrides
    layers, experts, top_k, slices  sizes that settings of the policy may depend on
    seed     of its random choices
    """

    policy: str
    layers: int
    experts: int
    top_k: int
    slices: int
    seed: int


@dataclass(frozen=True)
class SavedLog:
    """A planner's log, and what it takes to make that planner again."""

    origin: LogOrigin
    entries: list[Entry]
    shape: Shape
    capacity: Capacity
    believed: CostModel

    def fresh(self) -> Planner:
        """A planner as the run's was before its first layer step, keeping a log.

        InputError for a policy of code from outside: a log is a file, which may name none.
        """
        config = configuration("run", ["checkpoint=replayed", f"slices={self.origin.slices}"])
        policy = policy_of(self.origin.policy, config, self.origin, typed=())
        return Planner(policy, self.shape, self.capacity, self.believed, self.origin.seed, log=True)

    def replay(self) -> int | None:
        """Position of the first entry that a fresh planner answers otherwise, or None: see `replay_log`."""
        return replay_log(self.entries, self.fresh())


def save(path: Path, origin: LogOrigin, planner: Planner) -> None:
    """Write the log of a planner that kept one, whole or not at all."""
    believed, capacity, shape = planner.view.cost, planner.capacity, planner.shape
    header = {
        "format": FORMAT,
        "version": VERSION,
        "origin": asdict(origin),
        "overheads": asdict(believed.overheads),
        "units": shape.units,
    }
    arrays = {
        "unit_bytes": shape.unit_bytes,
        **{f"cost.{name}": getattr(believed, name) for name in _COSTS},
        **{f"capacity.{name}": getattr(capacity, name) for name in ("group_of", "size", "room", "slots")},
        **_packed(planner.log or []),
    }
    # The planner knows of the dense part what policies are told: a step's tokens.
    tokens = sorted({entry[1].tokens for entry in planner.log or [] if entry[0] == "begin"})
    arrays["dense.tokens"] = np.array(tokens, np.int64)
    arrays["dense.seconds"] = np.array([believed.dense(count, count, 1.0) for count in tokens], np.float64)
    if shape.popularity is not None:
        arrays["popularity"] = shape.popularity
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)


def load(path: Path) -> SavedLog:
    """Read what `save` wrote; InputError for a file that is missing or something else."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(arrays.pop("header").tobytes())
        known = isinstance(header, dict) and (header.get("format"), header.get("version")) == (FORMAT, VERSION)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        known = False
    if not known:
        raise InputError(f"{path}: found something else, expected a planner log of version {VERSION}")
    shape = Shape(header["origin"]["layers"], header["units"], arrays.pop("unit_bytes"), arrays.pop("popularity", None))
    tables = {name: arrays.pop(f"cost.{name}") for name in _COSTS}
    dense = dict(zip(arrays.pop("dense.tokens").tolist(), arrays.pop("dense.seconds").tolist(), strict=True))
    overheads = Overheads(**header["overheads"])
    believed = CostModel(**tables, overheads=overheads, dense=lambda tokens, *_: dense[tokens], per_step=_unknown)
    capacity = Capacity(*(arrays.pop(f"capacity.{name}") for name in ("group_of", "size", "room", "slots")))
    return SavedLog(LogOrigin(**header["origin"]), _unpacked(arrays), shape, capacity, believed)


def _unknown(tokens: int, sequences: int, context: float) -> float:
    """No policy asks for what lies outside the layers."""
    return 0.0


# ---- entries as arrays -----------------------------------------------------------------------------


def _packed(log: Sequence[Entry]) -> Arrays:
    """calls [n, 4]: number of the call and what it answered; the layer steps of `begin` and its plans apart."""
    calls = np.zeros((len(log), 4), np.int32)
    for row, (what, *answer) in zip(calls, log, strict=True):
        row[0] = _WHAT.index(what)
        if what != "begin":
            row[1 : 1 + len(answer)] = answer
    begins = [entry for entry in log if entry[0] == "begin"]
    steps: list[LayerStep] = [entry[1] for entry in begins]
    arrays: Arrays = {"calls": calls, "about": np.array([step[:3] for step in steps], np.int32).reshape(-1, 3)}
    for name in _DENSE:
        rows = [getattr(step, name) for step in steps]
        if rows and rows[0] is not None:
            arrays[name] = np.stack(rows)
    lists = {"cpu": [entry[2] for entry in begins], "gpu": [entry[3] for entry in begins]}
    if steps and steps[0].order is not None:
        lists["order"] = [step.order for step in steps]
    for name, ragged in lists.items():
        arrays[f"{name}.lengths"] = np.array([len(each) for each in ragged], np.int32)
        arrays[f"{name}.values"] = np.concatenate([np.asarray(each, np.int32) for each in ragged] or [calls[:0, 0]])
    return arrays


def _unpacked(arrays: Arrays) -> list[Entry]:
    lists = {name: _cut(arrays, name) for name in ("cpu", "gpu", "order") if f"{name}.lengths" in arrays}
    begin, entries = 0, []
    for what, *answer in arrays["calls"].tolist():
        name = _WHAT[what]
        if name == "begin":
            given = {field: arrays[field][begin] for field in _DENSE if field in arrays}
            if "order" in lists:
                given["order"] = lists["order"][begin]
            number, layer, tokens = arrays["about"][begin].tolist()
            step = LayerStep(number, layer, tokens, **given)
            entries.append((name, step, lists["cpu"][begin].tolist(), lists["gpu"][begin].tolist()))
            begin += 1
        else:
            entries.append((name, *answer[: {"next_copy": 3, "end": 0}.get(name, 1)]))
    return entries


def _cut(arrays: Arrays, name: str) -> list[NDArray[np.int32]]:
    return np.split(arrays[f"{name}.values"], np.cumsum(arrays[f"{name}.lengths"])[:-1])
