"""The cache policies compared: each is its score.

The oracle gets annotated input (`next_use`), no driver of its own.
"""

from __future__ import annotations

import numpy as np

from dali.policies.cache.base import ScoreCache
from dali.policies.types import Ints


class Static(ScoreCache):
    """Nothing ever moves: what is resident at the start stays (Fiddler, KTransformers)."""

    ENTRY = "never"
    fixed = True

    def __init__(self, scope: str = "layer", fill: str = "popular") -> None:
        super().__init__(scope, fill)


class WholeLayers(ScoreCache):
    """The last layers whole, the others not at all (llama.cpp `-ncmoe N`, N = the layers that do not fit).

    Slots that do not make a whole layer stay empty.
    """

    ENTRY = "never"
    fixed = True

    def __init__(self) -> None:
        super().__init__("global", "empty")

    def initial(self) -> Ints:
        """Keys of the last layers."""
        taken = np.cumsum(self.capacity.size[::-1]) * self.shape.units
        layers = int(np.searchsorted(taken, self.capacity.room[0], side="right"))
        keys = self.shape.layers * self.shape.units
        return np.arange(keys - layers * self.shape.units, keys, dtype=np.int32)
