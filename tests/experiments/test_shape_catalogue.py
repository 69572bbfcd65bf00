"""Models by free text."""

import pytest

from dali.experiments.shapes.catalogue import find_model, load_shape
from dali.experiments.shapes.names import NAMES
from dali.policies.types import InputError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen3.5-35B-A3B", "qwen3_5_35b_a3b"),
        ("Qwen3.6-35B-A3B", "qwen3_5_35b_a3b"),
        ("Qwen3-Next-80B-A3B-Instruct", "qwen3_next_80b_a3b"),
        ("Qwen3-Coder-Next 80B-A3B", "qwen3_next_80b_a3b"),
        ("Qwen3-Next 80B", "qwen3_next_80b_a3b"),
        ("Qwen3-30B-A3B-2507", "qwen3_30b_a3b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3_30b_a3b"),
        ("unsloth/GLM-4.5-Air-GGUF", "glm_4_5_air"),
        ("Qwen3.8-Flash-Next", "qwen3_8_flash_next"),
        ("DeepSeek-V4-Flash-0731 284B", "deepseek_v4_flash"),
        ("DeepSeek-V4-Flash 85 GB", "deepseek_v4_flash"),
        ("DeepSeek-V3-0324 671B", "deepseek_v3"),
        ("DeepSeek-R1-0528", "deepseek_v3"),
        ("DeepSeek-V2-Lite 16B", "deepseek_v2_lite"),
        ("gpt-oss-120b", "gpt_oss_120b"),
        ("gpt-oss:20b", "gpt_oss_20b"),
        ("Laguna S-2.1 118B", "laguna_s_2_1"),
        ("Laguna 118B-A8B", "laguna_s_2_1"),
        ("GLM-5.1 744B", "glm_5"),
        ("MiniMax M2.1 230B-A10B", "minimax_m2"),
        ("Kimi K2 Thinking 1T", "kimi_k2"),
        ("Mixtral-8x7B-Instruct-v0.1", "mixtral_8x7b"),
        ("Llama-4-Maverick-17B-128E-Instruct", "llama_4_maverick"),
        # llama-bench's own
        ("qwen3moe 30B.A3B Q4_K - Medium", "qwen3_30b_a3b"),
        ("deepseek2 671B Q4_K - Medium", "deepseek_v3"),
        ("gpt-oss 120B MXFP4 MoE", "gpt_oss_120b"),
        # Files
        ("qwen3_235b_a22b", "qwen3_235b_a22b"),
    ],
)
def test_free_text_names_a_model(text: str, name: str) -> None:
    assert find_model(text) == load_shape(name)


def test_every_name_finds_its_file() -> None:
    for file, names in NAMES.items():
        for name in (*names, file, names[0].lower(), names[0].replace("-", " ")):
            assert find_model(name).name == file, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Qwen3.6-35B-A3B / GLM-4.7-Flash", "two models, expected one"),
        ("", "found nothing"),
        ("Qwen3-32B", "Qwen3-30B-A3B"),
        # Distilled into a dense model, or pruned: of another shape
        ("DeepSeek-R1-Distill-Qwen-32B", "expected one such as"),
        ("DeepSeek-R1 70B", "expected one such as"),
        ("Qwen3-Coder-REAP-25B-A3B", "expected one such as"),
        ("something else", "expected one such as"),
    ],
)
def test_what_names_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        find_model(text)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match="model: found 'nothing', expected one of deepseek_v2, "):
        load_shape("nothing")
