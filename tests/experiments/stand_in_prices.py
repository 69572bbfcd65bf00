"""Prices for tests of `dali backtest`, in a module that other processes can import."""

from __future__ import annotations

from dali.experiments.verbs.backtest.price import Prediction
from dali.policies.types import InputError


def off_by_a_tenth(case, config):
    """What was measured in prefill, and `config.factor` times that in decode."""
    return _prices(case, config.factor)


def stand_in(case, config):
    return _prices(case, 1.1)


def _prices(case, factor):
    if case.id == "FT421.01":
        raise InputError("found FreeToken, expected another")
    found = {}
    if case.prefill:
        speed = case.prefill.tokens_per_s
        found["prefill"] = Prediction(speed, speed, ("a stand-in",))
    if case.decode:
        speed = factor * case.decode.tokens_per_s
        found["decode"] = Prediction(speed, speed, ("a stand-in",))
    return found
