"""Importers: small files by hand, malformed ones, and the recorded traces."""

import gzip
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali.policies.types import InputError
from dali.traces.importers import IMPORTERS, import_trace
from dali.traces.importers.bigmoeonedge import residency
from dali.traces.trace import Trace
from dali.traces.workload import Workload

NVMOE = "[[1, 5], [1, 2], [2, 0], [2, 1]]\n[[1, 3], [1, 4], [2, 6], [2, 7]]\n"

HEAD = """# route_trace v1
# model=/data/Tiny-Q4.gguf arch=tiny n_layer=2 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=7
# layer=1 expert_bytes=90 dense_bytes=7
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
"""
# A prompt of two tokens (layer 1 computes the last alone), then one generated token.
ROWS = """0,0,0,0,0,1,0.75,0,100
0,0,0,0,1,2,0.25,0,100
0,0,1,0,0,2,0.5,0,0
0,0,1,0,1,3,0.5,0,100
0,0,1,1,0,0,0.625,0,90
0,0,1,1,1,3,0.375,0,90
0,1,2,0,0,3,0.5,1,0
0,1,2,0,1,0,0.5,0,100
0,1,2,1,0,3,0.5,2,0
0,1,2,1,1,1,0.5,0,90
"""
FIDDLER = '{"total_input_tokens": 3, "expert_popularity": [[4, 2, 2], [3, 3, 2]]}'
OLMOE = '{"example_index": 0, "routed": {"0": [[0, 2], [3, 2]], "1": [[1, 1], [2, 1], [0, 2]]}}'


def write(folder: Path, text: str, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_nvmoe_by_hand(tmp_path: Path) -> None:
    trace = import_trace("nvmoe", write(tmp_path, NVMOE, "tiny.tokens.jsonl"), experts=8)
    assert isinstance(trace, Trace)
    np.testing.assert_array_equal(trace.experts, [[[5, 2], [0, 1]], [[3, 4], [6, 7]]])
    assert (trace.metadata.model, trace.experts_count, trace.position.tolist()) == ("tiny", 8, [0, 1])
    assert trace.prompt_length.tolist() == [0]
    assert trace.weights is None
    cut = import_trace("nvmoe", tmp_path / "tiny.tokens.jsonl", experts=8, sequence_length=1)
    assert isinstance(cut, Trace)
    assert (cut.sequences, cut.position.tolist()) == (2, [0, 0])


def test_bigmoeonedge_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + ROWS)
    trace = import_trace("bigmoeonedge", path)
    assert isinstance(trace, Trace)
    none = 255
    np.testing.assert_array_equal(trace.experts, [[[1, 2], [none, none]], [[2, 3], [0, 3]], [[3, 0], [3, 1]]])
    assert trace.weights is not None
    np.testing.assert_array_equal(trace.weights[:2], [[[0.75, 0.25], [0, 0]], [[0.5, 0.5], [0.625, 0.375]]])
    assert (trace.metadata.model, trace.metadata.unit_bytes) == ("Tiny-Q4", (100, 90))
    assert (trace.prompt_length.tolist(), trace.position.tolist()) == ([2], [0, 1, 2])
    np.testing.assert_array_equal(residency(path), [[[0, 0], [-1, -1]], [[0, 0], [0, 0]], [[1, 0], [2, 0]]])


def test_turns_of_bigmoeonedge_become_sequences(tmp_path: Path) -> None:
    second = "".join("1" + line[1:] + "\n" for line in ROWS.splitlines())
    trace = import_trace("bigmoeonedge", write(tmp_path, HEAD + ROWS + second))
    assert isinstance(trace, Trace)
    assert (trace.sequence.tolist(), trace.position.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    assert trace.prompt_length.tolist() == [2, 2]


def test_fiddler_by_hand(tmp_path: Path) -> None:
    paths = [write(tmp_path, FIDDLER, name) for name in ("one.json", "two.json")]
    workload = import_trace("fiddler", paths)
    assert isinstance(workload, Workload)
    steps = list(workload.steps())
    # 8 choices of top-2 in each layer: 4 tokens.
    assert [step.tokens for step in steps] == [4, 4]
    np.testing.assert_array_equal(steps[1].workload, [[4, 2, 2], [3, 3, 2]])
    assert workload.metadata.text == "one, two"


def test_olmoe_prefill_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((OLMOE + "\n").encode()))
    workload = import_trace("olmoe_prefill", path, layers=2, experts=4, top_k=2)
    assert isinstance(workload, Workload)
    (step,) = workload.steps()
    # 4 choices of top-2: 2 tokens of one prompt, attending to 1 and 2 positions.
    assert (step.tokens, step.sequences, step.context) == (2, 1, 1.5)
    np.testing.assert_array_equal(step.workload, [[2, 0, 0, 2], [2, 1, 1, 0]])


