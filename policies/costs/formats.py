"""Models in other formats than their own: quantisations by name, as files and tables of results write them."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

from dali.policies.costs import mixes
from dali.policies.costs.blocks import block
from dali.policies.costs.mixes import QUANTISATIONS, Quantisation
from dali.policies.costs.model_shape import ModelShape
from dali.policies.types import InputError

KV_FORMATS = ("f16", "bf16", "f32", "fp8", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Formats of the KV cache."""

# A stated number of bits that is this close to a format's own is the format's.
_SAME = 0.03
_SYNONYMS = {
    "4_bit": "int4", "4bit": "int4", "w4a16": "int4", "awq": "int4", "gptq": "int4", "amxint4": "int4", "u4": "int4",
    "rawint4": "int4", "8_bit": "int8", "8bit": "int8", "w8a8": "int8", "amxint8": "int8", "mxfp4_moe": "mxfp4",
    "fp16": "f16", "float16": "f16", "bfloat16": "bf16", "fp8_e4m3": "fp8", "q8": "q8_0", "q6": "q6_k", "q5": "q5_k_m",
    "q4": "q4_k_m", "q3": "q3_k_m", "q2": "q2_k", "q5_k": "q5_k_m", "q4_k": "q4_k_m", "q3_k": "q3_k_m",
}  # fmt: skip
# Unsloth's own names of files that it makes with its mixes.
_LIKE = {"ud_q5_k_m": "ud_q5_k_xl", "ud_q4_k_m": "ud_q4_k_xl", "ud_q3_k_m": "ud_q3_k_xl", "ud_q4_k_s": "ud_q4_k_xl"}
_LIKE |= {"ud_q6_k": "ud_q6_k_xl", "ud_q5_k_s": "ud_q5_k_xl", "ud_q3_k_s": "ud_q3_k_xl", "ud_q2_k": "ud_q2_k_xl"}


def find_quantisation(text: str) -> Quantisation:
    """The quantisation that free text names: "Q4_K_M", "UD-Q4_K_XL", "FP4 experts", "exl3 4.05 bpw", "4 bit".

    A number of bits alone is the usual one: "Q4" is q4_k_m.  InputError, with near matches, for what names none or
    more than one.
    """
    if not text.strip():
        raise InputError("quant: found nothing, expected a quantisation such as q4_k_m")
    if re.search(r"\s/\s|,", text):
        raise InputError(f"quant: found {text!r}, two quantisations, expected one")
    bpw = re.search(r"exl[23]\D*(\d+(?:\.\d+)?)", text.lower())
    if bpw is not None:
        if not 1 <= float(bpw[1]) <= 8:
            raise InputError(f"quant: found {text!r}, expected exl3 with 1 to 8 bits a weight")
        return mixes.exl3(float(bpw[1]))
    name = _name(text)
    if name not in QUANTISATIONS:
        near = difflib.get_close_matches(name, QUANTISATIONS, 4, 0.5)
        more = ", ".join(near or ("q4_k_m", "ud_q4_k_xl", "mxfp4", "fp8", "bf16"))
        raise InputError(f"quant: found {text!r}, expected one such as {more}")
    return QUANTISATIONS[name]


def kv_bits(name: str) -> float:
    """Bits of a value in the KV cache; InputError for a format that no cache has."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower()).replace("fp16", "f16")
    if plain not in KV_FORMATS:
        raise InputError(f"kv: found {name!r}, expected one of {', '.join(KV_FORMATS)}")
    return block(plain).bits


def quantised(
    model: ModelShape, quant: str | Quantisation, kv: str | None = None, bits_per_weight: float | None = None
) -> ModelShape:
    """The model with its weights stored as `quant` says, and its KV cache as `kv` does (None = as it is).

    Rows that are no multiple of a block get another format, as in llama.cpp.  Experts that come in MXFP4 stay so where
    `quant` has more bits: they are not stored anew.

    bits_per_weight  mean over the whole file, where it is known: the experts' bits follow from it, unless it is what
                     the quantisation has anyway
    """
    found = find_quantisation(quant) if isinstance(quant, str) else quant
    down = mixes.bits(found.down, model.expert_width)
    up = mixes.bits(found.gate, model.hidden)
    experts = (2 * up + down) / 3 if model.gated else (up + down) / 2
    kernel = mixes.kernel(found.gate, model.hidden)
    if model.expert_format == "mxfp4" and experts >= model.expert_bits:
        experts, kernel = model.expert_bits, model.expert_format
    dense = (model.attention_params + model.shared_params) * found.dense_bits
    changed = replace(
        model,
        expert_bits=experts,
        dense_bits=(dense + model.router_params * found.router_bits) / model.layer_params,
        head_bits=mixes.bits(found.head, model.hidden),
        expert_format=kernel,
        dense_format=found.dense_format,
        kv_bits=model.kv_bits if kv is None else kv_bits(kv),
    )
    return changed if bits_per_weight is None else _as_stated(changed, found, bits_per_weight)


def _as_stated(model: ModelShape, found: Quantisation, stated: float) -> ModelShape:
    """The bits of the experts from those of the whole file, which the rest of the model leaves to them."""
    if not 0.5 <= stated <= 32:
        raise InputError(f"bits_per_weight: found {stated}, expected 0.5 to 32")
    own = (model.expert_bits, model.total_bytes * 8 / model.total_params, mixes.bits({next(iter(found.gate)): 1.0}))
    if any(abs(stated / each - 1) <= _SAME for each in own):
        return model
    experts = model.layers * model.experts * model.expert_params
    rest = model.total_bytes * 8 - experts * model.expert_bits
    bits = (stated * model.total_params - rest) / experts
    if bits <= 0.5:
        raise InputError(f"bits_per_weight: found {stated} for {found.name}, expected more than its dense part takes")
    return replace(model, expert_bits=bits)


def _name(text: str) -> str:
    """Free text in the spelling of `QUANTISATIONS`, without what says nothing of the format."""
    plain = re.sub(r"\d+(\.\d+)?\s*(gi?b|bpw)\b", " ", text.lower())
    plain = re.sub(r"\((.*?)\)|\b(gguf|experts?|quant|smol|imatrix|dynamic|i1|block)\b", " ", plain)
    plain = re.sub(r"[\s-]+", "_", plain.strip(" -_.")).replace("__", "_")
    for word, letter in (("medium", "m"), ("small", "s"), ("large", "l")):
        plain = re.sub(rf"_{word}$", f"_{letter}", plain)
    plain = _SYNONYMS.get(plain, plain)
    if plain not in QUANTISATIONS:
        plain = re.sub(r"_r[48]$", "", plain)
    if re.fullmatch(r"i?q\d_k_xl", plain):
        plain = f"ud_{plain}"
    return _LIKE.get(plain, plain)
