"""Routing that looks like a real model's, from a `Profile`: for studies and tests that have no recorded trace.

The logits are Gaussian and a token goes to its top-k.  What repeats from token to token gives the overlap,
the reuse and the LRU hit rates of recorded traces; popularity gives their concentration.  A predictor sees
the logits disturbed, by as much as its recall asks for, so it confuses experts that came close.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.jit import kernel
from dali.policies.types import InputError
from dali.traces.expert_ids import Ids, id_type, none_id, predictor_name
from dali.traces.metadata import Metadata
from dali.traces.profiles import PROFILES, RoutingProfile
from dali.traces.trace import Trace

Singles = NDArray[np.float32]

_RECORDER = "dali-moe synthetic 1"
_RESIZED = " resized"  # the end of a model's name
_BLOCK = 32  # tokens routed at a time: the logits of a block stay in the processor's cache
_PILOT_LOGITS = 2**20  # enough for a recall within 0.005
_LARGEST_ERROR = 16.0  # times the deviation of the content: a predictor that knows next to nothing


class Model(NamedTuple):
    """What stays the same from text to text, float32 [L, E]: popularity, and where the gate predictor errs."""

    popularity: Singles
    bias: Singles


class Disturbance(NamedTuple):
    """Predicted logits are the true ones + noise * a standard normal draw per token + bias * `Model.bias`."""

    ahead: int
    noise: float
    bias: float


def generate_profile(name: str, sequences: int, prompt: int, length: int, seed: int) -> Trace:
    """`generate` for the model `name` of `traces.profiles.PROFILES`; InputError for any other."""
    return generate(_profile(name), sequences, prompt, length, seed)


def generate_resized(
    name: str, layers: int, experts: int, top_k: int, sequences: int, prompt: int, length: int, seed: int
) -> Trace:
    """`generate` with the knobs of a profile for a model of another shape: plausible, but fitted to nothing."""
    resized = replace(_profile(name), name=f"{name}{_RESIZED}", layers=layers, experts=experts, top_k=top_k)
    return generate(resized, sequences, prompt, length, seed)


def is_resized(metadata: Metadata) -> bool:
    """Whether a trace with these metadata was made by `generate_resized`."""
    return metadata.recorder == _RECORDER and metadata.model.endswith(_RESIZED)


def _profile(name: str) -> RoutingProfile:
    if name not in PROFILES:
        raise InputError(f"trace profile: found {name!r}, expected one of {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def generate(profile: RoutingProfile, sequences: int, prompt: int, length: int, seed: int) -> Trace:
    """Trace of `sequences` sequences, each of `prompt` prompt tokens and then `length` generated ones.

    A token's experts come in order of falling router weight, and its weights sum to 1.  A token depends on
    the profile, the seed, its sequence and its position, not on how many sequences or tokens follow it.
    """
    tokens = prompt + length
    if sequences < 1 or min(prompt, length, seed) < 0 or tokens < 1:
        raise InputError(
            f"synthetic trace: found {sequences} sequences of {prompt} + {length} tokens from seed {seed}, "
            "expected at least 1 sequence of 1 token and a seed of at least 0"
        )
    experts: Ids = np.empty((sequences * tokens, profile.layers, profile.top_k), id_type(profile.experts))
    weights = np.empty(experts.shape, np.float16)
    predicted: dict[str, Ids] = {name: np.full_like(experts, none_id(experts)) for name in disturbances(profile)}

    def route(s: int) -> None:
        rows = slice(s * tokens, (s + 1) * tokens)
        _route(profile, (seed, s), experts[rows], weights[rows], {name: ids[rows] for name, ids in predicted.items()})

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # draws and kernels release the interpreter lock
        deque(pool.map(route, range(sequences)), maxlen=0)
    return Trace(
        metadata=_metadata(profile, seed),
        experts=experts,
        weights=weights,
        sequence=np.repeat(np.arange(sequences, dtype=np.int32), tokens),
        position=np.tile(np.arange(tokens, dtype=np.int32), sequences),
        prompt_length=np.full(sequences, prompt, np.int32),
        predicted=predicted,
    )


def _metadata(profile: RoutingProfile, seed: int) -> Metadata:
    return Metadata(
        model=profile.name,
        layers=profile.layers,
        experts=profile.experts,
        top_k=profile.top_k,
        text="synthetic",
        seed=seed,
        recorder=_RECORDER,
        notes=repr(profile),
    )


def _route(
    profile: RoutingProfile,
    stream: tuple[int, int],
    experts: Ids,
    weights: NDArray[np.float16],
    predicted: dict[str, Ids],
) -> None:
    """Fill the rows of one sequence, a block at a time so that memory does not grow with its length."""
    model, shape = model_of(profile), (profile.layers, profile.experts)
    content, errors = (np.random.default_rng([*stream, part]) for part in (0, 1))
    topic, drift, fast = content.standard_normal((3, *shape), np.float32)
    base = model.popularity + np.float32(np.sqrt(profile.topic)) * topic
    noise, error = np.empty((_BLOCK, 2, *shape), np.float32), np.empty((_BLOCK, *shape), np.float32)
    for start in range(0, len(experts), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(experts)))
        block = rows.stop - start
        content.standard_normal(dtype=np.float32, out=noise[:block])
        logits = _logits(profile, base, drift, fast, noise[:block])
        experts[rows], scores = highest(logits, profile.top_k)
        weights[rows] = _softmax(profile.sharpness * scores)
        if predicted:
            errors.standard_normal(dtype=np.float32, out=error[:block])
        for name, disturbance in disturbances(profile).items():
            seen = _disturb(logits, error[:block], model.bias, disturbance)
            predicted[name][rows, disturbance.ahead :] = highest(seen, profile.top_k)[0]


@lru_cache(maxsize=8)
def model_of(profile: RoutingProfile) -> Model:
    """The profile's model.  Popularity has mean 0 and the deviation that `skew` asks for in every layer."""
    rng = np.random.default_rng(profile.model_seed)
    popularity, bias = rng.standard_normal((2, profile.layers, profile.experts))
    popularity -= popularity.mean(axis=1, keepdims=True)
    popularity *= np.linspace(*profile.skew, profile.layers)[:, None] / popularity.std(axis=1, keepdims=True)
    return Model(popularity.astype(np.float32), bias.astype(np.float32))


