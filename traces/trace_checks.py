"""What the arrays of a trace have to be like, checked in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.jit import kernel
from dali.policies.types import InputError
from dali.traces.expert_ids import Ids, none_id

CHUNK = 1024
_COSINE_MAX = 1.001  # what rounding may add


def check_array(name: str, array: NDArray[Any], shape: tuple[int, ...], types: tuple[str, ...]) -> None:
    """InputError for another shape or type."""
    if array.shape != shape or array.dtype.name not in types:
        wanted = " or ".join(types)
        raise InputError(f"{name}: found {array.dtype} {list(array.shape)}, expected {wanted} {list(shape)}")


def check_ids(name: str, ids: Ids, experts: int, first_layer: int) -> None:
    """InputError for an id out of range or given twice, and for a prediction of a layer that has none."""
    token, layer, slot, problem = _first_bad_id(ids, experts, none_id(ids), first_layer)
    if problem == 0:
        return
    found = f"{name}: found id {ids[token, layer, slot]} at token {token}, layer {layer}, slot {slot}"
    none = none_id(ids)
    if problem == 1:
        raise InputError(f"{found}, expected below {experts} (or {none} for none)")
    if problem == 2:
        raise InputError(f"{found} a second time, expected the ids of a token to differ")
    raise InputError(f"{found}, expected {none} (none) below layer {first_layer}")


@kernel
def _first_bad_id(ids: Ids, experts: int, none: int, first_layer: int) -> tuple[int, int, int, int]:
    """(token, layer, slot, problem) of the first wrong id; problem 1 range, 2 duplicate, 3 layer, 0 all right."""
    tokens, layers, slots = ids.shape
    for t in range(tokens):
        for layer in range(layers):
            for k in range(slots):
                expert = ids[t, layer, k]
                if expert == none:
                    continue
                if expert >= experts:
                    return t, layer, k, 1
                if layer < first_layer:
                    return t, layer, k, 3
                for other in range(k):
                    if ids[t, layer, other] == expert:
                        return t, layer, k, 2
    return 0, 0, 0, 0


def check_weights(weights: NDArray[np.float16]) -> None:
    """InputError for a weight that is not finite."""
    where = _first_bad_weight(weights.view(np.uint16).reshape(-1))
    if where >= 0:
        token, layer, slot = (int(i) for i in np.unravel_index(where, weights.shape))
        raise InputError(
            f"weights: found {weights[token, layer, slot]} at token {token}, layer {layer}, slot {slot}, "
            "expected finite and not negative"
        )


@kernel
def _first_bad_weight(bits: NDArray[np.uint16]) -> int:
    """Index of the first half-precision number that is not finite or below zero, -1 if none (read as bits)."""
    for i in range(bits.size):
        if (bits[i] & 0x7C00) == 0x7C00 or bits[i] > 0x8000:
            return i
    return -1


def check_cosine(name: str, cosine: NDArray[np.float32], first_layer: int) -> None:
    """InputError for a number where no prediction is, and for one that is no cosine."""
    if not np.isnan(cosine[:, :first_layer]).all():
        raise InputError(f"{name}: found a number below layer {first_layer}, expected NaN there")
    values = cosine[:, first_layer:]
    if not (np.abs(values) < _COSINE_MAX).all():
        raise InputError(f"{name}: found one that is not between -1 and 1")
