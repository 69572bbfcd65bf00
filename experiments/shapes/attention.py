"""Weights, cache and state of a layer's attention, or of what stands for it.

Sums of the matrices that the classes of transformers allocate; norms, biases and convolutions of short rows are left
out, as they are below a hundredth of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from dali.experiments.shapes.fields import Fields
from dali.experiments.shapes.layers import COMPRESSED, FULL, HEAVY, LINEAR, WINDOW
from dali.policies.types import InputError

# q_proj has a gate of its own width beside the queries.
_GATED = ("qwen3_next", "qwen3_5_moe", "qwen4_exp")
_STATE_VALUE = 4  # bytes: states are float32


@dataclass(frozen=True)
class Attention:
    """One layer's.

    params  weights
    width   heads x (query-key + value dimension) / 2
    kv      values that one token adds to the cache
    share   of the context that it reads, window positions that it reads besides
    state   bytes of a state of constant size
    """

    params: int
    width: int = 0
    kv: int = 0
    share: float = 0.0
    window: float = 0.0
    state: int = 0


def attention(fields: Fields, kind: str, layer: int) -> Attention:
    """Of a layer of a kind of `layers`; InputError names the field that is not there."""
    if kind == LINEAR:
        return _linear(fields)
    if kind in (COMPRESSED, HEAVY):
        return _compressed(fields, kind)
    window = fields.number("sliding_window", "sliding_window_size", "attention_chunk_size") if kind == WINDOW else 0
    share = 1.0 if kind == FULL else 0.0
    if fields.whole("kv_lora_rank"):
        return _latent(fields, share, window)
    return _grouped(fields, kind, layer, share, window)


def _grouped(fields: Fields, kind: str, layer: int, share: float, window: int) -> Attention:
    """Heads with keys and values for groups of them; windows and whole contexts may differ in heads."""
    hidden, other = fields.number("hidden_size"), fields.get("attention_other_setting") or {}
    heads = fields.number("num_attention_heads")
    groups = fields.whole("num_key_value_heads", "num_attention_groups", default=heads)
    size = fields.whole("head_dim", default=hidden // heads)
    value = fields.whole("v_head_dim", default=size)
    each = fields.layered("num_attention_heads_per_layer")
    if each is not None:
        heads = each[layer]
    if kind == WINDOW:
        heads = fields.whole("swa_num_attention_heads", default=other.get("num_attention_heads", heads))
        groups = fields.whole("swa_num_key_value_heads", default=other.get("num_attention_groups", groups))
        size = fields.whole("swa_head_dim", default=size)
        value = fields.whole("swa_v_head_dim", default=value)
    else:
        groups = fields.whole("num_global_key_value_heads", default=groups)
        if fields.whole("global_head_dim"):
            size = value = fields.whole("global_head_dim")
    queries = heads * size * (2 if _gated(fields) else 1)
    shared = kind == FULL and fields.flag("attention_k_eq_v")
    keys = groups * (size if shared else size + value)
    params = hidden * (queries + keys) + heads * value * hidden
    return Attention(params + _mixing(fields) + _indexer(fields), heads * (size + value) // 2,
                     groups * (size + value), share, window)  # fmt: skip


def _gated(fields: Fields) -> bool:
    return fields.flag("attn_output_gate") or fields.text("model_type").removesuffix("_text") in _GATED


def _latent(fields: Fields, share: float, window: int) -> Attention:
    """Multi-head latent attention: what is cached is a compressed key-value and the rotated part of the key."""
    hidden, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
    rank, rotated = fields.number("kv_lora_rank"), fields.whole("qk_rope_head_dim")
    plain, value = fields.number("qk_nope_head_dim"), fields.number("v_head_dim")
    low = fields.whole("q_lora_rank")
    queries = heads * (plain + rotated)
    params = hidden * low + low * queries if low else hidden * queries
    params += hidden * (rank + rotated) + rank * heads * (plain + value) + heads * value * hidden
    width = heads * (plain + rotated + value) // 2
    return Attention(params + _mixing(fields) + _indexer(fields), width, rank + rotated, share, window)


def _indexer(fields: Fields) -> int:
    """Weights of what chooses positions, in sparse attention."""
    heads, size = fields.whole("index_n_heads", "indexer_n_heads"), fields.whole("index_head_dim", "indexer_head_dim")
    hidden = fields.number("hidden_size")
    return fields.whole("q_lora_rank", default=hidden) * heads * size + hidden * (size + heads)


def _mixing(fields: Fields) -> int:
    """Weights of hyper-connections, which mix several residual streams, at both halves of a layer."""
    streams, rank = fields.whole("hc_count", "hc_mult"), fields.whole("hc_lowrank")
    wide = streams * fields.number("hidden_size")
    return 2 * (2 * wide * rank + wide * streams if rank else wide * streams * (2 + streams))


def _compressed(fields: Fields, kind: str) -> Attention:
    """DeepSeek-V4: one key-value head, of a window and of compressed blocks of positions before it.

    A layer that compresses by little reads an index of its blocks, and of these the best; the index counts as a share
    of the context as large as its keys are of a block's.
    """
    hidden, heads, size = fields.number("hidden_size"), fields.number("num_attention_heads"), fields.number("head_dim")
    low, out, groups = fields.number("q_lora_rank"), fields.number("o_lora_rank"), fields.number("o_groups")
    rates = fields.get("compress_rates") or {}
    params = hidden * low + low * heads * size + hidden * size + heads * size * out + groups * out * hidden
    params += _mixing(fields)
    window = float(fields.number("sliding_window"))
    if kind == HEAVY:
        share = 1 / rates.get("heavily_compressed_attention", 128)
        return Attention(params + 2 * hidden * size, heads * size, size, share, window)
    share = fields.number("index_head_dim") / size / rates.get("compressed_sparse_attention", 4)
    index = 4 * hidden * fields.number("index_head_dim") + _indexer(fields)
    window += fields.number("index_topk")
    return Attention(params + 4 * hidden * size + index, heads * size, size, share, window)


# ---- without a cache that grows ---------------------------------------------------------------------


def _linear(fields: Fields) -> Attention:
    """By the first kind of linear attention or recurrence whose fields are there."""
    config = fields.get("linear_attn_config") or {}
    if fields.get("linear_num_value_heads") is not None:
        return _gated_delta(fields)
    if fields.get("linear_num_heads") is not None or config:
        heads = config.get("num_heads") or fields.number("linear_num_heads")
        return _delta(fields, heads, config.get("head_dim") or fields.number("linear_head_dim"))
    if fields.get("layer_group_size") is not None:
        return _delta(fields, fields.number("num_attention_heads"), fields.number("head_dim"))
    if fields.get("mamba_num_heads", "mamba_n_heads") is not None:
        return _mamba2(fields)
    if fields.get("mamba_d_state", "mamba_expand") is not None:
        return _mamba(fields)
    if fields.get("conv_L_cache") is not None:
        hidden = fields.number("hidden_size")
        return Attention(4 * hidden * hidden, state=hidden * fields.number("conv_L_cache") * _STATE_VALUE)
    raise InputError(
        f"{fields.source}: found linear attention without linear_num_value_heads, linear_num_heads, mamba_num_heads, "
        f"mamba_d_state or conv_L_cache, expected the sizes of one"
    )


def _gated_delta(fields: Fields) -> Attention:
    """Gated DeltaNet: query, key, value and gate in, value out."""
    hidden, heads = fields.number("hidden_size"), fields.number("linear_num_value_heads")
    key, value = fields.number("linear_key_head_dim"), fields.number("linear_value_head_dim")
    keys, values = fields.number("linear_num_key_heads") * key, heads * value
    params = hidden * (2 * keys + 2 * values + 2 * heads) + values * hidden
    params += (2 * keys + values) * fields.whole("linear_conv_kernel_dim", default=4)
    return Attention(params + _mixing(fields), state=heads * key * value * _STATE_VALUE)


def _delta(fields: Fields, heads: int, size: int) -> Attention:
    """Kimi's delta attention: query, key and value in, a gate and a decay of low rank, value out."""
    hidden, inner = fields.number("hidden_size"), heads * size
    params = 4 * hidden * inner + 2 * (hidden * size + size * inner) + hidden * heads
    return Attention(params + _mixing(fields), state=heads * size * size * _STATE_VALUE)


def _mamba2(fields: Fields) -> Attention:
    hidden, heads = fields.number("hidden_size"), fields.number("mamba_num_heads", "mamba_n_heads")
    inner = heads * fields.number("mamba_head_dim", "mamba_d_head")
    groups, size = fields.number("n_groups", "mamba_n_groups"), fields.number("ssm_state_size", "mamba_d_state")
    params = hidden * (2 * inner + 2 * groups * size + heads) + inner * hidden
    return Attention(params, state=inner * size * _STATE_VALUE)


def _mamba(fields: Fields) -> Attention:
    hidden, size = fields.number("hidden_size"), fields.number("mamba_d_state")
    inner = fields.number("mamba_expand") * hidden
    rank = fields.whole("mamba_dt_rank", default=-(-hidden // 16))
    params = 2 * hidden * inner + inner * (rank + 2 * size) + rank * inner + inner * hidden
    params += inner * (size + fields.whole("mamba_d_conv", default=4))
    return Attention(params, state=inner * size * _STATE_VALUE)
