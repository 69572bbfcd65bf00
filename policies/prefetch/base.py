"""What to copy early: hints for later layer steps, ranked.

A policy hints at absent units only, so `size` counts real copies.  The pairs are a buffer of their
policy, valid until the next `rank`.  A prediction reaches to the last layer of its own step; policies that
need none wrap around to layer 0 of the next step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dali.policies.assign.base import ABSENT
from dali.policies.core.jit import kernel
from dali.policies.types import Bytes, Floats, InputError, Ints
from dali.policies.view import LayerView, PrefetchPolicy

Scores = NDArray[np.float32] | Ints | Floats


@kernel
def rank_rows(scores: Scores, rows: int, first_layer: int, status: Bytes, size: int, pairs: Ints) -> int:
    """Per row the `size` highest scored absent units with a score above 0, ties by lower id.

    Row r of `scores` [>= rows, U] is about layer `first_layer + r`; rows past the last layer are ignored.
    Writes (layer, unit) to `pairs`, row by row, and returns how many.
    """
    written = 0
    for row in range(min(rows, status.shape[0] - first_layer)):
        layer = first_layer + row
        found = 0
        for unit in range(status.shape[1]):
            score = scores[row, unit]
            if score <= 0 or status[layer, unit] != ABSENT:
                continue
            if found == size and score <= scores[row, pairs[written + size - 1, 1]]:
                continue
            i = min(found, size - 1)
            while i > 0 and scores[row, pairs[written + i - 1, 1]] < score:
                pairs[written + i, 1] = pairs[written + i - 1, 1]
                i -= 1
            pairs[written + i, 1] = unit
            found = min(found + 1, size)
        for i in range(found):
            pairs[written + i, 0] = layer
        written += found
    return written


def predicted_rows(policy: PrefetchPolicy, view: LayerView) -> NDArray[np.float32] | Ints:
    """The predicted workloads, which the driver owes to a policy with a source."""
    rows = 0 if view.predicted is None else len(view.predicted)
    if view.predicted is None or rows < policy.ahead:
        raise ValueError(
            f"layer step {view.step}/{view.layer}: found {rows} rows of predicted workload, "
            f"expected {policy.ahead} from source {policy.source!r}"
        )
    return view.predicted


def require_source(owner: str, source: str) -> None:
    """InputError unless `source` can be the name of a predictor."""
    if not isinstance(source, str) or not source:
        raise InputError(f"{owner}.source: found {source!r}, expected the name of a predictor")
