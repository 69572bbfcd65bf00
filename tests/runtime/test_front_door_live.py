"""`dali.offload` and `dali.record` on tiny models."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")
pytest.importorskip("transformers", reason="needs the runtime extra")

from tiny_models import EXPERTS, TOP_K, generate, prompts, tiny
from transformers import AutoModelForCausalLM

import dali
from dali.experiments.models.sizes import Sizes, sizes_of
from dali.experiments.settings.compose import SHIPPED

MANY = 32


@pytest.fixture(scope="module")
def few():
    return tiny("mixtral")


@pytest.fixture(scope="module")
def many():
    return tiny("qwen3_moe", num_experts=MANY, num_local_experts=MANY)


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(SHIPPED / "tiny_moe").eval()


def test_sizes_of_a_model(few, many):
    assert sizes_of(few) == Sizes(3, EXPERTS, TOP_K)
    assert sizes_of(many) == Sizes(3, MANY, TOP_K)


def test_a_policy_takes_its_settings_from_the_loaded_model(few, many):
    """Four staging slots where there are up to 16 experts, six where there are more; DALI's hints and exchanges too."""
    for model, staging, exchanges in ((few, 4, 1), (many, 6, 8)):
        made = dali.offload(model, policy="frontier", device="cpu")
        share = int(0.25 * 3 * len(made.planner.state.status) / 3)
        assert made.planner.slots == share + staging
        assert dali.policy("frontier", model=model).staging == staging
        assert dali.policy("dali", model=model).cache.u_size == exchanges


def test_offload_generates_what_the_model_does(few, capsys):
    ids = prompts(2, 6)
    alone = generate(few, ids, 4)
    with dali.offload(few, policy="frontier", capacity=0.5, device="cpu") as run:
        offloaded = generate(few, ids, 4)
    torch.testing.assert_close(offloaded, alone, rtol=1e-4, atol=1e-4)
    assert len(run.columns()["hits"]) == 5
    said = capsys.readouterr().err
    assert "offload: no predictors given, the model's own next gates stand for 'residual'" in said


def test_a_policy_with_changes_an_object_and_one_that_needs_no_predictor(few, capsys):
    lru = dali.policy("on_demand", "cache.scope=global", model=few)
    for policy in ("dali cache.w_size=2 prefetch.source=gate", "on_demand", lru):
        with dali.offload(few, policy, 12, device="cpu") as run:
            generate(few, prompts(1, 4), 2)
        assert run.columns()["lookups"].sum() > 0
    assert "no predictors" not in capsys.readouterr().err


def test_predictors_of_a_file(shipped, capsys):
    file = SHIPPED / "tiny_moe.predictors.safetensors"
    ids = torch.tensor([list(b"Once upon a time")])
    hits = []
    for predictors in (None, file, str(file)):
        with dali.offload(shipped, "dali", 0.3, predictors=predictors, device="cpu", seed=3) as run:
            shipped.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        hits.append(run.columns()["copies_prefetch"].sum())
    assert min(hits) > 0
    assert capsys.readouterr().err.count("no predictors given") == 1


def test_a_number_of_slices_is_the_policys(few):
    made = dali.offload(few, "frontier slices=2", device="cpu")
    assert (made.slices, made.shape.units) == (2, 2 * EXPERTS)
    assert dali.offload(few, "frontier slices=2", device="cpu", slices=4).slices == 4


def test_memory_in_place_of_a_capacity(few):
    size = dali.offload(few, "naive", device="cpu").shape.unit_bytes[0]
    made = dali.offload(few, "naive", capacity=None, memory=int(100 * size), device="cpu")
    assert made.planner.slots == 3 * EXPERTS + 2  # all experts, and naive's staging


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        ("few", {"policy": "nope"}, "policy: found 'nope'"),
        ("few", {"policy": 3}, "policy: found int"),
        ("few", {"policy": "oracle"}, "it knows the future"),
        ("few", {"policy": "nowhere:My"}, "No module named 'nowhere'"),
        ("few", {"capacity": 2.0}, "capacity: found a share of 2.0"),
        ("few", {"predictors": "missing.safetensors"}, "missing.safetensors"),
        (None, {}, "model: found dict, expected a PreTrainedModel"),
        (None, {"policy": "naive"}, "model: found dict, expected a PreTrainedModel"),
    ],
)
def test_bad_arguments_are_one_line(request, model, arguments, said):
    given = {} if model is None else request.getfixturevalue(model)
    with pytest.raises((dali.InputError, FileNotFoundError)) as caught:
        dali.offload(given, device="cpu", **arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_record_writes_a_trace(few, tmp_path):
    ids = prompts(2, 6)
    with dali.record(few, tmp_path / "mine.safetensors", origin={"model": "few"}) as recorder:
        recorder.batch(*ids.shape, generate=3)
        generate(few, ids, 3)
    trace = dali.Trace.load(tmp_path / "mine.safetensors")
    assert (trace.layers, trace.experts_count, trace.top_k) == (3, EXPERTS, TOP_K)
    assert trace.metadata.model == "few"
    assert np.diff(trace.starts).tolist() == [9, 9]
    assert set(dali.compare(trace=trace, policies=["naive"], workload={"batch": [2], "prompt": 6, "generate": 3},
                            cache_share=0.5)["phase"]) == {"prefill", "decode"}  # fmt: skip


def test_without_torch_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['torch'] = None; import dali\n"
    code += "for call in ((dali.offload, None), (dali.record, None, 'x'), (lambda: dali.policy('dali', model={}),)):\n"
    code += "    try: call[0](*call[1:])\n    except dali.InputError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["needs the runtime extra: pip install 'dali-moe[runtime]'"] * 3
