"""What a language model of bytes has to beat on held-out text: a general compressor and counting."""

from __future__ import annotations

import lzma

import numpy as np
from numpy.typing import NDArray

Data = NDArray[np.uint8]


def xz_bits_per_byte(data: Data) -> float:
    """xz at its strongest setting (`xz -9e`) on the bytes alone; it has seen nothing before."""
    return 8 * len(lzma.compress(data.tobytes(), preset=9 | lzma.PRESET_EXTREME)) / data.size


def trigram_bits_per_byte(training: Data, data: Data) -> float:
    """Byte trigrams counted on `training`, each order backed by the next lower one.

    p_n(c | context) = (count(context, c) + m p_{n-1}(c)) / (count(context) + m), with m = the number of
    different bytes seen after the context (Witten and Bell, 1991, method C), down to a uniform p_0.
    """
    probability = np.full(data.size, 1 / 256)
    for order in range(3):
        grams, counts = np.unique(_codes(training, order)[order:], return_counts=True)
        contexts, first = np.unique(grams // 256, return_index=True)
        totals = np.add.reduceat(counts, first) if grams.size else counts
        kinds = np.diff(np.append(first, grams.size))
        code = _codes(data, order)
        together = _lookup(grams, counts, code)
        total, kind = _lookup(contexts, totals, code // 256), _lookup(contexts, kinds, code // 256)
        # The first bytes have no full context, and a context that was never seen says nothing.
        use = (total > 0) & (np.arange(data.size) >= order)
        mixed = (together + kind * probability) / np.maximum(total + kind, 1)
        probability = np.where(use, mixed, probability)
    return float(-np.log2(probability).mean())


def _lookup(keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values of sorted keys; 0 for those that are not there."""
    if not keys.size:
        return np.zeros(wanted.size, np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _codes(data: Data, order: int) -> NDArray[np.int64]:
    """Each byte with its `order` predecessors as one number; zeros stand before the first."""
    code = data.astype(np.int64)
    for back in range(1, order + 1):
        shifted = np.zeros(data.size, np.int64)
        shifted[back:] = data[:-back]
        code += shifted << (8 * back)
    return code
