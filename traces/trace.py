"""`Trace`: which experts every token of some sequences was routed to, and its file.

The file is one .safetensors with the arrays of `Trace` under their names (`predicted.<source>` one layer
ahead, `predicted.<source>.<h>` for h >= 2 layers ahead; `cosine.` likewise) and `Metadata` as the strings of
its header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.jit import kernel
from dali.policies.types import InputError, Ints
from dali.traces import tensor_file
from dali.traces.expert_ids import BY_SOURCE, Ids, none_id, predictor_name, sources_of, split_name
from dali.traces.metadata import Metadata, from_strings
from dali.traces.trace_checks import CHUNK, check_array, check_cosine, check_ids, check_weights

FORMAT = "dali-trace"


@dataclass(frozen=True, eq=False)
class Trace:
    """Routing of T tokens in L layers, K experts each.  Arrays are read only by convention.

    metadata       model shape and origin
    experts        uint8 or uint16 [T, L, K], ids chosen by each token; the type's highest value = none
    sequence       int32 [T], 0, 0, ..., 1, ...: the sequence of each token
    position       int32 [T], position in its sequence, rising
    prompt_length  int32 [S], how many of a sequence's first tokens here belong to its prompt
    weights        float16 [T, L, K], router weights, or None
    predicted      ids like `experts` by "source" (one layer ahead) or "source.h" (h >= 2 layers ahead):
                   row l holds the ids predicted FOR layer l from the gate input of layer l - h, none for
                   l < h
    cosine         float32 [S, L] by the names of `predicted`, which need not be there: mean over a sequence's
                   tokens of the cosine between the gate input predicted for layer l and the true one, NaN for
                   l < h (Table 8 of arXiv 2602.03495)
    router_input   float16 [T, L, H] and router_weight float16 or float32 [L, E, H], or None: input and
                   matrix of each gate, so that a new predictor can be tried offline (values unchecked)

    Raises InputError when an array does not fit the others, or holds what it may not.
    """

    metadata: Metadata
    experts: Ids
    sequence: Ints
    position: Ints
    prompt_length: Ints
    weights: NDArray[np.float16] | None = None
    predicted: dict[str, Ids] = field(default_factory=dict)
    cosine: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    router_input: NDArray[np.float16] | None = None
    router_weight: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            if not array.flags.c_contiguous:
                self._set(name, np.ascontiguousarray(array))
        _check_shapes(self)
        _check_tokens(self)
        check_ids("experts", self.experts, self.metadata.experts, 0)
        for name, ids in self.predicted.items():
            check_ids(f"predicted.{name}", ids, self.metadata.experts, split_name(name)[1])
        for name, cosine in self.cosine.items():
            check_array(f"cosine.{name}", cosine, (self.sequences, self.layers), ("float32",))
            check_cosine(f"cosine.{name}", cosine, split_name(name, "cosine")[1])
        if self.weights is not None:
            check_weights(self.weights)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Map a trace file; tokens are read from disk as they are used."""
        arrays, strings = tensor_file.read(path, FORMAT)
        try:
            return cls._from_arrays(arrays, from_strings(strings))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def _from_arrays(cls, arrays: tensor_file.Arrays, metadata: Metadata) -> Trace:
        values: dict[str, Any] = {
            kind: {
                name.removeprefix(f"{kind}."): arrays.pop(name) for name in list(arrays) if name.startswith(f"{kind}.")
            }
            for kind in BY_SOURCE
        }
        needed = {"experts", "sequence", "position", "prompt_length"}
        optional = {"weights", "router_input", "router_weight"}
        if not needed <= arrays.keys() <= needed | optional:
            raise InputError(f"found arrays {sorted(arrays)}, expected {sorted(needed)} and at most {sorted(optional)}")
        return cls(metadata=metadata, **values | arrays)

    def save(self, path: str | Path) -> None:
        """Write the trace; an existing file is replaced once the new one is whole."""
        tensor_file.write(path, self.arrays(), self.metadata.to_strings(FORMAT))

    def arrays(self) -> tensor_file.Arrays:
        """All there are, by their names in the file."""
        names = ("experts", "sequence", "position", "prompt_length", "weights", "router_input", "router_weight")
        arrays = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return arrays | {f"{kind}.{name}": a for kind in BY_SOURCE for name, a in getattr(self, kind).items()}

    def _set(self, name: str, array: NDArray[Any]) -> None:
        kind, dot, source = name.partition(".")
        if dot:
            getattr(self, kind)[source] = array
        else:
            object.__setattr__(self, name, array)

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.experts.shape[0])

    @property
    def layers(self) -> int:
        """L."""
        return self.metadata.layers

    @property
    def experts_count(self) -> int:
        """Routed experts of a layer, E."""
        return self.metadata.experts

    @property
    def top_k(self) -> int:
        """Experts of a token, K."""
        return self.metadata.top_k

    @property
    def sequences(self) -> int:
        """S."""
        return int(self.prompt_length.size)

    @property
    def starts(self) -> NDArray[np.int64]:
        """int64 [S + 1], first token of each sequence, then T."""
        return np.searchsorted(self.sequence, np.arange(self.sequences + 1)).astype(np.int64)

    @property
    def sources(self) -> dict[str, int]:
        """Predictor sources recorded, and how many layers ahead each goes."""
        return sources_of(self.predicted)

    def rows(self, sequence: int) -> slice:
        """Tokens of one sequence, as a slice of the first axis of the arrays."""
        if not 0 <= sequence < self.sequences:
            raise InputError(f"sequence: found {sequence}, the trace has 0 to {self.sequences - 1}")
        starts = self.starts
        return slice(int(starts[sequence]), int(starts[sequence + 1]))

    def check_model(self, layers: int, experts: int, name: str) -> None:
        """Raise InputError unless the trace is of a model with `layers` MoE layers of `experts` experts."""
        if (layers, experts) != (self.layers, self.experts_count):
            raise InputError(
                f"trace of {self.metadata.model} has {self.layers} layers x {self.experts_count} experts, "
                f"model {name} has {layers} x {experts}"
            )

    def first_layers(self, layers: int) -> Trace:
        """What was recorded of the first MoE layers, all of it; InputError unless the trace has so many."""
        if not 1 <= layers <= self.layers:
            raise InputError(
                f"layers: found {layers}, expected 1 to the {self.layers} of {self.metadata.model}'s routing"
            )
        by_layer = ("experts", "weights", "router_input")
        cut = {name: array[:, :layers] for name in by_layer if (array := getattr(self, name)) is not None}
        sizes = self.metadata.unit_bytes
        return replace(
            self,
            metadata=replace(self.metadata, layers=layers, unit_bytes=None if sizes is None else sizes[:layers]),
            predicted={name: ids[:, :layers] for name, ids in self.predicted.items()},
            cosine={name: values[:, :layers] for name, values in self.cosine.items()},
            router_weight=None if self.router_weight is None else self.router_weight[:layers],
            **cut,
        )

    def with_predictor(
        self, source: str, recall: float | Sequence[float], rng: np.random.Generator, ahead: int = 1
    ) -> Trace:
        """The trace with an emulated predictor `source` for 1 to `ahead` layers ahead; replaces one of that name.

        Each true id is kept with probability `recall` (one for all distances, or one for each); the others
        become ids that the token does not use in that layer, drawn uniformly and each at most once (none
        where no id is left).
        """
        recalls = [float(recall)] * ahead if isinstance(recall, int | float) else [float(share) for share in recall]
        if len(recalls) != ahead or ahead < 1:
            raise InputError(f"predictor {source}: found {len(recalls)} recalls for {ahead} layers ahead")
        if not all(0 <= share <= 1 for share in recalls):
            raise InputError(f"predictor {source}: found recall {recall}, expected shares between 0 and 1")
        others = {name: ids for name, ids in self.predicted.items() if split_name(name)[0] != source}
        made = {predictor_name(source, h): _emulate(self, recalls[h - 1], rng, h) for h in range(1, ahead + 1)}
        cosine = {name: values for name, values in self.cosine.items() if split_name(name)[0] != source}
        return replace(self, predicted=others | made, cosine=cosine)