def _logits(profile: RoutingProfile, base: Singles, drift: Singles, fast: Singles, noise: Singles) -> Singles:
    """float32 [T, L, E] of the next T tokens from noise [T, 2, L, E]; moves the states `drift` and `fast` on."""
    kept = np.exp(-1 / profile.drift_memory), profile.persistence
    share = profile.drift, max(0.0, 1 - profile.topic - profile.drift)
    logits = np.empty((len(noise), *base.shape), np.float32)
    evolve(
        base,
        (drift, fast),
        noise,
        np.array(kept, np.float32),
        np.sqrt(1 - np.square(kept)).astype(np.float32),
        np.sqrt(share).astype(np.float32),
        logits,
    )
    return logits


@kernel
def evolve(
    base: Singles,
    states: tuple[Singles, Singles],
    noise: Singles,
    kept: Singles,
    renewed: Singles,
    share: Singles,
    logits: Singles,
) -> None:
    """Two autoregressive states of variance 1 an expert; logits = base + share[0] * drift + share[1] * fast."""
    drift, fast = states
    tokens, layers, experts = logits.shape
    for t in range(tokens):
        for layer in range(layers):
            for e in range(experts):
                drift[layer, e] = kept[0] * drift[layer, e] + renewed[0] * noise[t, 0, layer, e]
                fast[layer, e] = kept[1] * fast[layer, e] + renewed[1] * noise[t, 1, layer, e]
                logits[t, layer, e] = base[layer, e] + share[0] * drift[layer, e] + share[1] * fast[layer, e]


