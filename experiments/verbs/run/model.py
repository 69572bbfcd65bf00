"""The model of a run and its prompts: a checkpoint with its tokenizer, or random weights and random tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

from dali.experiments.models.loading import DTYPES, load_model, load_tokenizer
from dali.experiments.models.prompts import to_length
from dali.experiments.models.shaped import shaped_model
from dali.experiments.settings import read
from dali.experiments.verbs.run.plan import RunPlan
from dali.policies.types import InputError
from dali.runtime.model.moe_layers import moe_layers

Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]


def load(plan: RunPlan) -> tuple[Any, Encode | None, Decode | None]:
    """The model on the host, and its tokenizer's two ways; None for random weights.

    InputError for what cannot be loaded, a model without experts, too little host memory.
    """
    config = plan.config
    dtype, trusted = read.text(config, "dtype"), plan.trusted
    if dtype not in DTYPES:
        raise InputError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    logging.set_verbosity_error()
    if plan.name is None:
        assert plan.shape is not None
        kind = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        return shaped_model(plan.config.model.name, plan.shape, kind, plan.seed), None, None
    model = load_model(plan.name, config.revision, trusted, "cpu", dtype)
    moe_layers(model)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    encode = load_tokenizer(config.tokenizer, plan.name, vocabulary, config.revision, trusted)
    return model, encode, _decoder(config.tokenizer, plan.name, config.revision, trusted)


def _decoder(name: str | None, model: str, revision: str | None, trusted: bool) -> Decode:
    """The inverse of `load_tokenizer`, which has loaded the same one before."""
    if name == "bytes":
        return lambda ids: bytes(i for i in ids if i < 256).decode(errors="replace")
    tokenizer = AutoTokenizer.from_pretrained(
        name or model, revision=(revision if name is None else None) or "main", trust_remote_code=trusted
    )
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def prompts(plan: RunPlan, model: Any, encode: Encode | None) -> Tensor:
    """int64 [batch, prompt]; random tokens for random weights."""
    lengths = plan.lengths
    if encode is None:
        generator = torch.Generator().manual_seed(plan.seed)
        size = (lengths.batch, lengths.prompt or 64)
        return torch.randint(int(model.get_input_embeddings().weight.shape[0]), size, generator=generator)
    given = [encode(plan.texts[number % len(plan.texts)]) for number in range(lengths.batch)]
    length = lengths.prompt or min(len(ids) for ids in given)
    return torch.tensor([to_length(ids, length) for ids in given])
