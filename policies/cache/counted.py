"""Caches whose scores tell which units of a layer step stay where not all of them can."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from dali.policies.cache.base import ScoreCache
from dali.policies.types import Capacity, Floats, Shape
from dali.policies.view import LayerView


class CountedFirst(ScoreCache):
    """Scores that count the running layer step before anything leaves for it (`count`).

    Every copied unit stays, in the place of the lowest score that the layer step does not use.  Where not all units of
    a layer step can stay, those with the highest scores do, whether they were copied or there before: a unit that was
    there then leaves when the layer step has ended, as long as staging still holds the one that takes its place.
    """

    OWN_VICTIMS = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        super().reset(shape, capacity, rng)
        self._counted = False

    @abstractmethod
    def count(self, view: LayerView) -> None:
        """Let `score` take in the layer step, once."""

    def entry(self, view: LayerView) -> Floats:
        """Float64 [U], the scores of the running layer."""
        base = view.layer * view.shape.units
        return self.score[base : base + view.shape.units]

    def place(self, view: LayerView) -> None:
        """Count the layer step, then place its demand copies."""
        self.count(view)
        self._counted = True
        super().place(view)

    def observe(self, view: LayerView) -> None:
        """Count the layer step, if nothing was copied for it."""
        if not self._counted:
            self.count(view)
        self._counted = False
