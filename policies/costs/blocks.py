"""Formats that weights are stored in: bits of a weight, scales included, and the kernels that read it.

Sources.  ggml: the structs and sizes asserted in ggml/src/ggml-common.h of ggml-org/llama.cpp; those of
ikawrakow/ik_llama.cpp in its file of the same name.  Floats of 4 bits: OCP Microscaling Formats 1.0 (32 values and
a scale of 8 bits) and NVIDIA's NVFP4 (16 values and a scale of 8 bits).  Integers of 4 bits: groups of 128 with a
scale of 16 bits and a zero of 4 (AWQ, GPTQ).  FP8: blocks of 128 x 128 with a scale of 32 bits, 0.002 bits a weight,
are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A format.

    bits    of a weight, scales included
    kernel  name of the formats that the same kernels read at the same speed, see `KERNELS`
    group   weights of a row that share a block; 1 = a row may have any length
    """

    bits: float
    kernel: str
    group: int = 1


# Formats of one line differ in scales and tables; their kernels unpack as many bits and reach the same bandwidth.
KERNELS = (
    "bf16", "fp8", "int8", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q4_0", "iq4", "iq3", "iq2", "iq1", "mxfp4",
    "nvfp4", "int4", "exl3",
)  # fmt: skip

BLOCKS = {
    "f32": Block(32, "bf16"),
    "f16": Block(16, "bf16"),
    "bf16": Block(16, "bf16"),
    "fp8": Block(8, "fp8"),
    "int8": Block(8, "int8"),
    "int4": Block(4.15625, "int4", 128),
    "mxfp4": Block(4.25, "mxfp4", 32),
    "nvfp4": Block(4.5, "nvfp4", 16),
    "q8_0": Block(8.5, "q8_0", 32),
    "q5_1": Block(6, "q4_0", 32),
    "q5_0": Block(5.5, "q4_0", 32),
    "q4_1": Block(5, "q4_0", 32),
    "q4_0": Block(4.5, "q4_0", 32),
    "q6_k": Block(6.5625, "q6_k", 256),
    "q5_k": Block(5.5, "q5_k", 256),
    "q4_k": Block(4.5, "q4_k", 256),
    "q3_k": Block(3.4375, "q3_k", 256),
    "q2_k": Block(2.625, "q2_k", 256),
    "iq4_nl": Block(4.5, "iq4", 32),
    "iq4_xs": Block(4.25, "iq4", 256),
    "iq3_s": Block(3.4375, "iq3", 256),
    "iq3_xxs": Block(3.0625, "iq3", 256),
    "iq2_s": Block(2.5625, "iq2", 256),
    "iq2_xs": Block(2.3125, "iq2", 256),
    "iq2_xxs": Block(2.0625, "iq2", 256),
    "iq1_m": Block(1.75, "iq1", 256),
    "iq1_s": Block(1.5625, "iq1", 256),
    "tq1_0": Block(1.6875, "iq1", 256),
    # ik_llama.cpp
    "q6_0": Block(6.5, "q4_0", 32),
    "iq6_k": Block(6.625, "q6_k", 256),
    "iq5_k": Block(5.5, "q5_k", 256),
    "iq5_ks": Block(5.25, "q5_k", 256),
    "iq4_k": Block(4.5, "iq4", 256),
    "iq4_ks": Block(4.25, "iq4", 256),
    "iq4_kss": Block(4, "iq4", 256),
    "iq4_kt": Block(4, "iq4", 256),
    "iq3_k": Block(3.4375, "iq3", 256),
    "iq3_ks": Block(3.1875, "iq3", 256),
    "iq3_kt": Block(3.125, "iq3", 256),
    "iq2_kl": Block(2.6875, "iq2", 256),
    "iq2_k": Block(2.375, "iq2", 256),
    "iq2_ks": Block(2.1875, "iq2", 256),
    "iq2_kt": Block(2.125, "iq2", 256),
    "iq1_kt": Block(1.75, "iq1", 256),
    "iq1_m_r4": Block(1.75, "iq1", 32),
    "iq1_s_r4": Block(1.5, "iq1", 32),
}
"""By name, in lower case."""

# What llama.cpp stores a row as whose length is no multiple of the block's (tensor_type_fallback of llama-quant.cpp).
_SHORT_ROWS = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0", "q3_k": "q4_0", "q2_k": "q4_0", "iq6_k": "q8_0"}
_SHORT_ROWS |= {"iq5_k": "q6_0", "iq5_ks": "q6_0", "tq1_0": "q4_0"}


def block(name: str) -> Block:
    """A format by its name in `BLOCKS`, or exl3_B: ExLlamaV3's trellis with B bits a weight, any number."""
    return Block(float(name.removeprefix("exl3_")), "exl3") if name.startswith("exl3_") else BLOCKS[name]


def fitting(name: str, row: int) -> str:
    """The format that a matrix with rows of `row` weights gets where `name` is asked for."""
    group = block(name).group
    if row % group == 0 or group != 256:
        return name
    return _SHORT_ROWS.get(name, "iq4_nl")
