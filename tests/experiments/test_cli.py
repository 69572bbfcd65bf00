"""Bad input: one line that names the field or file, status 2, nothing half-written."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dali.experiments.cli import main
from dali.experiments.verbs.compare import verb as compare
from dali.experiments.verbs.table import VERBS


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trace_file(here, random_trace) -> Path:
    """A trace that fits model `toy`: see `TOY`."""
    random_trace(layers=3, experts=8, top_k=2, lengths=[20, 24, 30], seed=1).save(here / "toy.safetensors")
    return here / "toy.safetensors"


# Fewer policies to compose and less routing to generate than by default.
QUICK = ["policies=[llama_cpp,dali]"]

TOY = [
    *QUICK,
    "model.layers=3",
    "model.experts=8",
    "model.top_k=2",
    "workload.batch=[1,2]",
    "workload.prompt=8",
    "workload.generate=6",
    "cache_share=0.6",
]


def fails(capsys, *arguments: str) -> str:
    """The one line that a verb leaves with."""
    status = main(arguments)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "compiling kernels" not in line]
    assert status == 2
    assert len(lines) == 1, err
    assert out == ""
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], ["nonsense", "compare"]),
        (["compare", "bogus=1"], ["bogus"]),
        (["compare", "model.bogus=1"], ["model.bogus"]),
        (["compare", "model=nope"], ["nope", "mixtral_8x7b"]),
        (["compare", "=3"], ["NAME=VALUE"]),
        (["compare", "cache_share=[1"], ["cache_share"]),
        (["compare", "cache_share=1e-9"], ["cache_share", "1e-09", "512 units"]),
        (["compare", "expert_memory_gb=1e-6"], ["expert_memory_gb", "1e-06", "a unit (0.00943718 GB)"]),
        (["compare", "expert_memory_gb=-1"], ["expert_memory_gb", "-1"]),
        (["compare", "expert_memory_gb=24.1"], ["expert_memory_gb", "24.1", "the 24 GB of rtx3090_epyc7532"]),
        (["compare", "cache_share=-0.5"], ["cache_share", "-0.5"]),
        (["compare", "cache_share=1.5"], ["cache_share", "1.5"]),
        (["compare", "cache_share=0.006"], ["3 units", "staging"]),
        (["compare", "expert_memory_gb=0.01"], ["1 units", "staging"]),
        (["compare", "workload.batch=0"], ["workload.batch", "0"]),
        (["compare", "workload.batch=-4"], ["workload.batch", "-4"]),
        (["compare", "workload.batch=two"], ["workload.batch", "two"]),
        (["compare", "workload.batch=[1,1]"], ["workload.batch"]),
        (["compare", "workload.prompt=-1"], ["workload.prompt", "-1"]),
        (["compare", "workload.prompt=100000"], ["100064", "256", "dali record"]),
        (["compare", "workload.prompt=0", "workload.generate=0"], ["prompt", "generate"]),
        (["compare", "workload.chunk=0"], ["workload.chunk", "0"]),
        (["compare", "slices=0"], ["slices", "0"]),
        (["compare", "slices=7"], ["slices", "7", "768"]),
        (["compare", "model.hidden=0"], ["model.hidden", "0"]),
        (["compare", "model.hidden=wide"], ["model.hidden", "wide"]),
        (["compare", "platform.link_gbs=-1"], ["platform.link_gbs", "-1"]),
        (["compare", "policies=[dali,nope]"], ["policy", "nope", "hybrimoe"]),
        (["compare", "policies=[]"], ["policies"]),
        (["compare", "policies=[dali]"], ["baseline", "llama_cpp", "dali"]),
        (["compare", "policies=[llama_cpp,'dali staging=1']"], ["staging 1", "2"]),
        (["compare", "policies=[llama_cpp,'dali cache.w_size=0']"], ["cache.w_size", "0"]),
        (["compare", "policies=[llama_cpp,'dali cache.scope=planet']"], ["cache.scope", "planet", "layer, global"]),
        (["compare", "timeline.batch=5"], ["timeline.batch", "5"]),
        (["compare", "timeline.decode_steps=-1"], ["timeline.decode_steps", "-1"]),
        (["compare", "policies=[llama_cpp,'  ']"], ["policies"]),
        (["compare", "predictor_recall=3"], ["predictor_recall", "3"]),
        (["compare", "hydra.run.dir=x"], ["hydra.run.dir"]),
        (["compare", "platform.cpu.bandwidth_share=2"], ["bandwidth_share 2"]),
        (["replay", "save=nowhere/rows.parquet"], ["nowhere"]),
        (["import", "format=nvmoe", "input=x", "output=."], ["folder"]),
        (["compare", "trace=missing.safetensors"], ["missing.safetensors"]),
        (["compare", "trace=file"], ["trace.path"]),
        (["compare", "emulate_predictors=false", "workload.sequences=[99]"], ["99"]),
        (["replay", "cache.capacity=-1"], ["-1"]),
        (["replay", "cache.capacity=lots"], ["cache.capacity", "lots", "4000MiB"]),
        (["replay", "cache.capacity=120%"], ["cache.capacity", "120%"]),
        (["replay", "cache.capacity=4GB"], ["4GB", "how large an expert"]),
        (["replay", "prompt=3"], ["batch"]),
        (["replay", "cache=fifo"], ["cache", "fifo", "lru"]),
        (["import"], ["format"]),
        (["import", "format=fiddler"], ["input"]),
        (["import", "format=nope", "input=x"], ["nope", "bigmoeonedge"]),
        (["import", "format=nvmoe", "input=missing.jsonl"], ["missing.jsonl"]),
        (["import", "format=fiddler", "input=x", "options.sequence_length=3"], ["sequence_length"]),
        (["bench", "repeats=1"], ["repeats", "1", "3"]),
    ],
)
def test_one_line_names_the_fault(here, capsys, arguments, named):
    given = {argument.split("=")[0] for argument in arguments}
    quick = QUICK if arguments[0] == "compare" and "policies" not in given else []
    line = fails(capsys, *arguments, *quick)
    for word in named:
        assert word in line
    assert list(here.iterdir()) == []


def test_help_lists_verbs_and_settings(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert main(["compare", "--help", "model=mixtral_8x7b"]) == 0
    text = capsys.readouterr().out
    assert "expert_width: 14336" in text
    assert "rtx3090_epyc7532, " in text


def test_what_a_report_shows_stands_beside_the_verb():
    """Verbs that leave a results folder, found by the table alone."""
    shown = {name: verb.shown for name, verb in VERBS.items() if verb.shown is not None}
    assert set(shown) == {"compare", "gap", "backtest", "predict", "run", "calibrate", "validate", "sweep"}
    assert all(callable(import_module(module).contents) for module in shown.values())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_safetensors(path: Path) -> None:
    path.write_text("experts\n1,2,3\n")


def foreign(path: Path) -> None:
    save_file({"weight": np.zeros((2, 2), np.float32)}, path)


@pytest.mark.parametrize("spoil", [truncate, no_safetensors, foreign])
def test_spoilt_trace_files(here, trace_file, capsys, spoil):
    spoil(trace_file)
    assert "toy.safetensors" in fails(capsys, "compare", f"trace={trace_file}", *TOY)
    assert [path.name for path in here.iterdir()] == ["toy.safetensors"]


@pytest.mark.parametrize(
    ("array", "index", "value", "named"),
    [
        ("experts", (0, 0, 0), 8, "8"),
        ("weights", (0, 0, 0), np.nan, "weights"),
        ("sequence", (0,), 5, "sequence"),
        ("position", (0,), 7, "position"),
    ],
)
def test_spoilt_values(trace_file, capsys, array, index, value, named):
    from dali.traces import tensor_file

    arrays, strings = tensor_file.read(trace_file, "dali-trace")
    arrays = {name: np.array(values) for name, values in arrays.items()}
    arrays[array][index] = value
    tensor_file.write(trace_file, arrays, strings)
    line = fails(capsys, "compare", f"trace={trace_file}", *TOY)
    assert "toy.safetensors" in line
    assert named in line


def test_missing_predictor_is_refused_where_emulation_is_off(trace_file, capsys):
    line = fails(capsys, "compare", f"trace={trace_file}", "emulate_predictors=false", *TOY)
    assert "predictor" in line


def test_unknown_recall_is_refused(trace_file, capsys):
    line = fails(capsys, "compare", f"trace={trace_file}", "~model.predictor_recall.residual", *TOY)
    assert "predictor_recall.residual" in line


def test_interrupt_leaves_nothing_that_looks_complete(here, trace_file, capsys, monkeypatch):
    done = []

    def interrupted(*arguments, **settings):
        if done:
            raise KeyboardInterrupt
        done.append(simulate(*arguments, **settings))
        return done[0]

    simulate = compare.simulate
    monkeypatch.setattr(compare, "simulate", interrupted)
    assert main(["compare", f"trace={trace_file}", *TOY]) == 130
    assert done
    assert list((here / "outputs" / "compare").iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


def test_unwritable_output(here, trace_file, capsys):
    (here / "outputs").write_text("a file in the way")
    line = fails(capsys, "compare", f"trace={trace_file}", *TOY)
    assert "outputs" in line


def test_failed_import_leaves_no_file(here, capsys):
    (here / "bad.jsonl").write_text('[[1, 3], [1, 4]]\n[[1, "x"], [1, 4]]\n')
    line = fails(capsys, "import", "format=nvmoe", "input=bad.jsonl", "output=out.safetensors")
    assert "bad.jsonl:2" in line
    assert [path.name for path in here.iterdir()] == ["bad.jsonl"]
