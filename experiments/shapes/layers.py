"""What the layers of a configuration are: which have experts, and what their attention reads."""

from __future__ import annotations

from collections.abc import Sequence

from dali.experiments.shapes.fields import Fields
from dali.policies.types import InputError

MOE, DENSE = "moe", "dense"
FULL, WINDOW, LINEAR, COMPRESSED, HEAVY = "full", "window", "linear", "compressed", "heavily compressed"

_MIXERS = {
    "full_attention": FULL,
    "attention": FULL,
    "global_attention": FULL,
    "indexed_attention": FULL,
    "qwen_sparse_attention": FULL,
    "deepseek_sparse_attention": FULL,
    "sliding_attention": WINDOW,
    "chunked_attention": WINDOW,
    "linear_attention": LINEAR,
    "mamba": LINEAR,
    "mamba2": LINEAR,
    "conv": LINEAR,
    "kda": LINEAR,
    "compressed_sparse_attention": COMPRESSED,
    "heavily_compressed_attention": HEAVY,
}
# Nemotron-H: a letter a block, and what transformers calls the blocks.
_LETTERS = {"M": LINEAR, "*": FULL, "E": MOE, "-": DENSE}
_BLOCKS = {"mamba": LINEAR, "linear_attention": LINEAR, "attention": FULL, "full_attention": FULL, "moe": MOE}
_BLOCKS |= {"mlp": DENSE}


def layer_count(fields: Fields) -> int:
    """Layers, or blocks where every layer is one block."""
    blocks = _blocks(fields)
    return len(blocks) if blocks is not None else fields.number("num_hidden_layers", "num_layers", "n_layers")


def feed_forwards(fields: Fields) -> list[str]:
    """MOE or DENSE of every layer that has a feed-forward part."""
    blocks = _blocks(fields)
    if blocks is not None:
        return [block for block in blocks if block in (MOE, DENSE)]
    count = layer_count(fields)
    kinds = fields.layered("mlp_layer_types")
    if kinds is not None:
        return [DENSE if kind == "dense" else MOE for kind in kinds]
    return [MOE if _has_experts(fields, layer) else DENSE for layer in range(count)]


def mixers(fields: Fields) -> list[str]:
    """FULL, WINDOW, LINEAR, COMPRESSED or HEAVY of every layer that has attention or what stands for it."""
    blocks = _blocks(fields)
    if blocks is not None:
        return [block for block in blocks if block in (FULL, LINEAR)]
    count = layer_count(fields)
    kinds = fields.layered("layer_types")
    if kinds is not None:
        unknown = sorted({str(kind) for kind in kinds} - set(_MIXERS))
        if unknown:
            raise InputError(f"{fields.source}: found layer type {unknown[0]}, expected {', '.join(_MIXERS)}")
        return [_MIXERS[kind] for kind in kinds[:count]]
    return [_mixer(fields, layer, count) for layer in range(count)]


def _blocks(fields: Fields) -> list[str] | None:
    names = fields.layered("layers_block_type")
    letters = fields.text("hybrid_override_pattern")
    if names and fields.whole("expert_layer_period") == 0:
        unknown = sorted({str(name) for name in names} - set(_BLOCKS))
        if unknown:
            raise InputError(f"{fields.source}: found block {unknown[0]}, expected {', '.join(_BLOCKS)}")
        return [_BLOCKS[name] for name in names]
    if letters:
        unknown = sorted(set(letters) - set(_LETTERS))
        if unknown:
            raise InputError(f"{fields.source}: found block {unknown[0]!r}, expected {', '.join(_LETTERS)}")
        return [_LETTERS[letter] for letter in letters]
    return None


def _has_experts(fields: Fields, layer: int) -> bool:
    listed = fields.get("moe_layers", "moe_layers_enum")
    if isinstance(listed, str) and listed:
        listed = [int(each) for each in listed.split(",")]
    if listed:
        return layer in listed
    if layer in (fields.layered("mlp_only_layers") or ()):
        return False
    if layer < fields.whole("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "num_hash_dense"):
        return False
    last = fields.get("moe_layer_end_index")
    if isinstance(last, int) and last >= 0 and layer > last:
        return False
    return _in_turn(fields, layer)


def _in_turn(fields: Fields, layer: int) -> bool:
    """Where only every n-th layer has experts."""
    frequency = fields.layered("moe_layer_freq")
    if frequency is not None and len(set(frequency)) > 1:
        return bool(frequency[layer])
    period = fields.whole("expert_layer_period")
    if period:
        return layer % period == fields.whole("expert_layer_offset")
    step = fields.whole("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", default=1)
    if step > 1:
        return (layer + 1) % step == 0
    return layer % max(fields.whole("moe_layer_freq", default=1), 1) == 0


def _mixer(fields: Fields, layer: int, count: int) -> str:
    """Of one layer, where no list names them all."""
    found = _marked(fields, layer)
    if found is not None:
        return found
    linear = fields.get("linear_num_value_heads", "linear_num_heads") is not None
    interval = fields.whole("full_attention_interval", "layer_group_size", default=4 if linear else 0)
    if interval > 1 and (linear or fields.whole("layer_group_size")):
        return LINEAR if (layer + 1) % interval else FULL
    period = fields.whole("attn_layer_period")
    if period:
        return FULL if layer % period == fields.whole("attn_layer_offset") else LINEAR
    return WINDOW if _slides(fields, layer) else FULL


def _marked(fields: Fields, layer: int) -> str | None:
    """Of one layer, where a list marks some of them."""
    kda = (fields.get("linear_attn_config") or {}).get("kda_layers")
    if kda:
        return LINEAR if layer + 1 in kda else FULL
    whole = fields.layered("full_attn_idxs")
    if whole is not None:
        return FULL if layer in whole else LINEAR
    marks: tuple[tuple[Sequence[int] | None, str], ...] = (
        (fields.layered("hybrid_layer_pattern"), WINDOW),
        (fields.layered("no_rope_layers"), WINDOW),
    )
    return next((kind if marked[layer] else FULL for marked, kind in marks if marked), None)


def _slides(fields: Fields, layer: int) -> bool:
    window = fields.whole("sliding_window")
    if not window or fields.get("use_sliding_window") is False:
        return False
    longest = fields.whole("max_position_embeddings")
    pattern = fields.whole("sliding_window_pattern")
    if pattern > 1:
        return (layer + 1) % pattern != 0
    return not longest or window < longest
