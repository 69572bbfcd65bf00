"""tools/tiny_moe: losses by hand, resuming, and a folder that transformers loads."""

import json
import math
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny_moe import corpus, train
from tiny_moe import model as tiny

SIZES = {
    "hidden_size": 16,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
SETTINGS = [f"model.{name}={value}" for name, value in SIZES.items()]
SETTINGS += ["steps=4", "batch=2", "length=16", "warmup=2", "checkpoint_every=1"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The text of a small library."""
    place = tmp_path_factory.mktemp("library")
    for number in range(200):
        lines = "".join(f"value_{number}_{line} = {number * line}\n" for line in range(300))
        (place / f"m{number}.py").write_text(lines)
    return corpus.standard_library(place)


@pytest.fixture
def text(library, monkeypatch):
    """A small library in place of the real one."""
    monkeypatch.setattr(corpus, "standard_library", lambda: library)
    return library


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    """A folder with the model, and what the command printed."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.setattr(corpus, "standard_library", lambda: library)
        assert train.main([f"output={folder}", *SETTINGS]) == 0
    return folder, said.getvalue()


def weights(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_losses_of_an_even_router():
    """Router logits all 0: probabilities 1/E, so E * sum f/E = 1 whatever is chosen; log-partition log E."""
    torch.manual_seed(0)
    model = tiny.tiny_model(SIZES, 16)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.gate.weight)
    _, balance, z = tiny.losses(model, torch.randint(0, 256, (2, 9)))
    assert balance.item() == pytest.approx(1)
    assert z.item() == pytest.approx(math.log(4) ** 2)


def test_the_balancing_loss_grows_with_unevenness():
    """Two of four experts take every token, with half the probability each: 4 * (1/2 * 1/2 + 1/2 * 1/2) = 2."""
    torch.manual_seed(0)
    model = tiny.tiny_model(SIZES, 16)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)  # every token alike, so that one matrix decides for all
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.experts.down_proj.zero_()
            layer.mlp.gate.weight.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0])[:, None].expand(4, 16))
    _, balance, _ = tiny.losses(model, torch.randint(0, 256, (2, 9)))
    assert balance.item() == pytest.approx(2)


class _OfTheLastByte(torch.nn.Module):
    """Logits that depend on the byte before alone."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids, use_cache):
        return type("Out", (), {"logits": self.table[input_ids]})


@pytest.mark.parametrize("size", [2, 9, 16, 17, 50, 129])
def test_every_byte_but_the_first_counts_once(size):
    model = _OfTheLastByte()
    data = torch.from_numpy(np.random.default_rng(1).integers(0, 256, size).astype(np.uint8))
    each = -torch.log2(model.table.softmax(-1)[data[:-1].long(), data[1:].long()])
    found = tiny.bits_per_byte(model, data, length=16, batch=3)
    assert found == pytest.approx(each.double().mean().item(), rel=1e-5)


def test_tokens_are_bytes():
    tokenizer = tiny.byte_tokenizer()
    for sample in ("def f(x):\n\treturn  x  # ok\r\n", "Zoë – 日本 🙂", "a b  c"):
        assert tokenizer(sample)["input_ids"] == list(sample.encode())
        assert tokenizer.decode(list(sample.encode())) == sample


def test_a_folder_that_transformers_loads(text, trained):
    folder, said = trained
    assert f"Written: {folder}" in said
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.num_experts == 4
    assert AutoTokenizer.from_pretrained(folder)("ab\n")["input_ids"] == [97, 98, 10]
    assert len(json.loads((folder / "training.json").read_text())["bits_per_byte"]) == 4
    card = (folder / "README.md").read_text()
    for fact in ("xz -9e", "byte trigram", "2 MoE layers of 4 experts, top-2", text.digest[:16], "LRU 12.5 %"):
        assert fact in card
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 64
    assert all(prompt.encode() in text.held_out.tobytes() for prompt in prompts)
    assert not folder.with_name("model.checkpoint.pt").exists()


@pytest.mark.usefixtures("text")
def test_a_run_cut_off_resumes_to_the_same_weights(trained, tmp_path, monkeypatch, capsys):
    (whole, _), cut = trained, tmp_path / "cut"
    real = train.Trainer._step

    def interrupted(self, data):
        if self.step == 2:
            raise KeyboardInterrupt
        return real(self, data)

    monkeypatch.setattr(train.Trainer, "_step", interrupted)
    assert train.main([f"output={cut}", *SETTINGS]) == 130
    assert "interrupted at step 2" in capsys.readouterr().err
    assert not cut.exists()
    monkeypatch.setattr(train.Trainer, "_step", real)
    assert train.main([f"output={cut}", *SETTINGS, "seed=1"]) == 2
    assert "seed: found 1, expected 0 as in" in capsys.readouterr().err
    assert train.main([f"output={cut}", *SETTINGS]) == 0
    expected, found = weights(whole), weights(cut)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("steps=0", "steps: found 0, expected a whole number of at least 1"),
        ("device=cuda", "device: found 'cuda' on a machine without CUDA"),
        ("model.num_experts_per_tok=x", "model"),
        ("model.num_experts_per_tok=5", "expected at most num_experts, 4"),
        ("model.num_attention_heads=3 model.num_key_value_heads=2", "a multiple of num_key_value_heads"),
        ("model=5", "model: found 5, expected sizes"),
        ("balance=abc", "balance: found 'abc', expected a number"),
        ("weight_decay=-1", "weight_decay: found -1"),
        ("length=99999999", "length: found 99999999, the text has"),
    ],
)
def test_bad_input(setting, said, text, tmp_path, capsys):
    if setting == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert train.main([f"output={tmp_path / 'm'}", *SETTINGS, *setting.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m").exists()
