"""The trace file and what it refuses, and emulated predictors."""

import dataclasses
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from dali.policies.types import InputError
from dali.traces.expert_ids import none_id
from dali.traces.metadata import Metadata, from_strings
from dali.traces.trace import FORMAT, Trace

Make = Callable[..., Trace]


def fields(trace: Trace) -> dict[str, Any]:
    return {field.name: getattr(trace, field.name) for field in dataclasses.fields(trace)}


def assert_equal(a: Trace, b: Trace) -> None:
    assert a.metadata == b.metadata
    assert a.arrays().keys() == b.arrays().keys()
    for name, array in a.arrays().items():
        assert array.dtype == b.arrays()[name].dtype
        np.testing.assert_array_equal(array, b.arrays()[name], err_msg=name)


def cosines(trace: Trace, first_layer: int) -> Any:
    """float32 [S, L], distinct numbers, NaN below first_layer."""
    values = np.linspace(-1, 1, trace.sequences * trace.layers, dtype=np.float32).reshape(-1, trace.layers)
    values[:, :first_layer] = np.nan
    return values


@pytest.fixture
def trace(random_trace: Make) -> Trace:
    made = random_trace(1).with_predictor("gate", 0.7, np.random.default_rng(2), ahead=2)
    metadata = dataclasses.replace(made.metadata, unit_bytes=(5, 6, 7), notes="naïve", seed=-3, revision="abc")
    rng = np.random.default_rng(3)
    return dataclasses.replace(
        made,
        metadata=metadata,
        cosine={"gate": cosines(made, 1), "gate.2": cosines(made, 2)},
        router_input=rng.random((made.tokens, 3, 4)).astype(np.float16),
        router_weight=rng.random((3, 8, 4)).astype(np.float32),
    )


