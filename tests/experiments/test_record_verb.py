"""`dali record`: what it writes, and one line for what it cannot read."""

import json
import resource
import signal
import sys

import numpy as np
import pytest

from experiments import record
from experiments.cli import main
from experiments.prompts import BUILT_IN, fit, read_prompts
from traces.trace import Trace

SHAPE = {
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
RUN = ["output=t.safetensors", "tokenizer=bytes", "batch=3", "prompt=6", "generate=4", "device=cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of saved random models: `moe` (Mixtral) and `dense` (Llama)."""
    pytest.importorskip("torch", reason="needs the runtime extra")
    transformers = pytest.importorskip("transformers", reason="needs the runtime extra")
    transformers.set_seed(0)
    folder = tmp_path_factory.mktemp("models")
    moe = transformers.MixtralConfig(**SHAPE, num_local_experts=6, num_experts_per_tok=2)
    transformers.MixtralForCausalLM(moe).save_pretrained(folder / "moe")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(folder / "dense")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, *arguments: str, status: int = 2) -> str:
    assert main(["record", *arguments]) == status
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("dali ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert out == ""
    return lines[0]


def test_writes_a_trace(here, models, capsys):
    assert main(["record", f"model={models / 'moe'}", *RUN, "sequences=5", "seed=3"]) == 0
    assert "50 tokens" in capsys.readouterr().out
    trace = Trace.load(here / "t.safetensors")
    assert (trace.tokens, trace.layers, trace.experts_count, trace.top_k) == (50, 2, 6, 2)
    assert trace.prompt_length.tolist() == [6] * 5
    assert np.diff(trace.starts).tolist() == [10] * 5
    metadata = trace.metadata
    assert (metadata.model, metadata.text, metadata.seed) == ("moe", "built-in prompts", 3)
    assert "prompts of 6 tokens, then 4 generated" in metadata.notes
    assert metadata.recorder.startswith("dali-moe ")
    assert [file.name for file in here.iterdir()] == ["t.safetensors"]


def test_same_seed_same_bytes(here, models):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = [f"model={models / 'moe'}", *RUN, "sequences=3", f"seed={seed}", f"output={name}.safetensors"]
        assert main(["record", *arguments]) == 0
    a, b = ((here / f"{name}.safetensors").read_bytes() for name in "ab")
    assert a == b
    one, other = (Trace.load(here / f"{name}.safetensors").experts for name in "ac")
    assert not np.array_equal(one, other)


def test_prompts_decide_the_rows_of_the_prompt(here, models):
    """Two equal prompts route alike as long as they are read, whatever is sampled after."""
    (here / "p.jsonl").write_text('{"prompt": "abcdefgh"}\n\n{"text": "abcdefgh"}\n"zyxwvuts"\n')
    assert main(["record", f"model={models / 'moe'}", *RUN, "prompts=p.jsonl", "weights=false"]) == 0
    trace = Trace.load(here / "t.safetensors")
    first, second, third = (trace.experts[trace.rows(number)][:6] for number in range(3))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)
    assert trace.weights is None
    assert trace.metadata.text == "p.jsonl"


def test_prompts_only(here, models):
    assert main(["record", f"model={models / 'moe'}", *RUN, "generate=0", "temperature=0", "router_input=true"]) == 0
    trace = Trace.load(here / "t.safetensors")
    assert (trace.sequences, trace.tokens) == (len(BUILT_IN), 6 * len(BUILT_IN))
    assert trace.router_input.shape == (trace.tokens, 2, 16)


def test_imports_as_any_trace(here, models, capsys):
    assert main(["record", f"model={models / 'moe'}", *RUN, "sequences=3", "generate=12"]) == 0
    assert main(["import", "format=trace", "input=t.safetensors"]) == 0
    assert "moe: 2 MoE layers x 6 experts, top-2" in capsys.readouterr().out


def test_terminated_run_keeps_what_was_finished(here, models, capsys, monkeypatch):
    import transformers

    generate, calls = transformers.MixtralForCausalLM.generate, []

    def cut_off(*arguments, **others):
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return generate(*arguments, **others)

    monkeypatch.setattr(transformers.MixtralForCausalLM, "generate", cut_off)
    line = fails(capsys, f"model={models / 'moe'}", *RUN, status=130)
    assert line == "dali record: interrupted, the 30 tokens finished are in t.safetensors"
    assert Trace.load(here / "t.safetensors").sequences == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=MODELS/dense"], ["LlamaForCausalLM", "no experts"]),
        (["model=MODELS/moe", "batch=0"], ["batch", "0"]),
        (["model=MODELS/moe", "prompt=0"], ["prompt", "0"]),
        (["model=MODELS/moe", "generate=-1"], ["generate", "-1"]),
        (["model=MODELS/moe", "temperature=-1"], ["temperature", "-1"]),
        (["model=MODELS/moe", "top_p=2"], ["top_p", "2"]),
        (["model=MODELS/moe", "weights=maybe"], ["weights", "maybe"]),
        (["model=MODELS/moe", "trust_remote_code=1"], ["trust_remote_code", "1"]),
        (["model=MODELS/moe", "dtype=int4"], ["dtype", "int4", "bfloat16"]),
        (["model=MODELS/moe", "device=abacus"], ["moe", "abacus"]),
        (["model=MODELS/moe", "tokenizer=null"], ["tokenizer", "moe"]),
        (["model=MODELS/moe", "temperature=0", "sequences=99"], ["sequences", "99", "16 prompts"]),
        (["model=MODELS/moe", "output=nowhere/t.safetensors"], ["nowhere"]),
        (["model=MODELS/moe", "prompts=missing.txt"], ["missing.txt"]),
        (["model=MODELS"], ["MODELS", "config.json"]),
        ([], ["checkpoint"]),
    ],
)
def test_one_line_names_the_fault(here, models, capsys, arguments, named):
    line = fails(capsys, *RUN, *(argument.replace("MODELS", str(models)) for argument in arguments))
    for word in named:
        assert word.replace("MODELS", str(models)) in line
    assert list(here.iterdir()) == []


