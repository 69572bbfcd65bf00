"""What a published row would run at by the simulator."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from dali.experiments.verbs.backtest.case import MeasuredCase


@dataclass(frozen=True)
class Prediction:
    """A predicted speed, and what was taken for it that the row does not say."""

    tokens_per_s: float
    notes: tuple[str, ...] = ()


def price(case: MeasuredCase, config: DictConfig) -> dict[str, Prediction]:
    """By phase, those that the case has; InputError with the reason where it cannot be priced."""
    raise NotImplementedError
