"""`dali sweep`: the same results however the points are run, interrupted, or run at once."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from dali.experiments.cli import main
from dali.experiments.output.manifest import Manifest
from dali.experiments.verbs.sweep import points, verb
from dali.experiments.verbs.sweep import request as request_module
from dali.experiments.verbs.sweep.job import RunFolder
from dali.experiments.verbs.sweep.launch import Launcher
from dali.experiments.verbs.sweep.request import Request, request, trace_digest

# Two models at two cache shares, routed as a toy is: 4 points in about a second.
GRID = ["experiment.grid.model=[qwen3_30b_a3b,deepseek_v2_lite]", "experiment.grid.batch=[3]"]
GRID += ["experiment.grid.cache_share=[0.75,0.9]", "workload.prompt=4", "workload.generate=4"]
SETTINGS = ["sweep", "experiment=winner", "policies=[llama_cpp,dali]", *GRID]


def run(toy: Path, output: Path, *more: str) -> int:
    return main([*SETTINGS, f"trace={toy}", f"output={output}", *more])


def result(output: Path) -> bytes:
    return (output / "sweep" / "winner" / "results.parquet").read_bytes()


def stored(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "sweep" / "points").iterdir()}


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    """Output of a sweep that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    assert run(toy, output) == 0
    return output


# ---- one launcher as good as another ---------------------------------------------------------------


@pytest.fixture(scope="module")
def sixteen(toy) -> list[Request]:
    """16 points of a sweep, composed."""
    first = request(points.Point("toy", {}, [f"trace={toy}", "policies=[dali]"], {}), [0])
    requests = []
    for batch in range(1, 17):
        work = {**first.config["workload"], "batch": [batch], "prompt": 4, "generate": 3}
        requests.append(replace(first, config={**first.config, "workload": work, "cache_share": 0.75}))
    assert len({request.key for request in requests}) == 16
    return requests


def simulated(requests: list[Request], place: Path, *overrides: str, jobs: int | None = None) -> dict[str, bytes]:
    store = place / "points"
    store.mkdir(parents=True)
    assert verb._simulate(requests, Launcher(overrides, jobs), place, store, again=False) == {}
    assert [path.name for path in place.iterdir()] == ["points"]
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.fixture(scope="module")
def basic(sixteen, tmp_path_factory) -> dict[str, bytes]:
    return simulated(sixteen, tmp_path_factory.mktemp("basic"))


def test_every_point_is_stored_under_its_key(basic, sixteen):
    assert set(basic) == {f"{request.key}.parquet" for request in sixteen}


@pytest.mark.parametrize(
    ("overrides", "jobs"),
    [(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], None), (["hydra/launcher=submitit_local"], 1)],
)
def test_launchers_agree(basic, sixteen, tmp_path, monkeypatch, overrides, jobs):
    monkeypatch.chdir(tmp_path.parent)  # where submitit's jobs look for packages first
    assert simulated(sixteen, tmp_path, *overrides, jobs=jobs) == basic


def test_a_point_whose_process_dies_fails_alone(sixteen, tmp_path):
    """One job has the deadly point between two others: these are finished all the same."""
    deadly = {**sixteen[0].config, "trace": {"_target_": "signal.raise_signal", "_args_": [int(signal.SIGKILL)]}}
    requests = [sixteen[0], replace(sixteen[0], config=deadly), sixteen[1]]
    tmp_path.joinpath("points").mkdir()
    errors = verb._simulate(
        requests, Launcher(["hydra/launcher=joblib"], 1), tmp_path, tmp_path / "points", again=False
    )
    assert set(errors) == {requests[1].key}
    assert "its job died" in errors[requests[1].key]["error"]
    assert {path.stem for path in (tmp_path / "points").iterdir()} == {sixteen[0].key, sixteen[1].key}


def test_jobs_are_dealt_in_order():
    """Points in order of their traces stay together, so that a job reads few traces."""
    assert Launcher(["hydra/launcher=submitit_slurm"], 2).deal([4, 5, 6, 7, 8]) == [[4, 5, 6], [7, 8]]
    assert Launcher([], None).deal([4, 5]) == [[4, 5]]
    assert Launcher(["hydra/launcher=joblib"], 7).deal([4, 5]) == [[4], [5]]


