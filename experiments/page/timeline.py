"""Timelines of a results folder: read back, and packed for the page that shows them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dali.policies.columns import DENSE, LANE_CPU, LANE_GPU, LANES
from dali.policies.types import InputError
from dali.sim.timeline import Spans

SUFFIX = "timeline.json.gz"
TICK = 1e-7  # seconds: times go to the page as whole numbers of this


@dataclass(frozen=True)
class Timeline:
    """What one process of a Chrome trace did: a simulated policy, or a real run of it.

    unit_bytes  int64 [n], bytes of each span's unit where the file says them, 0 where it does not
    """

    name: str
    spans: Spans
    unit_bytes: np.ndarray

    @classmethod
    def read(cls, path: Path) -> list[Timeline]:
        """The processes of a file that `Spans.save` or a live run wrote; InputError if it is damaged or another's."""
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                events = json.load(file)["traceEvents"]
            names = {event["pid"]: str(event["args"]["name"]) for event in events if event["name"] == "process_name"}
            name = path.name.removesuffix(f".{SUFFIX}")
            return [cls._of(names.get(pid, name), rows) for pid, rows in _by_process(events)]
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{path}: not a whole gzip file ({error})") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}: not a whole JSON file ({error})") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: not a timeline of ours ({type(error).__name__}: {error})") from None

    @classmethod
    def _of(cls, name: str, events: list[dict[str, Any]]) -> Timeline:
        time = np.array([(event["ts"], event["ts"] + event["dur"]) for event in events], np.float64) / 1e6
        what = np.array([_what(event) for event in events], np.int32)
        if not np.all(np.isfinite(time)) or np.any(time[:, 1] < time[:, 0]):
            raise ValueError("a span does not end after its start")
        if what[:, 0].min() < 0 or what[:, 0].max() >= len(LANES):
            raise ValueError(f"expected lanes 0 to {len(LANES) - 1}")
        return cls(name, Spans(time, what), np.array([event["args"].get("bytes", 0) for event in events], np.int64))

    @property
    def steps(self) -> list[int]:
        """Steps that the GPU or the CPU worked on."""
        lane, step = self.spans.what[:, 0], self.spans.what[:, 1]
        return sorted(set(step[lane <= LANE_CPU].tolist()))

    def packed(self, step: int, unit_bytes: int) -> dict[str, Any]:
        """One step for the page: what overlaps it in time, by lane, with the page's own clock starting with the step.

        unit_bytes  bytes of a unit where the file does not say them (0 = unknown)
        Each lane is one flat list: start and length in `TICK`, step, layer, unit, tokens, resident (0 or 1), bytes.
        """
        time, what = self.spans.time, self.spans.what
        own = (what[:, 1] == step) & (what[:, 0] <= LANE_CPU)
        begin, end = time[own, 0].min(), time[own, 1].max()
        size = np.where(what[:, 3] == DENSE, 0, np.where(self.unit_bytes > 0, self.unit_bytes, unit_bytes))
        lanes = []
        for lane in range(len(LANES)):
            rows = np.flatnonzero((what[:, 0] == lane) & (time[:, 1] > begin) & (time[:, 0] < end))
            rows = rows[np.argsort(time[rows, 0], kind="stable")]
            start, length = time[rows, 0] - begin, time[rows, 1] - time[rows, 0]
            shown = [_ticks(start), _ticks(length), what[rows, 1:], size[rows]]
            lanes.append(np.column_stack(shown).ravel().tolist())
        layers = (what[:, 0] == LANE_GPU) & (what[:, 3] == DENSE) & own
        starts = _ticks(time[layers, 0] - begin)
        return {
            "name": self.name,
            "step": step,
            "length": int(_ticks(end - begin)),
            "layers": sorted(zip(starts.tolist(), what[layers, 2].tolist(), strict=True)),
            "lanes": lanes,
        }


def _ticks(seconds: np.ndarray | float) -> np.ndarray:
    return np.rint(np.asarray(seconds) / TICK).astype(np.int64)


def _by_process(events: Iterable[dict[str, Any]]) -> list[tuple[Any, list[dict[str, Any]]]]:
    processes: dict[Any, list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            processes.setdefault(event["pid"], []).append(event)
    if not processes:
        raise ValueError("no spans")
    return sorted(processes.items())


def _what(event: dict[str, Any]) -> tuple[int, ...]:
    args = event["args"]
    return (event["tid"], *(int(args[name]) for name in ("step", "layer", "unit", "tokens", "resident")))
