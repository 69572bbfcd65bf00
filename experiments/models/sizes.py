"""Sizes of a model that settings of policies depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dali.policies.types import InputError


@dataclass(frozen=True)
class Sizes:
    """MoE layers, experts of each and experts a token."""

    layers: int
    experts: int
    top_k: int


def sizes_of(model: Any) -> Sizes:
    """Those of a model of transformers; InputError for anything else, and for a model without experts."""
    # Whoever has such a model has torch.
    from transformers import PreTrainedModel

    from dali.runtime.model.moe_layers import moe_layers

    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model: found {type(model).__name__}, expected a PreTrainedModel of transformers")
    layers = moe_layers(model)
    return Sizes(len(layers), layers[0].count, top_k(model))


def top_k(model: Any) -> int:
    """Experts a token; 1 where the model's configuration has no such name."""
    return int(getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1)
