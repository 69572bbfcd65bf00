"""Routing recorded by BrianBoitano/nvmoe: one JSON line a generated token, [[layer, expert], ...] by layer.

Every line must hold the same layers, in a row, with the same number of experts each: layers 1 to 26 of a file
(a model whose layer 0 has no experts) become 0 to 25.  Router weights and prompts are not recorded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from dali.policies.types import InputError
from dali.traces.expert_ids import Ids, id_type
from dali.traces.importers.reading import Paths, is_number, lines, malformed, parse_json, single
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace


def import_nvmoe(
    paths: Paths, sequence_length: int | None = None, experts: int = 64, model: str | None = None
) -> Trace:
    """Decode-only trace of one .tokens.jsonl file.

    sequence_length  tokens of each of the sequences that the file holds one after the other; None = one sequence
    experts          routed experts of a layer, which the file does not say
    model            name of the model, by default that of the file
    """
    path = single(paths)
    rows: list[list[int]] = []
    layers: list[int] = []
    for where, text in lines(path):
        pairs = _pairs(where, parse_json(where, text), experts)
        if not layers:
            layers = _layers(where, [layer for layer, _ in pairs])
        elif [layer for layer, _ in pairs] != layers:
            malformed(where, "layers differ from those of the first line")
        rows.append([expert for _, expert in pairs])
    if not rows:
        raise InputError(f"{path}: found no tokens")
    count = len(set(layers))
    ids: Ids = np.reshape(rows, (len(rows), count, -1)).astype(id_type(experts))
    length = len(rows) if sequence_length is None else sequence_length
    if length < 1 or len(rows) % length:
        raise InputError(f"{path}: found {len(rows)} tokens, expected a multiple of sequence_length {sequence_length}")
    metadata = Metadata(model or path.name.split(".")[0], count, experts, ids.shape[2], recorder="nvmoe")
    token = np.arange(len(rows), dtype=np.int32)
    prompts = np.zeros(len(rows) // length, np.int32)
    try:
        return Trace(metadata, ids, token // np.int32(length), token % np.int32(length), prompts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _pairs(where: str, value: Any, experts: int) -> list[tuple[int, int]]:
    if not isinstance(value, list) or not value:
        malformed(where, "expected a list of [layer, expert]")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not is_number(pair[0], 1 << 16):
            malformed(where, f"found {pair!r}, expected [layer, expert]")
        if not is_number(pair[1], experts):
            malformed(where, f"found expert {pair[1]!r}, expected 0 to {experts - 1}")
    return [(layer, expert) for layer, expert in value]


def _layers(where: str, layers: list[int]) -> list[int]:
    distinct = sorted(set(layers))
    top_k = len(layers) // len(distinct)
    if any(b - a != 1 for a, b in pairwise(distinct)) or layers != [layer for layer in distinct for _ in range(top_k)]:
        malformed(where, "expected layers in a row, with the same number of experts each")
    return layers
