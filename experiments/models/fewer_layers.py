"""A model's shape with fewer MoE layers, in the two ways that measurements want it."""

from __future__ import annotations

from dataclasses import replace

from dali.policies.costs.roofline import ModelShape
from dali.policies.types import InputError


def scaled_to_layers(shape: ModelShape, layers: int) -> ModelShape:
    """What lies outside the MoE layers shrinks with their number, as a step's time does: for speeds of a whole model.

    InputError unless the shape has so many layers.
    """
    _check(shape, layers)
    part = layers / shape.layers
    return replace(
        shape,
        name=shape.name if layers == shape.layers else f"{shape.name} cut to {layers} layers",
        layers=layers,
        dense_layers=round(shape.dense_layers * part),
        vocabulary=max(1, round(shape.vocabulary * part)),
    )


def cut_to_layers(shape: ModelShape, layers: int) -> ModelShape:
    """What lies outside the MoE layers stays whole: for times of a layer, where the rest is measured by itself.

    InputError unless the shape has so many layers.
    """
    _check(shape, layers)
    return replace(shape, layers=layers)


def _check(shape: ModelShape, layers: int) -> None:
    if not 1 <= layers <= shape.layers:
        raise InputError(f"layers: found {layers}, expected 1 to the {shape.layers} of {shape.name}")
