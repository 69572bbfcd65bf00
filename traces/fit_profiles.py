"""Fits the knobs of a `Profile` to figures measured on a real model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import exp

from dali.policies.types import InputError
from dali.traces.profiles import RoutingProfile
from dali.traces.stats import statistics
from dali.traces.synthetic import generate
from dali.traces.trace import Trace

Figures = Mapping[str, float]
Ranges = Mapping[str, tuple[float, float]]

# First step of each knob.  `skew` moves the last layer's, `drift_memory` moves by factors of exp(step).
_STEPS = {"skew": 0.1, "topic": 0.1, "drift": 0.1, "drift_memory": 0.4, "persistence": 0.1}
KNOBS = tuple(_STEPS)


def figures(trace: Trace) -> dict[str, float]:
    """What `fit` can aim at, over prompts and generated tokens alike; see `traces.stats.Statistics`.

    overlap, reuse, top_share  as there; `busiest` averaged over layers
    lru_12, lru_25, lru_50     hit rate with slots for 12.5, 25 and 50 % of a layer's experts, event-atomic
    single_12, _25, _50        the same, access by access
    """
    found = statistics(trace, prompt=True)
    lru = {f"lru_{int(100 * share)}": rate for share, rate in found.lru.items()}
    single = {f"single_{int(100 * share)}": rate for share, rate in found.lru_single.items()}
    rest = {"overlap": found.overlap, "reuse": found.reuse, "top_share": found.top_share}
    return rest | {"busiest": float(found.busiest.mean())} | lru | single


def first_slots(trace: Trace, slots: int) -> Trace:
    """The trace of the same model run with fewer experts a token: the `slots` of highest weight, no predictors."""
    if not 1 <= slots <= trace.top_k:
        raise InputError(f"slots: found {slots}, expected 1 to the trace's {trace.top_k}")
    metadata = replace(trace.metadata, top_k=slots)
    return replace(trace, metadata=metadata, experts=trace.experts[:, :, :slots], weights=None, predicted={})


def fit(
    profile: RoutingProfile,
    target: Ranges,
    measure: Callable[[Trace], Figures] = figures,
    knobs: Sequence[str] = KNOBS,
    sequences: int = 4,
    tokens: int = 256,
    seed: int = 1,
    rounds: int = 8,
) -> RoutingProfile:
    """The profile with `knobs` moved so that what `measure` finds comes close to the middle of each target range.

    Minimises the sum of squared distances, in half widths of the ranges, by trying a step up and a step down
    for one knob after the other; a knob's step grows where it helped and halves where it did not.  Every try
    sees the same draws, so that even a small sample compares knobs without noise.  Predictors are left as
    they are: they do not change the routing.  Whether the result lies inside the ranges is for the caller to see.
    """
    _check(target, knobs)
    steps = {knob: _STEPS[knob] for knob in knobs}

    def distance(tried: RoutingProfile) -> float:
        bare = replace(tried, residual_recall=(), gate_recall=())
        found = measure(generate(bare, sequences, 0, tokens, seed))
        return sum(((2 * found[name] - low - high) / (high - low)) ** 2 for name, (low, high) in target.items())

    best = distance(profile)
    for _ in range(rounds):
        for knob in knobs:
            for step in (steps[knob], -steps[knob]):
                moved = _moved(profile, knob, step)
                found = distance(moved)
                if found < best:
                    profile, best = moved, found
                    steps[knob] = 1.3 * step
                    break
            else:
                steps[knob] /= 2
    return profile


def _check(target: Ranges, knobs: Sequence[str]) -> None:
    for name, (low, high) in target.items():
        if not low < high:
            raise InputError(f"fit target {name}: found {low} to {high}, expected a range that rises")
    unknown = [knob for knob in knobs if knob not in _STEPS]
    if unknown:
        raise InputError(f"fit knobs: found {', '.join(unknown)}, expected some of {', '.join(KNOBS)}")


def _moved(profile: RoutingProfile, knob: str, step: float) -> RoutingProfile:
    """One knob moved, no further than a profile allows."""
    if knob == "skew":
        return replace(profile, skew=(profile.skew[0], max(0.0, profile.skew[1] + step)))
    if knob == "drift_memory":
        return replace(profile, drift_memory=profile.drift_memory * exp(step))
    if knob == "persistence":
        return replace(profile, persistence=min(max(profile.persistence + step, 0.0), 0.99))
    if knob == "topic":
        return replace(profile, topic=min(max(profile.topic + step, 0.0), 1 - profile.drift))
    return replace(profile, drift=min(max(profile.drift + step, 0.0), 1 - profile.topic))
