"""How well predictors foresee routing: recall by token and by workload, with bootstrap intervals.

Evaluated are batches of equally many sequences, in the order of the trace: `groups`.  The first token of a
sequence is left out everywhere, as nothing precedes it that a predictor by repetition could use.

**Recall of a token's experts** is the share of its true ids among the predicted ones.

**Recall of the top n by workload** asks what a prefetch of n units would bring.  In one layer of one step, w[u]
is the true and p[u] the predicted workload of the whole batch.  Guessed are the n units of highest p > 0.  A
guess hits if w[u] > 0 and w[u] is at least the n-th largest true workload: where units tie for the last
place any of them is right.  Places are min(n, active units); recall = hits / places, over all steps.  Where
units tie for the last *guess*, the hits are the mean over all ways to choose among them.  (Choosing the lower
id, as a prefetch policy does, has the same mean where ids mean nothing, and more noise.)

At batch 1 every active unit has workload 1 and every predicted one too, so the order is unknown on both sides and any
active unit is a right guess.  There recall of the top n <= K is the share of predicted ids that are true: that of a
token's experts, if as many are predicted as used.  A trace keeps no predicted scores, hence no better order.
For n > K a predictor that names K units cannot fill n places, while one that ranks all units can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dali.policies.columns import DECODE, PHASES
from dali.policies.core.jit import kernel
from dali.policies.types import Floats, InputError
from dali.traces.expert_ids import Ids, id_type
from dali.traces.sources import Rows, count
from dali.traces.trace import Trace

FEW_GROUPS = 8
BLOCK = 16


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences that run together: step s has tokens first[s, b] to last[s, b] - 1 of sequence b; int64 [steps, B]."""

    sequences: list[int]
    first: Rows
    last: Rows


@dataclass(frozen=True)
class Tally:
    """What recall is made of, by cluster and layer: float64 [C, L], hits <= places.

    Clusters are what a bootstrap draws: taken to be independent of each other.  A mean fits too: hits = sum of
    the values, places = how many.
    """

    hits: Floats
    places: Floats

    def shares(self, first_layer: int, draws: Floats | None = None) -> Floats:
        """Hits over places for each layer from `first_layer` on, then for these layers together; NaN without places.

        draws  float64 [R, C], how often each cluster counts in each of R resamples -> [R, n + 1]; None = each
               once -> [n + 1]
        """
        weights = np.ones(len(self.hits)) if draws is None else draws
        hits, places = weights @ self.hits[:, first_layer:], weights @ self.places[:, first_layer:]
        hits = np.concatenate([hits, hits.sum(axis=-1, keepdims=True)], axis=-1)
        places = np.concatenate([places, places.sum(axis=-1, keepdims=True)], axis=-1)
        return np.divide(hits, places, out=np.full_like(hits, np.nan), where=places > 0)


def resamples(clusters: int, count: int, seed: int) -> Floats:
    """`count` bootstrap resamples of C clusters with replacement: how often each was drawn, float64 [count, C].

    One cluster has no spread to resample: all NaN, and so is every interval made of it.
    """
    if clusters == 1:
        return np.full((count, 1), np.nan)
    rng = np.random.default_rng([seed, clusters])
    drawn: Floats = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=count).astype(np.float64)
    return drawn


