"""What recording costs: time per token of a model with a recorder attached, over the time without."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from dali.experiments.models.loading import load_model
from dali.runtime.record.recorder import Recorder

SEQUENCES, PREFILL, DECODE_PROMPT, DECODED = 8, 256, 8, 32


class Overhead:
    """The model at `folder`, in prefill of 8 x 256 tokens and decode of 32 steps of 8 tokens."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = load_model(str(folder), None, False, "cpu", "float32")
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 256, (SEQUENCES, PREFILL), generator=generator)

    def ratios(self) -> dict[str, float]:
        """Time of the steps with a recorder over the time without, of one pair of runs each."""
        return {
            "recording_prefill": self._ratio(self._prefill, (SEQUENCES, PREFILL, 0)),
            "recording_decode": self._ratio(self._decode, (SEQUENCES, DECODE_PROMPT, DECODED)),
        }

    @torch.no_grad()
    def _prefill(self) -> None:
        self.model(self.ids)

    def _decode(self) -> None:
        ids, count = self.ids[:, :DECODE_PROMPT], DECODED + 1
        lengths = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        self.model.generate(ids, attention_mask=torch.ones_like(ids), **lengths)

    def _ratio(self, work: Callable[[], None], announced: tuple[int, int, int]) -> float:
        without = _seconds(work)
        with tempfile.TemporaryDirectory() as place, Recorder(self.model, Path(place) / "t.safetensors") as recorder:
            recorder.batch(*announced)
            return _seconds(work) / without


def _seconds(work: Callable[[], None]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start
