"""What calibrate and validate share: the model and the device of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from dali.experiments.models.fewer_layers import cut_to_layers
from dali.experiments.models.loading import load_model
from dali.experiments.models.shaped import shaped_model
from dali.experiments.settings import read
from dali.experiments.settings.objects import make
from dali.policies.types import InputError
from dali.runtime.device.arena import Arena
from dali.runtime.device.choose import arena_for


def subject(config: DictConfig) -> tuple[Any, str]:
    """The model to measure, on the host, and its name."""
    for name in ("quant", "kv"):
        if config.get(name) is not None:
            raise InputError(f"{name}: found {config[name]!r}, expected null: what is measured has a dtype")
    dtype = read.text(config, "dtype")
    if config.checkpoint is not None:
        name = read.text(config, "checkpoint")
        model = load_model(name, config.revision, bool(config.trust_remote_code), "cpu", dtype)
        return model, Path(name).name if Path(name).is_dir() else name
    shape = make(config.model, "model")
    cut = cut_to_layers(shape, read.whole_or_none(config, "layers") or shape.layers)
    kinds = {"auto": torch.bfloat16, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise InputError(f"dtype: found {dtype!r}, expected one of {', '.join(kinds)}")
    return shaped_model(shape.name, cut, kinds[dtype]), f"{cut.name}, {cut.layers} layers, random weights"


def arena(config: DictConfig) -> Arena:
    """The device of a configuration."""
    link = None if config.link_bytes_per_s is None else read.positive(config, "link_bytes_per_s")
    return arena_for(config.device, link, read.whole_or_none(config, "device_threads"))


def cpu_threads(config: DictConfig) -> int | None:
    """Threads of the CPU's kernels."""
    return read.whole_or_none(config, "cpu_threads")
