"""`dali predict` end to end on a small trace."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dali.experiments.cli import main
from dali.experiments.output.manifest import Manifest
from dali.experiments.verbs.predict.text import published
from dali.traces.metadata import Metadata
from dali.traces.workload import Workload

SMALL = ["resamples=50", "batch=[1,4,8,16]"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, random_trace) -> Path:
    """12 sequences of 20 tokens, 6 of them prompt; `gate` recalls .5 (.2 two ahead), `residual` .9."""
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    trace = random_trace(layers=4, experts=16, top_k=4, lengths=[20] * 12, seed=1)
    trace = replace(trace, prompt_length=np.full(12, 6, np.int32))
    trace = trace.with_predictor("gate", [0.5, 0.2], np.random.default_rng(1), ahead=2)
    trace = trace.with_predictor("residual", 0.9, np.random.default_rng(2))
    cosine = np.full((12, 4), 0.8, np.float32)
    cosine[:, 0] = np.nan
    replace(trace, cosine={"gate": cosine}).save(path)
    return path


@pytest.fixture(scope="module")
def folder(toy) -> Path:
    assert main(["predict", f"trace={toy}", f"output={toy.parent}", *SMALL]) == 0
    (place,) = (toy.parent / "predict").iterdir()
    return place


def whole(folder: Path) -> pd.DataFrame:
    results = pd.read_parquet(folder / "results.parquet")
    return results[results["layer"] == "all"].set_index(["predictor", "ahead", "batch", "metric"]).sort_index()


def fails(capsys, *arguments: str) -> str:
    """What is printed for bad input: one line, and status 2."""
    assert main(["predict", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    (line,) = error.splitlines()[-1:]
    assert line.startswith("dali predict: ")
    return line


def test_folder_holds_everything(folder):
    names = {path.name for path in folder.iterdir()}
    figures = {
        "recall_by_layer.png", "recall_by_batch.png", "recall_by_ahead.png", "cosine.png",
    }  # fmt: skip
    assert {"results.parquet", "summary.md", "summary.json", "config.yaml", "manifest.json"} | figures == names
    manifest = Manifest.read(folder / "manifest.json")
    assert (manifest.verb, manifest.figures) == ("predict", sorted(figures))
    assert (folder / "summary.md").read_text() == manifest.document.markdown(manifest.stamp)
    for name in figures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_rows_are_tidy(folder):
    results = pd.read_parquet(folder / "results.parquet")
    assert not results.duplicated(["predictor", "ahead", "batch", "metric", "layer"]).any()
    counts = results[results["metric"] == "recall_topk"].groupby(["predictor", "ahead"])["batch"].nunique()
    # Batch 16 is more than the 12 sequences; residual reaches one layer ahead.
    assert counts.to_dict() == {
        ("gate", 1): 3, ("gate", 2): 3, ("residual", 1): 3,
        **{(name, ahead): 3 for name in ("frequency", "previous", "random") for ahead in (1, 2)},
    }  # fmt: skip
    two_ahead = results[(results["ahead"] == 2) & (results["predictor"] == "gate")]
    assert set(two_ahead["layer"]) == {"2", "3", "all"}
    ends = results.dropna(subset=["low"])
    assert (ends["low"] <= ends["value"] + 1e-9).all()
    assert (ends["high"] >= ends["value"] - 1e-9).all()


def test_measured_is_what_was_drawn(folder):
    rows = whole(folder)
    # 12 x 14 tokens x 4 ids x 3 (2) layers are 2,016 (1,344) draws: standard errors .011, .007 and .011.
    for predictor, ahead, share in (("gate", 1, 0.5), ("residual", 1, 0.9), ("gate", 2, 0.2)):
        assert rows.loc[(predictor, ahead, 1, "recall_topk"), "value"] == pytest.approx(share, abs=0.04)
    assert rows.loc[("random", 1, 1, "recall_topk"), "value"] == pytest.approx(4 / 16)
    assert rows.loc[("gate", 1, 0, "cosine"), "value"] == pytest.approx(0.8)
    # Uniform routing repeats nothing: popularity and the token before are as good as chance.
    for predictor in ("frequency", "previous"):
        assert rows.loc[(predictor, 1, 1, "recall_topk"), "value"] == pytest.approx(4 / 16, abs=0.05)


def test_gain_over_the_baseline_is_paired(folder):
    rows = whole(folder)
    gain = rows.loc[("gate", 1, 1, "recall_topk")]
    base = rows.loc[("residual", 1, 1, "recall_topk")]
    assert gain["gain"] == pytest.approx(gain["value"] - base["value"])
    assert gain["gain_low"] < gain["gain"] < gain["gain_high"] < 0
    assert np.isnan(base["gain"])
    assert rows.loc[("gate", 2), "gain"].isna().all()  # residual has nothing two layers ahead


def test_json_has_the_agreed_form(folder):
    found = json.loads((folder / "summary.json").read_text())
    assert (found["trace"], found["ahead"], list(found["batch"])) == ("test", 1, ["1", "4", "8"])
    rows = whole(folder)
    for batch, by_predictor in found["batch"].items():
        assert set(by_predictor) == {"gate", "residual", "frequency", "previous", "random"}
        for predictor, values in by_predictor.items():
            for metric in ("recall_top1", "recall_topk"):
                row = rows.loc[(predictor, 1, int(batch), metric)]
                assert values[metric] == row["value"]
                # One batch of 8, of 14 steps, is a single stretch: nothing to resample, so no interval.
                alone = batch == "8" and metric == "recall_top1"
                assert values[f"{metric}_95"] == (None if alone else [row["low"], row["high"]])


def test_summary_says_what_is_behind_the_numbers(folder):
    text = (folder / "summary.md").read_text()
    assert "Batch 16: left out, 12 sequences have tokens of decode." in text
    assert "at batch 1, 4, 8 on the sequences outside of the batch" in text
    assert "Batch 4, 8: fewer than 8 batches" in text
    assert "Top 8 at batch 1: frequency and random may guess as many units" in text
    assert "Difference to residual" in text
    assert "Cosine" in text
    assert "Published" not in text


def test_same_again(toy, folder, tmp_path):
    assert main(["predict", f"trace={toy}", f"output={tmp_path}", *SMALL]) == 0
    (again,) = (tmp_path / "predict").iterdir()
    assert (again / "summary.json").read_text() == (folder / "summary.json").read_text()
    pd.testing.assert_frame_equal(whole(again), whole(folder))


def test_prefill_is_one_step_and_knows_no_previous(toy, tmp_path, capsys):
    assert main(["predict", f"trace={toy}", f"output={tmp_path}", "phase=prefill", "batch=12", "resamples=9"]) == 0
    (place,) = (tmp_path / "predict").iterdir()
    rows = whole(place)
    # Frequency has no other sequences left to be measured on, and the prompts are what is evaluated.
    assert set(rows.index.get_level_values("predictor")) == {"gate", "residual", "random"}
    assert rows.loc[("gate", 1, 12, "recall_top1"), "clusters"] == 1
    assert np.isnan(rows.loc[("gate", 1, 12, "recall_top1"), "low"])
    assert json.loads((place / "summary.json").read_text())["batch"]["12"]["gate"]["recall_top1_95"] is None
    assert "at batch 12 left out" in capsys.readouterr().out


def test_without_recorded_predictors(tmp_path, capsys, random_trace):
    random_trace(seed=3, lengths=[12] * 4).save(tmp_path / "t.safetensors")
    assert main(["predict", f"trace={tmp_path / 't.safetensors'}", f"output={tmp_path}", "batch=[1,4]"]) == 0
    out = capsys.readouterr().out
    assert "no recorded predictor" in out
    assert "Only 4 sequences" in out
    # The default baseline is then frequency; all four sequences together leave it nothing to be measured on.
    assert "at batch 1 on the sequences outside of the batch; at batch 4 left out" in out
    (place,) = (tmp_path / "predict").iterdir()
    assert not (place / "recall_by_ahead.png").exists()


def test_bad_input_is_one_line(toy, tmp_path, capsys):
    def line(*overrides: str) -> str:
        return fails(capsys, f"trace={toy}", f"output={tmp_path}", *overrides)

    assert "top: found 17, expected 1 to the 16 experts" in line("top=[1,17]")
    assert "top: found 0" in line("top=[0]")
    assert "batch: found 13, 64, expected at most the 12 sequences" in line("batch=[64,13]")
    assert "phase: found 'both', expected prefill or decode" in line("phase=both")
    assert "baseline: found 'ridge', expected one of gate, residual" in line("baseline=ridge")
    assert "resamples: found 1" in line("resamples=1")
    assert list(tmp_path.iterdir()) == []


def test_counts_hold_no_tokens(tmp_path, capsys):
    counts, tokens = np.full((2, 2, 4), 3, np.int32), np.full(2, 6, np.int32)
    workload = Workload.from_counts(counts, tokens, Metadata("counts", 2, 4, 2))
    workload.save(tmp_path / "counts.safetensors")
    assert "counts" in fails(capsys, f"trace={tmp_path / 'counts.safetensors'}")


def test_prompts_alone_have_nothing_to_decode(tmp_path, capsys, random_trace):
    trace = random_trace(seed=3, lengths=[12] * 2)
    replace(trace, prompt_length=np.full(2, 12, np.int32)).save(tmp_path / "t.safetensors")
    assert "the 0 sequences of the trace that have tokens of decode" in fails(
        capsys, f"trace={tmp_path / 't.safetensors'}", f"output={tmp_path}"
    )


@pytest.mark.parametrize(
    ("model", "figure"),
    [
        ("Qwen/Qwen3-30B-A3B", "residual 93.3 %"),
        ("qwen3_30b_a3b", "previous token"),
        ("allenai/OLMoE-1B-7B-0924", "83.6 %"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "79.5 %"),
        ("mixtral_8x7b", ".89"),
    ],
)
def test_published_figures_are_found_by_name(model, figure):
    assert any(figure in line for line in published(model))
    assert all(line.startswith("Published: ") and line.endswith(").") for line in published(model))


def test_nothing_is_published_of_other_models():
    assert published("our-tiny-moe") == []
