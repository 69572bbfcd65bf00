"""Hints that need no predictor: none, random, popular, the same layer's order."""

from __future__ import annotations

import numpy as np

from dali.policies.assign.base import ABSENT
from dali.policies.core.jit import kernel
from dali.policies.prefetch.base import rank_rows
from dali.policies.require import require_count
from dali.policies.types import Bytes, Capacity, Floats, Ints, Shape
from dali.policies.view import LayerView


@kernel
def draw_absent(layer: int, status: Bytes, draws: Floats, pairs: Ints) -> int:
    """Up to `draws.size` absent units of `layer`, drawn without replacement by uniform `draws` in [0, 1)."""
    ids = np.flatnonzero(status[layer] == ABSENT)
    drawn = min(draws.size, ids.size)
    for i in range(drawn):
        j = i + int(draws[i] * (ids.size - i))
        ids[i], ids[j] = ids[j], ids[i]
        pairs[i, 0] = layer
        pairs[i, 1] = ids[i]
    return drawn


@kernel
def first_absent(layer: int, status: Bytes, size: int, pairs: Ints) -> int:
    """The first `size` absent units of `layer` in id order."""
    written = 0
    for unit in range(status.shape[1]):
        if status[layer, unit] == ABSENT and written < size:
            pairs[written, 0] = layer
            pairs[written, 1] = unit
            written += 1
    return written


class NoPrefetch:
    """Nothing is copied early."""

    source: str | None = None
    ahead: int = 0

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._pairs: Ints = np.zeros((0, 2), np.int32)

    def rank(self, view: LayerView) -> Ints:
        """int32 [0, 2]."""
        return self._pairs


class RandomPrefetch:
    """`size` absent units of the next layer, drawn evenly (the control in DALI's comparison of prefetchers).

    Every call takes `size` numbers from the generator, whatever is absent.
    """

    source: str | None = None
    ahead: int = 1

    def __init__(self, size: int) -> None:
        require_count("RandomPrefetch.size", size, least=1)
        self.size = size

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._rng = rng
        self._draws: Floats = np.zeros(self.size)
        self._pairs: Ints = np.zeros((self.size, 2), np.int32)

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), n <= size."""
        self._rng.random(out=self._draws)
        layer = (view.layer + 1) % view.shape.layers
        return self._pairs[: draw_absent(layer, view.status, self._draws, self._pairs)]


class FrequencyPrefetch:
    """The most frequent absent units of the next layer, at most `size` (EdgeMoE, arXiv 2308.14352).

    Frequency is a count per layer and unit: tokens routed there in the steps observed so far, on top of what
    `prior_tokens` tokens of the calibration text would have given (`Shape.popularity`; 0 if unknown).
    Units never counted are not hinted at.  A large prior keeps to the profile, as EdgeMoE does.
    """

    source: str | None = None
    ahead: int = 1

    def __init__(self, size: int, prior_tokens: int = 1024) -> None:
        require_count("FrequencyPrefetch.size", size, least=1)
        require_count("FrequencyPrefetch.prior_tokens", prior_tokens, least=0)
        self.size = size
        self.prior_tokens = prior_tokens

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._counts: Floats = np.zeros((shape.layers, shape.units))
        if shape.popularity is not None:
            self._counts += self.prior_tokens * shape.popularity
        self._pairs: Ints = np.zeros((min(self.size, shape.units), 2), np.int32)

    def observe(self, view: LayerView) -> None:
        """Count this layer step."""
        self._counts[view.layer] += view.workload

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), n <= size."""
        layer = (view.layer + 1) % view.shape.layers
        counts = self._counts[layer : layer + 1]
        return self._pairs[: rank_rows(counts, 1, layer, view.status, self.size, self._pairs)]


class NextLayer:
    """All absent units of the next layer in id order, at most `size` of them (None = all).

    MoE-Lightning (arXiv 2411.11217) streams the weights in pages one layer ahead of their use, whatever
    the router will say.
    """

    source: str | None = None
    ahead: int = 1

    def __init__(self, size: int | None = None) -> None:
        if size is not None:
            require_count("NextLayer.size", size, least=1)
        self.size = size

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._most = shape.units if self.size is None else min(self.size, shape.units)
        self._pairs: Ints = np.zeros((self._most, 2), np.int32)

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), n <= size."""
        layer = (view.layer + 1) % view.shape.layers
        return self._pairs[: first_absent(layer, view.status, self._most, self._pairs)]
