"""`dali compare` end to end on a small trace."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
from toys import TOY

from dali.experiments.cli import main
from dali.experiments.output.manifest import Manifest
from dali.experiments.scene import make_workload, read_scene, shape_of
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make, make_policy
from dali.experiments.verbs.compare.comparison import Comparison, speedups
from dali.policies.costs.roofline import roofline
from dali.policies.planner import Planner
from dali.policies.types import Capacity

PICTURES = ("speedup.png", "busy.png", "hit_rate.png", "timeline.png")


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory) -> Path:
    """Results of all policies on the toy trace."""
    output = tmp_path_factory.mktemp("all_policies")
    assert main(["compare", f"trace={toy}", f"output={output}", *TOY]) == 0
    (place,) = (output / "compare").iterdir()
    return place


def compared(toy: Path, *settings: str) -> Comparison:
    """The same without a folder, to be run."""
    overrides = [f"trace={toy}", *TOY, *settings]
    return Comparison.read(configuration("compare", overrides), overrides)


def test_folder_holds_everything(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"results.parquet", "steps.parquet", "summary.md", "config.yaml", *PICTURES} <= names
    manifest = Manifest.read(folder / "manifest.json")
    assert (manifest.verb, manifest.figures) == ("compare", sorted(PICTURES))
    assert set(manifest.timelines) | set(manifest.figures) | set(manifest.tables) < names
    assert manifest.tables["results.parquet"] == list(pd.read_parquet(folder / "results.parquet"))
    assert (folder / "summary.md").read_text() == manifest.document.markdown(manifest.stamp)
    assert len([name for name in names if name.endswith(".timeline.json.gz")]) == 10
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_rows_name_policy_batch_and_phase(folder):
    results = pd.read_parquet(folder / "results.parquet")
    assert len(results) == 10 * 2 * 2
    assert not results.duplicated(["policy", "batch", "phase"]).any()
    assert set(results["policy"]) == {
        "naive", "on_demand", "llama_cpp", "ktransformers", "fiddler", "moe_lightning", "hybrimoe", "dali", "frontier",
        "oracle",
    }  # fmt: skip
    assert (results[results["policy"] == "llama_cpp"]["speedup"] == 1).all()


def test_metrics_follow_from_the_steps(folder):
    results = pd.read_parquet(folder / "results.parquet").set_index(["policy", "batch", "phase"])
    steps = pd.read_parquet(folder / "steps.parquet")
    for key, rows in steps.groupby(["policy", "batch", "phase"]):
        row = results.loc[key]
        seconds = (rows["end"] - rows["start"]).sum()
        assert row["tokens_per_s"] == pytest.approx(rows["tokens"].sum() / seconds)
        assert row["hit_rate"] == pytest.approx(rows["hits"].sum() / rows["lookups"].sum())
        assert row["bytes_demand"] == rows["bytes_demand"].sum()
        # Three sequences of 8 tokens are prefilled in one step; decode takes 6 steps.
        assert row["steps"] == (1 if key[2] == "prefill" else 6)
        assert row["tokens"] == key[1] * (8 if key[2] == "prefill" else 6)
        for machine in ("gpu_busy", "cpu_busy"):
            assert 0 <= row[machine] <= 1 + 1e-9


def test_naive_and_on_demand_are_the_two_extremes(folder):
    results = pd.read_parquet(folder / "results.parquet").set_index("policy")
    assert (results.loc["naive", "gpu_share"] == 0).all()
    assert (results.loc["on_demand", "gpu_share"] == 1).all()
    assert (results.loc["naive", ["bytes_demand", "bytes_prefetch", "bytes_swap"]] == 0).all(axis=None)
    assert (results.loc["ktransformers", ["bytes_demand", "bytes_prefetch", "bytes_swap"]] == 0).all(axis=None)


def test_timelines_open(folder):
    with gzip.open(folder / "dali.timeline.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    lanes = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert lanes == {"GPU", "CPU", "demand copies", "prefetches", "swaps"}
    assert sum(event["ph"] == "X" for event in events) > 50


def test_summary_names_inputs_and_stand_ins(folder):
    text = (folder / "summary.md").read_text()
    assert "Routing: test" in text
    assert "emulated with a recall of 93.3%" in text
    assert "resampled" not in text  # three sequences are long enough for batch 3
    assert "dali-moe" in text


def test_same_again(toy, folder, tmp_path):
    again = compared(toy)
    again.run()
    again.steps().to_parquet(tmp_path / "steps.parquet", index=False)
    assert (tmp_path / "steps.parquet").read_bytes() == (folder / "steps.parquet").read_bytes()


def test_every_policy_gets_the_same_memory(toy):
    overrides = [f"trace={toy}", *TOY]
    config = configuration("compare", overrides)
    scene = read_scene(config)
    workload = make_workload(scene, config, 3)
    shape, _ = shape_of(scene, workload)
    costs = roofline(scene.model, scene.platform, workload.max_tokens)
    assert scene.slots == 18  # 0.75 x 3 layers x 8 experts
    for entry in config.policies:
        _, policy = make_policy("compare", overrides, entry, scene.model)
        capacity = Capacity.in_units(scene.slots - policy.staging, policy.cache.scope, shape.layers)
        assert Planner(policy, shape, capacity, costs).slots == scene.slots


def test_resampling_is_said(toy):
    notes = compared(toy, "workload.batch=5", "policies=[llama_cpp,fiddler]").notes()
    assert "Batch 5: the trace is too short, its sequences are resampled with replacement." in notes
    assert "Batch 5: popularity is measured on the evaluated sequences themselves." in notes


def test_global_cache_below_the_working_set_warns(toy):
    notes = compared(toy, "cache_share=0.3", "policies=[llama_cpp,'on_demand cache.scope=global']").notes()
    # 0.3 x 24 = 7 slots less 4 of staging; one sequence's step uses 3 layers x 2 experts.
    assert any("a global cache of 3 units is below the 6 that one step uses" in note for note in notes)


def test_slices_and_chunks(toy):
    comparison = compared(toy, "slices=2", "workload.chunk=3", "policies=[llama_cpp,dali]")
    comparison.run()
    steps = comparison.steps().query("policy == 'dali' and batch == 1")
    assert steps[steps["phase"] == "prefill"]["tokens"].tolist() == [3, 3, 2]


def test_policies_may_believe_another_machine(toy):
    """Believing a link a million times faster makes DALI copy more; the real link's time is charged for it."""
    fast = "'rtx3090_epyc7532 link_gbs=25e6 copy_latency_us=0'"
    steps = {}
    for name, believed in (("true", "null"), ("same", "rtx3090_epyc7532"), ("fast", fast)):
        comparison = compared(toy, f"believed={believed}", "workload.batch=2", "policies=[llama_cpp,dali]")
        comparison.run()
        steps[name] = comparison.steps().query("policy == 'dali'")
    pd.testing.assert_frame_equal(steps["true"], steps["same"])
    assert steps["fast"]["copies_demand"].sum() > steps["true"]["copies_demand"].sum()
    # 25 GB/s and 10 us a copy, or slower where the CPU draws on the same memory.
    least = steps["fast"]["bytes_demand"] / 25e9 + steps["fast"]["copies_demand"] * 10e-6
    assert (steps["fast"]["link_demand"] >= least * (1 - 1e-9)).all()


