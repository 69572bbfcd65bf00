"""`dali sweep` on a real Slurm: `make test-slurm` starts one of a single node and runs this in it."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from dali.experiments.cli import main
from dali.experiments.verbs.sweep import points, verb
from dali.experiments.verbs.sweep.launch import Launcher
from dali.experiments.verbs.sweep.request import request

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="needs a Slurm: make test-slurm"),
]

SETTINGS = ["sweep", "experiment=winner", "policies=[llama_cpp,dali]", "workload.prompt=4", "workload.generate=4"]
SETTINGS += ["experiment.grid.model=[qwen3_30b_a3b,deepseek_v2_lite]", "experiment.grid.batch=[1,2,3,4]"]
SETTINGS += ["experiment.grid.cache_share=[0.75,0.9]"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, random_trace) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    random_trace(layers=3, experts=8, top_k=2, lengths=[20, 24, 30], seed=1).save(path)
    return path


def test_sixteen_points_on_every_launcher(toy, tmp_path, capsys):
    tables = {}
    for launcher in ("basic", "joblib", "submitit_local", "submitit_slurm"):
        place = tmp_path / launcher
        more = ["jobs=3"] if launcher == "submitit_slurm" else []
        assert main([*SETTINGS, f"trace={toy}", f"output={place}", f"hydra/launcher={launcher}", *more]) == 0
        assert f"16 points, 16 to simulate, launcher {launcher}" in capsys.readouterr().out
        tables[launcher] = (place / "sweep" / "winner" / "results.parquet").read_bytes()
    assert len(set(tables.values())) == 1


# submitit drops the handle of a local job that it has not waited for, which Popen remarks on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_a_point_whose_job_is_killed_fails_alone(toy, tmp_path, launcher):
    """Two jobs of two points; the first point kills its job."""
    good = request(points.Point("toy", {}, [f"trace={toy}", "policies=[dali]"], {}), [0])
    work = {**good.config["workload"], "batch": [1], "prompt": 4, "generate": 3}
    good = replace(good, config={**good.config, "workload": work, "cache_share": 0.75})
    deadly = replace(
        good, config={**good.config, "trace": {"_target_": "signal.raise_signal", "_args_": [int(signal.SIGKILL)]}}
    )
    requests = [deadly, *(replace(good, seeds=[seed]) for seed in range(3))]
    store = tmp_path / "points"
    store.mkdir()
    chosen = Launcher([f"hydra/launcher={launcher}"], 2)
    errors = verb._simulate(requests, chosen, tmp_path, store, again=False)
    assert set(errors) == {deadly.key}
    assert "its job died" in errors[deadly.key]["error"]
    assert {path.stem for path in store.iterdir()} == {request.key for request in requests[1:]}


def test_a_wrong_partition_is_one_line(toy, tmp_path, capsys):
    settings = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=nowhere"]
    assert main([*SETTINGS, f"trace={toy}", f"output={tmp_path}", *settings]) == 2
    assert "hydra/launcher: found that submitit_slurm ran no job" in capsys.readouterr().err