def test_round_trip_keeps_everything_and_equal_content_gives_equal_bytes(trace: Trace, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    trace.save(first)
    loaded = Trace.load(first)
    assert_equal(trace, loaded)
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()
    # Any other reader of the format agrees.
    np.testing.assert_array_equal(load_file(first)["predicted.gate.2"], trace.predicted["gate.2"])


def test_a_loaded_trace_is_mapped_and_cannot_change_its_file(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    trace.save(path)
    before = path.read_bytes()
    loaded = Trace.load(path)
    base: Any = loaded.experts
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    loaded.experts[:] = 0
    assert path.read_bytes() == before


def test_more_than_255_experts_need_wider_ids(random_trace: Make) -> None:
    # uint8 holds ids 0..254 and none = 255, so 255 experts fit and 256 do not.
    assert random_trace(0, experts=255).experts.dtype == np.uint8
    wide = random_trace(0, experts=256)
    assert wide.experts.dtype == np.uint16
    with pytest.raises(InputError, match="cannot hold 256 ids and none, expected uint16"):
        dataclasses.replace(wide, experts=np.zeros(wide.experts.shape, np.uint8))


def test_shape_of_a_trace(trace: Trace) -> None:
    assert (trace.tokens, trace.layers, trace.experts_count, trace.top_k, trace.sequences) == (28, 3, 8, 2, 3)
    assert trace.sources == {"gate": 2}
    assert [trace.rows(s) for s in range(3)] == [slice(0, 12), slice(12, 21), slice(21, 28)]
    with pytest.raises(InputError, match="sequence: found 3, the trace has 0 to 2"):
        trace.rows(3)
    trace.check_model(3, 8, "right")
    with pytest.raises(InputError, match="trace of test has 3 layers x 8 experts, model mixtral_8x7b has 32 x 8"):
        trace.check_model(32, 8, "mixtral_8x7b")


def test_the_first_layers_alone(make_trace: Make) -> None:
    """Two tokens of one expert in each of three layers: of all that was recorded, the third layer's part goes."""
    trace = make_trace(
        [[[1], [2], [3]], [[4], [5], [6]]],
        weights=np.array([[[0.5], [1], [2]], [[3], [4], [5]]], np.float16),
        predicted={"gate": np.array([[[255], [2], [7]], [[255], [0], [6]]], np.uint8)},
        cosine={"gate": np.array([[np.nan, 0.5, 0.25]], np.float32)},
        router_input=np.arange(6, dtype=np.float16).reshape(2, 3, 1),
        router_weight=np.arange(24, dtype=np.float32).reshape(3, 8, 1),
    )
    trace = dataclasses.replace(trace, metadata=dataclasses.replace(trace.metadata, unit_bytes=(7, 8, 9)))
    cut = trace.first_layers(2)
    assert cut.metadata == dataclasses.replace(trace.metadata, layers=2, unit_bytes=(7, 8))
    assert cut.experts.tolist() == [[[1], [2]], [[4], [5]]]
    assert cut.weights is not None
    assert cut.weights.tolist() == [[[0.5], [1]], [[3], [4]]]
    assert cut.predicted["gate"].tolist() == [[[255], [2]], [[255], [0]]]
    np.testing.assert_array_equal(cut.cosine["gate"], [[np.nan, 0.5]])
    assert cut.router_input is not None
    assert cut.router_input.tolist() == [[[0], [1]], [[3], [4]]]
    assert cut.router_weight is not None
    assert cut.router_weight.tolist() == [[[n] for n in range(8)], [[n] for n in range(8, 16)]]
    assert (cut.position.tolist(), cut.prompt_length.tolist()) == ([0, 1], [0])
    assert_equal(trace.first_layers(3), trace)


@pytest.mark.parametrize("layers", [0, 4])
def test_no_more_layers_than_there_are(trace: Trace, layers: int) -> None:
    with pytest.raises(InputError, match=f"layers: found {layers}, expected 1 to the 3 of test's routing"):
        trace.first_layers(layers)


def test_arrays_in_other_memory_orders_are_taken(trace: Trace) -> None:
    turned = dataclasses.replace(trace, experts=np.asfortranarray(trace.experts))
    assert turned.experts.flags.c_contiguous
    assert_equal(trace, turned)


def _with(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


BAD = {
    "range": (lambda t: {"experts": _with(t.experts, (4, 1, 0), 8)}, "experts: found id 8 at token 4, layer 1, slot 0"),
    "twice": (lambda t: {"experts": _with(t.experts, (4, 1, 1), t.experts[4, 1, 0])}, "token 4, layer 1, slot 1 a sec"),
    "ids type": (lambda t: {"experts": t.experts.astype(np.int32)}, "experts: found int32"),
    "ids shape": (lambda t: {"experts": t.experts[:, :2]}, r"expected uint8 or uint16 \[28, 3, 2\]"),
    "no tokens": (lambda t: {"experts": t.experts[:0]}, r"expected \[tokens, 3, 2\]"),
    "weights NaN": (lambda t: {"weights": _with(t.weights, (5, 2, 1), np.nan)}, "weights: found nan at token 5, layer"),
    "weights inf": (lambda t: {"weights": _with(t.weights, (5, 2, 1), np.inf)}, "weights: found inf at token 5"),
    "weights < 0": (lambda t: {"weights": _with(t.weights, (0, 0, 0), -0.5)}, "weights: found -0.5 at token 0"),
    "weights type": (lambda t: {"weights": t.weights.astype(np.float32)}, "weights: found float32"),
    "sequence gap": (lambda t: {"sequence": t.sequence * 2}, "sequence: expected 0, 0, ..., 1"),
    "sequence falls": (lambda t: {"sequence": t.sequence[::-1].copy()}, "sequence: expected 0, 0, ..., 1"),
    "sequence short": (lambda t: {"sequence": t.sequence[:-1]}, r"sequence: found int32 \[27\], expected int32 \[28\]"),
    "position": (lambda t: {"position": _with(t.position, 5, 4)}, "position: found 4 at token 5, expected to rise"),
    "position < 0": (lambda t: {"position": t.position - 1}, "position: found -1 at token 0"),
    "prompts": (lambda t: {"prompt_length": t.prompt_length[:2]}, "prompt_length: found 2, expected one for each of t"),
    "prompt": (lambda t: {"prompt_length": np.array([0, 10, 0], np.int32)}, "found 10 for sequence 1, .* its 9"),
    "early layer": (
        lambda t: {"predicted": {"gate": t.experts}},
        r"predicted.gate: found id \d at token 0, layer 0, slot 0, expected 255 \(none\) below layer 1",
    ),
    "gap ahead": (lambda t: {"predicted": {"gate.2": t.predicted["gate.2"]}}, r"found layers ahead \[2\], exp"),
    "oracle": (lambda t: {"predicted": {"oracle": t.predicted["gate"]}}, "expected a source other than oracle"),
    "source": (lambda t: {"predicted": {"a b": t.predicted["gate"]}}, "predicted.a b: expected a source"),
    "cosine shape": (lambda t: {"cosine": {"gate": t.cosine["gate"][:2]}}, r"cosine.gate: found float32 \[2, 3\], exp"),
    "cosine early": (lambda t: {"cosine": {"gate.2": t.cosine["gate"]}}, "cosine.gate.2: found a number below layer 2"),
    "cosine range": (lambda t: {"cosine": {"gate": t.cosine["gate"] * 2}}, "cosine.gate: found one that is not betw"),
    "cosine NaN": (lambda t: {"cosine": {"gate": t.cosine["gate.2"]}}, "cosine.gate: found one that is not between"),
    "cosine name": (lambda t: {"cosine": {"a b": t.cosine["gate"]}}, "cosine.a b: expected a source"),
    "router": (lambda t: {"router_weight": None}, "router_input and router_weight: found one without the other"),
    "router width": (lambda t: {"router_weight": t.router_weight[..., :3]}, r"expected float16 or float32 \[3, 8, 4\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_trace_refuses(trace: Trace, case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(InputError, match=message):
        Trace(**fields(trace) | change(trace))


def test_minus_zero_is_a_weight_and_none_an_id(trace: Trace) -> None:
    weights = _with(trace.weights, (0, 0, 0), -0.0)
    Trace(**fields(trace) | {"weights": weights, "experts": _with(trace.experts, (0, 0), none_id(trace.experts))})


def _write(path: Path, name: str) -> None:
    arrays = {"experts": np.zeros((1, 1, 1), np.uint8)}
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif name == "text":
        path.write_text("this is not a tensor file at all")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "foreign":
        save_file(arrays, path, {"format": "pt"})
    elif name == "bare":
        save_file(arrays, path)
    elif name == "wrong arrays":
        save_file(arrays, path, Metadata("m", 1, 1, 1).to_strings(FORMAT))
    elif name == "wide":
        save_file({"experts": np.zeros(2, np.float64)}, path, Metadata("m", 1, 1, 1).to_strings(FORMAT))
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", "not a whole safetensors file"),
        ("text", "not a whole safetensors file"),
        ("empty", "not a whole safetensors file"),
        ("foreign", "header says format 'pt', expected 'dali-trace'"),
        ("bare", "header says format None, expected 'dali-trace'"),
        ("wrong arrays", r"found arrays \['experts'\], expected"),
        ("wide", "experts has type F64, expected one of U8"),
        ("missing", "no such file"),
    ],
)
def test_files_that_are_no_traces(trace: Trace, tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    trace.save(path)
    _write(path, name)
    with pytest.raises(InputError, match=message) as raised:
        Trace.load(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "2"}, "format_version: found '2', expected '1'"),
        ({"layers": "three"}, "layers: found 'three', expected a whole number"),
        ({"layers": "0"}, "layers: found 0, expected at least 1"),
        ({"top_k": "9"}, "top_k: found 9, expected at most the 8 experts"),
        ({"unit_bytes": "[1, 2]"}, "unit_bytes: found .* expected 3 positive sizes"),
        ({"unit_bytes": "[1, x]"}, "unit_bytes: found .* expected a list of whole numbers"),
        ({"colour": "red"}, "colour: unknown"),
        ({"model": None}, "model: missing"),
    ],
)
def test_metadata_is_read_strictly(change: dict[str, str | None], message: str) -> None:
    strings = Metadata("m", 3, 8, 2, unit_bytes=(1, 2, 3)).to_strings(FORMAT)
    assert from_strings(strings) == Metadata("m", 3, 8, 2, unit_bytes=(1, 2, 3))
    changed = {name: value for name, value in (strings | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        from_strings(changed)


def test_a_failed_save_leaves_the_old_file_whole(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        trace.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_needs_a_folder(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        trace.save(tmp_path / "none" / "a.safetensors")


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 3), st.integers(1, 4))
def test_an_emulated_predictor_is_a_valid_guess(
    random_trace: Make, seed: int, recall: float, ahead: int, top_k: int
) -> None:
    # Building the trace checks ranges, duplicates and the early layers; here: nothing is lost but what must be.
    trace = random_trace(seed, lengths=(5,), layers=4, experts=5, top_k=top_k)
    guessed = trace.with_predictor("x", recall, np.random.default_rng(seed), ahead)
    assert guessed.sources == {"x": ahead}
    for h in range(1, ahead + 1):
        ids = guessed.predicted["x" if h == 1 else f"x.{h}"]
        assert np.all(ids[:, :h] == 255)
        kept = (ids[:, h:, :] == trace.experts[:, h:, :]).sum(axis=-1)
        new = ((ids[:, h:, :, None] != trace.experts[:, h:, None, :]).all(axis=-1) & (ids[:, h:] != 255)).sum(axis=-1)
        # Of the 5 experts a token leaves 5 - top_k unused: so many ids can be replaced, further ones are none.
        np.testing.assert_array_equal(new, np.minimum(top_k - kept, 5 - top_k))


def test_an_emulated_predictor_has_no_cosines(trace: Trace) -> None:
    assert set(trace.cosine) == {"gate", "gate.2"}
    assert trace.with_predictor("gate", 0.5, np.random.default_rng(0)).cosine == {}
    assert trace.with_predictor("other", 0.5, np.random.default_rng(0)).cosine == trace.cosine


def test_recall_of_an_emulated_predictor(random_trace: Make) -> None:
    trace = random_trace(5, lengths=(3000,), layers=3, experts=16, top_k=4)
    guessed = trace.with_predictor("x", [0.8, 0.5], np.random.default_rng(0), ahead=2)
    for name, h, recall in (("x", 1, 0.8), ("x.2", 2, 0.5)):
        ids, true = guessed.predicted[name][:, h:], trace.experts[:, h:]
        found = (true[..., None] == ids[..., None, :]).any(axis=-1)
        # 12,000 ids or more a distance: the standard error is below 0.005.
        assert abs(found.mean() - recall) < 0.02
        # The replacements spread evenly over the 12 other ids: each is drawn by about a 12th of the misses.
        drawn = np.bincount(ids[~(ids[..., None] == true[..., None, :]).any(axis=-1)], minlength=16)
        assert drawn.min() > 0.7 * drawn.mean()
    again = trace.with_predictor("x", [0.8, 0.5], np.random.default_rng(0), ahead=2)
    assert_equal(guessed, again)
    replaced = guessed.with_predictor("x", 1.0, np.random.default_rng(0))
    assert replaced.sources == {"x": 1}
    np.testing.assert_array_equal(replaced.predicted["x"][:, 1:], trace.experts[:, 1:])


def test_emulating_refuses_bad_recalls(trace: Trace) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"found recall 1\.5, expected shares between 0 and 1"):
        trace.with_predictor("x", 1.5, rng)
    with pytest.raises(InputError, match="found 1 recalls for 2 layers ahead"):
        trace.with_predictor("x", [0.5], rng, ahead=2)
