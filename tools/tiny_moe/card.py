"""The card of the trained model: how it was trained, how well it predicts, and how its routing compares."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from dali.experiments.output.text import share, table
from dali.runtime.record.recorder import Recorder
from dali.traces.stats import Statistics, statistics
from dali.traces.trace import Trace
from tiny_moe.baselines import trigram_bits_per_byte, xz_bits_per_byte
from tiny_moe.corpus import Corpus
from tiny_moe.model import bits_per_byte

matplotlib.use("Agg")

PROMPTS, CALIBRATION = "prompts.jsonl", "calibration.jsonl"
CURVE = "loss.png"
_SEQUENCES, _PROMPT, _GENERATED = 64, 64, 192
_MEAN_OF = 50
# arXiv papers and engines' records, by token of generated text; see the column heads of the card.
_PUBLISHED = (
    ("OLMoE 1B-7B", ".38-.47", ".75-.84", ".26-.34", ".50-.66", ".74-.88"),
    ("DeepSeek-V2-Lite", ".24-.27", ".65-.67", ".24-.27", ".41-.45", ".67-.70"),
    ("Qwen1.5-MoE", ".15-.19", ".48-.58", ".20-.24", ".33-.39", ".57-.70"),
    ("gpt-oss-20b", ".43", ".84", ".33", ".62", ".89"),
    ("Qwen3-30B-A3B (top-6 forced)", ".38", ".73", ".59", ".80", ".91"),
)


def write_card(folder: Path, corpus: Corpus, settings: dict[str, Any]) -> None:
    """README.md, loss curve, summary.json, and prompts for recording and calibration, into the model's folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    held_out = torch.from_numpy(np.array(corpus.held_out))
    bits = {
        "this model (bfloat16 weights)": bits_per_byte(model, held_out, settings["length"]),
        "xz -9e, held-out files as one": xz_bits_per_byte(corpus.held_out),
        "byte trigram, Witten-Bell": trigram_bits_per_byte(corpus.training, corpus.held_out),
    }
    seed = settings["seed"]
    prompts = corpus.pieces(True, _SEQUENCES, _PROMPT, seed)
    _write_lines(folder / PROMPTS, prompts)
    _write_lines(folder / CALIBRATION, corpus.pieces(False, _SEQUENCES, settings["length"], seed))
    routing = _routing(model, prompts, seed)
    history = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    _draw(history, bits, folder / CURVE)
    summary = {"bits_per_byte": bits, "steps": settings["steps"], "overlap": routing.overlap, "reuse": routing.reuse}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = _text(folder.name, model, corpus, settings, bits, routing, history["balance"][-1])
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")


def _routing(model: Any, prompts: list[str], seed: int) -> Statistics:
    """Of text that the model writes after the prompts, sampled at temperature 1."""
    torch.manual_seed(seed)
    ids = torch.tensor([list(text.encode()) for text in prompts])
    made = {"min_new_tokens": _GENERATED + 1, "max_new_tokens": _GENERATED + 1, "pad_token_id": 0}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "trace.safetensors"
        bar = tqdm(total=ids.shape[0] * (_PROMPT + _GENERATED), unit="token", desc="routing", disable=None)
        with bar, Recorder(model, path, weights=False, on_step=bar.update) as recorder:
            recorder.batch(len(ids), _PROMPT, _GENERATED)
            mask = torch.ones_like(ids)
            model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, **made)
        return statistics(Trace.load(path))


