"""Quantisations of a whole model: which format its experts, its other weights and its output head are stored in.

Mixes of llama.cpp: src/llama-quant.cpp (llama_tensor_get_type_impl), with an importance matrix where it matters.  The
dense part of them is a mean: values, and outputs where a line says so, take more bits than the rest of attention.
Mixes named ud_ are Unsloth's dynamic ones, which differ from model to model: gate and up projections as named, the
down projection one step finer, attention and shared experts in q8_0 (Qwen3.6-35B-A3B: gittensor-ai-lab/sparkinfer,
pull requests 224 and 359); an estimate for others.  Those of ik_llama.cpp follow the recipes of ubergarm's model cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dali.policies.costs.blocks import block, fitting

Mix = Mapping[str, float]
"""Share of the weights by format; the first is the most."""


@dataclass(frozen=True)
class Quantisation:
    """How a model's weights are stored.

    gate         formats of the experts' gate and up projections, whose rows are as long as the model is wide
    down         formats of their down projections, whose rows are as long as an expert is wide
    dense        formats of attention, shared experts and layers without experts
    head         formats of output head and embedding
    router_bits  bits of a router's weight
    """

    name: str
    gate: Mix
    down: Mix
    dense: Mix
    head: Mix
    router_bits: float = 32

    @property
    def expert_bits(self) -> float:
        """Bits of an expert's weight where every row fits, of three projections."""
        return (2 * bits(self.gate) + bits(self.down)) / 3

    @property
    def dense_bits(self) -> float:
        """Bits of a weight of attention, shared experts and layers without experts."""
        return bits(self.dense)

    @property
    def head_bits(self) -> float:
        """Bits of a weight of output head and embedding."""
        return bits(self.head)

    @property
    def expert_format(self) -> str:
        """The kernels that read most of the experts, of `blocks.KERNELS`."""
        return kernel(self.gate)

    @property
    def dense_format(self) -> str:
        """The kernels that read most of the dense part."""
        return kernel(self.dense)


def bits(mix: Mix, row: int | None = None) -> float:
    """Bits of a weight, the mean; in a matrix with rows of `row` weights if given."""
    return sum(share * block(name if row is None else fitting(name, row)).bits for name, share in mix.items())


def kernel(mix: Mix, row: int | None = None) -> str:
    """The kernels that read most of a mix, of `blocks.KERNELS`."""
    first = next(iter(mix))
    return block(first if row is None else fitting(first, row)).kernel


def exl3(bits_per_weight: float) -> Quantisation:
    """ExLlamaV3's trellis format at any number of bits; its output head has 6 (default of its convert.py)."""
    mix = {f"exl3_{bits_per_weight:g}": 1.0}
    return Quantisation(f"exl3_{bits_per_weight:g}", mix, mix, mix, {"exl3_6": 1.0}, router_bits=16)


def _mix(base: str, **others: float) -> Mix:
    """Formats of a share each, and `base` for the rest."""
    return {base: 1 - sum(others.values()), **others}


def _ggml(name: str, gate: Mix, down: Mix | None = None, dense: Mix | None = None, head: str = "q6_k") -> Quantisation:
    return Quantisation(name, gate, gate if down is None else down, gate if dense is None else dense, _mix(head))


def _other(name: str, experts: str, dense: str, head: str = "bf16") -> Quantisation:
    return Quantisation(name, _mix(experts), _mix(experts), _mix(dense), _mix(head), router_bits=16)


