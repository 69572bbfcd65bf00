"""The figures of conf/model and conf/platform: they compose, instantiate, and add up to what is published."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from dali import conf
from dali.experiments.shapes.catalogue import load_shape
from dali.experiments.shapes.names import NAMES
from dali.policies.costs.roofline import ModelShape, Platform, roofline

CONF = Path(conf.__file__).parent
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "file")
# Data sheets; what was measured is in files of `dali calibrate` beside them.
PLATFORMS = sorted(path.stem for path in (CONF / "platform").glob("*.yaml") if "roofline" in path.read_text())

# Published weights in billions, of all and of one token: the source of each is named at the head of its file.
PUBLISHED = {
    "deepseek_v2": (236, 21),
    "deepseek_v2_lite": (15.7, 2.4),
    "deepseek_v3": (671, 37),
    "deepseek_v3_2": (671, 37),
    "deepseek_v4_flash": (284, 13),
    "dots_llm1": (142, 14),
    "ernie_4_5_21b_a3b": (21.8, 3),
    "ernie_4_5_300b_a47b": (300, 47),
    "gemma_4_26b_a4b": (25.2, 3.8),
    "glm_4_5": (355, 32),
    "glm_4_5_air": (106, 12),
    "glm_4_7_flash": (30, 3),
    "glm_5": (744, 40),
    "glm_5_3_flash": (320, 18),
    "gpt_oss_120b": (116.8, 5.1),
    "gpt_oss_20b": (20.9, 3.6),
    "granite_3_1_3b_a800m": (3.3, 0.8),
    "granite_4_0_h_small": (32, 9),
    "granite_4_0_h_tiny": (6.94, 1),
    "grok_2": (269.5, 115),
    "hunyuan_a13b": (80, 13),
    "hy3": (295, 21),
    "jamba_1_5_large": (398, 94),
    "jamba_1_5_mini": (52, 12),
    "kimi_k2": (1026, 32),
    "kimi_linear_48b_a3b": (48, 3),
    "laguna_s_2_1": (118, 8),
    "laguna_xs_2": (33.4, 3),
    "lfm2_8b_a1b": (8.3, 1.5),
    "ling_1t": (1000, 50),
    "ling_3_0_flash": (124, 5),
    "ling_flash_2_0": (103, 6.1),
    "ling_lite": (16.8, 2.75),
    "ling_mini_2_0": (16.26, 1.4),
    "llama_4_maverick": (400, 17),
    "llama_4_scout": (109, 17),
    "mimo_v2_flash": (309, 15),
    "minimax_m2": (230, 10),
    "mistral_small_4": (119, 6.5),
    "mixtral_8x22b": (141, 39),
    "mixtral_8x7b": (46.7, 12.9),
    "nemotron_3_nano_30b_a3b": (31.6, 3.2),
    "olmoe_1b_7b": (6.9, 1.3),
    "phi_3_5_moe": (41.9, 6.6),
    "qwen1_5_moe_a2_7b": (14.3, 2.7),
    "qwen2_57b_a14b": (57.4, 14),
    "qwen3_235b_a22b": (235, 22),
    "qwen3_30b_a3b": (30.5, 3.3),
    "qwen3_5_122b_a10b": (122, 10),
    "qwen3_5_35b_a3b": (35, 3),
    "qwen3_5_397b_a17b": (397, 17),
    "qwen3_8_flash_next": (125, 6),
    "qwen3_coder_480b_a35b": (480, 35),
    "qwen3_next_80b_a3b": (80, 3),
    "solar_open_100b": (102.6, 12),
    "step_3_5_flash": (196, 11),
}


def option(group: str, name: str) -> Any:
    with initialize_config_module("dali.conf", version_base="1.3"):
        return instantiate(compose(overrides=[f"+{group}={name}"])[group])


@cache
def model(name: str) -> ModelShape:
    return option("model", name)


@cache
def platform(name: str) -> Platform:
    return option("platform", name)


def test_every_model_has_published_weights_and_names() -> None:
    assert set(PUBLISHED) == set(MODELS) == set(NAMES)


@pytest.mark.parametrize("name", MODELS)
def test_model_adds_up_to_the_published_total(name: str) -> None:
    shape = load_shape(name)
    assert shape.name == name
    total, active = (1e9 * each for each in PUBLISHED[name])
    assert shape.total_params == pytest.approx(total, rel=0.03)
    # Some count the embedding among the weights of a token, and a few not even the head; names are rounded to whole
    # billions.
    least, most = shape.active_params - shape.head_params, shape.active_params + shape.head_params
    slack = max(0.5e9, 0.05 * active)
    assert least - slack <= active <= most + slack


@pytest.mark.parametrize("name", ["qwen3_30b_a3b", "qwen3_8_flash_next", "deepseek_v4_flash"])
def test_hydra_makes_the_same_shape(name: str) -> None:
    shape = model(name)
    assert isinstance(shape, ModelShape)
    assert type(shape.predictor_recall) is dict
    assert shape == load_shape(name)


@pytest.mark.parametrize("name", PLATFORMS)
def test_platform_is_named_after_its_file(name: str) -> None:
    machine = platform(name)
    assert isinstance(machine, Platform)
    assert machine.name == name
    # Where a machine draws more over the link than its host memory yields, the figures contradict each other.
    assert machine.link_gbs * 1e9 < machine.cpu.bandwidth < machine.gpu.bandwidth


@pytest.mark.parametrize("platform_name", PLATFORMS)
@pytest.mark.parametrize("model_name", MODELS)
def test_roofline_is_finite_and_never_falls(model_name: str, platform_name: str) -> None:
    cost = roofline(load_shape(model_name), platform(platform_name), 64)
    for table in (cost.cpu, cost.cpu_contended, cost.gpu):
        assert table[0] == 0
        assert np.all(np.isfinite(table))
        assert np.all(np.diff(table) >= 0)
    assert np.all(cost.cpu_contended >= cost.cpu)
    assert np.all(cost.copy_contended >= cost.copy)
    # Computing where the weights are is what a copy is paid for.
    assert cost.gpu[1] < cost.copy[0]
    for seconds in (cost.dense(1, 1, 64.0), cost.per_step(1, 1, 64.0)):
        assert 0 < seconds < 1


def test_unit_bytes_by_hand() -> None:
    # 3 matrices x 4096 x 14336 x 2 bytes
    assert model("mixtral_8x7b").unit_bytes() == 352_321_536
    # 3 x 2048 x 768 x 2
    assert model("qwen3_30b_a3b").unit_bytes() == 9_437_184
    # 3 x 2880 x 2880 x 4.25 bits = 24,883,200 x 17 / 32
    assert model("gpt_oss_20b").unit_bytes() == 13_219_200
    # 3 x 7168 x 2048 x 1 byte
    assert model("deepseek_v3").unit_bytes() == 44_040_192


def test_mixtral_on_the_papers_machine_by_hand() -> None:
    cost = roofline(model("mixtral_8x7b"), platform("rtx3090_epyc7532"), 16)
    # 352,321,536 bytes / 25 GB/s = 14.093 ms, and 10 us until the first byte
    assert cost.copy[0] == pytest.approx(14.103e-3, rel=1e-4)
    # one token: 352.34 MB / (936 GB/s x 0.8) = 0.4705 ms, and 15 us of launches
    assert cost.gpu[1] == pytest.approx(0.4855e-3, rel=1e-3)
    # one token: 352.34 MB / (204.8 GB/s x 0.62) = 2.775 ms, and 10 us of dispatch
    assert cost.cpu[1] == pytest.approx(2.785e-3, rel=1e-3)
    # while a copy draws 25 of the 126.98 GB/s: 352.34 MB / 101.98 GB/s = 3.455 ms, and 10 us
    assert cost.cpu_contended[1] == pytest.approx(3.465e-3, rel=1e-3)
    # sixteen tokens are bound by arithmetic: 16 x 2 x 176,160,768 / (1.69 TFLOP/s x 0.43) = 7.757 ms, and 10 us
    assert cost.cpu[16] == pytest.approx(7.767e-3, rel=1e-3)


def test_the_papers_exact_mixtral_times_come_back() -> None:
    # DALI, MoE time of the exact assignment over 32 steps: 22.6 s at batch 16, 28.0 s at batch 32, over 32 x 32 layer
    # steps.  Nothing cached: one expert is copied while the CPU runs the other seven with 4 or 8 tokens each; jobs that
    # start before the copy lands are charged as contended.
    cost = roofline(model("mixtral_8x7b"), platform("rtx3090_epyc7532"), 16)

    def layer_step(tokens: int) -> float:
        time = 0.0
        for _ in range(7):
            time += cost.cpu_contended[tokens] if time < cost.copy[0] else cost.cpu[tokens]
        return max(time, cost.copy[0] + cost.gpu[tokens])

    assert 1024 * layer_step(4) == pytest.approx(22.6, rel=0.05)
    assert 1024 * layer_step(8) == pytest.approx(28.0, rel=0.05)


def test_recall_as_dali_reports_it() -> None:
    assert model("deepseek_v2_lite").predictor_recall == {"gate": 0.726, "residual": 0.795}
    assert model("qwen3_30b_a3b").predictor_recall == {"gate": 0.776, "residual": 0.933}


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("mixtral_8x7b", "MixtralConfig", {"num_hidden_layers": "layers", "num_local_experts": "experts"}),
        ("qwen3_30b_a3b", "Qwen3MoeConfig", {"num_experts": "experts", "moe_intermediate_size": "expert_width"}),
        ("gpt_oss_120b", "GptOssConfig", {"num_local_experts": "experts", "intermediate_size": "expert_width"}),
        ("deepseek_v3", "DeepseekV3Config", {"n_routed_experts": "experts", "moe_intermediate_size": "expert_width"}),
    ],
)
def test_agrees_with_the_defaults_of_transformers(name: str, config: str, expected: dict[str, str]) -> None:
    # These classes' defaults are the model itself; of the other models they differ in single fields.
    transformers = pytest.importorskip("transformers", reason="the runtime extra is not installed")
    theirs = getattr(transformers, config)()
    ours = model(name)
    common = {"hidden_size": "hidden", "num_experts_per_tok": "top_k", "vocab_size": "vocabulary"}
    for their_name, our_name in (common | expected).items():
        assert getattr(theirs, their_name) == getattr(ours, our_name), their_name
