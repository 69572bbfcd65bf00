"""GPU memory at its ends: no expert stays, all of them do, and more memory than they take."""

from pathlib import Path

import pandas as pd
import pytest
from toys import TOY

import dali
from dali.experiments.cli import main
from dali.experiments.scene import read_scene
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.gpu_memory import units_that_stay
from dali.experiments.verbs.compare.text import title
from dali.policies.types import InputError

ALL = ["naive", "on_demand", "llama_cpp", "ktransformers", "fiddler", "moe_lightning", "hybrimoe", "dali", "frontier"]
ALL += ["oracle"]


def settings(toy: Path, *more: str) -> list[str]:
    return [f"trace={toy}", *(each for each in TOY if not each.startswith("cache_share")), *more]


def compare(toy: Path, *more: str) -> pd.DataFrame:
    return dali.compare(*settings(toy, *more), policies=ALL).set_index(["policy", "batch", "phase"]).sort_index()


def test_what_stays_of_the_slots():
    # 24 units, 6 slots of staging: of 10 slots 4 are left; of none none, and of those for all units all.
    assert [units_that_stay("p", 6, slots, 24) for slots in (0, 7, 10, 23, 24)] == [0, 1, 4, 17, 24]
    for slots in (1, 6):
        with pytest.raises(InputError, match=f"found GPU memory for {slots} units, expected more than its staging"):
            units_that_stay("p", 6, slots, 24)


def test_without_slots_no_expert_stays(toy):
    none = compare(toy, "cache_share=0")
    pd.testing.assert_frame_equal(none, compare(toy, "expert_memory_gb=0"))
    # Nothing is ever swapped in, and what is not hinted at is absent when its layer begins.
    assert (none["bytes_swap"] == 0).all()
    for policy in ("naive", "on_demand", "llama_cpp", "ktransformers", "fiddler"):
        assert (none.loc[policy, "hit_rate"] == 0).all(), policy
    # Those that copy nothing run every expert on the CPU, so that they are as fast as each other.
    for policy in ("llama_cpp", "ktransformers"):
        decode = none.xs(policy).xs("decode", level="phase")
        assert (decode["bytes_demand"] == 0).all()
        assert (decode["gpu_share"] == 0).all()
        pd.testing.assert_series_equal(decode["seconds"], none.xs("naive").xs("decode", level="phase")["seconds"])


def test_from_32_tokens_on_llama_cpp_copies_through_staging(toy):
    few, many = (
        dali.simulate("llama_cpp", *settings(toy, "cache_share=0"), batch=batch, workload={"prompt": 8, "generate": 1})
        for batch in (3, 4)
    )
    assert (few["bytes_demand"] == 0).all()  # a prefill of 24 tokens
    assert many["bytes_demand"].tolist()[0] > 0
    assert many["hits"].tolist()[0] == 0


def test_with_slots_for_all_nothing_is_copied(toy):
    for share in ("cache_share=1", "expert_memory_gb=24"):
        whole = compare(toy, share)
        lazy = whole.drop("naive", level="policy")  # whose memory stays empty
        assert (lazy["hit_rate"] == 1).all()
        assert (lazy[["bytes_demand", "bytes_prefetch", "bytes_swap"]] == 0).all(axis=None)


def test_memory_beyond_the_model_is_capped_and_noted(toy):
    # 24 experts of 9.44 MB are 0.23 GB.
    scene = read_scene(configuration("compare", settings(toy, "expert_memory_gb=20")))
    assert scene.slots == scene.all_units == 24
    assert "All experts take 0.2 GB: of 20 GB for them the rest stays empty." in scene.notes
    assert "24 units (100% of them, 0.2 GB)" in title(scene)


def test_more_memory_than_the_gpu_has(toy):
    # A share is a what-if, gigabytes are a mistake: 3/4 of Mixtral's experts take 67.6 GB.
    big = ["model=mixtral_8x7b", "trace=mixtral_8x7b", "trace.sequences=1"]
    notes = read_scene(configuration("compare", [*big, "cache_share=0.75"])).notes
    assert any("67.6 GB, is more than the 24 GB" in note and "what-if" in note for note in notes)
    with pytest.raises(InputError, match=r"expert_memory_gb: found 67\.6, expected at most the 24 GB of rtx3090"):
        read_scene(configuration("compare", [*big, "expert_memory_gb=67.6"]))


def test_gap_and_its_bound_without_slots(toy, tmp_path):
    small = [
        "batch=[2]",
        "decode={prompt:4,steps:4}",
        "prefill={sequences:2,tokens:8}",
        "cache_shares=[0,1]",
        "ilp_every=3",
    ]
    scene = f"scenes=['model=qwen3_30b_a3b trace={toy}']"
    assert main(["gap", scene, f"output={tmp_path}", *small]) == 0
    (place,) = (tmp_path / "gap").iterdir()
    results = pd.read_parquet(place / "results.parquet")
    assert set(results["cache_share"]) == {0, 1}
    for _, rows in results.groupby(["cache_share", "batch", "phase"]):
        bound = rows.set_index("kind").loc["bound", "tokens_per_s"]
        assert (rows["tokens_per_s"] <= bound * (1 + 1e-9)).all()


def test_a_sweep_over_both_ends(toy, tmp_path):
    grid = ["experiment.grid.model=[qwen3_30b_a3b]", "experiment.grid.batch=[3]", "experiment.grid.cache_share=[0,1]"]
    more = ["policies=[llama_cpp,dali]", "workload.prompt=4", "workload.generate=4", f"output={tmp_path}"]
    assert main(["sweep", "experiment=winner", f"trace={toy}", *grid, *more]) == 0
    rows = pd.read_parquet(tmp_path / "sweep" / "winner" / "results.parquet")
    assert rows.groupby("cache_share")["slots"].unique().map(list).to_dict() == {0: [0], 1: [24]}
    assert rows[rows["cache_share"] == 1]["hit_rate"].eq(1).all()
