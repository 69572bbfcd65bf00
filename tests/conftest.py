"""Fixtures that several packages' tests share."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali.traces.expert_ids import id_type
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace

# Read when torch is imported.  The models of the tests are tiny: threads that wait for each other only cost
# time, and on a busy machine a great deal of it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Folder of recorded traces beside the repository; tests that need it skip where it is not there."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip("needs the recorded traces of ../shared/traces, which is not there")
    return folder


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    """Function (ids [T, L, K], lengths of the sequences, experts, prompt_length, other fields) -> Trace."""

    def make(
        ids: Any,
        lengths: Sequence[int] | None = None,
        experts: int = 8,
        prompt_length: Sequence[int] | None = None,
        **others: Any,
    ) -> Trace:
        array = np.asarray(ids).astype(id_type(experts))
        sizes = [len(array)] if lengths is None else list(lengths)
        return Trace(
            metadata=Metadata("test", array.shape[1], experts, array.shape[2]),
            experts=array,
            sequence=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            position=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
            prompt_length=np.asarray([0] * len(sizes) if prompt_length is None else prompt_length, np.int32),
            **others,
        )

    return make


@pytest.fixture(scope="session")
def random_trace(make_trace: Callable[..., Trace]) -> Callable[..., Trace]:
    """Function (seed, lengths, layers, experts, top_k, weighted) -> Trace of uniform routing."""

    def make(
        seed: int,
        lengths: Sequence[int] = (12, 9, 7),
        layers: int = 3,
        experts: int = 8,
        top_k: int = 2,
        weighted: bool = True,
        prompt_length: Sequence[int] | None = None,
    ) -> Trace:
        rng = np.random.default_rng(seed)
        ids = rng.random((sum(lengths), layers, experts)).argsort(axis=-1)[..., :top_k]
        weights = rng.random(ids.shape).astype(np.float16) if weighted else None
        return make_trace(ids, lengths, experts, prompt_length, weights=weights)

    return make