_ALL = (
    # Checkpoints of transformers and the engines that load them.  MXFP4 is that of gpt-oss, whose other weights the
    # GGUF files of ggml-org hold in q8_0; FP4 is DeepSeek's, with the rest in FP8.
    _other("bf16", "bf16", "bf16"),
    _other("f16", "f16", "f16", "f16"),
    _other("fp8", "fp8", "fp8"),
    _other("fp4", "mxfp4", "fp8"),
    _other("nvfp4", "nvfp4", "bf16"),
    _other("int8", "int8", "int8"),
    _other("int4", "int4", "bf16"),
    _ggml("mxfp4", _mix("mxfp4"), dense=_mix("q8_0"), head="q8_0"),
    # llama.cpp.  Half of the layers get more bits with use_more_bits.
    _ggml("q8_0", _mix("q8_0"), head="q8_0"),
    _ggml("q6_k", _mix("q6_k")),
    _ggml("q5_k_m", _mix("q5_k"), _mix("q5_k", q6_k=1 / 2), _mix("q5_k", q6_k=0.2)),
    _ggml("q5_k_s", _mix("q5_k")),
    _ggml("q5_1", _mix("q5_1")),
    _ggml("q5_0", _mix("q5_0")),
    _ggml("q4_k_m", _mix("q4_k"), _mix("q4_k", q6_k=1 / 2), _mix("q4_k", q6_k=0.2)),
    _ggml("q4_k_s", _mix("q4_k"), _mix("q4_k", q5_k=1 / 8), _mix("q4_k", q5_k=0.05)),
    _ggml("q4_1", _mix("q4_1")),
    _ggml("q4_0", _mix("q4_0"), _mix("q4_0", q4_1=1 / 8)),
    _ggml("q3_k_l", _mix("q3_k"), _mix("q5_k"), _mix("q3_k", q5_k=0.45)),
    _ggml("q3_k_m", _mix("q3_k"), _mix("q4_k", q5_k=1 / 16), _mix("q3_k", q4_k=0.45)),
    _ggml("q3_k_s", _mix("q3_k")),
    _ggml("q2_k", _mix("q2_k"), _mix("q3_k"), _mix("q2_k", q3_k=0.4, q4_k=0.1)),
    _ggml("q2_k_s", _mix("q2_k"), _mix("q2_k", q4_k=1 / 8), _mix("q2_k", q4_k=0.1)),
    _ggml("iq4_nl", _mix("iq4_nl"), dense=_mix("iq4_nl", q5_k=0.1)),
    _ggml("iq4_xs", _mix("iq4_xs"), dense=_mix("iq4_xs", q5_k=0.1)),
    _ggml("iq3_m", _mix("iq3_s"), _mix("iq3_s", q4_k=1 / 8), _mix("iq3_s", q4_k=0.5)),
    _ggml("iq3_s", _mix("iq3_s"), dense=_mix("iq3_s", q4_k=0.1)),
    _ggml("iq3_xs", _mix("iq3_xxs", iq3_s=1 / 4), _mix("iq3_s"), _mix("iq3_xxs", iq3_s=0.4, q4_k=0.1)),
    _ggml("iq3_xxs", _mix("iq3_xxs"), dense=_mix("iq2_s", iq3_s=0.4, q4_k=0.1), head="q5_k"),
    _ggml("iq2_m", _mix("iq2_s"), _mix("iq2_s", iq3_s=1 / 8), _mix("iq2_s", iq3_s=0.4, q4_k=0.1), "q5_k"),
    _ggml("iq2_s", _mix("iq2_xs"), _mix("iq2_xs", iq3_s=1 / 8), _mix("iq2_xs", iq3_s=0.4, q4_k=0.1), "q5_k"),
    _ggml("iq2_xs", _mix("iq2_xs"), _mix("iq2_xs", q2_k=1 / 8), _mix("iq2_xs", q4_k=0.1), "q5_k"),
    _ggml("iq2_xxs", _mix("iq2_xxs"), _mix("iq2_xxs", q2_k=1 / 8), _mix("iq2_xxs", q4_k=0.1), "q5_k"),
    _ggml("iq1_m", _mix("iq1_m"), _mix("iq1_m", q2_k=1 / 8), _mix("iq1_m", iq2_xxs=0.4, q4_k=0.1), "q5_k"),
    _ggml("iq1_s", _mix("iq1_s"), _mix("iq1_s", q2_k=1 / 8), _mix("iq1_s", iq2_xxs=0.4, q4_k=0.1), "q5_k"),
    # Bartowski's: head and embedding in q8_0.
    _ggml("q4_k_l", _mix("q4_k"), _mix("q4_k", q6_k=1 / 2), _mix("q4_k", q6_k=0.2), "q8_0"),
    _ggml("q5_k_l", _mix("q5_k"), _mix("q5_k", q6_k=1 / 2), _mix("q5_k", q6_k=0.2), "q8_0"),
    _ggml("q6_k_l", _mix("q6_k"), head="q8_0"),
    # Unsloth
    _ggml("ud_q8_k_xl", _mix("q8_0"), dense=_mix("bf16"), head="q8_0"),
    _ggml("ud_q6_k_xl", _mix("q6_k"), _mix("q8_0"), _mix("q8_0"), "q8_0"),
    _ggml("ud_q5_k_xl", _mix("q5_k"), _mix("q6_k"), _mix("q8_0")),
    _ggml("ud_q4_k_xl", _mix("q4_k"), _mix("q5_k"), _mix("q8_0")),
    _ggml("ud_q3_k_xl", _mix("q3_k"), _mix("q4_k"), _mix("q8_0")),
    _ggml("ud_q2_k_xl", _mix("q2_k"), _mix("q3_k"), _mix("q8_0")),
    _ggml("ud_iq4_nl", _mix("iq4_nl"), _mix("q5_k"), _mix("q8_0")),
    _ggml("ud_iq4_xs", _mix("iq4_xs"), _mix("q5_k"), _mix("q8_0")),
    _ggml("ud_iq3_s", _mix("iq3_s"), _mix("iq4_xs"), _mix("q8_0")),
    _ggml("ud_iq3_xxs", _mix("iq3_xxs"), _mix("iq3_s"), _mix("q8_0")),
    _ggml("ud_iq2_m", _mix("iq2_s"), _mix("iq3_xxs"), _mix("q8_0")),
    _ggml("ud_iq2_xxs", _mix("iq2_xxs"), _mix("iq2_s"), _mix("q8_0")),
    _ggml("ud_iq1_m", _mix("iq1_m"), _mix("iq2_xxs"), _mix("q8_0")),
    _ggml("ud_iq1_s", _mix("iq1_s"), _mix("iq2_xxs"), _mix("q8_0")),
    _ggml("ud_tq1_0", _mix("tq1_0"), _mix("iq1_s"), _mix("q8_0")),
    # ik_llama.cpp
    _ggml("iq6_k", _mix("iq6_k"), dense=_mix("q8_0")),
    _ggml("iq5_k", _mix("iq5_k"), _mix("iq6_k"), _mix("q8_0")),
    _ggml("iq5_ks", _mix("iq5_ks"), dense=_mix("q8_0")),
    _ggml("iq4_k", _mix("iq4_k"), _mix("iq5_k"), _mix("q8_0")),
    _ggml("iq4_ks", _mix("iq4_ks"), dense=_mix("iq4_ks", iq5_ks=0.1)),
    _ggml("iq4_kss", _mix("iq4_kss"), _mix("iq4_ks"), _mix("iq5_ks")),
    _ggml("iq4_kt", _mix("iq4_kt"), dense=_mix("iq5_ks")),
    _ggml("iq3_k", _mix("iq3_k"), _mix("iq4_ks"), _mix("q8_0")),
    _ggml("iq3_ks", _mix("iq3_ks"), _mix("iq4_ks"), _mix("q8_0")),
    _ggml("iq3_kt", _mix("iq3_kt"), _mix("iq4_kt"), _mix("iq5_ks")),
    _ggml("iq2_kl", _mix("iq2_kl"), _mix("iq3_ks"), _mix("iq6_k")),
    _ggml("iq2_k", _mix("iq2_k"), _mix("iq3_k"), _mix("q8_0")),
    _ggml("iq2_ks", _mix("iq2_ks"), _mix("iq2_k"), _mix("iq5_ks")),
    _ggml("iq2_kt", _mix("iq2_kt"), _mix("iq3_kt"), _mix("iq5_ks")),
    _ggml("iq1_kt", _mix("iq1_kt"), _mix("iq2_kt"), _mix("iq4_ks")),
    # Its rows interleaved by four, the only formats where that changes the bits.
    _ggml("iq1_s_r4", _mix("iq1_s_r4"), _mix("iq1_m_r4"), _mix("iq4_ks"), "iq4_k"),
    _ggml("iq1_m_r4", _mix("iq1_m_r4"), dense=_mix("iq4_ks"), head="iq4_k"),
)
QUANTISATIONS = {each.name: each for each in _ALL}
"""By name, in lower case with underscores."""
