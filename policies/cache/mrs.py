"""HybriMoE's minus recent score (arXiv 2504.05897)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dali.policies.cache.counted import CountedFirst
from dali.policies.core.jit import kernel
from dali.policies.require import require_count
from dali.policies.types import Floats, InputError, Ints
from dali.policies.view import LayerView


@kernel
def _mrs(score: Floats, base: int, scores: NDArray[np.float32], active: Ints, alpha: float, spread: int) -> None:
    top = min(spread * active.size, scores.size)
    cut = np.sort(scores)[scores.size - top] if top > 0 else np.float32(np.inf)
    for unit in range(scores.size):
        kept = scores[unit] if scores[unit] >= cut else np.float32(0.0)
        score[base + unit] = alpha * kept + (1 - alpha) * score[base + unit]


class MRS(CountedFirst):
    """HybriMoE's minus-recent-score (arXiv 2504.05897): S = a TopP(s) + (1 - a) S, evict the lowest.

    s are the router's scores of the layer, TopP keeps the `spread` x (active units) highest of them.
    A trace that recorded the top-k weights only has no others to keep.  A layer step's own scores count in the choice
    of who leaves for it, and of who stays where it uses more units than there are slots.
    """

    needs_router_scores = True

    def __init__(self, scope: str = "layer", fill: str = "random", alpha: float = 0.5, spread: int = 2) -> None:
        super().__init__(scope, fill)
        if not isinstance(alpha, int | float) or not 0 < alpha <= 1:
            raise InputError(f"cache.alpha: found {alpha!r}, expected a share above 0 and at most 1")
        self.alpha = alpha
        self.spread = require_count("cache.spread", spread)

    def count(self, view: LayerView) -> None:
        """Fold this step's router scores in."""
        if view.router_scores is None:
            raise ValueError("MRS: the driver gave no router_scores")
        base = view.layer * view.shape.units
        _mrs(self.score, base, view.router_scores, view.active, self.alpha, self.spread)