def test_folder_without_weights(here, models, capsys):
    (here / "bare").mkdir()
    (here / "bare" / "config.json").write_bytes((models / "moe" / "config.json").read_bytes())
    assert "model bare: found no weights in this folder" in fails(capsys, "model=bare", *RUN)


def test_folder_whose_weights_are_cut_off(here, models, capsys):
    (here / "cut").mkdir()
    for file in (models / "moe").iterdir():
        (here / "cut" / file.name).write_bytes(file.read_bytes()[: 2000 if file.suffix == ".safetensors" else None])
    assert "model cut: " in fails(capsys, "model=cut", *RUN)


def test_folder_that_lacks_a_tensor(here, models, capsys):
    """Weights of one layer for a configuration of two: the others would be random."""
    (here / "short").mkdir()
    for file in (models / "moe").iterdir():
        (here / "short" / file.name).write_bytes(file.read_bytes())
    config = json.loads((here / "short" / "config.json").read_text())
    (here / "short" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    line = fails(capsys, "model=short", *RUN)
    assert "model short: found no weights for model.layers.2." in line


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("p.txt", "\n  \n", "found no prompt"),
        ("p.jsonl", "", "found no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"', "p.jsonl line 2: not JSON"),
        ("p.jsonl", '{"question": "a"}', "p.jsonl line 1: found"),
        ("p.jsonl", '{"prompt": " "}', "p.jsonl line 1: found"),
        ("p.txt", b"\xff\xfe", "p.txt: not UTF-8"),
    ],
)
def test_prompt_files(here, models, capsys, name, content, named):
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert named in fails(capsys, f"model={models / 'moe'}", *RUN, f"prompts={name}")
    assert [file.name for file in here.iterdir()] == [name]


def test_without_the_runtime_extra(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "experiments.loading", raising=False)
    line = fails(capsys, "model=any", *RUN)
    assert line == "dali record: needs the runtime extra: pip install 'dali-moe[runtime]'"


def test_full_disk(here, models, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        line = fails(capsys, f"model={models / 'moe'}", *RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith("dali record: t.safetensors: ")
    assert list(here.iterdir()) == []


# ---- prompts ---------------------------------------------------------------------------------------


def test_fit_cuts_and_repeats():
    assert fit([1, 2, 3], 2) == [1, 2]
    assert fit([1, 2, 3], 3) == [1, 2, 3]
    assert fit([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_text_file_has_one_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("one two\n\nthree\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ["one two", "three"]
    assert read_prompts(None) == list(BUILT_IN)


@pytest.mark.usefixtures("models")
def test_an_unrelated_missing_module_is_not_blamed_on_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "runtime.rows", None)  # importing it now fails
    monkeypatch.delitem(sys.modules, "runtime.record", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"runtime\.rows"):
        record._libraries()
