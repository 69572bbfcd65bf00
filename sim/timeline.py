"""Spans of simulated work, and the Chrome trace file that shows them (chrome://tracing, Perfetto)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dali.policies.columns import DENSE, LANE_LINK, LANES
from dali.policies.types import Floats, Ints
from dali.traces.files import replacing

# Reserved colour names of the Chrome trace format.
_HIT, _MISS, _OTHER = "good", "terrible", "generic_work"


@dataclass(frozen=True)
class Spans:
    """What each machine did when.

    time  float64 [n, 2], start and end in seconds
    what  int32 [n, 6], columns lane, step, layer, unit (`DENSE` for the dense part), tokens, hit (0 or 1)
    """

    time: Floats
    what: Ints

    def save(self, path: Path, process: str) -> None:
        """Write a gzipped Chrome trace whose one process, `process`, has a thread for each lane."""
        events: list[dict[str, object]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": process}}]
        for lane, name in enumerate(LANES):
            for what, value in (("thread_name", {"name": name}), ("thread_sort_index", {"sort_index": lane})):
                events.append({"ph": "M", "pid": 1, "tid": lane, "name": what, "args": value})
        for (start, end), row in zip(self.time.tolist(), self.what.tolist(), strict=True):
            events.append(_event(start, end, *row))
        with replacing(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)


def _event(
    start: float, end: float, lane: int, step: int, layer: int, unit: int, tokens: int, hit: int
) -> dict[str, object]:
    dense = unit == DENSE
    colour = _OTHER if dense or lane >= LANE_LINK else _HIT if hit else _MISS
    return {
        "ph": "X",
        "pid": 1,
        "tid": lane,
        "name": f"layer {layer} dense" if dense else f"layer {layer} unit {unit}",
        "cat": LANES[lane],
        "ts": start * 1e6,
        "dur": (end - start) * 1e6,
        "cname": colour,
        "args": {"step": step, "layer": layer, "unit": unit, "tokens": tokens, "resident": bool(hit)},
    }


def check_exclusive(spans: Spans) -> None:
    """Raise ValueError if two spans of one machine overlap in time; the three copy lanes are one machine."""
    machine = np.minimum(spans.what[:, 0], LANE_LINK)
    for which in np.unique(machine):
        time = spans.time[machine == which]
        time = time[np.argsort(time[:, 0], kind="stable")]
        if np.any(time[1:, 0] < time[:-1, 1] - 1e-12):
            raise ValueError(f"timeline: two spans of {LANES[which]} overlap")
