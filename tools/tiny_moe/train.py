"""Train the small mixture-of-experts model that comes with the project; `python -m tiny_moe output=FOLDER` here.

Settings are those of train.yaml, each changed by NAME=VALUE.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm
from yaml import YAMLError

from dali.experiments.cli import with_status
from dali.experiments.extras import runtime_modules
from dali.experiments.settings import read
from dali.policies.types import InputError
from dali.traces.files import replacing
from tiny_moe import corpus

_FIXED = ("seed", "batch", "length", "learning_rate", "warmup", "steps", "weight_decay", "balance", "z_loss", "model")


def main(arguments: Sequence[str]) -> int:
    """Train with settings NAME=VALUE; the exit status, as of a verb of `dali`."""
    return with_status("tiny_moe", lambda: train(settings(arguments)))


def settings(arguments: Sequence[str]) -> DictConfig:
    """Those of train.yaml with the given ones in their place; InputError for one that is none of them."""
    known = OmegaConf.load(Path(__file__).with_name("train.yaml"))
    OmegaConf.set_struct(known, True)
    try:
        config = OmegaConf.merge(known, OmegaConf.from_dotlist(list(arguments)))
        missing = sorted(OmegaConf.missing_keys(config))
    except (OmegaConfBaseException, YAMLError) as error:
        raise InputError(f"{' '.join(arguments)}: {str(error).splitlines()[0]}") from error
    if missing:
        raise InputError(f"{missing[0]}: found nothing, expected a value: {missing[0]}=...")
    assert isinstance(config, DictConfig)
    return config


def train(config: DictConfig) -> None:
    """Train, or go on where a run was cut off; then write the model, its tokenizer and its card."""
    torch, tiny_model, model_card = runtime_modules("torch", "tiny_moe.model", "tiny_moe.card")

    trainer = Trainer(config, torch, tiny_model)
    text = corpus.standard_library()
    trainer.train(text.training)
    trainer.save(text.digest)
    model_card.write_card(trainer.folder, text, trainer.settings | {"steps": trainer.steps, "device": trainer.device})
    trainer.checkpoint.unlink(missing_ok=True)
    print(f"Written: {trainer.folder}")


class Trainer:
    """AdamW with warm-up and cosine decay; the batch of a step depends on seed and step alone, so runs can resume."""

    def __init__(self, config: DictConfig, torch: Any, tiny_model: Any) -> None:
        self.torch, self.tiny = torch, tiny_model
        self.folder = Path(read.text(config, "output"))
        self.checkpoint = self.folder.with_name(self.folder.name + ".checkpoint.pt")
        names = ("steps", "batch", "length", "warmup", "checkpoint_every")
        self.steps, self.batch, self.length, self.warmup, self.every = (read.whole(config, name) for name in names)
        self.seed, self.peak = read.whole(config, "seed", 0), read.positive(config, "learning_rate")
        self.balance, self.z_loss = read.weight(config, "balance"), read.weight(config, "z_loss")
        self.settings = {name: OmegaConf.to_container(config, resolve=True)[name] for name in _FIXED}  # type: ignore[call-overload,index]
        self.device = read.text(config, "device")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"device: found {self.device!r} on a machine without CUDA, expected cpu")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"output: found a file at {self.folder}, expected the name of a folder")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.seed)
        if not isinstance(config.model, DictConfig):
            raise InputError(f"model: found {config.model!r}, expected sizes: model.num_experts=8")
        sizes = {name: read.whole(config, f"model.{name}") for name in map(str, config.model)}
        self.model = tiny_model.tiny_model(sizes, self.length).to(self.device)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": read.weight(config, "weight_decay")}, {"params": others}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.peak, betas=(0.9, 0.95), weight_decay=0.0)
        self.step = 0
        self.history: list[dict[str, float]] = []

    def train(self, data: np.ndarray) -> None:
        """Steps up to the last, with a checkpoint every so often and when interrupted."""
        if data.size <= self.length + 1:
            raise InputError(f"length: found {self.length}, the text has {data.size} bytes")
        if self.checkpoint.exists():
            self._resume()
        with tqdm(total=self.steps, initial=self.step, unit="step", disable=None) as bar:
            try:
                while self.step < self.steps:
                    entropy, balance = self._step(data)
                    bar.set_postfix_str(f"{entropy:.3f} bits/byte, balance {balance:.2f}")
                    bar.update()
                    if self.step % self.every == 0:
                        self._keep()
            except KeyboardInterrupt:
                self._keep()
                raise KeyboardInterrupt(
                    f"interrupted at step {self.step}; the same command goes on from {self.checkpoint}"
                ) from None

    def save(self, digest: str) -> None:
        """The model in bfloat16 with its tokenizer, in the form that `from_pretrained` loads."""
        self.model.config.text_sha256 = digest
        self.model.to(self.torch.bfloat16).save_pretrained(self.folder)
        self.tiny.byte_tokenizer().save_pretrained(self.folder)
        columns = {name: [row[name] for row in self.history] for name in ("bits_per_byte", "balance")}
        (self.folder / "training.json").write_text(json.dumps(columns), encoding="utf-8")

    def _step(self, data: np.ndarray) -> tuple[float, float]:
        rng = np.random.default_rng([self.seed, self.step])
        starts = rng.integers(0, data.size - self.length - 1, self.batch)
        rows = np.stack([data[start : start + self.length + 1] for start in starts]).astype(np.int64)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        entropy, balance, z = self.tiny.losses(self.model, self.torch.from_numpy(rows).to(self.device))
        (entropy + self.balance * balance + self.z_loss * z).backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        bits, even = entropy.item() / math.log(2), balance.item()
        if not math.isfinite(bits):
            raise InputError(f"learning_rate: found {self.peak:g}, with which training diverged at step {self.step}")
        self.history.append({"bits_per_byte": round(bits, 4), "balance": round(even, 3)})
        return bits, even

    def _rate(self) -> float:
        if self.step < self.warmup:
            return self.peak * (self.step + 1) / self.warmup
        progress = (self.step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def _keep(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "settings": self.settings,
        }
        with replacing(self.checkpoint) as path:
            self.torch.save(state, path)

    def _resume(self) -> None:
        state = self.torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        differing = [name for name in _FIXED if state["settings"].get(name) != self.settings[name]]
        if differing:
            name = differing[0]
            raise InputError(
                f"{name}: found {self.settings[name]}, expected {state['settings'].get(name)} as in {self.checkpoint} "
                "(or no checkpoint)"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
