"""Routing recorded by Helldez/BigMoeOnEdge: a CSV ("route_trace v1") with a row a (step, layer, slot).

Rows come in the order the engine worked: a whole prompt layer by layer (in each layer its tokens one after the
other), then every generated token layer by layer.  A token that a layer did not compute has no rows there
(llama.cpp leaves out all prompt tokens but the last in the last layer): its ids are none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dali.policies.types import InputError, Ints
from dali.traces.expert_ids import id_type, none_id
from dali.traces.importers.reading import Paths, lines, malformed, single
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace

_COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
_ROW = re.compile(
    r"(\d{1,9}),([01]),(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9}),([0-9.eE+-]+),(\d{1,9}),(\d{1,18})", re.ASCII
)
_TURN, _PHASE, _STEP, _LAYER, _SLOT, _EXPERT, _RESIDENCY = range(7)


@dataclass(frozen=True)
class _Recording:
    """Rows of the file: integer columns [N, 7] as numbered above, weights [N], and (turn, phase, step) by token."""

    metadata: Metadata
    columns: NDArray[np.int64]
    weights: NDArray[np.float64]
    tokens: NDArray[np.int64]
    token_of: NDArray[np.int64]


def import_bigmoeonedge(paths: Paths, model: str | None = None) -> Trace:
    """Trace of one .route.csv file, a sequence for each turn, with router weights and bytes of the experts.

    model  name of the model, by default the name of its weight file
    """
    path = single(paths)
    table = _read(path, model)
    shape = (len(table.tokens), table.metadata.layers, table.metadata.top_k)
    ids = np.zeros(shape, id_type(table.metadata.experts))
    ids[:] = none_id(ids)
    weights = np.zeros(shape, np.float16)
    cell = _cells(table)
    ids[cell] = table.columns[:, _EXPERT]
    weights[cell] = table.weights
    turns, sequence = np.unique(table.tokens[:, 0], return_inverse=True)
    first = np.searchsorted(sequence, np.arange(turns.size))
    position = np.arange(len(sequence)) - first[sequence]
    prompts = np.bincount(sequence[table.tokens[:, 1] == 0], minlength=turns.size)
    try:
        return Trace(
            table.metadata,
            ids,
            sequence.astype(np.int32),
            position.astype(np.int32),
            prompts.astype(np.int32),
            weights,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def residency(path: str | Path) -> Ints:
    """The engine's own record, int32 [T, L, K] aligned with the ids: 0 = miss, other = hit, -1 = no row."""
    table = _read(Path(path), None)
    record = np.full((len(table.tokens), table.metadata.layers, table.metadata.top_k), -1, np.int32)
    record[_cells(table)] = table.columns[:, _RESIDENCY]
    return record


def _cells(table: _Recording) -> tuple[NDArray[np.int64], ...]:
    return table.token_of, table.columns[:, _LAYER], table.columns[:, _SLOT]


def _read(path: Path, model: str | None) -> _Recording:
    comments: list[str] = []
    places: list[str] = []
    rows: list[tuple[int, ...]] = []
    weights: list[float] = []
    columns_named = False
    for where, text in lines(path):
        if text.startswith("#"):
            comments.append(text)
        elif not columns_named:
            columns_named = text == _COLUMNS
            if not columns_named:
                malformed(where, f"found {text[:60]!r}, expected the columns {_COLUMNS}")
        else:
            match = _ROW.fullmatch(text)
            if match is None:
                malformed(where, f"found {text[:60]!r}, expected {_COLUMNS}")
            values = match.groups()
            places.append(where)
            rows.append((*(int(value) for value in values[:6]), int(values[7])))
            weights.append(_weight(where, values[6]))
    if not rows:
        raise InputError(f"{path}: found no rows of a route_trace")
    metadata = _metadata(path, comments, model)
    columns = np.array(rows, np.int64)
    _check(columns, metadata, places)
    tokens, token_of = np.unique(columns[:, [_TURN, _PHASE, _STEP]], axis=0, return_inverse=True)
    return _Recording(metadata, columns, np.array(weights), tokens, token_of.reshape(-1))


def _weight(where: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        malformed(where, f"found weight {text!r}, expected a number")


def _metadata(path: Path, comments: list[str], model: str | None) -> Metadata:
    text = "\n".join(comments)
    head = re.search(r"^# model=(\S+) arch=\S+ n_layer=(\d+) n_expert=(\d+) n_expert_used=(\d+)$", text, re.MULTILINE)
    if not text.startswith("# route_trace v1") or head is None:
        raise InputError(f"{path}: expected the comments '# route_trace v1' and '# model=... n_layer=... n_expert=...'")
    layers, experts, top_k = (int(value) for value in head.groups()[1:])
    sizes = re.findall(r"^# layer=(\d+) expert_bytes=(\d+)", text, re.MULTILINE)
    if [int(layer) for layer, _ in sizes] != list(range(layers)):
        raise InputError(f"{path}: expected '# layer=... expert_bytes=...' for layers 0 to {layers - 1}")
    return Metadata(
        model=model or Path(head[1]).stem,
        layers=layers,
        experts=experts,
        top_k=top_k,
        recorder="BigMoeOnEdge route_trace v1",
        unit_bytes=tuple(int(size) for _, size in sizes),
    )


def _check(columns: NDArray[np.int64], metadata: Metadata, places: list[str]) -> None:
    limits = {_LAYER: metadata.layers, _SLOT: metadata.top_k, _EXPERT: metadata.experts}
    for column, limit in limits.items():
        wrong = np.flatnonzero(columns[:, column] >= limit)
        if wrong.size:
            name = _COLUMNS.split(",")[column]
            malformed(places[wrong[0]], f"found {name} {columns[wrong[0], column]}, expected below {limit}")
    # A prompt is one forward pass, and so is every generated token: within one, layers come before tokens.
    decode = columns[:, _PHASE] == 1
    forward = np.where(decode, columns[:, _STEP], 0)
    keys = [columns[:, _TURN], columns[:, _PHASE], forward, columns[:, _LAYER], columns[:, _STEP], columns[:, _SLOT]]
    changes = np.diff(np.stack(keys, axis=1), axis=0)
    first_change = np.take_along_axis(changes, (changes != 0).argmax(axis=1)[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(first_change <= 0)
    if wrong.size:
        malformed(places[wrong[0] + 1], "row out of order, expected turns, passes, layers, steps and slots to rise")
    last_layer, last_slot = columns[-1, _LAYER], columns[-1, _SLOT]
    if (last_layer, last_slot) != (metadata.layers - 1, metadata.top_k - 1):
        malformed(
            places[-1],
            f"the file ends with layer {last_layer}, slot {last_slot}, "
            f"expected a whole pass up to layer {metadata.layers - 1}, slot {metadata.top_k - 1}",
        )