def test_number_and_table_for_people():
    from dali.experiments.output.text import number, share, table

    assert [number(value) for value in (0, 0.01234, 1.234, 12.34, 123.4, 12345.0)] == [
        "0", "0.0123", "1.23", "12.3", "123", "12345",
    ]  # fmt: skip
    assert number(float("nan")) == share(float("nan")) == "–"
    assert share(0.1234) == "12.3%"
    assert table(["a", "bb"], [["x", "1"]]) == "| a | bb |\n|---|---:|\n| x |  1 |"


def test_speedups_are_over_the_same_batch_and_phase():
    rows = [("a", 1, "decode", 2.0), ("b", 1, "decode", 3.0), ("a", 4, "decode", 5.0), ("b", 4, "decode", 4.0)]
    results = pd.DataFrame(rows, columns=["policy", "batch", "phase", "tokens_per_s"])
    assert speedups(results, "a").tolist() == [1.0, 1.5, 1.0, 0.8]


def test_routing_of_one_model_is_timed_as_another(toy, tmp_path, capsys):
    """3 layers of 8 experts at Qwen3's costs: its 48 layers' vocabulary shrinks to 3/48."""
    settings = ["workload.batch=3", "workload.prompt=8", "workload.generate=4", "cache_share=0.75"]
    assert main(["compare", f"trace={toy}", f"output={tmp_path}", *settings, "policies=[llama_cpp]"]) == 0
    said = capsys.readouterr().out
    assert "Routing is test's: 3 layers x 8 experts, top-2." in said
    assert "qwen3_30b_a3b cut to 3 layers x 8 experts" in said
    scene = read_scene(configuration("compare", [f"trace={toy}", *settings]))
    whole = make(configuration("compare", []).model, "model")
    assert (scene.model.layers, scene.model.experts, scene.model.top_k) == (3, 8, 2)
    assert scene.model.unit_bytes() == whole.unit_bytes()
    assert scene.model.vocabulary == whole.vocabulary / 16


@pytest.mark.parametrize("name", ["mixtral_8x7b", "deepseek_v2_lite"])
def test_nobody_without_foresight_is_ahead_of_the_oracle(name):
    """In decode, where there is something to foresee; cut to six sequences and 16 steps."""
    overrides = [f"trace={name}", f"model={name}", "trace.sequences=6", "workload.batch=[1,4]", "workload.generate=16"]
    overrides += ["policies=[llama_cpp,ktransformers,fiddler,hybrimoe,dali,frontier,oracle]"]
    comparison = Comparison.read(configuration("compare", overrides), overrides)
    comparison.run()
    decode = comparison.results().query("phase == 'decode'").set_index(["batch", "policy"])
    assert decode.xs("oracle", level="policy")["knows_future"].all()
    for batch in (1, 4):
        others = decode.loc[batch]["tokens_per_s"].drop("oracle")
        assert decode.loc[(batch, "oracle"), "tokens_per_s"] > others.max()