def _check_shapes(trace: Trace) -> None:
    layers, experts, top_k = trace.layers, trace.experts_count, trace.top_k
    if trace.experts.ndim != 3 or trace.experts.shape[0] < 1:
        raise InputError(f"experts: found shape {trace.experts.shape}, expected [tokens, {layers}, {top_k}]")
    tokens = trace.experts.shape[0]
    ids = ("uint8", "uint16")
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        "experts": ((tokens, layers, top_k), ids),
        "sequence": ((tokens,), ("int32",)),
        "position": ((tokens,), ("int32",)),
        "weights": ((tokens, layers, top_k), ("float16",)),
        **{f"predicted.{name}": ((tokens, layers, top_k), ids) for name in trace.predicted},
    }
    arrays = trace.arrays()
    for name, (shape, types) in expected.items():
        if name in arrays:
            check_array(name, arrays[name], shape, types)
    check_array("prompt_length", trace.prompt_length, (trace.prompt_length.size,), ("int32",))
    if experts > none_id(trace.experts):
        raise InputError(f"experts: type {trace.experts.dtype} cannot hold {experts} ids and none, expected uint16")
    sources_of(trace.predicted)
    _check_router(trace)


def _check_router(trace: Trace) -> None:
    if (trace.router_input is None) != (trace.router_weight is None):
        raise InputError("router_input and router_weight: found one without the other")
    if trace.router_input is not None and trace.router_weight is not None:
        hidden = trace.router_input.shape[-1]
        check_array("router_input", trace.router_input, (trace.tokens, trace.layers, hidden), ("float16",))
        shape = (trace.layers, trace.experts_count, hidden)
        check_array("router_weight", trace.router_weight, shape, ("float16", "float32"))


