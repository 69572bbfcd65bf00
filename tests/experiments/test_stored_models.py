"""Models from files, by other names, and in other formats than their own, as the verbs take them."""

import json
from pathlib import Path
from typing import Any

import pytest

import dali
from dali.experiments.models.subject import subject
from dali.experiments.scene import read_model, read_scene
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import policy_of
from dali.experiments.settings.shorthand import spelled_out
from dali.experiments.shapes.catalogue import load_shape
from dali.policies.costs.formats import quantised
from dali.policies.types import InputError

SMALL: dict[str, Any] = {
    "model_type": "some_moe",
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "moe_intermediate_size": 512,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "small.moe"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(SMALL))
    return made


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model=qwen3_30b_a3b", ["model=qwen3_30b_a3b"]),
        ("model=Qwen3.6-35B-A3B", ["model=qwen3_5_35b_a3b"]),
        ("model='DeepSeek-V3-0324 671B'", ["model=deepseek_v3"]),
        ("model=./here/config.json", ["model=file", "model.path='./here/config.json'"]),
        ("model=config.json", ["model=file", "model.path='config.json'"]),
        ("model=no_such_model", ["model=no_such_model"]),
    ],
)
def test_a_model_by_name_or_path(override: str, expected: list[str]) -> None:
    assert spelled_out("compare", override) == expected


def test_a_file_takes_the_place_of_a_model(folder: Path) -> None:
    config = configuration("compare", [f"model={folder}", "trace=resized"])
    model, notes = read_model(config)
    assert (model.name, model.layers, model.experts, model.top_k, model.hidden) == ("small.moe", 3, 8, 2, 256)
    assert notes == []
    # What refers to its sizes sees them: a trace, and settings that differ for few experts.
    assert (config.trace.layers, config.trace.experts) == (3, 8)
    assert policy_of("dali", config).prefetch.size == 1


def test_a_folder_without_a_slash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert read_model(configuration("gap", ["model=small.moe"]))[0].name == "small.moe"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match="model: found no file "):
        configuration("compare", ["model=./nowhere/config.json"])
    with pytest.raises(InputError, match=r"model\.path: found nothing"):
        configuration("compare", ["model=file"])


def test_formats_of_weights_and_cache() -> None:
    config = configuration("compare", ["model=qwen3_30b_a3b", "quant=Q4_K_M", "kv=q8_0"])
    model, notes = read_model(config)
    assert model == quantised(load_shape("qwen3_30b_a3b"), "q4_k_m", "q8_0")
    # Attention at 4.9125 bits and a router of 32: (18,874,368 x 4.9125 + 262,144 x 32) / 19,136,512
    assert notes == [
        "Weights are in q4_k_m: experts take 4.84 bits, head and embedding 6.56, all others 5.28; a value of the KV "
        "cache 8.5."
    ]
    model, notes = read_model(configuration("compare", ["kv=q4_0"]))
    assert (model.kv_bits, model.expert_bits) == (4.5, 16)
    assert notes == ["A value of the KV cache takes 4.5 bits (q4_0)."]
    assert "an estimate" in read_model(configuration("compare", ["quant=ud_q4_k_xl"]))[1][0]


def test_slots_are_of_the_stored_size() -> None:
    given = ["model=qwen3_30b_a3b", "trace=qwen3_30b_a3b", "expert_memory_gb=4"]
    own = read_scene(configuration("compare", given))
    stored = read_scene(configuration("compare", [*given, "quant=q4_k_m"]))
    assert own.slots == int(4e9 / 9_437_184)
    # 3 x 2048 x 768 weights of 4.84375 bits
    assert stored.slots == int(4e9 / 2_856_960)
    assert any(note.startswith("Weights are in q4_k_m") for note in stored.notes)


def test_fewer_bits_are_faster() -> None:
    settings: dict[str, Any] = {"policies": ["llama_cpp"], "workload": {"batch": [1], "prompt": 8, "generate": 4}}
    own = dali.compare("model=qwen3_30b_a3b", **settings).set_index("phase")
    stored = dali.compare("model=qwen3_30b_a3b", quant="q4_k_m", **settings).set_index("phase")
    # 3.3 times fewer bytes, less what does not depend on them
    assert 1.5 < stored.tokens_per_s["decode"] / own.tokens_per_s["decode"] < 3.3
    assert stored.tokens_per_s["prefill"] > own.tokens_per_s["prefill"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [("quant=q4_k_n", "q4_k_m"), ("quant=4", "quant: found 4, expected text"), ("kv=q9", "kv: found 'q9'")],
)
def test_unknown_formats_are_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_model(configuration("compare", [setting]))


@pytest.mark.parametrize("setting", ["quant=q4_k_m", "kv=q8_0"])
def test_what_is_measured_has_no_other_formats(setting: str) -> None:
    with pytest.raises(InputError, match="expected null: what is measured has a dtype"):
        subject(configuration("calibrate", ["name=x", setting]))
