"""Quantisations by name: bits of blocks and mixes by hand, files of published sizes, free text."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dali.policies.costs.blocks import BLOCKS, KERNELS, block, fitting
from dali.policies.costs.formats import find_quantisation, kv_bits, quantised
from dali.policies.costs.mixes import QUANTISATIONS, bits, exl3
from dali.policies.costs.model_shape import ModelShape
from dali.policies.types import InputError

QWEN3 = ModelShape(
    "qwen3_30b_a3b", 48, 128, 8, 2048, 768, 16, 16, True, 0, 18874368, 4096, 2048, 0, 0, 151936, {}
)  # fmt: skip
GPT_OSS = ModelShape(
    "gpt_oss_20b", 24, 32, 4, 2880, 2880, 4.25, 16, True, 0, 26542080, 4096, 2048, 0, 0, 201088, {},
    expert_format="mxfp4",
)  # fmt: skip


def test_bits_of_blocks_from_their_structs() -> None:
    # Bytes of a block of 256 (ggml-common.h): q4_k 2 x 2 + 12 + 128, q5_k the same and 32, q6_k 2 + 16 + 128 + 64,
    # q2_k 16 + 64 + 4, q3_k 32 + 64 + 12 + 2, iq4_xs 2 + 2 + 4 + 128, iq3_xxs 2 + 96, iq3_s 2 + 64 + 8 + 32 + 4
    for name, size in [
        ("q4_k", 144), ("q5_k", 176), ("q6_k", 210), ("q2_k", 84), ("q3_k", 110), ("iq4_xs", 136), ("iq3_xxs", 98),
        ("iq3_s", 110), ("iq2_xxs", 66), ("iq2_xs", 74), ("iq2_s", 82), ("iq1_s", 50), ("iq1_m", 56), ("tq1_0", 54),
    ]:  # fmt: skip
        assert BLOCKS[name].bits == size * 8 / 256, name
    # Of 32: a scale of 16 bits and as many values of 4, 5 or 8 bits; MXFP4 has a scale of 8
    for name, size in [("q8_0", 34), ("q4_0", 18), ("q5_0", 22), ("iq4_nl", 18), ("mxfp4", 17)]:
        assert BLOCKS[name].bits == size * 8 / 32, name
    assert BLOCKS["nvfp4"].bits == 4 + 8 / 16
    assert BLOCKS["int4"].bits == 4 + (16 + 4) / 128


def test_every_format_has_kernels_of_the_list() -> None:
    assert {each.kernel for each in BLOCKS.values()} == set(KERNELS) - {"exl3"}
    assert block("exl3_4.05").kernel in KERNELS
    for each in QUANTISATIONS.values():
        assert {each.expert_format, each.dense_format} <= set(KERNELS)
        for mix in (each.gate, each.down, each.dense, each.head):
            assert sum(mix.values()) == pytest.approx(1)
            # The first format names the kernels: it is the most.
            assert next(iter(mix.values())) == max(mix.values())


def test_mixes_by_hand() -> None:
    # gate and up 4.5; down half 4.5, half 6.5625
    assert QUANTISATIONS["q4_k_m"].expert_bits == pytest.approx((9 + 5.53125) / 3)
    # down: 15 of 16 layers 4.5, the first 5.5
    assert QUANTISATIONS["q3_k_m"].expert_bits == pytest.approx((2 * 3.4375 + 4.5625) / 3)
    assert QUANTISATIONS["iq1_s_r4"].expert_bits == pytest.approx((3 + 1.75) / 3)
    assert QUANTISATIONS["mxfp4"].expert_bits == 4.25


def test_short_rows_get_other_formats() -> None:
    assert fitting("q4_k", 768) == "q4_k"
    # GLM-4.5-Air and DeepSeek-V2-Lite: experts 1408 wide, 5.5 blocks
    assert fitting("q4_k", 1408) == "q5_0"
    assert fitting("iq4_xs", 1408) == "iq4_nl"
    assert fitting("q2_k", 1408) == "q4_0"
    assert fitting("q8_0", 1408) == "q8_0"
    assert fitting("bf16", 7) == "bf16"
    assert bits(QUANTISATIONS["q4_k_m"].down, 1408) == (5.5 + 8.5) / 2
    narrow = quantised(replace(QWEN3, expert_width=1408), "q4_k_m")
    assert narrow.expert_bits == pytest.approx((9 + 7) / 3)
    assert narrow.expert_format == "q4_k"


@pytest.mark.parametrize(
    ("model", "quant", "gigabytes"),
    [
        # Sizes of files on the pages of unsloth/Qwen3-30B-A3B-GGUF and ggml-org/gpt-oss-20b-GGUF
        (QWEN3, "q4_k_m", 18.6),
        (QWEN3, "q8_0", 32.5),
        (QWEN3, "q3_k_m", 14.7),
        (QWEN3, "q6_k", 25.1),
        (QWEN3, "q2_k", 11.3),
        (QWEN3, "iq4_xs", 16.4),
        (QWEN3, "bf16", 61.1),
        (GPT_OSS, "mxfp4", 12.1),
        (GPT_OSS, "f16", 13.8),
    ],
)
def test_files_have_their_published_size(model: ModelShape, quant: str, gigabytes: float) -> None:
    assert quantised(model, quant).total_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_the_dense_part_keeps_its_router() -> None:
    found = quantised(QWEN3, "q8_0")
    # 18,874,368 weights of attention at 8.5 bits, 262,144 of the router at 32
    assert found.layer_bytes == pytest.approx((18874368 * 8.5 + 262144 * 32) / 8)
    assert (found.expert_format, found.dense_format, found.head_bits) == ("q8_0", "q8_0", 8.5)
    assert (quantised(QWEN3, "fp8").dense_bits, quantised(QWEN3, "fp8").head_bits) == (
        pytest.approx(8.11, abs=0.01),
        16,
    )


def test_experts_in_mxfp4_are_not_stored_anew_with_more_bits() -> None:
    for quant in ("f16", "q8_0", "q4_k_m"):
        found = quantised(GPT_OSS, quant)
        assert (found.expert_bits, found.expert_format) == (4.25, "mxfp4")
    assert quantised(replace(GPT_OSS, hidden=3072, expert_width=3072), "iq2_xxs").expert_format == "iq2"


def test_bits_of_experts_follow_from_those_of_the_file() -> None:
    # What the quantisation has anyway: of a block, of its experts or of the file
    own = quantised(QWEN3, "q4_k_m")
    assert quantised(QWEN3, "q4_k_m", bits_per_weight=4.87) == own
    assert quantised(QWEN3, "iq3_k_r4", bits_per_weight=3.4) == quantised(QWEN3, "iq3_k")
    finer = quantised(QWEN3, "q4_k_m", bits_per_weight=5.2)
    assert finer.total_bytes * 8 / finer.total_params == pytest.approx(5.2)
    assert finer.dense_bits == own.dense_bits
    with pytest.raises(InputError, match=r"bits_per_weight: found 0\.6 for bf16"):
        quantised(QWEN3, "bf16", bits_per_weight=0.6)
    with pytest.raises(InputError, match="bits_per_weight: found 40"):
        quantised(QWEN3, "bf16", bits_per_weight=40)


@given(st.sampled_from(sorted(QUANTISATIONS)), st.floats(3, 12))
def test_a_stated_size_is_met_or_is_the_own_one(name: str, stated: float) -> None:
    own = quantised(QWEN3, name)
    found = quantised(QWEN3, name, bits_per_weight=stated)
    assert found == own or found.total_bytes * 8 / found.total_params == pytest.approx(stated)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Q4_K_M", "q4_k_m"),
        ("q4_k_m", "q4_k_m"),
        ("Q4_K - Medium", "q4_k_m"),
        ("Q3_K - Small", "q3_k_s"),
        ("IQ4_XS - 4.25 bpw", "iq4_xs"),
        ("UD-Q4_K_XL", "ud_q4_k_xl"),
        ("Q4_K_XL", "ud_q4_k_xl"),
        ("UD-Q5_K_M", "ud_q5_k_xl"),
        ("IQ3_K_R4", "iq3_k"),
        ("IQ1_S_R4", "iq1_s_r4"),
        ("i1-IQ3_XXS", "iq3_xxs"),
        ("FP4 experts", "fp4"),
        ("F16 gguf 13.8 GB", "f16"),
        ("MXFP4 MoE", "mxfp4"),
        ("FP8", "fp8"),
        ("4 bit", "int4"),
        ("AWQ", "int4"),
        ("Q4", "q4_k_m"),
        ("Q8", "q8_0"),
        ("exl3 4.05 bpw", "exl3_4.05"),
        ("EXL3-3.0bpw", "exl3_3"),
    ],
)
def test_free_text_names_a_quantisation(text: str, name: str) -> None:
    assert find_quantisation(text).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q8_0 / Q4_K_M", "two quantisations"),
        ("", "found nothing"),
        ("UD", "expected one such as"),
        ("Q4_K_N", "q4_k_m"),
        ("exl3 40 bpw", "1 to 8 bits"),
        ("exl3", "expected one such as"),
    ],
)
def test_what_names_none_is_refused_with_near_matches(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_quantisation(text)


def test_every_name_finds_itself() -> None:
    for name in QUANTISATIONS:
        assert find_quantisation(name).name == name


def test_exl3_has_any_bits() -> None:
    found = exl3(2.5)
    assert (found.expert_bits, found.dense_bits, found.head_bits, found.expert_format) == (2.5, 2.5, 6, "exl3")


def test_formats_of_the_cache() -> None:
    assert kv_bits("q8_0") == 8.5
    assert kv_bits("F16") == kv_bits("bf16") == 16
    assert quantised(QWEN3, "q4_k_m", "q4_0").kv_bits == 4.5
    assert quantised(replace(QWEN3, kv_bits=8), "q4_k_m").kv_bits == 8
    with pytest.raises(InputError, match="kv: found 'q9', expected one of f16"):
        kv_bits("q9")
