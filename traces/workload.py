"""`Workload`: a trace batched into steps, or steps of which only the counts are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dali.policies.types import Floats, InputError, Ints
from dali.traces import tensor_file
from dali.traces.metadata import Metadata, from_strings
from dali.traces.sources import CountSource, Rows, Source, TokenSource, count, next_uses, step_forward
from dali.traces.step import Number, Step
from dali.traces.trace import FORMAT as TRACE_FORMAT
from dali.traces.trace import Trace

FORMAT = "dali-workload"


class Workload:
    """Steps of one batch, computed as they are asked for; made by `from_trace`, `from_counts` or `load`.

    layers, units, slices  L, U = experts * slices (unit = expert * slices + slice; every slice of an expert
                           carries its workload)
    n_steps, max_tokens    number of steps, and tokens of the largest
    metadata, description  origin, and one line for people
    sources                predictor sources that `steps` can be asked for besides "oracle", and how many
                           layers ahead each goes
    equal_weights          True where no router weights are known, so that router scores count 1/K a choice
    sequences              (sequence, offset of its first token used) for each sequence of the batch
    resampled              True if some of them are random pieces, drawn with replacement
    held_out               sequences of the trace that are not used: calibrate popularity on these
    """

    def __init__(
        self,
        source: Source,
        metadata: Metadata,
        slices: int,
        description: str,
        batched: Sequence[tuple[int, int]] = (),
        resampled: bool = False,
        held_out: Sequence[int] = (),
    ) -> None:
        if slices < 1:
            raise InputError(f"slices: found {slices}, expected at least 1")
        self._source = source
        self._found: tuple[Ints, list[Ints]] | None = None
        self.metadata = metadata
        self.slices = slices
        self.description = description
        self.sequences = list(batched)
        self.resampled = resampled
        self.held_out = list(held_out)
        self.n_steps, self.layers, experts = source.shape
        self.units = experts * slices
        self.max_tokens = max(self.step_sizes)

    @classmethod
    def from_trace(
        cls,
        trace: Trace,
        batch: int,
        prompt: int,
        generate: int,
        sequences: Sequence[int] | None = None,
        chunk: int | None = None,
        slices: int = 1,
        seed: int = 0,
    ) -> Workload:
        """`batch` sequences together: `prompt` tokens of each as prefill, then `generate` decode steps.

        prompt     tokens of each sequence processed as prefill, in one step or, with `chunk`, in steps of
                   `chunk` tokens a sequence (the last may be smaller); 0 = decode only.  The cut need not be
                   the recorded `prompt_length`: the routing of a causal model does not depend on it
        generate   decode steps, of one token a sequence; 0 = prefill only
        sequences  ids of the trace's sequences to choose from (default all), in this order

        Sequences long enough are used from their first token, in order.  Where they are fewer than `batch`,
        the rest of the batch are pieces of them drawn with replacement, uniformly over all first tokens that
        leave room (`seed`).  A piece counts as a sequence of its own: its first token attends to itself only.
        """
        _check_cut(batch, prompt, generate, chunk)
        choice = _choice(trace, sequences)
        batched, resampled = _draw(trace, choice, batch, prompt + generate, seed)
        first = trace.starts
        starts = np.array([first[sequence] + offset for sequence, offset in batched], np.int64)
        used = {sequence for sequence, _ in batched}
        held_out = [sequence for sequence in range(trace.sequences) if sequence not in used]
        cut = f"batch {batch}, prompt {prompt}" + (f" in chunks of {chunk}" if chunk else "") + f", generate {generate}"
        pieces = ", resampled pieces" if resampled else ""
        source = TokenSource(trace, starts, _bounds(prompt, generate, chunk), prompt)
        return cls(
            source, trace.metadata, slices, f"{trace.metadata.model}: {cut}{pieces}", batched, resampled, held_out
        )

    @classmethod
    def from_counts(
        cls, counts: Ints, tokens: Ints, metadata: Metadata, sequences: Ints | None = None, slices: int = 1
    ) -> Workload:
        """Steps of which only counts are known, each a prefill.

        counts     int32 [n_steps, L, E], tokens routed to each expert
        tokens     int32 [n_steps]
        sequences  int32 [n_steps], sequences in a step (default 1): only `Step.context` depends on it
        """
        sequences = np.ones_like(tokens) if sequences is None else sequences
        _check_counts(counts, tokens, sequences, metadata)
        source = CountSource(counts, tokens, sequences, metadata.top_k)
        return cls(source, metadata, slices, f"{metadata.model}: {len(tokens)} prefill steps known as counts")

    @classmethod
    def load(cls, path: str | Path, slices: int = 1) -> Workload:
        """Map a file that `save` wrote."""
        arrays, strings = tensor_file.read(path, FORMAT)
        if arrays.keys() != {"counts", "tokens", "sequences"}:
            raise InputError(f"{path}: found arrays {sorted(arrays)}, expected counts, sequences, tokens")
        try:
            return cls.from_counts(**arrays, metadata=from_strings(strings), slices=slices)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def sliced(self, slices: int) -> Workload:
        """The same steps with every expert cut into `slices` units."""
        batched, held_out = self.sequences, self.held_out
        return Workload(self._source, self.metadata, slices, self.description, batched, self.resampled, held_out)

    def save(self, path: str | Path) -> None:
        """Write a workload made of counts; one batched from a trace is kept as its trace."""
        if not isinstance(self._source, CountSource):
            raise InputError(f"{path}: a workload batched from a trace has no file, save its trace")
        arrays = {name: getattr(self._source, name) for name in ("counts", "tokens", "sequences")}
        tensor_file.write(path, arrays, self.metadata.to_strings(FORMAT))

    @property
    def step_sizes(self) -> dict[int, int]:
        """How many steps there are of each number of tokens."""
        return dict(Counter(self._source.about(step)[1] for step in range(self.n_steps)))

    @property
    def sources(self) -> dict[str, int]:
        """Recorded predictor sources, and how many layers ahead each goes."""
        return self._source.trace.sources if isinstance(self._source, TokenSource) else {}

    @property
    def equal_weights(self) -> bool:
        """Whether router scores are made of equal weights because none were recorded."""
        return not isinstance(self._source, TokenSource) or self._source.trace.weights is None

    def steps(
        self,
        source: str | None = None,
        ahead: int = 1,
        next_use: bool = False,
        router_scores: bool = False,
        order: bool | Literal["first", "last"] = False,
    ) -> Iterator[Step]:
        """The steps, as often as asked for and each time the same; arrays are new for each step.

        source  predictor whose workloads for layers +1..+ahead fill `Step.predicted`; "oracle" = the true ones
        next_use, router_scores  fill these fields of `Step`
        order   fill `Step.order` with the active units by "first" (or True) or "last" appearance; it stays None
                (ascending) where only counts are known.  A cache that touches units in order of their last
                appearance keeps the recency order of one that touches them token by token
        """
        self._check_source(source, ahead)
        if order not in (False, True, "first", "last"):
            raise InputError(f"order: found {order!r}, expected first or last")
        return self._steps(source, ahead, next_use, router_scores, order)

    def _steps(
        self, source: str | None, ahead: int, next_use: bool, router_scores: bool, order: bool | str
    ) -> Iterator[Step]:
        next_uses = self._next_uses() if next_use else None
        for index in range(self.n_steps):
            ranked = active = None
            if order:
                workload, ranked, active = self._source.ordered(index, order == "last")
            else:
                workload = self._source.workload(index)
            step = Step(index, *self._source.about(index), self._spread(workload))
            if source is not None:
                step.predicted = self._predicted(index, source, ahead, workload)
            if router_scores:
                step.router_scores = self._spread(self._source.scores(index))
            if next_uses is not None:
                state, found = next_uses
                step_forward(workload, found[index], state)
                step.next_use = self._spread(state.copy())
            if ranked is not None and active is not None:
                step.order, step.active = self._spread_order(ranked), active * np.int32(self.slices)
            yield step

    def _predicted(self, index: int, source: str, ahead: int, workload: Ints) -> Ints:
        predicted = np.zeros((self.layers, ahead, self.units), np.int32)
        for h in range(1, min(ahead, self.layers - 1) + 1):
            whole = workload if source == "oracle" else self._source.predicted(index, source, h)
            predicted[:-h, h - 1] = self._spread(whole[h:])
        return predicted

    def _spread(self, by_expert: NDArray[Number]) -> NDArray[Number]:
        """From [..., E] to [..., U]."""
        return by_expert if self.slices == 1 else np.repeat(by_expert, self.slices, axis=-1)

    def _spread_order(self, order: Ints) -> Ints:
        if self.slices == 1:
            return order
        return self._spread(order * np.int32(self.slices)) + np.tile(
            np.arange(self.slices, dtype=np.int32), self.units // self.slices
        )

    def _next_uses(self) -> tuple[Ints, list[Ints]]:
        """State to walk forward with, and what to walk by: found once by going backward through all steps."""
        if self._found is None:
            self._found = next_uses(self._source)
        first, found = self._found
        return first.copy(), found

    def _check_source(self, source: str | None, ahead: int) -> None:
        if source is None:
            return
        known = {"oracle": max(ahead, 1), **self.sources}
        if source not in known:
            raise InputError(f"predictor source: found {source!r}, {self.metadata.model} has {', '.join(known)}")
        if not 1 <= ahead <= known[source]:
            raise InputError(f"predictor {source}: found {ahead} layers ahead, expected 1 to {known[source]}")


def load_any(path: str | Path) -> Trace | Workload:
    """A `Trace` or a `Workload`, whichever the file holds."""
    found = tensor_file.read_header(path).get("format")
    if found == TRACE_FORMAT:
        return Trace.load(path)
    if found == FORMAT:
        return Workload.load(path)
    raise InputError(f"{path}: header says format {found!r}, expected {TRACE_FORMAT!r} or {FORMAT!r}")


def popularity(trace: Trace, sequences: Sequence[int], slices: int = 1) -> Floats:
    """float64 [L, U], each unit's share of its layer's workload over whole sequences; every row sums to 1."""
    return shares_of(expert_counts(trace, sequences), slices)


def expert_counts(trace: Trace, sequences: Sequence[int]) -> Ints:
    """int32 [L, E], tokens routed to each expert in whole sequences."""
    starts = trace.starts
    counts = np.zeros((trace.layers, trace.experts_count), np.int32)
    for sequence in _choice(trace, sequences):
        count(trace.experts, starts[sequence : sequence + 1], 0, int(starts[sequence + 1] - starts[sequence]), counts)
    return counts


def shares_of(counts: Ints, slices: int = 1) -> Floats:
    """float64 [L, U], each unit's share of its layer's tokens, from counts [L, E]; InputError for a layer without."""
    spread = np.repeat(counts, slices, axis=1).astype(np.float64)
    totals = spread.sum(axis=1, keepdims=True)
    if not totals.all():
        raise InputError(f"popularity: no expert is used in layer {int(totals.argmin())} of the chosen sequences")
    shares: Floats = spread / totals
    return shares


def _check_cut(batch: int, prompt: int, generate: int, chunk: int | None) -> None:
    for name, value, least in (("batch", batch, 1), ("prompt", prompt, 0), ("generate", generate, 0)):
        if value < least:
            raise InputError(f"workload {name}: found {value}, expected at least {least}")
    if prompt + generate == 0:
        raise InputError("workload: found prompt 0 and generate 0, expected at least one token")
    if chunk is not None and chunk < 1:
        raise InputError(f"workload chunk: found {chunk}, expected at least 1")


def _choice(trace: Trace, sequences: Sequence[int] | None) -> list[int]:
    if sequences is None:
        return list(range(trace.sequences))
    chosen = list(sequences)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"sequences: found {chosen}, expected one or more, each once")
    for sequence in chosen:
        trace.rows(sequence)
    return chosen


def _draw(trace: Trace, choice: list[int], batch: int, need: int, seed: int) -> tuple[list[tuple[int, int]], bool]:
    lengths = np.diff(trace.starts)[choice]
    fit = [sequence for sequence, length in zip(choice, lengths, strict=True) if length >= need]
    if not fit:
        raise InputError(
            f"workload: needs sequences of {need} tokens (prompt + generate), the longest has {lengths.max()}: "
            "expected fewer tokens, or a trace recorded with more (dali record prompt=N generate=M)"
        )
    batched = [(sequence, 0) for sequence in fit[:batch]]
    missing = batch - len(batched)
    if missing == 0:
        return batched, False
    room = np.diff(trace.starts)[fit] - need + 1
    ends = np.cumsum(room)
    picks = np.random.default_rng(seed).integers(ends[-1], size=missing)
    which = np.searchsorted(ends, picks, side="right")
    offsets = picks - (ends - room)[which]
    return batched + [(fit[i], int(offset)) for i, offset in zip(which, offsets, strict=True)], True


def _bounds(prompt: int, generate: int, chunk: int | None) -> Rows:
    cuts = list(range(0, prompt, chunk or max(prompt, 1)))
    return np.array(cuts + list(range(prompt, prompt + generate + 1)), np.int64)


def _check_counts(counts: Ints, tokens: Ints, sequences: Ints, metadata: Metadata) -> None:
    shape = (tokens.size, metadata.layers, metadata.experts)
    for name, array, wanted in (
        ("counts", counts, shape),
        ("tokens", tokens, (tokens.size,)),
        ("sequences", sequences, (tokens.size,)),
    ):
        if array.shape != wanted or array.dtype != np.int32 or array.size == 0:
            raise InputError(f"{name}: found {array.dtype} {list(array.shape)}, expected int32 {list(wanted)}")
    if tokens.min() < 1 or sequences.min() < 1 or np.any(sequences > tokens):
        raise InputError("tokens, sequences: expected at least 1 sequence and as many tokens or more in every step")
    for step, row in enumerate(counts):
        if row.min() < 0 or row.max() > tokens[step] or np.any(row.sum(axis=1) > int(tokens[step]) * metadata.top_k):
            raise InputError(
                f"counts: step {step} has {tokens[step]} tokens, expected 0 to {tokens[step]} for each expert and at "
                f"most {metadata.top_k} experts a token"
            )
