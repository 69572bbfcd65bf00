"""A model of the right architecture and sizes with random weights, for machines without the checkpoint at hand.

The sizes are those of a `conf/model` shape; what a shape does not say (heads, ranks, groups) is listed here, from
the config.json that each file of conf/model names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from dali.policies.costs.roofline import ModelShape
from dali.policies.types import InputError
from dali.runtime.device.memory import free_host_bytes

# A prime: no row, expert or tensor of a model begins at the same place of it twice.
_BANK = 4194301


@dataclass(frozen=True)
class _Architecture:
    """A model type of transformers, its names for what a shape says, and what a shape does not say."""

    kind: str
    names: dict[str, str]
    others: dict[str, Any] = field(default_factory=dict)


_DEEPSEEK = {
    "n_routed_experts": "experts",
    "moe_intermediate_size": "expert_width",
    "first_k_dense_replace": "dense_layers",
    "intermediate_size": "dense_width",
}
_LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
_LOCAL = {"num_local_experts": "experts", "intermediate_size": "expert_width"}
_GPT_OSS = _Architecture(
    "gpt_oss", _LOCAL, {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128}
)
ARCHITECTURES = {
    "qwen3_30b_a3b": _Architecture(
        "qwen3_moe",
        {"num_experts": "experts", "moe_intermediate_size": "expert_width"},
        {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "norm_topk_prob": True},
    ),
    "mixtral_8x7b": _Architecture(
        "mixtral", _LOCAL, {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    ),
    "olmoe_1b_7b": _Architecture(
        "olmoe",
        {"num_experts": "experts", "intermediate_size": "expert_width"},
        {"num_attention_heads": 16, "num_key_value_heads": 16},
    ),
    "gpt_oss_20b": _GPT_OSS,
    "gpt_oss_120b": _GPT_OSS,
    "deepseek_v2_lite": _Architecture(
        "deepseek_v2",
        _DEEPSEEK,
        _LATENT
        | {"num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "n_group": 1, "topk_group": 1},
    ),
    "deepseek_v3": _Architecture(
        "deepseek_v3",
        _DEEPSEEK,
        _LATENT
        | {"num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "n_group": 8, "topk_group": 4},
    ),
}
"""By the name of a file of conf/model."""


def architecture(name: str, shape: ModelShape) -> Any:
    """transformers' configuration of a file of conf/model, in the sizes of `shape`; InputError for an unknown name."""
    if name not in ARCHITECTURES:
        raise InputError(
            f"model {name}: no architecture of transformers is known for it, expected {', '.join(ARCHITECTURES)}"
        )
    known = ARCHITECTURES[name]
    sizes = {theirs: getattr(shape, ours) for theirs, ours in known.names.items()}
    if shape.shared_width:
        sizes["n_shared_experts"] = shape.shared_width // shape.expert_width
    return AutoConfig.for_model(
        known.kind,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers + shape.dense_layers,
        num_experts_per_tok=shape.top_k,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=False,
        # Token ids mean nothing here, and the usual ones may lie outside a vocabulary that was cut.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **sizes,
        **known.others,
    )


def shaped_model(name: str, shape: ModelShape, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the host, with random weights (the same by seed).

    Every matrix is drawn from one bank of normal numbers, so that a large model takes the time of writing it.
    InputError before anything is allocated: an unknown architecture, sizes that it refuses, too little host memory.
    """
    config = architecture(name, shape)
    try:
        with torch.device("meta"):
            needed = sum(_bytes(p, dtype) for p in AutoModelForCausalLM.from_config(config, dtype=dtype).parameters())
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"model {shape.name}: {str(error).splitlines()[0]}") from error
    free = free_host_bytes()
    if needed > free:
        raise InputError(
            f"host memory: found {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for {shape.name}"
        )
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _fill(model, float(getattr(config, "initializer_range", 0.02)), dtype)
    return model.eval()


def _bytes(parameter: Tensor, dtype: torch.dtype) -> int:
    return parameter.numel() * dtype.itemsize


@torch.no_grad()
def _fill(model: PreTrainedModel, deviation: float, dtype: torch.dtype) -> None:
    bank = (torch.randn(_BANK) * deviation).to(dtype)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if all(parameter.ndim < 2 for parameter in own):
            # Norms and the like: what the architecture starts them with.
            model._init_weights(module)
            continue
        for parameter in own:
            if parameter.ndim < 2:
                parameter.zero_()
            else:
                _write(parameter, bank, int(torch.randint(_BANK, ())))
        _zero_buffers(module)


def _write(parameter: Tensor, bank: Tensor, start: int) -> None:
    """The bank over and over, from `start` on."""
    flat, done = parameter.view(-1), 0
    while done < flat.numel():
        count = min(bank.numel() - start, flat.numel() - done)
        flat[done : done + count] = bank[start : start + count]
        done, start = done + count, 0


def _zero_buffers(module: nn.Module) -> None:
    """Correction terms of routers, which an architecture may leave to its own initialisation."""
    for name, buffer in module.named_buffers(recurse=False):
        if "bias" in name:
            buffer.zero_()
