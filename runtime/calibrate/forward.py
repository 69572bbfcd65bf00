"""Forward passes as `generate` makes them, without its sampling: a prompt of every sequence, then a token each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dali.runtime.device.arena import Arena
from dali.runtime.execute.attach import NAME

NULL = "dali-null"


def passes(
    model: nn.Module, device: torch.device, batch: int, prompt: int, generate: int, chunk: int | None = None
) -> Iterator[int]:
    """Run a batch of arbitrary tokens; yields the number of positions so far after each forward pass.

    `prompt` tokens of each sequence (in chunks), then `generate` passes of one token each; the logits of the last
    token only, as `generate` asks for.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator,union-attr]
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (batch, max(prompt, 1)), generator=source).to(device)
    cache = DynamicCache(config=model.config)
    pieces = list(ids.split(chunk or max(prompt, 1), dim=1))
    done = 0
    with torch.no_grad():
        for number in range(len(pieces) + generate - (prompt == 0)):
            if number < len(pieces):
                ids = pieces[number]
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            done += ids.shape[1]
            ids = logits[:, -1:].argmax(dim=-1)
            yield done


@dataclass(frozen=True)
class Dense:
    """One forward pass without experts: mean tokens' context, and seconds of a layer and of what lies outside."""

    tokens: int
    sequences: int
    context: float
    layer: float
    outside: float


class NullExperts:
    """The model with experts that read the routing back, as the executor does, and give zeros."""

    def __init__(self, model: Any, arena: Arena) -> None:
        self._model, self._arena = model, arena
        self._marks: list[tuple[Any, Any]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For an attached model; afterwards the executor is called again."""
        ALL_EXPERTS_FUNCTIONS[NULL] = self._forward
        try:
            self._model.set_experts_implementation(NULL)
            yield
        finally:
            self._model.set_experts_implementation(NAME)
            ALL_EXPERTS_FUNCTIONS.pop(NULL, None)

    def _forward(self, _: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        entry = self._arena.mark()
        numbers = torch.cat([ids.to(torch.int32).reshape(-1), weights.float().reshape(-1).view(torch.int32)])
        arriving, _hidden = self._arena.to_host(numbers, hidden.contiguous())
        arriving()
        out = torch.zeros_like(hidden)
        self._marks.append((entry, self._arena.mark()))
        return out

    def measure(self, batch: int, prompt: int, generate: int) -> list[Dense]:
        """Each forward pass of such a batch; `generate` of one token each after the prompt."""
        arena, before = self._arena, 0
        found: list[Dense] = []
        running = passes(self._model, arena.device, batch, prompt, generate)
        while True:
            arena.synchronize()
            self._marks.clear()
            # The model's hooks start an epoch: this mark belongs to the one before, whose times go on.
            start = arena.mark()
            done = next(running, None)
            if done is None:
                return found
            end = arena.mark()
            arena.synchronize()
            seconds = arena.seconds
            marks = [(seconds(entry), seconds(left)) for entry, left in self._marks]
            width = done - before
            first = marks[0][0] - seconds(start)
            between = [entry - left for (_, left), (entry, _) in pairwise(marks)]
            layer = sum(between) / len(between) if between else first
            outside = max(first - layer, 0.0) + seconds(end) - marks[-1][1]
            context = before + (width + 1) / 2
            found.append(Dense(batch * width, batch, context, layer, outside))
            before = done


def host_seconds(run: Any, repeats: int) -> float:
    """Median seconds of a call by the host's clock, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def merged(passes_: Sequence[Dense]) -> Dense:
    """The median of decode steps that follow each other, at their mean context."""
    middle = sum(each.context for each in passes_) / len(passes_)
    return Dense(
        passes_[0].tokens,
        passes_[0].sequences,
        middle,
        median(each.layer for each in passes_),
        median(each.outside for each in passes_),
    )
