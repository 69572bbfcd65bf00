"""`dali backtest` end to end, priced by a stand-in that knows what was measured."""

from __future__ import annotations

import csv
import json

import pandas as pd
import pytest
from omegaconf import OmegaConf
from stand_in_prices import off_by_a_tenth, stand_in

from dali.experiments.cli import main
from dali.experiments.output.manifest import Manifest
from dali.experiments.verbs.backtest import price, verb
from dali.experiments.verbs.backtest.case import MeasuredCase
from dali.experiments.verbs.backtest.price import Prediction
from dali.experiments.verbs.backtest.pricing import predictions, price_all, refusals
from dali.experiments.verbs.backtest.rows import COLUMNS, PUBLISHED, read_rows
from dali.experiments.verbs.backtest.understand import understood

FITTED = frozenset({"KT-random", "IK520-copy32", "Q35-5080"})


@pytest.fixture(scope="module")
def cases() -> list[MeasuredCase]:
    return [each for each in understood(read_rows(PUBLISHED)) if isinstance(each, MeasuredCase)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("backtest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(price, "price", stand_in)
        patch.setattr(verb, "fitted_series", lambda: FITTED)
        assert main(["backtest", f"output={output}", "workers=1"]) == 0
    (place,) = (output / "backtest").iterdir()
    return place


def test_folder_holds_everything(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"results.parquet", "refused.csv", "summary.json", "summary.md", "config.yaml"} <= names
    for name in ("predicted", "series", "errors"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    manifest = Manifest.read(folder / "manifest.json")
    assert manifest.verb == "backtest"
    assert (folder / "summary.md").read_text() == manifest.document.markdown(manifest.stamp)


def test_every_row_is_priced_or_refused(folder):
    results, refused = pd.read_parquet(folder / "results.parquet"), pd.read_csv(folder / "refused.csv")
    ids = {row.id for row in read_rows(PUBLISHED)}
    whole = refused[refused["phase"].isna()]
    assert set(results["id"]) | set(whole["id"]) == ids
    assert not set(results["id"]) & set(whole["id"])
    unsaid = refused["category"] == "length of the prompt not said"
    assert "UNS-3090-A.01" in set(refused.loc[unsaid & (refused["phase"] == "prefill"), "id"])
    unknown = whole[whole["category"] == "not priced"]
    assert set(unknown["id"].str.rpartition(".")[0]) == {"FT421"}
    assert set(unknown["detail"]) == {"found FreeToken, expected another"}
    found = json.loads((folder / "summary.json").read_text())
    assert found["rows_given"] == len(ids) == found["rows_priced"] + sum(found["rows_refused"].values())
    assert found["rows_refused"]["not priced"] == 1


def test_speeds_stand_beside_each_other(folder):
    results = pd.read_parquet(folder / "results.parquet")
    rows = results.set_index(["id", "phase"])
    assert rows.loc[("KT-coder-next.02", "prefill"), "measured"] == 1746
    assert rows.loc[("KT-coder-next.02", "decode"), "measured"] == 75.6
    # The stand-in is off by 10 % in decode and right in prefill.
    assert rows.loc[("KT-coder-next.02", "decode"), "predicted"] == pytest.approx(1.1 * 75.6)
    assert set(results.loc[~results["held_out"], "series"]) == FITTED
    found = json.loads((folder / "summary.json").read_text())
    assert found["decode_median_abs"] == pytest.approx(0.1)
    assert found["prefill_median_abs"] == pytest.approx(0, abs=1e-9)
    assert found["decode_series_mape"] == pytest.approx(0, abs=1e-9)
    assert found["pairs_right"] == 1


def test_what_was_taken_is_said(folder):
    results = pd.read_parquet(folder / "results.parquet").set_index(["id", "phase"])
    assert results.loc[("MOEL2.01", "decode"), "taken"] == (
        "layers on the CPU not said: as few as GPU memory allows; a stand-in"
    )


def test_page(folder, tmp_path):
    assert main(["report", f"results={folder}", f"output={tmp_path / 'page.html'}"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "In series that nothing was fitted on" in text
    assert text.count("<svg") == 3


@pytest.mark.parametrize("column", ["held_out", "predicted", "phase"])
def test_a_damaged_table_is_one_line(folder, tmp_path, column, capsys):
    results = pd.read_parquet(folder / "results.parquet")
    results[column] = {"held_out": 1, "predicted": 0.0, "phase": "thinking"}[column]
    results = results.drop_duplicates(["id", "phase"])
    (tmp_path / "manifest.json").write_text((folder / "manifest.json").read_text())
    results.to_parquet(tmp_path / "results.parquet", index=False)
    assert main(["report", f"results={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- pricing ---------------------------------------------------------------------------------------


def test_processes_change_nothing(cases):
    few, config = [*cases[::25], *(case for case in cases if case.id == "FT421.01")], OmegaConf.create({"factor": 1.1})
    serial = list(price_all(few, config, off_by_a_tenth, 1))
    assert list(price_all(few, config, off_by_a_tenth, 2)) == serial
    assert any(isinstance(each, str) for each in serial)
    assert any(not isinstance(each, str) for each in serial)


def test_a_fault_of_ours_is_no_refusal(cases):
    def broken(case, config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(price_all(cases[:1], OmegaConf.create(), broken, 1))


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_no_speed_is_never_read_as_one(cases, speed):
    (found,) = price_all(cases[:1], OmegaConf.create(), lambda case, config: {"decode": Prediction(speed, speed)}, 1)
    assert isinstance(found, str)
    assert predictions(cases[:1], [found], ()).empty


def test_a_phase_that_is_not_predicted_is_counted_and_one_that_was_not_measured_is_not(cases):
    both = next(case for case in cases if case.prefill and case.decode)
    alone = next(case for case in cases if case.decode and not case.prefill)
    (first, second) = price_all(
        [both, alone], OmegaConf.create(), lambda case, config: {"decode": Prediction(1.0, 1.0)}, 1
    )
    refused = refusals([both, alone], [first, second], [])
    assert refused[["id", "phase"]].to_numpy().tolist() == [[both.id, "prefill"]]
    (nothing,) = price_all([alone], OmegaConf.create(), lambda case, config: {"prefill": Prediction(1.0, 1.0)}, 1)
    assert nothing == "neither prefill nor decode"


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["rows=nowhere.csv"], ["nowhere.csv", "no such file"]),
        (["rows=3"], ["rows: found 3, expected text"]),
        (["workers=0"], ["workers: found 0"]),
    ],
)
def test_bad_settings_are_one_line(settings, words, tmp_path, capsys):
    assert main(["backtest", f"output={tmp_path}", *settings]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said


def test_a_file_of_which_nothing_can_be_priced(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerows([{"id": "A.01", "model": "m"}, {"id": "A.02", "decode_tps": "3", "notes": "experts on NVMe"}])
    assert main(["backtest", f"output={tmp_path}", f"rows={path}"]) == 2
    said = capsys.readouterr().err
    assert "no row that can be priced (1 no speed, 1 experts on disk)" in said
    assert not (tmp_path / "backtest").exists()


# ---- the simulator's own prices --------------------------------------------------------------------


def test_a_handful_of_rows_by_the_simulator(tmp_path):
    few = ("Q35-5080.03", "Q35-5080.04", "NV-q30.03", "IK698-oss20-main.03", "IMP1374.02", "EXL-5950.03", "FT232.01")
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        kept = [row for row in csv.DictReader(file) if row["id"] in few]
    path = tmp_path / "few.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(kept)
    assert main(["backtest", f"rows={path}", f"output={tmp_path}", "workers=1"]) == 0
    (place,) = (tmp_path / "backtest").iterdir()
    results = pd.read_parquet(place / "results.parquet")
    assert set(results["id"]) == set(few)
    ratio = results["predicted"] / results["measured"]
    assert ratio.between(1 / 3, 3).all(), results.assign(ratio=ratio)[["id", "phase", "ratio"]]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+engines.llama_cpp={launchus:3}", "engine llama_cpp: found no number named launchus"),
        ("+engines.vllm={launch_us:3}", "engines: found vllm, expected constants of llama_cpp, "),
        ("+engines.llama_cpp=3", "engines: found llama_cpp, expected constants of llama_cpp, "),
    ],
)
def test_a_constant_that_does_not_exist_is_said_before_anything_runs(override, said, tmp_path, capsys):
    assert main(["backtest", f"output={tmp_path}", override]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "backtest").exists()


def test_a_constant_in_the_place_of_an_engines_own_counts():
    cases = [each for each in understood(read_rows(PUBLISHED)) if isinstance(each, MeasuredCase)]
    case = next(each for each in cases if each.id == "Q35-5080.04")
    own, slower = (
        price.price(case, OmegaConf.create({"engines": changed}))["decode"].tokens_per_s
        for changed in ({}, {"llama_cpp": {"launch_us": 40}})
    )
    assert slower < 0.5 * own
