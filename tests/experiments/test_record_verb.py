"""`dali record`: what it writes, and one line for what it cannot read."""

import json
import resource
import signal
import sys

import numpy as np
import pytest

from dali.experiments.cli import main
from dali.experiments.extras import runtime_modules
from dali.experiments.models.prompts import BUILT_IN, CALIBRATION, read_prompts, to_length
from dali.traces.trace import Trace

SHAPE = {
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
PLAIN = ["output=t.safetensors", "tokenizer=bytes", "batch=3", "prompt=6", "generate=4", "device=cpu"]
RUN = [*PLAIN, "predictors=[]"]


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


# ---- predictors ------------------------------------------------------------------------------------


def recorded(name: str, *arguments: str):
    assert main(["record", *PLAIN, f"output={name}.safetensors", "sequences=3", *arguments]) == 0
    return Trace.load(f"{name}.safetensors")


def test_predictors_by_default(here, models):
    """Two MoE layers leave one layer ahead; fitted to at least the tokens asked for, kept, and used again."""
    model = f"model={models / 'moe'}"
    trace = recorded("t", model, "calibration.tokens=75")
    assert trace.sources == {"gate": 1, "residual": 1, "ridge": 1}
    assert {name: array.shape for name, array in trace.cosine.items()} == dict.fromkeys(trace.sources, (3, 2))
    assert trace.metadata.notes.endswith("predictors fitted to 80 tokens of built-in calibration prompts")
    assert sorted(file.name for file in here.iterdir()) == ["t.predictors.safetensors", "t.safetensors"]
    recorded("again", model, "calibration.file=t.predictors.safetensors")
    assert (here / "again.safetensors").read_bytes() == (here / "t.safetensors").read_bytes()
    assert not (here / "again.predictors.safetensors").exists()
    plain = recorded("plain", model, "predictors=null")
    assert np.array_equal(plain.experts, trace.experts)
    assert plain.sources == {}
    assert recorded("gate", model, "predictors=gate").sources == {"gate": 1}
    assert not (here / "gate.predictors.safetensors").exists()


def test_calibration_text_is_what_predictors_are_fitted_to(here, models):
    """20 sequences of 10 tokens from a text of 40: it is read in four pieces, and then continued."""
    (here / "text.txt").write_text("The quick brown fox jumps over a wall...")
    one = f"model={models / 'moe'}"
    text = recorded("text", one, "calibration.tokens=200", "calibration.prompts=text.txt")
    assert text.metadata.notes.endswith("200 tokens of text.txt")
    other = recorded("other", one, "calibration.tokens=200")
    assert np.array_equal(text.experts, other.experts)
    assert not np.array_equal(text.cosine["residual"], other.cosine["residual"])


def test_pieces_of_long_texts_then_starts_that_the_model_continues():
    calibration = pytest.importorskip("dali.experiments.verbs.record.predictors", reason="needs the runtime extra")
    texts = [list(range(10)), list(range(10, 33)), [99]]  # 2 and 5 pieces of 4, and none
    pieces = [[0, 1, 2, 3], [4, 5, 6, 7], *([at, at + 1, at + 2, at + 3] for at in range(10, 30, 4))]
    assert list(calibration.batches(texts, 28, 2, 4, 4)) == [(pieces[:4], 0), (pieces[4:], 0)]
    assert list(calibration.batches(texts, 9, 2, 4, 4)) == [([pieces[0], pieces[2], pieces[4]], 0)]
    *_, (starts, rest) = calibration.batches(texts, 40, 2, 4, 4)
    assert (starts, rest) == ([[0, 1], [10, 11], [99, 99]], 2)


def test_built_in_texts_differ():
    assert not set(CALIBRATION) & set(BUILT_IN)
    assert len(set(CALIBRATION)) == len(CALIBRATION)


def test_interrupted_calibration(here, models, capsys, monkeypatch):
    import transformers

    def interrupt(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(transformers.MixtralForCausalLM, "generate", interrupt)
    line = fails(capsys, f"model={models / 'moe'}", *PLAIN, status=130)
    assert line == "dali record: interrupted, nothing was recorded"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["predictors=[gate,magic]"], ["predictors", "magic", "gate, residual, ridge"]),
        (["predictors=[gate,gate]"], ["predictors", "gate"]),
        (["ahead=0"], ["ahead", "0"]),
        (["calibration.tokens=0"], ["calibration.tokens", "0"]),
        (["calibration.prompts=missing.txt"], ["missing.txt"]),
        (["calibration.prompts=p.txt"], ["calibration.prompts", "recorded too"]),
        (["calibration.prompts=same.jsonl"], ["calibration.prompts", "'one", "recorded too"]),
        (["calibration.prompts=empty.txt"], ["empty.txt", "no text"]),
        (["calibration.file=missing.safetensors"], ["missing.safetensors", "no such file"]),
        (["calibration.file=p.txt"], ["p.txt", "safetensors"]),
    ],
)
def test_one_line_names_the_fault_of_a_calibration(here, models, capsys, arguments, named):
    (here / "p.txt").write_text("one prompt of a recording\nand another\n")
    (here / "same.jsonl").write_text('{"text": "and more"}\n{"text": "one prompt of a recording"}\n')
    (here / "empty.txt").write_text(" \n")
    line = fails(capsys, f"model={models / 'moe'}", *PLAIN, "prompts=p.txt", *arguments)
    for word in named:
        assert word in line
    assert sorted(file.name for file in here.iterdir()) == ["empty.txt", "p.txt", "same.jsonl"]


def test_predictors_of_another_model(here, models, capsys):
    import transformers

    recorded("t", f"model={models / 'moe'}", "calibration.tokens=40")
    config = transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
    transformers.MixtralForCausalLM(config).save_pretrained(here / "four")
    capsys.readouterr()
    line = fails(capsys, "model=four", *PLAIN, "output=u.safetensors", "calibration.file=t.predictors.safetensors")
    assert "t.predictors.safetensors: fitted for moe with experts 6, found a model with experts 4" in line


def test_full_disk_while_keeping_predictors(here, models, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        line = fails(capsys, f"model={models / 'moe'}", *PLAIN, "calibration.tokens=40")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith("dali record: t.predictors.safetensors: ")
    assert list(here.iterdir()) == []


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
        (["model=MODELS/moe", "device=abacus"], ["device", "abacus"]),
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
    monkeypatch.delitem(sys.modules, "dali.experiments.models.loading", raising=False)
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


def test_a_prompt_is_cut_or_repeated():
    assert to_length([1, 2, 3], 2) == [1, 2]
    assert to_length([1, 2, 3], 3) == [1, 2, 3]
    assert to_length([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_text_file_has_one_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("one two\n\nthree\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ["one two", "three"]
    assert read_prompts(None) == list(BUILT_IN)


@pytest.mark.usefixtures("models")
def test_an_unrelated_missing_module_is_not_blamed_on_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dali.runtime.record.row_files", None)  # importing it now fails
    monkeypatch.delitem(sys.modules, "dali.runtime.record.recorder", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"runtime\.record\.row_files"):
        runtime_modules("torch", "dali.runtime.record.recorder")
