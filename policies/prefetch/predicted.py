"""Hints by a predictor's workload: DALI's residual, EdgeMoE's frequency table, the truth."""

from __future__ import annotations

import numpy as np

from dali.policies.core.jit import kernel
from dali.policies.prefetch.base import Scores, predicted_rows, rank_rows, require_source
from dali.policies.require import require_count
from dali.policies.types import Capacity, Floats, InputError, Ints, Shape
from dali.policies.view import LayerView


@kernel
def lose_recall(truth: Scores, recall: float, draws: Floats, believed: Floats) -> None:
    """Rule of `OraclePrefetch`'s recall: `truth` [>= H, U] with some workloads moved, into `believed` [H, U].

    `draws` [H, 2, U] are uniform in [0, 1): whether an active unit is kept, and where it goes if not.
    """
    for row in range(believed.shape[0]):
        inactive = np.flatnonzero(truth[row] == 0)
        left = inactive.size
        believed[row] = 0.0
        for unit in range(believed.shape[1]):
            if truth[row, unit] == 0:
                continue
            if draws[row, 0, unit] < recall:
                believed[row, unit] = truth[row, unit]
            elif left > 0:
                taken = int(draws[row, 1, unit] * left)
                believed[row, inactive[taken]] = truth[row, unit]
                left -= 1
                inactive[taken] = inactive[left]


class PredictedPrefetch:
    """The absent units with the largest predicted workload, `size` a layer, nearer layers first.

    With source "residual" this is DALI's prefetch (arXiv 2602.03495, residual-based prefetching), with
    source "gate" the raw gate that it attributes to HybriMoE; both look one layer ahead.  Units predicted
    to get no token are not hinted at.
    """

    def __init__(self, source: str, size: int, ahead: int = 1) -> None:
        owner = type(self).__name__
        require_source(owner, source)
        require_count(f"{owner}.size", size, least=1)
        require_count(f"{owner}.ahead", ahead, least=1)
        self.source: str | None = source
        self.size = size
        self.ahead = ahead

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._pairs: Ints = np.zeros((self.ahead * min(self.size, shape.units), 2), np.int32)

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), n <= size * ahead.

        Raises:
            ValueError: the driver predicted fewer than `ahead` layers.
        """
        return self._rank(view, predicted_rows(self, view))

    def _rank(self, view: LayerView, scores: Scores) -> Ints:
        return self._pairs[: rank_rows(scores, self.ahead, view.layer + 1, view.status, self.size, self._pairs)]


class OraclePrefetch(PredictedPrefetch):
    """What a predictor of a given recall would be worth: `PredictedPrefetch` on the true workloads.

    With `recall` below 1 each truly active unit keeps its workload with that probability; else the
    workload moves to an inactive unit drawn evenly among those not yet taken (and is lost if none is
    left).  Every layer step draws anew, so a layer looked at twice is misjudged in two ways.
    """

    def __init__(self, size: int, ahead: int = 1, recall: float = 1.0) -> None:
        super().__init__("oracle", size, ahead)
        if not isinstance(recall, int | float) or not 0 <= recall <= 1:
            raise InputError(f"OraclePrefetch.recall: found {recall!r}, expected a share between 0 and 1")
        self.recall = recall

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        super().reset(shape, capacity, rng)
        self._rng = rng
        self._draws: Floats = np.zeros((self.ahead, 2, shape.units))
        self._believed: Floats = np.zeros((self.ahead, shape.units))

    def _rank(self, view: LayerView, scores: Scores) -> Ints:
        if self.recall < 1:
            self._rng.random(out=self._draws)
            lose_recall(scores, self.recall, self._draws, self._believed)
            scores = self._believed
        return super()._rank(view, scores)
