"""Prefill workloads of pjordanandrsn/experts4bit-qlora: one JSON line a prompt, counts by layer.

A line is {"example_index": n, "routed": {"0": [[expert, tokens], ...], "1": ...}}.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dali.policies.types import InputError, Ints
from dali.traces.importers.reading import Paths, is_number, lines, malformed, parse_json, single
from dali.traces.metadata import Metadata
from dali.traces.workload import Workload


def import_olmoe_prefill(
    paths: Paths, layers: int = 16, experts: int = 64, top_k: int = 8, model: str = "olmoe_1b_7b"
) -> Workload:
    """One prefill step of one sequence for each line; its tokens are the counts of a layer / top_k."""
    path = single(paths)
    steps, tokens = [], []
    for where, text in lines(path):
        counts = _counts(where, parse_json(where, text), layers, experts)
        totals = counts.sum(axis=1)
        if np.any(totals != totals[0]) or totals[0] % top_k or totals[0] == 0:
            malformed(where, f"expected every layer to count the same multiple of top_k {top_k}")
        steps.append(counts)
        tokens.append(int(totals[0]) // top_k)
    if not steps:
        raise InputError(f"{path}: found no prompts")
    metadata = Metadata(model, layers, experts, top_k, text=path.name, recorder="experts4bit-qlora")
    return Workload.from_counts(np.stack(steps), np.array(tokens, np.int32), metadata)


def _counts(where: str, value: Any, layers: int, experts: int) -> Ints:
    routed = value.get("routed") if isinstance(value, dict) else None
    if not isinstance(routed, dict) or routed.keys() != {str(layer) for layer in range(layers)}:
        malformed(where, f'expected "routed" with layers 0 to {layers - 1}')
    counts = np.zeros((layers, experts), np.int32)
    for layer, pairs in routed.items():
        for pair in pairs if isinstance(pairs, list) else [pairs]:
            if not isinstance(pair, list) or len(pair) != 2 or not is_number(pair[1], 1 << 31):
                malformed(where, f"layer {layer}: found {pair!r}, expected [expert, tokens]")
            if not is_number(pair[0], experts) or counts[int(layer), pair[0]]:
                malformed(where, f"layer {layer}: found expert {pair[0]!r}, expected 0 to {experts - 1}, each once")
            counts[int(layer), pair[0]] = pair[1]
    return counts