def _draw(history: dict[str, list[float]], bits: dict[str, float], path: Path) -> None:
    found = np.array(history["bits_per_byte"])
    width = min(_MEAN_OF, len(found))
    smooth = np.convolve(found, np.ones(width) / width, "valid")
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(np.arange(1, len(found) + 1), found, color="0.85", linewidth=0.6, label="training, each step")
    axes.plot(np.arange(width, len(found) + 1), smooth, color="tab:blue", label=f"training, mean of {width} steps")
    for (name, value), color in zip(bits.items(), ("tab:red", "tab:green", "tab:orange"), strict=True):
        axes.axhline(value, color=color, linestyle="--", linewidth=1, label=f"held out: {name}, {value:.2f}")
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(min(1.0, smooth.min()), min(8.0, found.max())))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _text(
    name: str,
    model: Any,
    corpus: Corpus,
    settings: dict[str, Any],
    bits: dict[str, float],
    routing: Statistics,
    balance: float,
) -> str:
    config = model.config
    total = sum(p.numel() for p in model.parameters())
    inactive = 1 - config.num_experts_per_tok / config.num_experts
    experts = sum(p.numel() for key, p in model.named_parameters() if ".experts." in key)
    tokens = settings["steps"] * settings["batch"] * settings["length"]
    ours = [f"{value:.2f}" for value in (routing.overlap, routing.reuse, *routing.lru.values())]
    single = [f"{value:.2f}" for value in (routing.overlap, routing.reuse, *routing.lru_single.values())]
    head = ["model", "overlap", "reuse within 8", "LRU 12.5 %", "25 %", "50 %"]
    rows = [[f"{name}, event by event", *ours], [f"{name}, access by access", *single], *map(list, _PUBLISHED)]
    optimizer = ", ".join(f"{key} {settings[key]}" for key in ("learning_rate", "warmup", "weight_decay"))
    parts = [
        f"# {name}",
        f"A {type(model).__name__} over bytes: {config.num_hidden_layers} MoE layers of {config.num_experts} experts, "
        f"top-{config.num_experts_per_tok}, hidden {config.hidden_size}, expert width {config.moe_intermediate_size}; "
        f"{total / 1e6:.1f} M parameters, {(total - inactive * experts) / 1e6:.1f} M active for a token. It exists so "
        "that recording, prediction and execution of learned routing work offline; it is no useful language model.",
        "## Training",
        f"Text: the {corpus.source}: {corpus.files[0]} files, {corpus.training.size / 1e6:.1f} MB to train on; "
        f"{corpus.files[1]} files, {corpus.held_out.size / 1e3:.0f} kB held out (chosen by a hash of their paths). "
        f"SHA-256 of the text: `{corpus.digest[:16]}`.",
        f"{settings['steps']} steps of {settings['batch']} sequences of {settings['length']} bytes "
        f"({tokens / 1e6:.1f} M bytes), AdamW ({optimizer}), cosine decay to a tenth, seed {settings['seed']}; load "
        f"balancing by Switch Transformers' loss in each layer (weight {settings['balance']}, at the end "
        f"{balance:.2f}, where 1 is even) and ST-MoE's router z-loss (weight {settings['z_loss']}). "
        f"torch {torch.__version__}, transformers {transformers.__version__}, on a {settings['device']}. "
        f"Again: `python -m tiny_moe output={name}` in tools.",
        f"![training loss]({CURVE})",
        "## Held-out bits per byte",
        table(["", "bits per byte"], [[key, f"{value:.3f}"] for key, value in bits.items()]),
        "The model sees 128 to 256 bytes before each byte; xz sees all files before it, but none of the training text.",
        "## Routing",
        f"{routing.tokens} tokens generated after prompts from the held-out files, at temperature 1. Below, published "
        "figures of large models (access by access, as far as could be checked: see the project's DESIGN.md). "
        "Overlap = share of a token's experts that the token before it used.",
        table(head, rows),
        f"Busiest expert over the mean, by layer: {routing.busiest.min():.1f} to {routing.busiest.max():.1f}; the "
        f"busiest 22 % of experts hold {share(routing.top_share)} of the tokens.",
        f"`{PROMPTS}`: held-out prompts for recording; `{CALIBRATION}`: training text for calibrating predictors.",
    ]
    return "\n\n".join(parts) + "\n"
