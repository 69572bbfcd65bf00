"""`dali import` and `dali replay` end to end."""

import json

import numpy as np
import pandas as pd
import pytest

from dali.experiments.cli import main
from dali.experiments.verbs.replay import known_popularity, parse_capacity
from dali.policies.types import InputError
from dali.traces.workload import Workload, expert_counts, popularity


def write_nvmoe(path, tokens: list[list[list[int]]]) -> None:
    path.write_text("".join(json.dumps(token) + "\n" for token in tokens))


def test_import_then_replay_by_hand(tmp_path, capsys, monkeypatch):
    """One layer, top-1, two slots, LRU: the lookups 0 1 0 2 1 miss, miss, hit, miss (evicts 1), miss."""
    monkeypatch.chdir(tmp_path)
    write_nvmoe(tmp_path / "t.jsonl", [[[1, expert]] for expert in (0, 1, 0, 2, 1)])
    assert main(["import", "format=nvmoe", "input=t.jsonl", "output=t.safetensors", "options.experts=4"]) == 0
    assert "5 tokens in 1 sequences" in capsys.readouterr().out
    assert main(["replay", "trace=t.safetensors", "cache=lru", "cache.capacity=2", "save=rows.parquet"]) == 0
    assert "20.00%" in capsys.readouterr().out
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    assert rows["unit"].tolist() == [0, 1, 0, 2, 1]
    assert rows["hit"].tolist() == [False, False, True, False, False]
    assert main(["replay", "trace=t.safetensors", "cache=belady", "cache.capacity=2"]) == 0
    # Knowing that 0 is not used again, Belady evicts it for 2 and hits the last 1.
    assert "40.00%" in capsys.readouterr().out


def test_sequences_are_replayed_each_from_the_start(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nvmoe(tmp_path / "t.jsonl", [[[1, expert]] for expert in (3, 3, 3, 3)])
    options = ["options.experts=4", "options.sequence_length=2"]
    assert main(["import", "format=nvmoe", "input=t.jsonl", "output=t.safetensors", *options]) == 0
    capsys.readouterr()
    assert main(["replay", "trace=t.safetensors", "cache.capacity=1"]) == 0
    assert "50.00%" in capsys.readouterr().out  # 3 misses once in each of two sequences


def test_statistics_of_a_trace_file(tmp_path, capsys, random_trace):
    random_trace(layers=2, experts=8, top_k=2, lengths=[30, 30], seed=3).save(tmp_path / "t.safetensors")
    assert main(["import", "format=trace", f"input={tmp_path / 't.safetensors'}"]) == 0
    text = capsys.readouterr().out
    for name in ("overlap", "reuse within 8", "LRU hit rate at 25.0%, event-atomic", "busiest expert"):
        assert name in text


@pytest.mark.parametrize(("model", "rows"), [("qwen", 36_864), ("gemma", 23_040)])
def test_ground_truth_of_a_real_engine(shared_traces, tmp_path, capsys, model, rows):
    """The engine's own record of hits, row by row (../shared/traces/README.md): a global LRU of 4000 MiB."""
    from dali.traces.importers.bigmoeonedge import residency

    source = shared_traces / "bigmoeonedge" / f"{model}.route.csv"
    trace, saved = tmp_path / "t.safetensors", tmp_path / "rows.parquet"
    assert main(["import", "format=bigmoeonedge", f"input={source}", f"output={trace}"]) == 0
    settings = ["cache=lru", "cache.scope=global", "cache.capacity=4000MiB", f"save={saved}"]
    assert main(["replay", f"trace={trace}", *settings]) == 0
    overall, decode = {"qwen": ("74.88%", "80.29%"), "gemma": ("76.78%", "81.91%")}[model]
    out = capsys.readouterr().out
    assert decode in out
    assert overall in out

    replayed = pd.read_parquet(saved).query("decode")
    truth = residency(source)  # int32 [T, L, K], -1 where the file has no row
    assert len(replayed) == rows == int((truth[-128:] >= 0).sum())
    from dali.traces.trace import Trace

    ids = Trace.load(trace).experts[-128:].astype(np.int64)
    layers, slots = ids.shape[1:]
    recorded = pd.DataFrame(
        {
            "step": np.repeat(np.arange(1, 129), layers * slots),
            "layer": np.tile(np.repeat(np.arange(layers), slots), 128),
            "unit": ids.ravel(),
            "resident": truth[-128:].ravel() != 0,
        }
    )
    both = replayed.merge(recorded, on=["step", "layer", "unit"], validate="one_to_one")
    assert len(both) == rows
    assert (both["hit"] == both["resident"]).sum() == rows


@pytest.mark.parametrize(("cache", "reads"), [("lru", False), ("lru cache.fill=random", False), ("static", True)])
def test_popularity_is_counted_once_and_only_where_it_is_read(
    cache, reads, tmp_path, capsys, monkeypatch, random_trace
):
    random_trace(layers=2, experts=8, top_k=2, lengths=[10, 12, 14], seed=3).save(tmp_path / "t.safetensors")
    counted = []

    def counting(trace, sequences):
        counted.extend(sequences)
        return expert_counts(trace, sequences)

    monkeypatch.setattr("dali.experiments.verbs.replay.expert_counts", counting)
    monkeypatch.setattr("dali.traces.workload.expert_counts", counting)
    assert main(["replay", f"trace={tmp_path / 't.safetensors'}", *f"cache={cache}".split()]) == 0
    # Each of three sequences in the sum of all, and once more by itself.
    assert sorted(counted) == sorted([0, 1, 2] * 2 if reads else [])
    assert ("Popularity is measured on the 2 sequences" in capsys.readouterr().out) == reads


def test_popularity_of_a_replay_leaves_the_sequence_out(random_trace):
    trace = random_trace(layers=2, experts=8, top_k=2, lengths=[10, 12, 14], seed=3)
    workloads = [Workload.from_trace(trace, 1, 0, 10, [sequence], slices=2) for sequence in range(3)]
    known, _ = known_popularity(trace, workloads)
    for sequence, shares in enumerate(known):
        others = [other for other in range(3) if other != sequence]
        np.testing.assert_array_equal(shares, popularity(trace, others, slices=2))


@pytest.mark.parametrize(
    ("value", "room"),
    [
        (10, 10),
        ("50%", 8),
        ("3kB", None),
        ("48MiB", 48 * 2**20),
        ("0.5GB", 500_000_000),
        ("7 KB", 7000),
        ("-3", None),
        (0, 0),
        ("0%", 0),
        ("0GB", 0),
    ],
)
def test_capacities(value, room):
    sizes = np.full(2, 1000, np.int64)
    if room is None:
        with pytest.raises(InputError, match=r"cache\.capacity"):
            parse_capacity(value, "global", 2, 8, sizes)
    else:
        assert parse_capacity(value, "global", 2, 8, sizes).room.tolist() == [room]
