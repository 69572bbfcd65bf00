"""Shapes from configurations, against sums by hand and against the models that transformers builds from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from dali.experiments.shapes.catalogue import load_shape
from dali.experiments.shapes.config import shape_from_config
from dali.experiments.shapes.file import shape_of_file
from dali.policies.types import InputError

PLAIN: dict[str, Any] = {
    "model_type": "some_moe",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_intermediate_size": 32,
    "intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}


def shape(**changes: Any) -> Any:
    config = {name: value for name, value in (PLAIN | changes).items() if value is not None}
    return shape_from_config(config, "toy")


def test_grouped_attention_by_hand() -> None:
    found = shape()
    assert (found.layers, found.experts, found.top_k, found.hidden) == (4, 8, 2, 64)
    assert (found.expert_width, found.dense_layers, found.dense_width, found.shared_width) == (32, 0, 0, 0)
    # q and o 64 x 64, k and v 64 x 32; cache (16 + 16) x 2 heads x 2 bytes
    assert found.attention_params == 2 * 4096 + 2 * 2048
    assert (found.attention_width, found.kv_bytes) == (64, 128)
    assert (found.full_attention, found.window, found.tied, found.gated) == (1.0, 0, False, True)
    assert found.name == "toy"


def test_latent_attention_by_hand() -> None:
    sizes = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 12, "v_head_dim": 10}
    found = shape(**sizes)
    # q 64 x 4 x 16, down 64 x (8 + 4), up 8 x 4 x (12 + 10), o 4 x 10 x 64
    assert found.attention_params == 4096 + 768 + 704 + 2560
    assert (found.attention_width, found.kv_bytes) == (4 * (16 + 10) // 2, 24)
    # q by 64 x 6 and 6 x 64
    assert shape(q_lora_rank=6, **sizes).attention_params == 384 + 384 + 768 + 704 + 2560


def test_dense_layers_by_every_name() -> None:
    for changes in (
        {"first_k_dense_replace": 1},
        {"mlp_only_layers": [0]},
        {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
        {"moe_layer_start_index": 1, "moe_layer_end_index": 3},
        {"moe_layers_enum": "1,2,3"},
        {"moe_layer_freq": [0, 1, 1, 1]},
    ):
        found = shape(**changes)
        assert (found.layers, found.dense_layers, found.dense_width) == (3, 1, 128), changes
    for changes in (
        {"decoder_sparse_step": 2},
        {"expert_layer_period": 2, "expert_layer_offset": 1},
        {"interleave_moe_layer_step": 2},
        {"moe_layers": [1, 3]},
    ):
        assert (shape(**changes).layers, shape(**changes).dense_layers) == (2, 2), changes


def test_shared_experts_by_every_name() -> None:
    assert shape(n_shared_experts=2).shared_width == 64
    assert shape(num_shared_expert=[1, 1, 1, 1]).shared_width == 32
    assert shape(shared_expert_intermediate_size=48).shared_width == 48
    assert shape(n_shared_experts=1, moe_shared_expert_intermediate_size=96).shared_width == 96
    assert shape(enable_moe_block=True).shared_width == 128


def test_windows_are_the_mean_over_layers() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    found = shape(layer_types=kinds, sliding_window=24)
    assert (found.full_attention, found.window) == (0.5, 24)
    assert (
        shape(layer_types=kinds, sliding_window=24, swa_num_key_value_heads=4).attention_params
        == ((2 * 4096 + 2 * 2048) + (2 * 4096 + 2 * 4096)) // 2
    )
    assert shape(sliding_window=24, max_position_embeddings=1000).full_attention == 0
    # A window that no position is outside of, and one that is not used
    assert shape(sliding_window=1000, max_position_embeddings=1000).full_attention == 1
    assert shape(sliding_window=24, use_sliding_window=False).full_attention == 1


def test_gated_delta_nets_by_hand() -> None:
    found = shape(
        model_type="qwen3_next",
        full_attention_interval=4,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
    )
    # Full: q 64 x 128 with its gate, k and v 64 x 32, o 64 x 64.  Delta net: query and key 16 each, value 32 and gate
    # 32, two scalars for each of 4 heads, o 32 x 64, convolution 4 x 64.
    full, delta = 8192 + 4096 + 4096, 64 * (16 + 16 + 32 + 32 + 8) + 2048 + 256
    assert found.attention_params == (full + 3 * delta) // 4
    assert (found.full_attention, found.window) == (0.25, 0)
    assert found.state_bytes == 4 * 8 * 8 * 4


def test_blocks_are_put_together_into_layers() -> None:
    found = shape(
        num_hidden_layers=None,
        hybrid_override_pattern="MEM*EME-",
        mlp_hidden_act="relu2",
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=16,
        n_groups=2,
    )
    # Three blocks of experts and a dense one; three Mamba-2 and one attention over these four.
    assert (found.layers, found.dense_layers, found.gated, found.full_attention) == (3, 1, False, 0.25)
    mamba = 64 * (2 * 32 + 2 * 2 * 16 + 4) + 32 * 64
    assert found.attention_params == (3 * mamba + 12288) // 4
    assert found.state_bytes == 4 * 8 * 16 * 4


def test_the_language_model_of_a_larger_one() -> None:
    nested = {"model_type": "some_vl", "text_config": PLAIN, "vision_config": {"hidden_size": 9}, "vocab_size": 7}
    assert shape_from_config(nested, "toy") == shape()


def test_storage_of_published_weights() -> None:
    found = shape(quantization_config={"quant_method": "fp8"})
    assert (found.expert_bits, found.dense_bits, found.head_bits, found.expert_format) == (8, 8, 16, "fp8")
    found = shape(quantization_config={"quant_method": "mxfp4"})
    assert (found.expert_bits, found.dense_bits, found.head_bits, found.dense_format) == (4.25, 16, None, "bf16")
    found = shape(quantization_config={"quant_method": "fp8"}, expert_dtype="fp4")
    assert (found.expert_bits, found.dense_bits, found.expert_format) == (4.25, 8, "mxfp4")
    groups = {"group_0": {"weights": {"num_bits": 4}}}
    found = shape(quantization_config={"quant_method": "compressed-tensors", "config_groups": groups})
    assert found.expert_format == "int4"
    assert shape(torch_dtype="float32").expert_bits == 32
    with pytest.raises(InputError, match="found quantization method 'quip', expected fp8"):
        shape(quantization_config={"quant_method": "quip"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None}, "config: found no num_experts or n_routed_experts"),
        ({"hidden_size": None}, "config: found no hidden_size"),
        ({"num_hidden_layers": None}, "config: found no num_hidden_layers or num_layers"),
        ({"vocab_size": None}, "config: found no vocab_size"),
        ({"num_experts_per_tok": 2.5}, "found 2.5 as num_experts_per_tok"),
        ({"num_experts_per_tok": 9}, "model.top_k: found 9"),
        ({"first_k_dense_replace": 4}, "found no layer with experts"),
        ({"layer_types": ["retention"] * 4}, "found layer type retention"),
        ({"layer_types": ["linear_attention"] * 4}, "found linear attention without"),
        ({"layer_types": ["sliding_attention"] * 4}, "found no sliding_window"),
        ({"hybrid_override_pattern": "MEX"}, "found block 'X'"),
        ({"kv_lora_rank": 8}, "found no qk_nope_head_dim"),
    ],
)
def test_what_is_missing_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        shape(**changes)
    assert "\n" not in str(error.value)


# ---- transformers as an oracle -------------------------------------------------------------------------

SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "intermediate_size": 96,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MLA = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "shared_expert_intermediate_size": 48,
}  # fmt: skip
WIDE = {"moe_intermediate_size": None}  # its experts are as wide as intermediate_size
ORACLES: dict[str, dict[str, Any]] = {
    "MixtralConfig": WIDE | {"num_local_experts": 8},
    "Qwen2MoeConfig": {"num_experts": 8, "shared_expert_intermediate_size": 48, "mlp_only_layers": [1]},
    "Qwen3MoeConfig": {"num_experts": 8, "decoder_sparse_step": 2},
    "Qwen3NextConfig": {"num_experts": 8} | DELTA,
    "Qwen3_5MoeTextConfig": {"num_experts": 8} | DELTA,
    "Glm4MoeConfig": {"n_routed_experts": 8, "first_k_dense_replace": 2},
    "DeepseekV3Config": MLA | {"n_routed_experts": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "MiniMaxM2Config": WIDE | {"num_local_experts": 8},
    "GptOssConfig": WIDE | {"num_local_experts": 8, "sliding_window": 16},
    "Llama4TextConfig": WIDE | {"num_local_experts": 8, "intermediate_size_mlp": 80, "interleave_moe_layer_step": 2},
    "Ernie4_5_MoeConfig": {"moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 3},
    "JambaConfig": WIDE | {"num_experts": 8, "mamba_dt_rank": 8, "attn_layer_period": 4, "attn_layer_offset": 1},
    "GraniteMoeHybridConfig": WIDE
    | {"num_local_experts": 8, "shared_intermediate_size": 48, "mamba_n_heads": 4, "mamba_d_head": 32}
    | {"mamba_d_state": 16, "layer_types": ["mamba", "attention", "mamba", "mamba"]},
}


@pytest.mark.parametrize("kind", ORACLES)
def test_weights_are_those_of_the_model_that_transformers_builds(kind: str) -> None:
    torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the runtime extra is not installed")
    config = getattr(transformers, kind)(**(SMALL | ORACLES[kind]))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    # Of a matrix or a stack of them: norms, biases and convolutions of a channel are left out of a shape.
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "bias" not in name)
    found = shape_from_config(config.to_dict(), kind)
    assert found.total_params == pytest.approx(matrices, rel=0.01)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3_next_80b_a3b", "Qwen3NextConfig"),
        ("qwen3_5_35b_a3b", "Qwen3_5MoeTextConfig"),
        ("gpt_oss_120b", "GptOssConfig"),
        ("deepseek_v3", "DeepseekV3Config"),
        ("mixtral_8x7b", "MixtralConfig"),
        ("minimax_m2", "MiniMaxM2Config"),
        ("glm_4_7_flash", "Glm4MoeLiteConfig"),
        ("glm_5", "GlmMoeDsaConfig"),
        ("glm_5_3_flash", "Glm5NextTextConfig"),
        ("deepseek_v4_flash", "DeepseekV4Config"),
        ("llama_4_scout", "Llama4TextConfig"),
        ("mimo_v2_flash", "MiMoV2FlashConfig"),
        ("jamba_1_5_mini", "JambaConfig"),
    ],
)
def test_committed_files_are_what_their_configuration_gives(name: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the runtime extra is not installed")
    config = getattr(transformers, kind, None)
    if config is None:
        pytest.skip(f"this transformers has no {kind}")
    found, ours = shape_from_config(config().to_dict(), name), load_shape(name)
    storage = ("expert_bits", "dense_bits", "head_bits", "expert_format", "dense_format", "predictor_recall")
    for field in vars(ours):
        if field not in storage:
            assert getattr(found, field) == pytest.approx(getattr(ours, field)), field


# ---- files ---------------------------------------------------------------------------------------------


def test_a_file_or_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PLAIN))
    assert shape_of_file(str(folder)) == shape_of_file(str(folder / "config.json")) == shape()


def test_the_class_of_transformers_fills_what_a_file_leaves_to_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the runtime extra is not installed")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "num_hidden_layers": 4}))
    found = shape_of_file(str(tmp_path))
    assert (found.layers, found.experts, found.hidden) == (4, 8, 4096)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "found a list"),
        ('{"model_type": "llama"}', "found no layer with experts|found no num_experts"),
        ('{"model_type": "unheard_of", "hidden_size": 8}', "config.json: found no num_experts"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        shape_of_file(str(tmp_path))
    assert "\n" not in str(error.value)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no file .*config\.json, expected"):
        shape_of_file(str(tmp_path))
