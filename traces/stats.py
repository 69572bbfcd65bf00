"""Statistics of routing: how even it is, how much it repeats, and how well it is predicted.

All are taken over a *part* of each sequence, by default its generated tokens alone, as if the sequence began
with the first of them; `prompt=True` takes the prompt as well.  Ids are looked up token by token, slots in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.jit import kernel
from dali.policies.types import Capacity, Floats, InputError
from dali.traces.expert_ids import Ids
from dali.traces.sources import Rows
from dali.traces.trace import Trace
from dali.traces.workload import popularity

LRU_SHARES = (0.125, 0.25, 0.5)
TOP_SHARE = 0.22
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Statistics:
    """What `statistics` found; shares between 0 and 1, averaged over layers where not said otherwise.

    overlap, reuse   `reuse` with a window of 1 and of 8 tokens
    lru, lru_single  `lru_hit_rates` by share of a layer's experts, event-atomic and access by access
    busiest          float64 [L], largest workload of a layer's experts over the mean
    top_share        share of the whole workload in the busiest 22 % of all (layer, expert) pairs
    recall           float64 [L] by predictor, see `recall`
    """

    tokens: int
    sequences: int
    overlap: float
    reuse: float
    lru: dict[float, float]
    lru_single: dict[float, float]
    busiest: Floats
    top_share: float
    recall: dict[str, Floats]


def statistics(trace: Trace, prompt: bool = False) -> Statistics:
    """All statistics of a trace; popularity is over all its tokens."""
    low, high = part(trace, prompt)
    shares = popularity(trace, range(trace.sequences))
    return Statistics(
        tokens=int((high - low).sum()),
        sequences=int(low.size),
        overlap=float(reuse(trace, 1, prompt).mean()),
        reuse=float(reuse(trace, 8, prompt).mean()),
        lru=lru_by_share(lru_hit_rates(trace, prompt)),
        lru_single=lru_by_share(lru_hit_rates(trace, prompt, atomic=False)),
        busiest=busiest(shares),
        top_share=top_share(shares),
        recall={name: recall(trace, name) for name in sorted(trace.predicted)},
    )


def part(trace: Trace, prompt: bool) -> tuple[Rows, Rows]:
    """First token of the part of each sequence that has any, and the token after its last: two int64 arrays."""
    low, high = trace.starts[:-1], trace.starts[1:]
    if not prompt:
        low = low + trace.prompt_length
    some = high > low
    if not some.any():
        raise InputError("statistics: the trace holds no generated tokens, ask for those of the prompts")
    return low[some], high[some]


def reuse(trace: Trace, window: int, prompt: bool = False) -> Floats:
    """Share of a token's experts that some of the `window` tokens before it used in the same layer, float64 [L].

    The first token of a part is left out; a token with fewer than `window` before it counts.  With a window of
    1 this is the overlap, and the recall of guessing the previous token's experts.
    """
    low, high = part(trace, prompt)
    found, looked_up = _reuse(trace.experts, low, high, window, trace.experts_count)
    if not looked_up.all():
        raise InputError("statistics: every sequence has a single token, expected at least two")
    return found / looked_up


def lru_hit_rates(trace: Trace, prompt: bool = False, atomic: bool = True) -> Floats:
    """Hit rate of an LRU cache of each layer with 1 to E slots, empty at the start of a part: float64 [L, E].

    atomic  True: a token's experts in a layer are one event.  Each is looked up against what was there before
            the event; then all are touched in slot order, the last one being the most recent.  (Fewer slots
            than experts of a token keep the most recent ones.)
            False: access by access, so that a miss may evict an expert that the same token is about to use.
            Published hit rates are often these.

    Mattson's stack algorithm (IBM Systems Journal 9(2), 1970): an expert hits in every cache larger than its
    depth in the recency stack, so one pass serves all sizes.
    """
    low, high = part(trace, prompt)
    depths = _depths(trace.experts, low, high, trace.experts_count, atomic)
    totals = depths.sum(axis=1, keepdims=True)
    if not totals.all():
        raise InputError(f"statistics: no expert is used in layer {int(totals.argmin())}")
    rates: Floats = np.cumsum(depths, axis=1)[:, :-1] / totals
    return rates


def lru_by_share(rates: Floats, shares: Sequence[float] = LRU_SHARES) -> dict[float, float]:
    """Hit rate averaged over layers by share of all experts that fits, from `lru_hit_rates`.

    The slots are spread over the layers as those of a replay are (`Capacity.in_units`); a layer without any has no hit.
    """
    layers = rates.shape[0]
    by_slots = np.concatenate([np.zeros((layers, 1)), rates], axis=1)
    spread = {share: Capacity.in_units(round(share * rates.size), "layer", layers).slots for share in shares}
    return {share: float(by_slots[np.arange(layers), slots].mean()) for share, slots in spread.items()}


def busiest(shares: Floats) -> Floats:
    """Largest workload of a layer over the mean workload of its experts, float64 [L], from any [L, E] counts."""
    ratio: Floats = shares.max(axis=1) / shares.mean(axis=1)
    return ratio


def top_share(shares: Floats, top: float = TOP_SHARE) -> float:
    """Share of the whole workload in the busiest `top` of all (layer, expert) pairs, from [L, E] shares."""
    pairs = np.sort(shares, axis=None)[::-1]
    return float(pairs[: round(top * pairs.size)].sum() / pairs.sum())


def recall(trace: Trace, name: str) -> Floats:
    """Share of the true ids that `trace.predicted[name]` has, over all tokens: float64 [L].

    NaN in layers for which nothing is predicted.
    """
    if name not in trace.predicted:
        raise InputError(f"predictor: found {name!r}, the trace has {', '.join(sorted(trace.predicted)) or 'none'}")
    found, looked_up, guesses = _recall(trace.experts, trace.predicted[name], trace.experts_count)
    return np.where(guesses > 0, found / np.maximum(looked_up, 1), np.nan)


@kernel
def _reuse(ids: Ids, low: Rows, high: Rows, window: int, experts: int) -> tuple[Counts, Counts]:
    layers = ids.shape[1]
    found, looked_up = np.zeros(layers, np.int64), np.zeros(layers, np.int64)
    last = np.empty((layers, experts), np.int64)
    for part in range(low.size):
        last[:] = low[part] - window - 1
        for token in range(low[part], high[part]):
            for layer in range(layers):
                for k in range(ids.shape[2]):
                    expert = ids[token, layer, k]
                    if expert < experts:
                        if token > low[part]:
                            looked_up[layer] += 1
                            found[layer] += token - last[layer, expert] <= window
                        last[layer, expert] = token
    return found, looked_up


@kernel
def _touch(stack: Rows, size: int, expert: int) -> tuple[int, int]:
    """Move an expert to the top of a stack of `size`; its depth before (-1 if absent) and the new size."""
    depth = 0
    while depth < size and stack[depth] != expert:
        depth += 1
    absent = depth == size
    for i in range(depth, 0, -1):
        stack[i] = stack[i - 1]
    stack[0] = expert
    return (-1, size + 1) if absent else (depth, size)


@kernel
def _depths(ids: Ids, low: Rows, high: Rows, experts: int, atomic: bool) -> Counts:
    """How many lookups of each layer were at each depth [L, E + 1]; the last column counts first uses."""
    layers, slots = ids.shape[1], ids.shape[2]
    depths = np.zeros((layers, experts + 1), np.int64)
    stack = np.empty(experts, np.int64)
    for layer in range(layers):
        for part in range(low.size):
            size = 0
            for token in range(low[part], high[part]):
                for k in range(slots if atomic else 0):
                    depth = 0
                    while depth < size and stack[depth] != ids[token, layer, k]:
                        depth += 1
                    if ids[token, layer, k] < experts:
                        depths[layer, depth if depth < size else experts] += 1
                for k in range(slots):
                    if ids[token, layer, k] < experts:
                        depth, size = _touch(stack, size, ids[token, layer, k])
                        if not atomic:
                            depths[layer, depth] += 1  # -1, absent, is the last column
    return depths


@kernel
def _recall(ids: Ids, guess: Ids, experts: int) -> tuple[Counts, Counts, Counts]:
    tokens, layers, slots = ids.shape
    found, looked_up, guesses = np.zeros(layers, np.int64), np.zeros(layers, np.int64), np.zeros(layers, np.int64)
    for token in range(tokens):
        for layer in range(layers):
            for k in range(slots):
                guesses[layer] += guess[token, layer, k] < experts
                if ids[token, layer, k] < experts:
                    looked_up[layer] += 1
                    for other in range(slots):
                        found[layer] += guess[token, layer, other] == ids[token, layer, k]
    return found, looked_up, guesses
