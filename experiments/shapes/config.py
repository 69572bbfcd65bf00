"""A model's shape from its configuration: the content of the config.json beside its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dali.experiments.shapes.attention import Attention, attention
from dali.experiments.shapes.fields import Fields
from dali.experiments.shapes.layers import COMPRESSED, DENSE, MOE, feed_forwards, mixers
from dali.policies.costs.blocks import BLOCKS
from dali.policies.costs.model_shape import ModelShape
from dali.policies.types import InputError

_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "num_selected_experts")
_NO_GATE = ("relu2", "relu_squared")
_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# quant_method of transformers, and the storage of what it quantises.
_METHODS = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "awq": "int4", "gptq": "int4", "nvfp4": "nvfp4"}


@dataclass(frozen=True)
class Storage:
    """Formats of experts and of all else, by the names of `policies.costs.blocks`."""

    experts: str
    dense: str


def shape_from_config(config: Mapping[str, Any], name: str, source: str = "config") -> ModelShape:
    """The shape of a mixture of experts from the fields of its config.json, or of transformers' class for it.

    name    of the shape
    source  what messages begin with, such as the file

    Layers of different attention are taken at their mean, and blocks that are all attention or all experts are put
    together into layers.  Biases, norms, what predicts several tokens and what reads images are left out.  InputError,
    in one line, names a field that is missing or has a value that is not known.
    """
    fields = Fields(config, source)
    experts = _first(fields, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
    kinds = feed_forwards(fields)
    if MOE not in kinds:
        raise InputError(f"{source}: found no layer with experts, expected a mixture of experts")
    attentions = [attention(fields, kind, layer) for layer, kind in enumerate(mixers(fields))]
    width, storage = _expert_width(fields), _storage(fields)
    return ModelShape(
        name=name,
        layers=kinds.count(MOE),
        experts=experts,
        top_k=_first(fields, *_TOP_K),
        hidden=fields.number("hidden_size"),
        expert_width=width,
        expert_bits=BLOCKS[storage.experts].bits,
        dense_bits=BLOCKS[storage.dense].bits,
        gated=fields.text("mlp_hidden_act", "hidden_act") not in _NO_GATE,
        shared_width=_shared_width(fields, width),
        dense_layers=kinds.count(DENSE),
        dense_width=_dense_width(fields) if DENSE in kinds else 0,
        vocabulary=fields.number("vocab_size"),
        predictor_recall={},
        head_bits=None if storage.dense in _DTYPES.values() else 16,
        expert_format=BLOCKS[storage.experts].kernel,
        dense_format=BLOCKS[storage.dense].kernel,
        tied=fields.flag("tie_word_embeddings"),
        **_means(attentions, len(kinds), _chosen(fields)),
    )


def _means(attentions: Sequence[Attention], layers: int, chosen: int) -> dict[str, Any]:
    """The fields of a shape that say what attention is, of `layers` that share all of it."""
    full = sum(each.share for each in attentions) / layers
    # Cache and arithmetic of a position are those of the layers that read the most of them.
    most = max(attentions, key=lambda each: (each.share, each.window))
    others = layers * (1 - full)
    return {
        "attention_params": round(sum(each.params for each in attentions) / layers),
        "attention_width": most.width,
        "kv_bytes": 2 * most.kv,
        "full_attention": full,
        "window": round(sum(each.window for each in attentions) / others) if others else 0,
        "state_bytes": round(sum(each.state for each in attentions) / others) if others else 0,
        "chosen": chosen,
    }


def _chosen(fields: Fields) -> int:
    """Positions that sparse attention chooses; 0 where there is none, or where they count as a window already."""
    if COMPRESSED in mixers(fields):
        return 0
    return fields.whole("indexer_budget", "index_topk")


def _first(fields: Fields, *names: str) -> int:
    """A size that a few configurations give as a list with a value a layer, or a kind of experts."""
    found = fields.get(*names)
    if isinstance(found, list) and found:
        return int(found[0])
    return fields.number(*names)


def _expert_width(fields: Fields) -> int:
    return _first(fields, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_hidden_size")


def _dense_width(fields: Fields) -> int:
    return _first(fields, "dense_intermediate_size", "intermediate_size_mlp", "intermediate_size", "ffn_hidden_size")


def _shared_width(fields: Fields, expert_width: int) -> int:
    """Inner width of all that every token passes beside the routed experts of a layer."""
    if fields.flag("enable_moe_block", "residual_moe"):
        return _dense_width(fields)  # Gemma 4, Grok 2: a dense block beside the experts of every layer
    own = ("shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size")
    width = fields.whole(*own)
    if width:
        return width
    count = fields.get("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
    if isinstance(count, list):
        count = count[0] if count else 0
    if count is None:
        count = int(fields.text("model_type").startswith("llama4"))  # one, which no field says
    return int(count) * fields.whole("moe_shared_expert_intermediate_size", default=expert_width)


def _storage(fields: Fields) -> Storage:
    """Formats of the weights as they were published."""
    dtype = _DTYPES.get(fields.text("torch_dtype", "dtype").removeprefix("torch."), "bf16")
    config = fields.get("quantization_config") or {}
    method = str(config.get("quant_method", ""))
    if not method:
        return Storage(dtype, dtype)
    if method in ("compressed-tensors", "modelopt"):
        bits = _bits(config)
        method = {4: "nvfp4" if "nvfp4" in str(config).lower() else "awq", 8: "fp8"}.get(bits, method)
    if method not in _METHODS:
        raise InputError(f"{fields.source}: found quantization method {method!r}, expected {', '.join(_METHODS)}")
    if method == "fp8":
        return Storage("mxfp4" if fields.text("expert_dtype") == "fp4" else "fp8", "fp8")
    return Storage(_METHODS[method], dtype)


def _bits(config: Mapping[str, Any]) -> int:
    """Bits of the weights of the first group of layers."""
    groups = config.get("config_groups") or {}
    weights = next((group.get("weights") or {} for group in groups.values() if isinstance(group, Mapping)), {})
    return int(weights.get("num_bits") or 0)
