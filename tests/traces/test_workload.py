"""Batches of a trace: against a hand-made example, and against plain loops over the tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dali.policies.types import NEVER, InputError
from dali.traces.metadata import Metadata
from dali.traces.step import Step
from dali.traces.trace import Trace
from dali.traces.workload import FORMAT, Workload, load_any, popularity

Make = Callable[..., Trace]
FIELDS = ("workload", "predicted", "router_scores", "next_use", "order", "active")

# Two sequences of 3 tokens, 2 layers, top-2 of 4 experts; 255 = none.
IDS = [
    [[0, 1], [2, 3]],
    [[1, 0], [3, 0]],
    [[2, 1], [3, 255]],
    [[1, 3], [2, 0]],
    [[1, 2], [0, 1]],
    [[0, 3], [1, 2]],
]


@pytest.fixture
def trace(make_trace: Make) -> Trace:
    weights = np.zeros((6, 2, 2), np.float16)
    weights[...] = [0.75, 0.25]
    return make_trace(IDS, lengths=(3, 3), experts=4, weights=weights)


def ordered(step: Step, layer: int) -> list[int]:
    order = step.layer_step(layer).order
    assert order is not None
    units: list[int] = order.tolist()
    return units


def test_steps_by_hand(trace: Trace) -> None:
    workload = Workload.from_trace(trace, batch=2, prompt=2, generate=1)
    assert (workload.n_steps, workload.layers, workload.units, workload.max_tokens) == (2, 2, 4, 4)
    assert (workload.sequences, workload.resampled, workload.held_out) == ([(0, 0), (1, 0)], False, [])
    prefill, decode = workload.steps("oracle", next_use=True, router_scores=True, order=True)
    assert (prefill.index, prefill.phase, prefill.tokens, prefill.sequences) == (0, "prefill", 4, 2)
    assert (decode.index, decode.phase, decode.tokens, decode.sequences) == (1, "decode", 2, 2)
    # Prompt tokens attend to 1 and 2 positions, the generated one to 3.
    assert (prefill.context, decode.context) == (1.5, 3.0)
    # Prefill, tokens 0, 1 of sequence 0 then 3, 4.  Layer 0: 01 10 13 12; layer 1: 23 30 20 01.
    np.testing.assert_array_equal(prefill.workload, [[2, 4, 1, 1], [3, 1, 2, 2]])
    np.testing.assert_array_equal(decode.workload, [[1, 1, 1, 1], [0, 1, 1, 1]])
    first, second = prefill.layer_step(0), prefill.layer_step(1)
    assert (first.step, first.layer, first.tokens) == (0, 0, 4)
    assert ordered(prefill, 0) == [0, 1, 3, 2]
    assert ordered(prefill, 1) == [2, 3, 0, 1]
    # Layer 0 is told of layer 1; nothing comes after layer 1.
    np.testing.assert_array_equal(first.predicted, [[3, 1, 2, 2]])
    np.testing.assert_array_equal(second.predicted, [[0, 0, 0, 0]])
    # Slot 0 weighs .75, slot 1 .25.  Layer 0: expert 0 = .75+.25, expert 1 = .25+.75+.75+.75; over 4 tokens.
    np.testing.assert_allclose(first.router_scores, [0.25, 0.625, 0.0625, 0.0625])
    np.testing.assert_array_equal(first.next_use, [1, 1, 1, 1])
    np.testing.assert_array_equal(second.next_use, [NEVER, 1, 1, 1])
    np.testing.assert_array_equal(decode.next_use, np.full((2, 4), NEVER))


def test_slices_carry_the_workload_of_their_expert(trace: Trace) -> None:
    whole = Workload.from_trace(trace, 2, 2, 1)
    halves = Workload.from_trace(trace, 2, 2, 1, slices=2)
    assert halves.units == 8
    options: dict[str, Any] = {"source": "oracle", "next_use": True, "router_scores": True, "order": True}
    for one, two in zip(whole.steps(**options), halves.steps(**options), strict=True):
        for name in ("workload", "predicted", "router_scores", "next_use"):
            np.testing.assert_array_equal(np.repeat(getattr(one, name), 2, axis=-1), getattr(two, name))
    # Layer 0 of the prompt is 0, 1, 3, 2 by first appearance: both slices of each, in turn.
    assert ordered(next(halves.steps(order=True)), 0) == [0, 1, 2, 3, 6, 7, 4, 5]
    # By last appearance it is 0, 3, 1, 2.
    assert ordered(next(halves.steps(order="last")), 0) == [0, 1, 6, 7, 2, 3, 4, 5]


def expected_steps(trace: Trace, workload: Workload, prompt: int, generate: int, chunk: int | None) -> list[list[int]]:
    """Tokens (rows of the trace) of each step, in batch order."""
    first = [trace.rows(sequence).start + offset for sequence, offset in workload.sequences]
    size = chunk or prompt
    spans = [(low, min(low + size, prompt)) for low in range(0, prompt, size)] if prompt else []
    spans += [(i, i + 1) for i in range(prompt, prompt + generate)]
    return [[start + i for start in first for i in range(low, high)] for low, high in spans]


def loop_workload(ids: np.ndarray, rows: list[int], experts: int) -> np.ndarray:
    counts = np.zeros((ids.shape[1], experts), np.int32)
    for row in rows:
        for layer in range(ids.shape[1]):
            for expert in ids[row, layer]:
                if expert != 255:
                    counts[layer, expert] += 1
    return counts


cuts = st.tuples(st.integers(0, 5), st.integers(0, 4), st.none() | st.integers(1, 4)).filter(lambda c: c[0] + c[1] > 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), cuts)
def test_every_field_against_plain_loops(
    random_trace: Make, seed: int, batch: int, cut: tuple[int, int, int | None]
) -> None:
    prompt, generate, chunk = cut
    trace = random_trace(seed).with_predictor("gate", 0.6, np.random.default_rng(seed), ahead=2)
    workload = Workload.from_trace(trace, batch, prompt, generate, chunk=chunk, seed=seed)
    rows = expected_steps(trace, workload, prompt, generate, chunk)
    counts = [loop_workload(trace.experts, step, 8) for step in rows]
    steps = list(workload.steps("gate", ahead=2, next_use=True, router_scores=True, order=True))
    last_orders = list(workload.steps(order="last"))
    assert len(steps) == workload.n_steps == len(rows)
    assert workload.max_tokens == max(len(step) for step in rows)
    assert trace.weights is not None
    for i, step in enumerate(steps):
        assert (step.index, step.tokens, step.sequences) == (i, len(rows[i]), batch)
        assert step.phase == ("decode" if i >= len(rows) - generate else "prefill")
        np.testing.assert_array_equal(step.workload, counts[i])
        assert step.predicted is not None
        assert step.router_scores is not None
        assert step.next_use is not None
        for h, name in ((1, "gate"), (2, "gate.2")):
            seen = loop_workload(trace.predicted[name], rows[i], 8)
            np.testing.assert_array_equal(step.predicted[:, h - 1], np.vstack([seen[h:], np.zeros((h, 8))]))
        for layer in range(3):
            seen_ids = trace.experts[rows[i], layer].ravel().tolist()
            assert ordered(step, layer) == list(dict.fromkeys(seen_ids))
            assert ordered(last_orders[i], layer) == list(dict.fromkeys(seen_ids[::-1]))[::-1]
            for expert in range(8):
                uses = [later for later in range(i + 1, len(rows)) if counts[later][layer, expert]]
                assert step.next_use[layer, expert] == (uses[0] if uses else NEVER)
                mine = trace.experts[rows[i], layer] == expert
                score = trace.weights[rows[i], layer][mine].astype(np.float64).sum() / len(rows[i])
                assert step.router_scores[layer, expert] == pytest.approx(score, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_chunks_only_divide_the_prompt(random_trace: Make, seed: int, chunk: int) -> None:
    trace = random_trace(seed)
    whole = list(Workload.from_trace(trace, 3, 6, 0).steps())
    parts = list(Workload.from_trace(trace, 3, 6, 0, chunk=chunk).steps())
    assert len(whole) == 1
    np.testing.assert_array_equal(whole[0].workload, sum(part.workload for part in parts))
    # Mean context over all tokens is the same, however the prompt is cut.
    assert whole[0].context * whole[0].tokens == sum(part.context * part.tokens for part in parts)


def assert_same(a: Step, b: Step) -> None:
    assert (a.index, a.phase, a.tokens, a.sequences, a.context) == (b.index, b.phase, b.tokens, b.sequences, b.context)
    for name in FIELDS:
        if getattr(a, name) is None:
            assert getattr(b, name) is None, name
        else:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_workload_can_be_walked_often_and_its_arrays_are_the_callers(random_trace: Make) -> None:
    workload = Workload.from_trace(random_trace(3), 2, 4, 3)
    options: dict[str, Any] = {"source": "oracle", "ahead": 5, "next_use": True, "router_scores": True, "order": True}
    kept = list(workload.steps(**options))
    for step in workload.steps(**options):
        for name in FIELDS:
            if name not in ("order", "active"):
                getattr(step, name)[:] = 0
    for before, after in zip(kept, workload.steps(**options), strict=True):
        for layer in range(workload.layers):
            np.testing.assert_array_equal(before.layer_step(layer).order, after.layer_step(layer).order)
        before.order = after.order  # entries past the active ones are not defined
        assert_same(before, after)


def test_oracle_ahead_of_the_last_layer_is_zero(random_trace: Make) -> None:
    step = next(Workload.from_trace(random_trace(3), 2, 4, 3).steps("oracle", ahead=5))
    assert step.predicted is not None
    assert step.predicted.shape == (3, 5, 8)
    np.testing.assert_array_equal(step.predicted[0, :2], step.workload[1:])
    assert step.predicted[0, 2:].sum() == step.predicted[1, 1:].sum() == step.predicted[2].sum() == 0


def test_sequences_are_used_in_order_and_the_rest_is_held_out(random_trace: Make) -> None:
    trace = random_trace(0, lengths=(5, 2, 5, 5))
    workload = Workload.from_trace(trace, 2, 2, 2)
    # Sequence 1 is too short for 2 + 2 tokens.
    assert (workload.sequences, workload.held_out, workload.resampled) == ([(0, 0), (2, 0)], [1, 3], False)
    chosen = Workload.from_trace(trace, 2, 2, 2, sequences=[3, 0])
    assert (chosen.sequences, chosen.held_out) == ([(3, 0), (0, 0)], [1, 2])


@given(st.integers(0, 2**32 - 1), st.integers(4, 40))
def test_missing_sequences_are_pieces_of_those_there(random_trace: Make, seed: int, batch: int) -> None:
    trace = random_trace(0, lengths=(12, 4, 9, 7))
    workload = Workload.from_trace(trace, batch, 3, 2, seed=seed)
    assert workload.resampled
    assert workload.sequences[:3] == [(0, 0), (2, 0), (3, 0)]
    assert workload.held_out == [1]
    for sequence, offset in workload.sequences:
        assert 0 <= offset <= {0: 7, 2: 4, 3: 2}[sequence]
    assert workload.sequences == Workload.from_trace(trace, batch, 3, 2, seed=seed).sequences


def test_pieces_start_anywhere_with_room_equally_often(random_trace: Make) -> None:
    # Room for 5 tokens: 12 - 5 + 1 = 8 first tokens in one sequence, 9 - 5 + 1 = 5 in the other.
    trace = random_trace(0, lengths=(12, 9))
    drawn = Workload.from_trace(trace, 2602, 5, 0, seed=1).sequences[2:]
    counts = [drawn.count(start) for start in {(0, i) for i in range(8)} | {(1, i) for i in range(5)}]
    # 2,600 draws over 13 starts: 200 each, standard deviation 13.6; 5 of them either way.
    assert sum(counts) == 2600
    assert 132 < min(counts) <= max(counts) < 268


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch: found 0, expected at least 1"),
        ({"prompt": -1}, "prompt: found -1"),
        ({"prompt": 0, "generate": 0}, "expected at least one token"),
        ({"chunk": 0}, "chunk: found 0"),
        ({"slices": 0}, "slices: found 0"),
        ({"prompt": 10, "generate": 3}, r"needs sequences of 13 tokens \(prompt \+ generate\), the longest has 12"),
        ({"sequences": [2], "prompt": 8}, "the longest has 7"),
        ({"sequences": [1, 1]}, "expected one or more, each once"),
        ({"sequences": []}, "expected one or more, each once"),
        ({"sequences": [3]}, "sequence: found 3, the trace has 0 to 2"),
    ],
)
def test_what_a_batch_refuses(random_trace: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Workload.from_trace(random_trace(0), **({"batch": 1, "prompt": 2, "generate": 1} | arguments))


def test_a_predictor_must_be_recorded(random_trace: Make) -> None:
    trace = random_trace(0).with_predictor("gate", 0.5, np.random.default_rng(0))
    workload = Workload.from_trace(trace, 1, 2, 1)
    # Said at once, not at the first step.
    with pytest.raises(InputError, match="source: found 'residual', test has oracle, gate"):
        workload.steps("residual")
    with pytest.raises(InputError, match="predictor gate: found 2 layers ahead, expected 1 to 1"):
        workload.steps("gate", ahead=2)
    with pytest.raises(InputError, match="predictor oracle: found 0 layers ahead"):
        workload.steps("oracle", ahead=0)
    with pytest.raises(InputError, match="order: found 'middle', expected first or last"):
        workload.steps(order="middle")  # type: ignore[arg-type]


def test_popularity_by_hand(trace: Trace) -> None:
    # Sequence 0, layer 0: 01 10 21 = 2 3 1 0 of 6; layer 1: 23 30 3- = 1 0 1 3 of 5.
    expected = np.array([[2 / 6, 3 / 6, 1 / 6, 0], [1 / 5, 0, 1 / 5, 3 / 5]])
    np.testing.assert_allclose(popularity(trace, [0]), expected)
    np.testing.assert_allclose(popularity(trace, [0], slices=2), np.repeat(expected / 2, 2, axis=1))
    with pytest.raises(InputError, match="expected one or more"):
        popularity(trace, [])


def counted(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    steps = list(workload.steps())
    return np.stack([step.workload for step in steps]), np.array([step.tokens for step in steps], np.int32)


def test_counts_behave_as_the_tokens_they_came_from(random_trace: Make, tmp_path: Path) -> None:
    trace = random_trace(7, weighted=False)
    by_token = Workload.from_trace(trace, 3, 5, 0, chunk=2)
    counts, tokens = counted(by_token)
    metadata = Metadata("test", 3, 8, 2)
    Workload.from_counts(counts, tokens, metadata, np.full(3, 3, np.int32)).save(tmp_path / "w.safetensors")
    by_count = load_any(tmp_path / "w.safetensors")
    assert isinstance(by_count, Workload)
    assert by_count.metadata == metadata
    assert by_count.equal_weights
    assert by_token.equal_weights
    assert (by_count.max_tokens, by_count.sources, by_count.held_out) == (6, {}, [])
    options: dict[str, Any] = {"source": "oracle", "ahead": 2, "next_use": True, "router_scores": True}
    for a, b in zip(by_token.steps(**options), by_count.steps(**options, order=True), strict=True):
        # A step of 3 sequences x 2 tokens, known only as counts, is a prompt of its own: positions 1 and 2.
        assert b.context == (b.tokens / 3 + 1) / 2
        b.context = a.context
        assert_same(a, b)
    halves = Workload.load(tmp_path / "w.safetensors", slices=2)
    np.testing.assert_array_equal(next(halves.steps()).workload, np.repeat(counts[0], 2, axis=-1))


def test_load_any_tells_traces_from_workloads(random_trace: Make, tmp_path: Path) -> None:
    trace = random_trace(0)
    trace.save(tmp_path / "t.safetensors")
    assert isinstance(load_any(tmp_path / "t.safetensors"), Trace)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "f.safetensors")
    with pytest.raises(InputError, match="format None, expected 'dali-trace' or 'dali-workload'"):
        load_any(tmp_path / "f.safetensors")
    with pytest.raises(InputError, match="save its trace"):
        Workload.from_trace(trace, 1, 1, 1).save(tmp_path / "w.safetensors")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "g.safetensors", Metadata("m", 1, 1, 1).to_strings(FORMAT))
    with pytest.raises(InputError, match=r"found arrays \['a'\], expected counts, sequences, tokens"):
        Workload.load(tmp_path / "g.safetensors")


GOOD = np.array([[[2, 2], [1, 3]]], np.int32)


@pytest.mark.parametrize(
    ("counts", "tokens", "sequences", "message"),
    [
        (GOOD.astype(np.int64), [4], [1], "counts: found int64"),
        (GOOD[:, :1], [4], [1], r"counts: found int32 \[1, 1, 2\], expected int32 \[1, 2, 2\]"),
        (GOOD[:0], [], [], "counts: found int32"),
        (GOOD, [4], [1, 1], "sequences: found int32"),
        (GOOD, [0], [1], "at least 1 sequence"),
        (GOOD, [4], [5], "at least 1 sequence"),
        (GOOD, [2], [1], "step 0 has 2 tokens, expected 0 to 2 for each expert"),
        (GOOD, [3], [1], "at most 1 experts a token"),
        (-GOOD, [4], [1], "step 0 has 4 tokens"),
    ],
)
def test_what_counts_are_refused(counts: np.ndarray, tokens: list[int], sequences: list[int], message: str) -> None:
    metadata = Metadata("m", 2, 2, 1)
    Workload.from_counts(GOOD, np.array([4], np.int32), metadata)
    with pytest.raises(InputError, match=message):
        Workload.from_counts(counts, np.array(tokens, np.int32), metadata, np.array(sequences, np.int32))