SMALL: dict[str, dict[str, Any]] = {
    "nvmoe": {"experts": 8},
    "bigmoeonedge": {},
    "fiddler": {},
    "olmoe_prefill": {"layers": 2, "experts": 4, "top_k": 2},
}
MALFORMED = [
    ("nvmoe", "", "found no tokens"),
    ("nvmoe", NVMOE + "[[1, 5\n", "a.txt:3: not JSON"),
    ("nvmoe", NVMOE + "{}\n", r"a.txt:3: expected a list of \[layer, expert\]"),
    ("nvmoe", NVMOE.replace("[2, 7]", "[2, 8]"), "a.txt:2: found expert 8, expected 0 to 7"),
    ("nvmoe", NVMOE.replace("[2, 7]", "[2, true]"), "a.txt:2: found expert True"),
    ("nvmoe", NVMOE.replace("[2, 7]", "[2]"), r"a.txt:2: found \[2\], expected \[layer, expert\]"),
    ("nvmoe", NVMOE.replace("[2, 7]", "[3, 7]"), "a.txt:2: layers differ"),
    ("nvmoe", NVMOE.replace("[2, ", "[4, "), "a.txt:1: expected layers in a row"),
    ("nvmoe", NVMOE.replace("[2, 7]", "[2, 6]"), "a.txt: experts: found id 6 at token 1, layer 1, slot 1 a second"),
    ("bigmoeonedge", HEAD, "found no rows of a route_trace"),
    ("bigmoeonedge", ROWS, "a.txt:1: found '0,0,0,0,0,1,0.75,0,100', expected the columns"),
    ("bigmoeonedge", HEAD.replace("v1", "v2") + ROWS, "expected the comments '# route_trace v1'"),
    ("bigmoeonedge", HEAD.replace("layer=1 ", "layer=2 ") + ROWS, "for layers 0 to 1"),
    ("bigmoeonedge", HEAD + ROWS + "0,1,3,0\n", "a.txt:16: found '0,1,3,0', expected turn,phase"),
    ("bigmoeonedge", HEAD + ROWS.replace("0.625", "1-2"), "a.txt:10: found weight '1-2'"),
    ("bigmoeonedge", HEAD + ROWS.replace("1,1,3,0.375", "1,1,4,0.375"), "a.txt:11: found expert 4, expected below 4"),
    ("bigmoeonedge", HEAD + ROWS + "0,0,3,0,0,1,0.5,0,0\n", "a.txt:16: row out of order"),
    ("bigmoeonedge", HEAD + ROWS.rstrip("\n").rpartition("\n")[0], "a.txt:14: the file ends with layer 1, slot 0"),
    ("bigmoeonedge", HEAD + ROWS + ROWS.splitlines()[-1], "a.txt:16: row out of order"),
    ("bigmoeonedge", HEAD + ROWS.replace("1,1,3,0.375", "1,1,0,0.375"), "a.txt: experts: found id 0 at token 1"),
    ("fiddler", "{", "a.txt: not JSON"),
    ("fiddler", "[]", "a.txt: expected expert_popularity"),
    ("fiddler", FIDDLER.replace(", 2]]", "]]"), "a.txt: expert_popularity: expected as many counts in each layer"),
    ("fiddler", FIDDLER.replace("[4,", "[-4,"), "a.txt: expert_popularity: expected as many counts"),
    ("fiddler", FIDDLER.replace("[4,", "[5,"), "a.txt: expected every layer to count the same multiple of top_k 2"),
    ("olmoe_prefill", "", "found no prompts"),
    ("olmoe_prefill", OLMOE + "\n[]", 'a.txt:2: expected "routed" with layers 0 to 1'),
    ("olmoe_prefill", OLMOE.replace('"1"', '"2"'), 'a.txt:1: expected "routed" with layers 0 to 1'),
    (
        "olmoe_prefill",
        OLMOE.replace("[3, 2]", "[4, 2]"),
        "a.txt:1: layer 0: found expert 4, expected 0 to 3, each once",
    ),
    ("olmoe_prefill", OLMOE.replace("[3, 2]", "[0, 2]"), "a.txt:1: layer 0: found expert 0"),
    ("olmoe_prefill", OLMOE.replace("[3, 2]", "3"), r"a.txt:1: layer 0: found 3, expected \[expert, tokens\]"),
    ("olmoe_prefill", OLMOE.replace("[3, 2]", "[3, 1]"), "a.txt:1: expected every layer to count the same multiple"),
]


