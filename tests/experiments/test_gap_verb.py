"""`dali gap` end to end on a small trace, and its figures by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from dali.experiments.cli import main
from dali.experiments.output.manifest import Manifest
from dali.experiments.verbs.gap.runs import gap_table

SMALL = [
    "cache_shares=[0.75]",
    "batch=[1,3]",
    "decode={prompt:4,steps:4}",
    "prefill={sequences:2,tokens:8}",
    "ilp_every=3",
]


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    scene, output = f"scenes=['model=qwen3_30b_a3b trace={toy}']", tmp_path_factory.mktemp("gap")
    assert main(["gap", scene, f"output={output}", *SMALL]) == 0
    (place,) = (output / "gap").iterdir()
    return place


def test_folder_holds_everything(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"results.parquet", "assignments.parquet", "summary.json", "summary.md", "config.yaml"} <= names
    for name in ("gap", "waterfall", "scheduling"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    manifest = Manifest.read(folder / "manifest.json")
    assert manifest.verb == "gap"
    assert list(manifest.tables) == ["assignments.parquet", "results.parquet", "waterfall.parquet"]
    assert (folder / "summary.md").read_text() == manifest.document.markdown(manifest.stamp)


def test_nobody_is_better_than_exact_or_the_bound(folder):
    gaps = pd.read_parquet(folder / "assignments.parquet").set_index("assignment")
    assert (gaps["gap_mean"] > -1e-9).all()
    assert (gaps.loc["exact", "gap_max"] == 0).all()
    assert (gaps.loc["ilp", "gap_max"].abs() < 1e-6).all()
    # The ILP sees one layer step in three: 3 layers x 4 steps = 12 of decode, the first 3 being prefill; 3 of prefill.
    assert set(gaps.loc["greedy", "layer_steps"]) == {12, 3}
    assert set(gaps.loc["ilp", "layer_steps"]) == {4, 1}
    results = pd.read_parquet(folder / "results.parquet")
    for _, rows in results.groupby(["batch", "phase"]):
        bound = rows.set_index("kind").loc["bound", "tokens_per_s"]
        assert (rows["tokens_per_s"] <= bound * (1 + 1e-9)).all()


def test_summary_agrees_with_the_rows(folder):
    found = json.loads((folder / "summary.json").read_text())
    results = pd.read_parquet(folder / "results.parquet")
    assert len(found["cases"]) == 3
    speeds = results[results["kind"] == "policy"].pivot(index=["batch", "phase"], columns="name", values="tokens_per_s")
    ratio = speeds["frontier"] / speeds["dali"]
    assert found["frontier_speedup_geomean"] == pytest.approx(np.exp(np.log(ratio).mean()))
    assert found["frontier_speedup_min"] == pytest.approx(ratio.min())
    for case in found["cases"]:
        assert case["frontier_speedup_min"] == pytest.approx(ratio.loc[case["batch"], case["phase"]])


def test_the_waterfall_is_what_a_report_draws(folder):
    stages = pd.read_parquet(folder / "waterfall.parquet")
    results = pd.read_parquet(folder / "results.parquet").set_index(["batch", "phase", "name"])
    for batch, rows in stages.groupby("batch"):
        assert rows["stage"].iloc[0] == "dali"
        assert list(rows["stage"])[-2:] == ["bound", "frontier"]
        row = results.loc[batch, "decode", "bound"]
        assert rows["ms_per_token"].iloc[-2] == pytest.approx(1e3 * row["seconds"] / 4)
    assert main(["report", f"results={folder}", f"output={folder.parent / 'gap.html'}"]) == 0
    assert "idea by idea" in (folder.parent / "gap.html").read_text()


def test_gaps_by_hand():
    """Exact 1 and 2 seconds, greedy 1.5 and 2: gaps 50 % and 0, together 3 of 3.5 seconds."""
    calls = pd.DataFrame(
        {
            "scene": "s",
            "cache_share": 0.5,
            "batch": 1,
            "phase": "decode",
            "assignment": ["exact", "greedy", "exact", "greedy"],
            "seconds": [1e-3, 1e-6, 3e-3, 3e-6],
            "makespan": [1.0, 1.5, 2.0, 2.0],
            "exact": [1.0, 1.0, 2.0, 2.0],
        }
    )
    row = gap_table(calls).set_index("assignment").loc["greedy"]
    assert row["gap_mean"] == pytest.approx(0.25)
    assert row["gap_max"] == pytest.approx(0.5)
    assert row["moe_ratio"] == pytest.approx(3 / 3.5)
    assert row["call_median"] == pytest.approx(2e-6)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("assignments=[greedy]", "expected exact"),
        ("cache_shares=[]", "one or more numbers"),
        ("against=dali", "each name once"),
        ("cache_shares=[-0.1]", "cache_shares: found -0.1"),
        ("cache_shares=[1e-9]", "cache_shares: found 1e-09"),
        ("cache_shares=[0.01]", "a share of the 24 units that makes one"),
        ("cache_shares=[0.1]", "staging area"),
        ("scenes=['model=nope']", "nope"),
        ("ilp_every=0", "ilp_every: found 0"),
    ],
)
def test_bad_input(setting, named, toy, tmp_path, capsys):
    name = setting.split("=")[0]
    given = [f"scenes=['model=qwen3_30b_a3b trace={toy}']", *SMALL]
    settings = [*(other for other in given if other.split("=")[0] != name), setting]
    assert main(["gap", f"output={tmp_path}", *settings]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