def test_joblib_gets_several_points_a_job(monkeypatch):
    """A job takes about as long to start as a point to simulate: 16 jobs for each of two cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    jobs = Launcher(["hydra/launcher=joblib"], None).deal(range(320))
    assert [len(job) for job in jobs] == [10] * 32


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["hydra/launcher=nope"], ["hydra/launcher", "nope", "basic", "joblib"]),
        (["hydra.launcher.n_jobs=2"], ["n_jobs", "BasicLauncherConf"]),
        (["hydra.verbose=true"], ["hydra.verbose"]),
        (["experiment=nope"], ["experiment", "nope", "decode_speed"]),
        (["jobs=0"], ["jobs", "0"]),
        (["seeds=[]"], ["seeds"]),
        (["workload.batch=[2]"], ["workload.batch", "experiment.grid"]),
        (["model=deepseek_v2_lite"], ["model=deepseek_v2_lite", "experiment.grid"]),
    ],
)
def test_bad_input_is_one_line(toy, tmp_path, capsys, overrides, named):
    assert run(toy, tmp_path, *overrides) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dali sweep:")]
    assert all(word in line for word in named), line
    assert not (tmp_path / "sweep" / "winner").exists()


def test_no_slurm_is_one_line(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert run(toy, tmp_path, "hydra/launcher=submitit_slurm") == 2
    assert "hydra/launcher: found that submitit_slurm ran no job" in capsys.readouterr().err


# ---- resuming --------------------------------------------------------------------------------------


def test_a_finished_point_is_not_run_again(toy, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in (whole / "sweep" / "points").iterdir()}
    assert run(toy, whole) == 0
    assert "4 points, 0 to simulate" in capsys.readouterr().out
    assert run(toy, whole, "resume=false", "experiment.grid.model=[deepseek_v2_lite]") == 0
    assert "2 points, 2 to simulate" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (whole / "sweep" / "points").iterdir()}
    assert sum(after[path] != before[path] for path in before) == 2
    assert run(toy, whole) == 0


def test_what_a_result_depends_on_is_in_its_key(sixteen, toy, tmp_path, monkeypatch):
    first = sixteen[0]
    other = replace(first, policies={"dali": {**first.policies["dali"], "staging": 8}})
    assert len({first.key, other.key, replace(first, trace="x").key, replace(first, seeds=[1]).key}) == 4
    assert replace(first, config={**first.config, "output": "elsewhere"}).key == first.key
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(toy.read_bytes())
    node = OmegaConf.create({"path": str(copy)})
    assert trace_digest(node) == first.trace
    copy.write_bytes(toy.read_bytes() + b" ")
    assert trace_digest(node) != first.trace
    key = first.key
    monkeypatch.setattr(request_module, "code_version", lambda: "another")
    assert first.key != key


# Dies where the third point is written, with half of it on disk.
KILLED = """
import os, signal, sys
from dali.experiments.cli import main
from dali.experiments.verbs.sweep import job
write, count = job.pd.DataFrame.to_parquet, 0
def dying(frame, path, **others):
    global count
    count += 1
    if count == 3:
        open(path, "wb").write(b"PAR1 half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(frame, path, **others)
job.pd.DataFrame.to_parquet = dying
main(sys.argv[1:])
"""


def other_process(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-P", "-c", code, *arguments], stderr=subprocess.DEVNULL)


def test_a_killed_sweep_resumes_to_the_same_table(toy, whole, tmp_path, capsys):
    arguments = [*SETTINGS, f"trace={toy}", f"output={tmp_path}"]
    assert other_process(KILLED, *arguments).wait() == -signal.SIGKILL
    assert sum(name.endswith(".parquet") and not name.startswith(".") for name in stored(tmp_path)) == 2
    assert not (tmp_path / "sweep" / "winner").exists()
    assert run(toy, tmp_path) == 0
    assert "4 points, 2 to simulate" in capsys.readouterr().out
    assert result(tmp_path) == result(whole)


def test_an_interrupt_keeps_what_is_done(toy, whole, tmp_path, capsys, monkeypatch):
    answer = RunFolder.answer

    def interrupted(folder: RunFolder, index: int) -> None:
        if index == 3:
            raise KeyboardInterrupt
        answer(folder, index)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "answer", interrupted)
        assert run(toy, tmp_path) == 130
    assert "interrupted with 3 of 4 points done; the same command goes on from there" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["points"]
    assert run(toy, tmp_path) == 0
    assert result(tmp_path) == result(whole)


def test_two_sweeps_at_once_in_one_folder(toy, whole, tmp_path):
    code = "import sys; from dali.experiments.cli import main; sys.exit(main(sys.argv[1:]))"
    other = other_process(code, *SETTINGS, f"trace={toy}", f"output={tmp_path}", "resume=false")
    assert run(toy, tmp_path, "resume=false") == 0
    assert other.wait() == 0
    assert result(tmp_path) == result(whole)
    assert stored(tmp_path) == stored(whole)
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"points", "winner"}


# ---- failures --------------------------------------------------------------------------------------


def test_a_bad_point_fails_alone(toy, whole, tmp_path):
    """A model that does not compose, and a cache share that only the simulation finds wrong."""
    grid = ["experiment.grid.model=[qwen3_30b_a3b,nope,deepseek_v2_lite]", "experiment.grid.cache_share=[0.75,7,0.9]"]
    assert run(toy, tmp_path, *grid) == 1
    place = tmp_path / "sweep" / "winner"
    summary = json.loads((place / "summary.json").read_text())
    failures = {(each["model"], each["batch"], each["cache_share"]): each["error"] for each in summary["failures"]}
    assert len(failures) == 5  # 3 of model nope, and 2 models at a cache share of 7
    assert "nope" in failures["nope", 3, 0.75]
    assert failures["deepseek_v2_lite", 3, 7] == "cache_share: found 7, expected a number from 0 to 1"
    assert "winner (model nope, cache_share 0.75, batch 3)" in (place / "summary.md").read_text()
    assert result(tmp_path) == result(whole)


def test_an_error_of_ours_is_recorded_with_its_place(toy, tmp_path, monkeypatch):
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("dali.experiments.verbs.sweep.job.simulate_request", broken)
    assert run(toy, tmp_path, "experiment.grid.model=[qwen3_30b_a3b]") == 1
    summary = json.loads((tmp_path / "sweep" / "winner" / "summary.json").read_text())
    assert {each["error"] for each in summary["failures"]} == {"ZeroDivisionError: of ours"}


def test_a_full_disk_is_one_line(toy, tmp_path, capsys, monkeypatch):
    def full(*arguments: object, **others: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "points")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    assert run(toy, tmp_path, "experiment.grid.model=[qwen3_30b_a3b]") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "dali sweep: points: No space left on device"
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["points"]
    assert stored(tmp_path) == {}


# ---- what is in the table --------------------------------------------------------------------------


def test_rows_name_their_point(whole):
    rows = pd.read_parquet(whole / "sweep" / "winner" / "results.parquet")
    assert len(rows) == 4 * 2 * 2  # points, policies, phases
    assert list(rows.columns[:7]) == ["experiment", "model", "cache_share", "batch", "policy", "entry", "phase"]
    assert list(rows["policy"][:4]) == ["llama_cpp", "llama_cpp", "dali", "dali"]
    assert set(rows["model"]) == {"qwen3_30b_a3b", "deepseek_v2_lite"}
    assert rows["batch"].dtype == "Int64"
    # 0.75 x 24 units and 0.9 x 24 units.
    assert rows.groupby("cache_share")["slots"].unique().map(list).to_dict() == {0.75: [18], 0.9: [22]}


def test_seeds_are_rows_of_one_point(toy, tmp_path):
    assert run(toy, tmp_path, "seeds=[0,7]", "experiment.grid.model=[qwen3_30b_a3b]", "experiment.grid.batch=[5]") == 0
    rows = pd.read_parquet(tmp_path / "sweep" / "winner" / "results.parquet")
    decode = rows[(rows["policy"] == "dali") & (rows["phase"] == "decode")].set_index(["cache_share", "seed"])
    assert len(stored(tmp_path)) == 2
    # Five sequences of three are pieces drawn at random.
    assert decode.at[(0.75, 0), "seconds"] != decode.at[(0.75, 7), "seconds"]


def test_folder_holds_tables_and_figures(whole):
    place = whole / "sweep" / "winner"
    text = (place / "summary.md").read_text()
    assert "dali sweep experiment=winner" in text
    assert "Routing is test's" in text
    assert (place / "winner.tokens_per_s.decode.png").read_bytes().startswith(b"\x89PNG")
    assert not list(place.glob(".*"))
    manifest = Manifest.read(place / "manifest.json")
    assert (manifest.verb, manifest.figures) == ("sweep", ["winner.tokens_per_s.decode.png"])
    assert manifest.command is not None
    assert manifest.command.startswith("dali sweep experiment=winner ")
    assert text == manifest.document.markdown(manifest.stamp)