def interval(replicates: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Ends of the percentile interval over the first axis; NaN where a replicate is."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return low, high


# ---- which tokens ----------------------------------------------------------------------------------


def groups(trace: Trace, batch: int, phase: str) -> list[SequenceGroup]:
    """Batches of `batch` sequences that follow each other in the trace; what is left over at its end is not used.

    phase  "decode": step s is the s-th generated token of every sequence, up to the shortest of the batch
           "prefill": one step of all prompts
    Sequences that have no token of the phase are passed over.  Raises InputError for another phase.
    """
    if phase not in PHASES:
        raise InputError(f"phase: found {phase!r}, expected {' or '.join(PHASES)}")
    starts, prompts = trace.starts[:-1], trace.prompt_length.astype(np.int64)
    low = starts + (np.maximum(prompts, 1) if phase == DECODE else 1)
    high = trace.starts[1:] if phase == DECODE else starts + prompts
    usable = np.flatnonzero(high > low)
    found = []
    for at in range(0, usable.size - batch + 1, batch):
        chosen = usable[at : at + batch]
        first, last = low[chosen][None], high[chosen][None]
        if phase == DECODE:
            first = first + np.arange(int((last - first).min()))[:, None]
            last = first + 1
        found.append(SequenceGroup(chosen.tolist(), first, last))
    return found


# ---- predictors from ids alone -----------------------------------------------------------------------


def previous(trace: Trace) -> Ids:
    """Ids of the token before, [T, L, K]; by workload that is the step before.  Row 0 of a sequence means nothing."""
    return np.roll(trace.experts, 1, axis=0)


def popularity_scores(trace: Trace, batches: Sequence[SequenceGroup], phase: str) -> tuple[Floats, bool] | None:
    """How often each unit is used outside of each group: float64 [G, L, E], and whether that is what was counted.

    A group that is the whole trace has nothing outside: then the counts of all groups are those of their own
    prompts, known before the decode steps that are evaluated (False).  None where that is no way out either: in
    prefill, or without prompts.
    """
    counts = np.zeros((trace.sequences, trace.layers, trace.experts_count), np.int32)
    outside = all(len(group.sequences) < trace.sequences for group in batches)
    if not outside and (phase != DECODE or not trace.prompt_length.any()):
        return None
    starts = trace.starts
    lengths = np.diff(starts) if outside else trace.prompt_length
    for sequence, length in enumerate(lengths):
        count(trace.experts, starts[sequence : sequence + 1], 0, int(length), counts[sequence])
    inside = np.stack([counts[group.sequences].sum(axis=0) for group in batches]).astype(np.float64)
    return (counts.sum(axis=0) - inside if outside else inside), outside


def most_popular(trace: Trace, batches: Sequence[SequenceGroup], scores: Floats) -> Ids:
    """The K units of highest score > 0 for every token of each group, [T, L, K]; ties go to the lower id."""
    none = np.iinfo(id_type(trace.experts_count)).max
    guess: Ids = np.full(trace.experts.shape, none, id_type(trace.experts_count))
    ranked = np.argsort(-scores, axis=-1, kind="stable")[..., : trace.top_k]
    named = np.where(np.take_along_axis(scores, ranked, -1) > 0, ranked, none)
    for group, ids in zip(batches, named, strict=True):
        for sequence in group.sequences:
            guess[trace.rows(sequence)] = ids
    return guess


# ---- recall ------------------------------------------------------------------------------------------


def token_tally(trace: Trace, batches: Sequence[SequenceGroup], guess: Ids | None) -> Tally:
    """Recall of each token's experts; clusters are sequences.

    guess  [T, L, K]; None = K different ids drawn evenly, for which hits are the expected K / E of the places
    """
    found = []
    for group in batches:
        hits = np.zeros((2, len(group.sequences), trace.layers))
        _count_tokens(trace.experts, trace.experts if guess is None else guess, group.first, group.last,
                      trace.experts_count, hits[0], hits[1])  # fmt: skip
        found.append(hits)
    hits, places = np.concatenate(found, axis=1)
    return Tally(places * (trace.top_k / trace.experts_count) if guess is None else hits, places)


def workload_tallies(
    trace: Trace,
    batches: Sequence[SequenceGroup],
    sizes: Sequence[int],
    guess: Ids | None = None,
    scores: Floats | None = None,
) -> dict[int, Tally]:
    """Recall of the top n by workload (module docstring) for each n of `sizes`.

    guess   [T, L, K], predicted workload = how often the batch's tokens have each id
    scores  float64 [G, L, E], predicted workload of each group in all of its steps, up to a factor
    One of the two; with neither all units are predicted alike, which gives the expected recall of a random choice.

    Clusters are groups.  Fewer than FEW_GROUPS would say nothing of the spread: then they are stretches of BLOCK
    steps of a group, and the interval leaves out how texts differ.
    """
    nothing: Ids = np.empty((0, trace.layers, trace.top_k), trace.experts.dtype)
    wanted = np.array(sizes, np.int64)
    found = []
    for number, group in enumerate(batches):
        fixed = np.ones((trace.layers, trace.experts_count)) if scores is None else scores[number]
        block = len(group.first) if len(batches) >= FEW_GROUPS else BLOCK
        tally = np.zeros((2, -(-len(group.first) // block), trace.layers, wanted.size))
        _count_steps(trace.experts, nothing if guess is None else guess, np.ascontiguousarray(fixed),
                     group.first, group.last, wanted, block, tally[0], tally[1])  # fmt: skip
        found.append(tally)
    hits, places = np.concatenate(found, axis=1)
    return {size: Tally(hits[..., i], places[..., i]) for i, size in enumerate(sizes)}


def cosine_tally(cosine: NDArray[np.float32]) -> Tally:
    """Means of cosines [S, L] (NaN = none), clusters are sequences."""
    return Tally(np.nan_to_num(cosine).astype(np.float64), np.isfinite(cosine).astype(np.float64))


@kernel
def _count_tokens(ids: Ids, guess: Ids, first: Rows, last: Rows, experts: int, hits: Floats, places: Floats) -> None:
    """Add to hits, places [B, L]."""
    for step in range(first.shape[0]):
        for b in range(first.shape[1]):
            for token in range(first[step, b], last[step, b]):
                for layer in range(ids.shape[1]):
                    for k in range(ids.shape[2]):
                        expert = ids[token, layer, k]
                        if expert < experts:
                            places[b, layer] += 1
                            for other in range(guess.shape[2]):
                                hits[b, layer] += guess[token, layer, other] == expert


@kernel
def _count_steps(
    ids: Ids,
    guess: Ids,
    scores: Floats,
    first: Rows,
    last: Rows,
    sizes: Rows,
    block: int,
    hits: Floats,
    places: Floats,
) -> None:
    """Add to hits, places [blocks, L, N]; `scores` [L, E] are what is predicted where `guess` has no tokens."""
    counted = guess.shape[0] > 0
    true, predicted = np.zeros(scores.shape), scores.copy()
    best_true, best_predicted = np.empty(sizes.max()), np.empty(sizes.max())
    for step in range(first.shape[0]):
        true[:] = 0
        if counted:
            predicted[:] = 0
        for b in range(first.shape[1]):
            for token in range(first[step, b], last[step, b]):
                _add(ids[token], true)
                if counted:
                    _add(guess[token], predicted)
        for layer in range(scores.shape[0]):
            active = largest(true[layer], best_true)
            largest(predicted[layer], best_predicted)
            for i in range(sizes.size):
                places[step // block, layer, i] += min(sizes[i], active)
            add_hits(true[layer], predicted[layer], sizes, best_true, best_predicted, hits[step // block, layer])


@kernel
def _add(ids: Ids, workload: Floats) -> None:
    """Add one token's ids [L, K] to workload [L, E]."""
    for layer in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if ids[layer, k] < workload.shape[1]:
                workload[layer, ids[layer, k]] += 1


@kernel
def largest(values: Floats, best: Floats) -> int:
    """Fill `best` with the largest of `values` that are above 0, falling, then zeros; how many are above 0."""
    best[:] = 0
    positive = 0
    for value in values:
        positive += value > 0
        if value > best[-1]:
            i = best.size - 1
            while i > 0 and best[i - 1] < value:
                best[i] = best[i - 1]
                i -= 1
            best[i] = value
    return positive


@kernel
def add_hits(
    true: Floats, predicted: Floats, sizes: Rows, best_true: Floats, best_predicted: Floats, hits: Floats
) -> None:
    """Add to hits [N] those of the n units of highest predicted > 0 for each n of `sizes`; `best_*` from `largest`."""
    above, tied, tied_right = np.zeros(sizes.size), np.zeros(sizes.size), np.zeros(sizes.size)
    for unit in range(true.size):
        if predicted[unit] <= 0 or predicted[unit] < best_predicted[-1]:
            continue  # guessed for no n
        for i in range(sizes.size):
            n = sizes[i]
            right = true[unit] > 0 and true[unit] >= best_true[n - 1]
            if predicted[unit] > best_predicted[n - 1]:
                above[i] += 1
                hits[i] += right
            elif predicted[unit] == best_predicted[n - 1]:
                tied[i] += 1
                tied_right[i] += right
    for i in range(sizes.size):
        if tied[i] > 0:
            hits[i] += (sizes[i] - above[i]) * tied_right[i] / tied[i]
