"""Constants of an engine from published speeds, and what they would be without one of the series.

Least squares on the logarithm of predicted over measured.  A constant has a prior from its source, which a few
published speeds do not outweigh.  Rows that do not name their machine count by their differences within the series
alone: their series has a scale of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from dali.policies.costs.constants import constant, with_constants
from dali.policies.costs.engine import ServingEngine
from dali.policies.types import Floats

# Deviation of a published speed from what a right model says, in its logarithm: driver, clocks, what is left unsaid.
NOISE = 0.15
# All speeds of a series and phase together count like this many: they share what the series leaves out.
PER_SERIES = 2.0
STEP = 0.03


@dataclass(frozen=True)
class Speeds:
    """Published speeds of one engine.

    measured  float64 [n], tokens/s
    group     int64 [n], the series and phase of each
    absolute  bool [n], whether its machine is named
    """

    measured: Floats
    group: np.ndarray
    absolute: np.ndarray


Predict = Callable[[ServingEngine], Floats]
"""Tokens/s of all rows in an engine, float64 [n]."""


def residuals(speeds: Speeds, predicted: Floats) -> Floats:
    """float64 [n], weighted log(predicted / measured); without the mean of its group where no machine is named."""
    found = np.log(predicted / speeds.measured)
    return _weighted(speeds, found)


def _weighted(speeds: Speeds, values: Floats) -> Floats:
    """Of log ratios, or of their derivatives, float64 [n, ...]."""
    out = np.array(values, np.float64)
    for group in np.unique(speeds.group):
        rows = np.flatnonzero(speeds.group == group)
        if not speeds.absolute[rows].all():
            out[rows] -= out[rows].mean(axis=0)
        out[rows] *= np.sqrt(min(1.0, PER_SERIES / rows.size)) / NOISE
    return out


def fit(engine: ServingEngine, speeds: Speeds, predict: Predict) -> ServingEngine:
    """The engine with the constants that `engine.fitted` names at their most likely values."""
    names = list(engine.fitted)
    centre, width = _priors(engine)

    def whole(logs: Floats) -> Floats:
        made = with_constants(engine, dict(zip(names, np.exp(logs), strict=True)))
        return np.concatenate([residuals(speeds, predict(made)), (logs - centre) / width])

    found = least_squares(
        whole, centre, diff_step=np.full(centre.size, STEP), loss="cauchy", f_scale=1.0, max_nfev=10, x_scale=width
    )
    return with_constants(engine, dict(zip(names, np.exp(found.x), strict=True)))


def left_out(engine: ServingEngine, speeds: Speeds, predicted: Floats, slopes: Floats, series: Sequence[str]) -> Floats:
    """Tokens/s of each row with constants that its own series had no part in, float64 [n].

    slopes  float64 [n, constants], change of log(predicted) with the logarithm of each constant of `engine.fitted`

    One Gauss-Newton step from the fitted constants: exact where logarithms of speeds are linear in those of the
    constants, as far as leaving out a series moves these.
    """
    names = np.array(series)
    out = predicted.copy()
    centre, width = _priors(engine)
    at = np.log([constant(engine, name) for name in engine.fitted])
    for left in np.unique(names):
        kept = names != left
        rest = Speeds(speeds.measured[kept], speeds.group[kept], speeds.absolute[kept])
        found = residuals(rest, predicted[kept])
        heeded = _heeded(np.concatenate([found, (at - centre) / width]))
        design = np.vstack([_weighted(rest, slopes[kept]), np.diag(1 / width)])
        wanted = -np.concatenate([found, (at - centre) / width])
        step = np.linalg.lstsq(design * heeded[:, None], wanted * heeded, rcond=None)[0]
        out[~kept] = predicted[~kept] * np.exp(slopes[~kept] @ step)
    return out


def _heeded(found: Floats) -> Floats:
    """Square root of the weight that the Cauchy loss of `fit` gives to each residual."""
    weights: Floats = 1 / np.sqrt(1 + found**2)
    return weights


def _priors(engine: ServingEngine) -> tuple[Floats, Floats]:
    """Logarithm of each fitted constant's prior, and its deviation."""
    values = np.array([list(prior) for prior in engine.fitted.values()], np.float64).reshape(-1, 2)
    return np.log(values[:, 0]), np.log(values[:, 1])
