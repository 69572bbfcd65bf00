"""One call of `generate`, as its user sees it: the settings, the clock, and the text as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from dali.experiments.verbs.run.plan import RunPlan
from dali.policies.types import InputError

Show = Callable[[int], None]


@dataclass(frozen=True)
class Timing:
    """Seconds of one run as its user sees them: to the first token, and of the `steps` tokens after it."""

    prefill: float
    decode: float
    steps: int


class Clock(BaseStreamer):
    """Notes when the prompt was handed over and each token was there; passes on those of the first sequence."""

    def __init__(self, show: Show | None) -> None:
        self._show = show
        self._times: list[float] = []

    def put(self, value: Tensor) -> None:
        """The prompt, then the tokens of each step; on the host."""
        self._times.append(time.perf_counter())
        if self._show is not None and len(self._times) > 1:
            self._show(int(value[0]))

    def end(self) -> None:
        """The last token has been put."""

    def timing(self) -> Timing:
        """Of the run that is over."""
        start, first, *_ = self._times
        return Timing(first - start, self._times[-1] - first, len(self._times) - 2)


class Shown:
    """Writes text as its tokens come; what is no whole character yet waits for the next token."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], write: Callable[[str], object], prompt: list[int]
    ) -> None:
        self._decode, self._write = decode, write
        self._tokens, self._written = list(prompt), ""
        self._next()

    def token(self, token: int) -> None:
        """The next token."""
        self._tokens.append(token)
        self._next()

    def _next(self) -> None:
        text = self._decode(self._tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write(text[len(self._written) :])
            self._written = text


def settings(plan: RunPlan, fixed: bool) -> GenerationConfig:
    """Of `generate`; fixed: no text ends early, so that sequences are equally long and all runs do the same work."""
    count = plan.lengths.generate
    lengths = {"max_new_tokens": count, "num_beams": 1, "pad_token_id": 0} | (
        {"min_new_tokens": count} if fixed else {}
    )
    if plan.temperature == 0:
        return GenerationConfig(do_sample=False, **lengths)
    return GenerationConfig(do_sample=True, temperature=plan.temperature, top_k=0, top_p=plan.top_p, **lengths)


@contextmanager
def memory_suffices(batch: int) -> Iterator[None]:
    """InputError where the GPU's memory does not hold activations and KV cache."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"batch: found {batch}, for which GPU memory does not suffice beside the units") from None
