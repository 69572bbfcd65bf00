"""Expert popularity recorded by efeslab/fiddler (branch popularity): one JSON file of counts a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dali.policies.types import InputError, Ints
from dali.traces.importers.reading import Paths, is_number, malformed, parse_json
from dali.traces.metadata import Metadata
from dali.traces.workload import Workload


def import_fiddler(paths: Paths, top_k: int = 2, model: str = "mixtral_8x7b") -> Workload:
    """One prefill step a file, its tokens taken as the counts of a layer / top_k (generated tokens are in them).

    The files do not say how many sequences were run: each counts as one, so the context of these steps is
    far too long, and times of dense parts that depend on it mean nothing.
    """
    if not paths:
        raise InputError("import: found no files, expected one or more")
    counts = [_counts(Path(path)) for path in paths]
    for path, rows in zip(paths, counts, strict=True):
        totals = rows.sum(axis=1)
        if rows.shape != counts[0].shape:
            malformed(str(path), f"found {rows.shape} (layers, experts), expected {counts[0].shape} as in {paths[0]}")
        if np.any(totals != totals[0]) or totals[0] % top_k:
            malformed(str(path), f"expected every layer to count the same multiple of top_k {top_k}")
    stacked = np.stack(counts)
    text = ", ".join(Path(path).stem for path in paths)
    _, layers, experts = stacked.shape
    metadata = Metadata(model, layers, experts, top_k, text=text, recorder="fiddler")
    return Workload.from_counts(stacked, stacked[:, 0].sum(axis=1, dtype=np.int32) // np.int32(top_k), metadata)


def _counts(path: Path) -> Ints:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        malformed(str(path), "not a text file")
    value = parse_json(str(path), text)
    rows: Any = value.get("expert_popularity") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        malformed(str(path), "expected expert_popularity, a list of counts for each layer")
    if any(len(row) != len(rows[0]) or not all(is_number(count, 1 << 31) for count in row) for row in rows):
        malformed(str(path), "expert_popularity: expected as many counts in each layer, from 0 up")
    return np.array(rows, np.int32)
