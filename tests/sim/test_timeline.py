"""The Chrome trace file of a timeline."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali.policies.columns import DENSE, LANES
from dali.sim.timeline import Spans, check_exclusive

GPU, CPU, DEMAND, PREFETCH, SWAP = range(5)


def spans(*rows: tuple[int, float, float, int, int]) -> Spans:
    """Spans of (lane, start, end, unit, hit) in step 7, layer 1, of 3 tokens."""
    return Spans(
        time=np.array([[start, end] for _, start, end, _, _ in rows]),
        what=np.array([[lane, 7, 1, unit, 3, hit] for lane, _, _, unit, hit in rows], np.int32),
    )


def saved(timeline: Spans, folder: Path) -> list[dict[str, Any]]:
    timeline.save(folder / "timeline.json.gz", "a policy")
    assert [file.name for file in folder.iterdir()] == ["timeline.json.gz"]
    with gzip.open(folder / "timeline.json.gz", "rt", encoding="utf-8") as file:
        content = json.load(file)
    assert content["displayTimeUnit"] == "ms"
    events: list[dict[str, Any]] = content["traceEvents"]
    return events


def test_one_named_lane_for_each_machine_and_kind_of_copy(tmp_path: Path) -> None:
    events = saved(spans((GPU, 0.0, 1.0, 0, 1)), tmp_path)
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert lanes == dict(enumerate(LANES))
    assert list(LANES) == ["GPU", "CPU", "demand copies", "prefetches", "swaps"]
    order = [event["args"]["sort_index"] for event in events if event["name"] == "thread_sort_index"]
    assert order == [0, 1, 2, 3, 4]
    assert [event["args"] for event in events if event["name"] == "process_name"] == [{"name": "a policy"}]
    assert {event["pid"] for event in events} == {1}


def test_spans_are_in_microseconds(tmp_path: Path) -> None:
    rows = [(lane, 0.001 * lane, 0.001 * lane + 0.00025, lane, 0) for lane in range(5)]
    events = [event for event in saved(spans(*rows), tmp_path) if event["ph"] == "X"]
    assert [event["tid"] for event in events] == [0, 1, 2, 3, 4]
    assert [event["ts"] for event in events] == pytest.approx([0, 1000, 2000, 3000, 4000])
    assert [event["dur"] for event in events] == pytest.approx([250] * 5)
    assert [event["cat"] for event in events] == list(LANES)
    assert events[2]["name"] == "layer 1 unit 2"
    assert events[2]["args"] == {"step": 7, "layer": 1, "unit": 2, "tokens": 3, "resident": False}


def test_hits_and_misses_are_coloured(tmp_path: Path) -> None:
    timeline = spans(
        (GPU, 0, 1, DENSE, 0), (GPU, 1, 2, 0, 1), (GPU, 2, 3, 1, 0), (CPU, 1, 2, 2, 0), (DEMAND, 1, 2, 1, 0)
    )
    events = [event for event in saved(timeline, tmp_path) if event["ph"] == "X"]
    dense, hit, copied, computed_by_cpu, copy = (event["cname"] for event in events)
    assert events[0]["name"] == "layer 1 dense"
    assert hit != copied == computed_by_cpu
    assert dense == copy != hit
    assert copy != copied


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "timeline.json.gz").write_bytes(b"old")
    assert len(saved(spans((GPU, 0.0, 1.0, 0, 1)), tmp_path)) == 1 + 2 * len(LANES) + 1


def test_no_spans_make_a_valid_file(tmp_path: Path) -> None:
    empty = Spans(np.zeros((0, 2)), np.zeros((0, 6), np.int32))
    assert all(event["ph"] == "M" for event in saved(empty, tmp_path))
    check_exclusive(empty)


def test_spans_of_one_machine_must_not_overlap() -> None:
    check_exclusive(spans((GPU, 0, 1, 0, 1), (GPU, 1, 2, 1, 1), (CPU, 0.5, 1.5, 2, 0), (PREFETCH, 0.5, 2, 3, 0)))
    with pytest.raises(ValueError, match="two spans of GPU overlap"):
        check_exclusive(spans((GPU, 0, 1, 0, 1), (GPU, 0.5, 2, 1, 1)))
    # The three lanes of copies are one machine, the link.
    with pytest.raises(ValueError, match="overlap"):
        check_exclusive(spans((SWAP, 0, 1, 0, 0), (DEMAND, 0.5, 2, 1, 0)))