def highest(logits: Singles, k: int) -> tuple[NDArray[np.int64], Singles]:
    """Ids and logits of the k highest of the last axis, falling; ties go to the lower id."""
    ids = np.empty((*logits.shape[:-1], k), np.int64)
    scores = np.empty(ids.shape, np.float32)
    _select(logits.reshape(-1, logits.shape[-1]), ids.reshape(-1, k), scores.reshape(-1, k))
    return ids, scores


@kernel
def _select(logits: Singles, ids: NDArray[np.int64], scores: Singles) -> None:
    """Insert each logit into the row's k best so far; most fail the first comparison."""
    rows, experts = logits.shape
    k = ids.shape[1]
    for row in range(rows):
        for i in range(k):
            scores[row, i] = -np.inf
        for e in range(experts):
            logit = logits[row, e]
            if logit <= scores[row, k - 1]:
                continue
            i = k - 1
            while i > 0 and scores[row, i - 1] < logit:
                scores[row, i] = scores[row, i - 1]
                ids[row, i] = ids[row, i - 1]
                i -= 1
            scores[row, i] = logit
            ids[row, i] = e


def _softmax(logits: Singles) -> Singles:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Singles = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _disturb(logits: Singles, error: Singles, bias: Singles, disturbance: Disturbance) -> Singles:
    """What a predictor sees of the layers that lie `ahead` or more layers deep."""
    ahead = disturbance.ahead
    seen: Singles = np.float32(disturbance.noise) * error[:, ahead:]
    seen += logits[:, ahead:]
    if disturbance.bias:
        seen += np.float32(disturbance.bias) * bias[ahead:]
    return seen


@lru_cache(maxsize=8)
def disturbances(profile: RoutingProfile) -> Mapping[str, Disturbance]:
    """How far each predictor is off, by its name in `Trace.predicted`, solved for the profile's recalls.

    DALI (residual-based prefetching) applies the next layer's gate to this layer's input plus a constant
    vector.  Without that vector `gate` errs as `residual` does and by a constant on top: noise is solved for
    the residual's recall, then bias for the gate's.  The predictors share their noise, and so do all
    distances: what is hard for one is hard for the others.
    """
    model = model_of(profile)
    rng = np.random.default_rng([profile.model_seed, 1])
    tokens = -(-_PILOT_LOGITS // model.bias.size)
    draws, error = rng.standard_normal((2, tokens, *model.bias.shape), np.float32)
    logits = model.popularity + draws
    true = highest(logits, profile.top_k)[0]

    def recall(ahead: int, noise: float, bias: float = 0.0) -> float:
        seen = _disturb(logits, error, model.bias, Disturbance(ahead, noise, bias))
        guess = highest(seen, profile.top_k)[0]
        return _common(true[:, ahead:], guess) / guess.size

    solved: dict[str, Disturbance] = {}
    for ahead, (better, worse) in enumerate(zip(profile.residual_recall, profile.gate_recall, strict=True), 1):
        noise = _solve(partial(recall, ahead), better)
        bias = _solve(partial(recall, ahead, noise), worse)
        solved[predictor_name("residual", ahead)] = Disturbance(ahead, noise, 0.0)
        solved[predictor_name("gate", ahead)] = Disturbance(ahead, noise, bias)
    return solved


def _solve(recall: Callable[[float], float], target: float) -> float:
    """Size of error at which a recall that falls with it meets `target`, by bisection."""
    low, high = 0.0, _LARGEST_ERROR
    if recall(high) > target:
        raise InputError(
            f"predictor recall: found {target}, expected at least {recall(high):.3f}, which popularity alone reaches"
        )
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if recall(middle) > target else (low, middle)
    return low  # so that a recall of 1 means no error at all


@kernel
def _common(true: NDArray[np.int64], guess: NDArray[np.int64]) -> int:
    """How many guessed ids are true ones."""
    tokens, layers, slots = guess.shape
    found = 0
    for t in range(tokens):
        for layer in range(layers):
            for k in range(slots):
                for other in range(slots):
                    if guess[t, layer, k] == true[t, layer, other]:
                        found += 1
    return found
