"""Models of many architectures, small and with random weights, that several test files run."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

EXPERTS, TOP_K, VOCABULARY = 8, 2, 128
# One configuration for all: each architecture reads the names it knows.
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "decoder_sparse_step": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"], EXPERTS),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_topk"], TOP_K),
}
# Linear attention is as wide as nothing else here by default, and its kernels in plain torch take a second.
DELTA_RULE = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
STATE_SPACE = {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 8}
# Architecture -> what it needs besides.
SORTED = {  # chooses the k largest logits of its router
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "qwen3_next": {"num_hidden_layers": 4, **DELTA_RULE},
    "qwen3_5_moe_text": {"num_hidden_layers": 4, **DELTA_RULE},
    "olmoe": {},
    "flex_olmo": {},
    "gpt_oss": {},
    "granitemoe": {},
    "granitemoeshared": {},
    "phimoe": {},
    "hunyuan_v1_moe": {},
    "minimax": {},
    "deepseek_v2": {"num_key_value_heads": 4},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
}
CORRECTED = {  # groups or a correction term decide too
    "deepseek_v3": {"num_key_value_heads": 4},
    "glm4_moe": {},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "dots1": {},
    "ernie4_5_moe": {},
    "minimax_m2": {},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "nemotron_h": STATE_SPACE,
    "afmoe": {},
}


def tiny(kind: str, **others):
    if kind not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(TINY | {**SORTED, **CORRECTED}.get(kind, {}) | others))
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if "correction_bias" in name:
            tensor.data.uniform_(-0.5, 0.5)
    return model


def prompts(sequences: int, length: int, seed: int = 1):
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(seed))


def generate(model, ids, count: int):
    """Scores of `count` generated tokens, each of which was run; greedy, none ends early."""
    lengths = {"max_new_tokens": count + 1, "min_new_tokens": count + 1}
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **lengths,
    )
    return torch.stack(out.logits)


def routers(model) -> list:
    return [module for module in model.modules() if type(module).__name__.endswith(("Router", "V1Gate"))]
