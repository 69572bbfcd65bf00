"""What to copy early: hints for later layer steps, ranked.

A policy hints at absent units only, so `size` counts real copies.  The pairs are a buffer of their
policy, valid until the next `rank`.  A prediction reaches to the last layer of its own step; policies that
need none wrap around to layer 0 of the next step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policies.assignment import ABSENT, hybrid_order, hybrid_schedule, sort_descending
from policies.checks import require_count
from policies.jit import kernel
from policies.types import Bytes, Capacity, Floats, InputError, Ints, LayerView, PrefetchPolicy, Shape

Scores = NDArray[np.float32] | Ints | Floats

# Two schedules of equal length may differ by rounding, as their sums run in another order.
NEGLIGIBLE = 1e-9


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


@kernel
def _makespan_with(
    order: Ints, cached: int, at: int, workload: Ints, cpu_time: Floats, gpu_time: Floats, copy_time: float
) -> float:
    """HybriMoE's makespan with the absent unit at position `at` of the queue resident instead."""
    unit = order[at]
    queue = order.copy()
    place = at
    # It moves ahead of the other absent units and of lighter cached ones; equals take equal times.
    while place > 0 and (place > cached or workload[queue[place - 1]] < workload[unit]):
        queue[place] = queue[place - 1]
        place -= 1
    queue[place] = unit
    return hybrid_schedule(queue, cached + 1, cpu_time, gpu_time, copy_time)[1]


@kernel
def rank_gains(
    predicted: Scores,
    rows: int,
    first_layer: int,
    status: Bytes,
    cpu_table: Floats,
    gpu_table: Floats,
    copy: Floats,
    candidates: int,
    pairs: Ints,
) -> int:
    """Rule of `GainPrefetch`: writes up to `len(pairs)` of (layer, unit) to `pairs`, returns how many."""
    layers, units = status.shape
    keys = np.empty(rows * candidates, np.int32)
    gains = np.empty(rows * candidates, np.float64)
    workload = np.zeros(units, np.int32)
    cpu_time = np.zeros(units, np.float64)
    gpu_time = np.zeros(units, np.float64)
    found = 0
    for row in range(min(rows, layers - first_layer)):
        layer = first_layer + row
        for unit in range(units):
            workload[unit] = min(int(np.ceil(predicted[row, unit])), cpu_table.size - 1)
            cpu_time[unit] = cpu_table[workload[unit]]
            gpu_time[unit] = gpu_table[workload[unit]]
        active = np.flatnonzero(workload > 0).astype(np.int32)
        order, cached = hybrid_order(active, workload, status[layer])
        before = hybrid_schedule(order, cached, cpu_time, gpu_time, copy[layer])[1]
        for at in range(cached, min(order.size, cached + candidates)):
            gain = before - _makespan_with(order, cached, at, workload, cpu_time, gpu_time, copy[layer])
            if gain > NEGLIGIBLE * before:
                keys[found] = layer * units + order[at]
                gains[found] = gain
                found += 1
    sort_descending(keys[:found], gains[:found])
    written = min(found, len(pairs))
    for i in range(written):
        pairs[i, 0] = keys[i] // units
        pairs[i, 1] = keys[i] % units
    return written


def _predicted(policy: PrefetchPolicy, view: LayerView) -> NDArray[np.float32] | Ints:
    """The predicted workloads, which the driver owes to a policy with a source."""
    rows = 0 if view.predicted is None else len(view.predicted)
    if view.predicted is None or rows < policy.ahead:
        raise ValueError(
            f"layer step {view.step}/{view.layer}: found {rows} rows of predicted workload, "
            f"expected {policy.ahead} from source {policy.source!r}"
        )
    return view.predicted


def _require_source(owner: str, source: str) -> None:
    if not isinstance(source, str) or not source:
        raise InputError(f"{owner}.source: found {source!r}, expected the name of a predictor")


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


class PredictedPrefetch:
    """The absent units with the largest predicted workload, `size` a layer, nearer layers first.

    With source "residual" this is DALI's prefetch (arXiv 2602.03495, residual-based prefetching), with
    source "gate" the raw gate that it attributes to HybriMoE; both look one layer ahead.  Units predicted
    to get no token are not hinted at.
    """

    def __init__(self, source: str, size: int, ahead: int = 1) -> None:
        owner = type(self).__name__
        _require_source(owner, source)
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
        return self._rank(view, _predicted(self, view))

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


class GainPrefetch:
    """HybriMoE's impact-driven prefetch (arXiv 2504.05897): the copies that shorten later layers most.

    The gates of the next `ahead` layers (three in the paper) are applied to the current hidden state.  For
    each layer its schedule (`assignment.HybriMoE`) is simulated for the predicted workload and present
    residency, then again with one absent unit resident; the difference of the makespans is that unit's
    gain.  Hints come by gain descending, only gains above 0, at most `size` over all layers together; equal
    gains by nearer layer, then lower id.

    Ours, as the paper leaves it open: only the `candidates` absent units of a layer with the largest
    predicted workload are tried; gains are not simulated anew once a hint is taken; fractions of tokens
    are rounded up.
    """

    def __init__(self, size: int, source: str = "gate", ahead: int = 3, candidates: int = 8) -> None:
        _require_source("GainPrefetch", source)
        require_count("GainPrefetch.size", size, least=1)
        require_count("GainPrefetch.ahead", ahead, least=1)
        require_count("GainPrefetch.candidates", candidates, least=1)
        self.size = size
        self.source: str | None = source
        self.ahead = ahead
        self.candidates = candidates

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._tried = min(self.candidates, shape.units)
        self._pairs: Ints = np.zeros((min(self.size, self.ahead * self._tried), 2), np.int32)

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), n <= size.

        Raises:
            ValueError: the driver predicted fewer than `ahead` layers.
        """
        cost = view.cost
        found = rank_gains(
            _predicted(self, view),
            self.ahead,
            view.layer + 1,
            view.status,
            cost.cpu,
            cost.gpu,
            cost.copy,
            self._tried,
            self._pairs,
        )
        return self._pairs[:found]