@pytest.mark.parametrize(("kind", "text", "message"), MALFORMED)
def test_malformed_files_are_named_with_their_line(tmp_path: Path, kind: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        import_trace(kind, write(tmp_path, text), **SMALL[kind])
    assert str(raised.value).startswith(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", IMPORTERS)
def test_files_that_are_not_there_or_not_text(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_trace(kind, tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"not a (whole )?text file"):
        import_trace(kind, tmp_path / "binary")


def test_damaged_gzip_files(tmp_path: Path) -> None:
    whole = gzip.compress((OLMOE + "\n").encode() * 50)
    damaged = bytearray(whole)
    damaged[10] ^= 0xFF  # the first byte of the compressed stream
    for content in (whole[:-12], b"text", bytes(damaged)):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match="not a whole text file"):
            import_trace("olmoe_prefill", tmp_path / "a.jsonl.gz", **SMALL["olmoe_prefill"])


def test_wrong_calls(tmp_path: Path) -> None:
    path = write(tmp_path, NVMOE)
    with pytest.raises(InputError, match="import format: found 'csv', expected one of bigmoeonedge, nvmoe"):
        import_trace("csv", path)
    with pytest.raises(InputError, match="import nvmoe: found option 'colour', expected one of sequence_length"):
        import_trace("nvmoe", path, colour=1)
    with pytest.raises(InputError, match="found 2 files, expected one"):
        import_trace("nvmoe", [path, path])
    with pytest.raises(InputError, match="found no files"):
        import_trace("fiddler", [])
    for length in (0, 3):
        with pytest.raises(InputError, match=f"found 2 tokens, expected a multiple of sequence_length {length}"):
            import_trace("nvmoe", path, experts=8, sequence_length=length)


RECORDED: list[tuple[str, str, dict[str, Any], Callable[[Any], Any], Any]] = [
    ("nvmoe", "nvmoe/dsv2lite-all.tokens.jsonl", {"sequence_length": 349}, lambda t: t.experts.shape, (1396, 26, 6)),
    ("nvmoe", "nvmoe/olmoe-all.tokens.jsonl", {"sequence_length": 299}, lambda t: t.experts.shape, (897, 16, 8)),
    ("bigmoeonedge", "bigmoeonedge/qwen.route.csv", {}, lambda t: t.prompt_length.tolist(), [28]),
    ("bigmoeonedge", "bigmoeonedge/gemma.route.csv", {}, lambda t: t.experts.shape, (157, 30, 6)),
    ("olmoe_prefill", "olmoe_prefill/routed_sets.jsonl.gz", {}, lambda w: (w.n_steps, w.max_tokens), (1024, 256)),
]


@pytest.mark.parametrize(("kind", "path", "options", "read", "expected"), RECORDED)
def test_recorded_files_have_the_documented_shape(
    shared_traces: Path, kind: str, path: str, options: dict[str, Any], read: Callable[[Any], Any], expected: Any
) -> None:
    assert read(import_trace(kind, shared_traces / path, **options)) == expected


def byte_lru(trace: Trace, budget: int) -> list[np.ndarray]:
    """Hits of each step's active experts, by layer, of one LRU over all (layer, expert) pairs.

    The rules are those of the recorder's engine: each (step, layer) is one event, eviction comes after it, oldest
    first, and never removes what it touched.  Within the prompt, an expert is as old as its last appearance.
    """
    assert trace.metadata.unit_bytes is not None
    sizes = trace.metadata.unit_bytes
    resident: OrderedDict[tuple[int, int], None] = OrderedDict()
    used = 0
    hits = []
    prompt = int(trace.prompt_length[0])
    for step in Workload.from_trace(trace, 1, prompt, trace.tokens - prompt).steps(order="last"):
        for layer in range(trace.layers):
            order = step.layer_step(layer).order
            assert order is not None
            event = [(layer, int(expert)) for expert in order]
            hits.append(np.array([pair in resident for pair in event]))
            for pair in event:
                used += 0 if pair in resident else sizes[layer]
                resident[pair] = None
                resident.move_to_end(pair)
            while used > budget and (oldest := next(iter(resident))) not in event:
                del resident[oldest]
                used -= sizes[oldest[0]]
    return hits


@pytest.mark.parametrize(("name", "rows", "rate"), [("qwen", 36_864, 0.8029), ("gemma", 23_040, 0.8191)])
def test_order_and_sizes_reproduce_the_engines_own_record(
    shared_traces: Path, name: str, rows: int, rate: float
) -> None:
    path = shared_traces / "bigmoeonedge" / f"{name}.route.csv"
    trace = import_trace("bigmoeonedge", path)
    assert isinstance(trace, Trace)
    hits = byte_lru(trace, 4000 << 20)
    # A generated token's experts appear once each, in slot order.
    decode = residency(path)[int(trace.prompt_length[0]) :] != 0
    replayed = np.array(hits[trace.layers :]).reshape(decode.shape)
    assert decode.size == rows
    assert np.count_nonzero(replayed == decode) == rows
    assert round(float(decode.mean()), 4) == rate
