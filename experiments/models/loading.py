"""Models and tokenizers of transformers for the verbs that run one; what goes wrong becomes one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from dali.policies.types import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")
_WEIGHTS = ("*.safetensors", "*.bin")


def load_model(name: str, revision: str | None, trust_remote_code: bool, device: str | None, dtype: str) -> Any:
    """A causal language model in evaluation mode.

    Raises InputError for a folder without configuration or weights, weights that lack some of the model's
    tensors (they would be random), an unknown hub id, and a device that is not there.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"model {name}: found no config.json in this folder")
        if not any(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
            raise InputError(f"model {name}: found no weights in this folder, expected {' or '.join(_WEIGHTS)}")
    _check_device(device)
    logging.set_verbosity_error()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _one_line(f"model {name}"):
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            device_map="auto" if device == "auto" else None,
            output_loading_info=True,
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise InputError(f"model {name}: found no weights for {missing[0]} and {len(missing) - 1} more")
        if device != "auto":
            model.to(device)
    return model.eval()


def load_tokenizer(
    name: str | None, model: str, vocabulary: int, revision: str | None, trust_remote_code: bool
) -> Callable[[str], list[int]]:
    """Function from text to token ids, without special tokens beyond the tokenizer's own at the start."""
    if name == "bytes":
        if vocabulary < 256:
            raise InputError(f"tokenizer bytes: found a vocabulary of {vocabulary}, expected 256 or more")
        return lambda text: list(text.encode())
    # A folder or id of its own has no use for the model's revision.
    with _one_line(f"tokenizer {name or model}"):
        tokenizer = AutoTokenizer.from_pretrained(
            name or model, revision=(revision if name is None else None) or "main", trust_remote_code=trust_remote_code
        )

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)["input_ids"]
        if not ids or max(ids) >= vocabulary:
            raise InputError(f"tokenizer {name or model}: {text[:40]!r} has no tokens below {vocabulary}")
        return ids

    return encode


def _check_device(device: str | None) -> None:
    if device in (None, "cpu", "auto"):
        return
    if not re.fullmatch(r"cuda(:\d+)?", str(device)):
        raise InputError(f"device: found {device!r}, expected cpu, cuda, cuda:N or auto")
    number = int(str(device).partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise InputError(f"device: found {device!r} on a machine with {torch.cuda.device_count()} CUDA devices")


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """The library's message up to its first full line, with what it is about."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{what}: {first}") from error
