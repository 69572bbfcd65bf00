"""The routing of an offloaded run, as a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.policies.types import InputError
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace


@dataclass
class _LiveBatch:
    """Sequences that ran together, and of each step ids [N, L, K] and weights [N, L, K]."""

    sequences: int
    prompt: int
    ids: list[NDArray[Any]] = field(default_factory=list)
    weights: list[NDArray[np.float16]] = field(default_factory=list)


class LiveTrace:
    """Collects the routing of each finished step: 3 bytes a choice in host memory."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._batches: list[_LiveBatch] = []
        self._step: list[tuple[NDArray[Any], NDArray[np.float32]]] = []
        self._about = (1, True)

    def begin_step(self, sequences: int, fresh: bool) -> None:
        """A forward pass of so many sequences; fresh: it does not continue the one before."""
        self._step = []
        self._about = (sequences, fresh)

    def add(self, ids: NDArray[Any], weights: NDArray[np.float32]) -> None:
        """The next layer's routing."""
        self._step.append((ids, weights))

    def end_step(self) -> None:
        """The forward pass is over; one in which a layer did not run is left out."""
        step, self._step = self._step, []
        if len(step) != self._layers or len({ids.shape for ids, _ in step}) > 1:
            return
        ids = np.stack([ids for ids, _ in step], axis=1)
        weights = np.stack([weights for _, weights in step], axis=1).astype(np.float16)
        sequences, fresh = self._about
        if fresh or not self._batches or self._batches[-1].sequences != sequences:
            self._batches.append(_LiveBatch(sequences, 0))
        batch = self._batches[-1]
        if not any(len(before) == sequences for before in batch.ids) and len(ids) > sequences:
            batch.prompt += len(ids) // sequences
        batch.ids.append(ids)
        batch.weights.append(weights)

    def trace(self, **origin: Any) -> Trace:
        """All finished steps; `origin` are fields of `Metadata`: model, experts and what else is known.

        Sequences of a batch are taken to be equally long and unpadded.  InputError if no step was finished.
        """
        if not self._batches:
            raise InputError("trace: found no finished forward pass, expected one or more")
        ids: list[NDArray[Any]] = []
        weights: list[NDArray[Any]] = []
        lengths, prompts = [], []
        for batch in self._batches:
            for sequence in range(batch.sequences):
                for steps, rows in ((batch.ids, ids), (batch.weights, weights)):
                    parts = [step.reshape(batch.sequences, -1, *step.shape[1:])[sequence] for step in steps]
                    rows.append(np.concatenate(parts))
                lengths.append(len(ids[-1]))
                prompts.append(batch.prompt)
        experts = np.concatenate(ids)
        return Trace(
            metadata=Metadata(layers=self._layers, top_k=experts.shape[2], **origin),
            experts=experts,
            sequence=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            prompt_length=np.array(prompts, np.int32),
            weights=np.concatenate(weights),
        )