def _check_tokens(trace: Trace) -> None:
    steps = np.diff(trace.sequence)
    if trace.sequence[0] != 0 or np.any((steps != 0) & (steps != 1)):
        raise InputError("sequence: expected 0, 0, ..., 1, ...: sequences one after the other, numbered from 0")
    if trace.prompt_length.size != int(trace.sequence[-1]) + 1:
        raise InputError(
            f"prompt_length: found {trace.prompt_length.size}, expected one for each of the "
            f"{int(trace.sequence[-1]) + 1} sequences"
        )
    falls = np.flatnonzero((np.diff(trace.position) <= 0) & (steps == 0))
    if falls.size or trace.position.min() < 0:
        where = int(falls[0]) + 1 if falls.size else int(trace.position.argmin())
        raise InputError(f"position: found {trace.position[where]} at token {where}, expected to rise from 0 or more")
    lengths = np.diff(trace.starts)
    wrong = np.flatnonzero((trace.prompt_length < 0) | (trace.prompt_length > lengths))
    if wrong.size:
        s = int(wrong[0])
        raise InputError(
            f"prompt_length: found {trace.prompt_length[s]} for sequence {s}, expected 0 to its {lengths[s]} tokens"
        )


def _emulate(trace: Trace, recall: float, rng: np.random.Generator, ahead: int) -> Ids:
    guess: Ids = np.full_like(trace.experts, none_id(trace.experts))
    for start in range(0, trace.tokens, CHUNK):
        true = trace.experts[start : start + CHUNK, ahead:]
        draws = rng.random((*true.shape, 2))
        _replace_ids(true, guess[start : start + CHUNK, ahead:], draws, recall, trace.experts_count)
    return guess


@kernel
def _replace_ids(true: Ids, guess: Ids, draws: NDArray[np.float64], recall: float, experts: int) -> None:
    """Fill `guess`: draws[..., 0] decides whether an id is kept, draws[..., 1] which unused id replaces it."""
    used = np.zeros(experts, np.bool_)
    unused = np.empty(experts, np.int64)
    tokens, layers, slots = true.shape
    for t in range(tokens):
        for layer in range(layers):
            used[:] = False
            for k in range(slots):
                if true[t, layer, k] < experts:
                    used[true[t, layer, k]] = True
            left = 0
            for expert in range(experts):
                if not used[expert]:
                    unused[left] = expert
                    left += 1
            for k in range(slots):
                if true[t, layer, k] >= experts:
                    continue
                if draws[t, layer, k, 0] < recall:
                    guess[t, layer, k] = true[t, layer, k]
                elif left > 0:
                    pick = int(draws[t, layer, k, 1] * left)
                    guess[t, layer, k] = unused[pick]
                    left -= 1
                    unused[pick] = unused[left]
