"""calibrate and validate from end to end on host memory with a slow link: decisions, bytes and ranking, no times."""

import json

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")
transformers = pytest.importorskip("transformers", reason="needs the runtime extra")

from dali.experiments.cli import main
from dali.experiments.profiles import load
from dali.experiments.verbs.run import log
from dali.experiments.verbs.validate.report import Report, tau
from dali.experiments.verbs.validate.runs import RanAndSimulated, Setting
from dali.experiments.verbs.validate.sides import (
    EXACT,
    Side,
    agreement,
    covered,
)
from dali.sim.timeline import Spans

# A unit is 12 kB: 5 ms a copy, far more than its products take on any machine.
DEVICE = ["device=cpu", "cpu_threads=1", "link_bytes_per_s=2.5e6", "dtype=float32"]
POLICIES = ("naive", "on_demand", "moe_lightning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("loop")


@pytest.fixture(scope="module")
def loop(place, random_trace):
    """The files of a small model and trace, calibrated and validated."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(place / "model")
    random_trace(3, lengths=(12, 12, 12)).save(place / "trace.safetensors")
    calibrated = main(
        [
            "calibrate",
            "name=slow",
            f"profile={place}/slow.yaml",
            f"checkpoint={place}/model",
            *DEVICE,
            "rounds=2",
            "copies=2",
            "tokens=[1,4]",
            "batches=[1,2]",
            "contexts=[4,12]",
            "prefill=[4,16]",
            f"output={place}/out",
        ]
    )
    assert calibrated == 0
    assert main(validating(place)) == 0
    (found,) = (place / "out" / "validate").iterdir()
    return found


def validating(place, *others):
    return [
        "validate",
        f"profile={place}/slow.yaml",
        f"checkpoint={place}/model",
        f"trace={place}/trace.safetensors",
        *DEVICE,
        f"policies=[{','.join(POLICIES)}]",
        "cache_share=[0.5]",
        "batch=[1]",
        "prompt=3",
        "generate=4",
        "repeats=1",
        f"output={place}/out",
        *others,
    ]


# ---- the loop


def test_what_must_be_equal_is(loop):
    """Nothing of naive and on_demand is copied early; what moe_lightning does must follow from when copies landed."""
    decisions = json.loads((loop / "validation.json").read_text())["decisions"]
    for policy in POLICIES:
        found = decisions[f"{policy}, batch 1, cache 0.5"]
        # Two rounds of a prompt step and four tokens, three layers each.
        assert found["layer_steps"] == 2 * 5 * 3
        assert found["replays"]
        assert found["depends_on_times"] == (policy == "moe_lightning")
        if policy != "moe_lightning":
            assert found["differing"] == 0
            assert found["counts"] == {}
            assert found["first_difference"] == ""


def test_ranking_is_right(loop):
    """On a link this slow, a policy that never copies beats one that copies every missing unit."""
    found = json.loads((loop / "validation.json").read_text())
    results = pd.read_parquet(loop / "results.parquet").set_index(["policy", "phase"])
    for phase in ("prefill", "decode"):
        for side in ("measured", "simulated"):
            assert results.at[("naive", phase), side] < results.at[("on_demand", phase), side]
    assert set(found["kendall_tau"]) == {"prefill", "decode"}
    for name in ("decode_mape", "prefill_mape"):
        assert set(found[name]) == set(POLICIES)
        assert all(value >= 0 for each in found[name].values() for value in each.values())


def test_where_the_time_goes(loop):
    results = pd.read_parquet(loop / "results.parquet").set_index(["policy", "phase"])
    assert results.at[("on_demand", "decode"), "measured link"] > 0
    assert results.at[("naive", "decode"), "measured link"] == 0 < results.at[("naive", "decode"), "measured CPU units"]


def test_what_is_left_behind(loop, place):
    assert {"summary.md", "validation.json", "results.parquet", "steps.parquet"} <= {f.name for f in loop.iterdir()}
    assert {"timeline.png", "errors.png", "timeline.json.gz", "config.yaml", "manifest.json"} <= {
        f.name for f in loop.iterdir()
    }
    (calibrated,) = (place / "out" / "calibrate").iterdir()
    assert {"units.png", "copies.png", "dense.png", "slow.yaml", "summary.md"} <= {f.name for f in calibrated.iterdir()}


def test_one_perfetto_file_with_both(loop):
    import gzip

    with gzip.open(loop / "timeline.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {1: "measured", 2: "simulated"}
    assert {event["pid"] for event in events if event["ph"] == "X"} == {1, 2}


def running(place, *others):
    return [
        "run",
        f"model={place}/model",
        "tokenizer=bytes",
        f"profile={place}/slow.yaml",
        f"routing={place}/trace.safetensors",
        "device=cpu",
        "cpu_threads=1",
        "link_gbs=2.5e-3",
        "dtype=float32",
        "policy=frontier prefetch.source=oracle",
        "cache_share=0.5",
        "prompt_tokens=3",
        "generate=4",
        f"output={place}/out",
        *others,
    ]


def test_a_run_believes_the_profile(loop, place):
    """The policy's log has the profile's times in it, the dense part's too, and replays with them."""
    assert main(running(place)) == 0
    (found,) = (place / "out" / "run").iterdir()
    (file,) = found.glob("*.planner.npz")
    saved, profile = log.load(file), load(str(place / "slow.yaml"))
    assert saved.believed.cpu[1:5].tolist() == profile.cpu(np.arange(1, 5)).tolist()
    assert saved.believed.dense(3, 3, 1.0) == profile.dense["decode"](3, 1.0) > 0
    assert saved.replay() is None


def test_a_run_refuses_another_machines_profile(loop, place, capsys):
    assert main(running(place, "link_gbs=1")) == 2
    assert "expected link_bytes_per_s 2500000.0, found 1000000000.0 here" in capsys.readouterr().err


def test_plan_measures_nothing(loop, place, capsys):
    arguments = ["calibrate", "name=slow", f"profile={place}/none.yaml", f"checkpoint={place}/model", *DEVICE]
    small = ["rounds=2", "copies=2", "tokens=[1,4]", "batches=[1]", "contexts=[4,12]", "prefill=[4]", "plan=true"]
    assert main(arguments + small) == 0
    said = capsys.readouterr().out
    assert "would measure, 2 rounds, in about" in said
    assert "1 to 4 tokens, idle and while copies run" in said
    assert not (place / "none.yaml").exists()


# ---- bad input


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (
            ["link_bytes_per_s=9e6"],
            "profile slow: expected link_bytes_per_s 2500000.0, found 9000000.0 here",
        ),
        (["slices=2"], "profile slow: expected an expert geometry of slices 1, found 2"),
        (["tuned_on.policies=[naive]"], "tuned_on.policies: found ['naive'] among what is reported"),
        (["cache_share=[0.1]"], "found GPU memory for 2 units, expected more than its staging area"),
        (["profile=nowhere"], "profile: found no file"),
        (["profile=rtx4090_ddr5"], "found no measured costs, expected a file that dali calibrate wrote"),
        (["policies=[dali]"], "predictor residual"),
        (["cache_share=[2]"], "cache_share: found [2], expected shares"),
    ],
)
def test_bad_input_is_one_line(loop, place, capsys, others, line):
    extra = ["emulate_predictors=false"] if others == ["policies=[dali]"] else []
    assert main(validating(place, *others, *extra)) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("dali validate:")]
    assert len(said) == 1
    assert line in said[0]


def test_calibrate_bad_input(loop, place, capsys):
    assert main(["calibrate", "name=a/b"]) == 2
    assert "name: found 'a/b', expected letters" in capsys.readouterr().err
    wrong = ["calibrate", "name=a", f"profile={place}/a.yaml", f"checkpoint={place}/model", *DEVICE, "prefill=[100]"]
    assert main(wrong) == 2
    assert "has 64 positions" in capsys.readouterr().err


def test_compare_takes_the_profile(loop, place, capsys):
    """For the very same units; those of another model are refused."""
    shape = ["hidden=32", "expert_width=32", "expert_bits=32", "layers=3", "experts=8", "top_k=2"]
    model = ["model=mixtral_8x7b", *(f"model.{size}" for size in shape)]
    common = ["compare", f"platform={place}/slow.yaml", f"trace={place}/trace.safetensors", f"output={place}/out"]
    sizes = ["policies=[naive,on_demand]", "baseline=naive", "cache_share=0.5", "workload.batch=[1]"]
    cut = ["workload.prompt=3", "workload.generate=4"]
    assert main([*common, *model, *sizes, *cut]) == 0
    assert "on slow, measured costs" in capsys.readouterr().out
    assert main([*common, *sizes, *cut]) == 2
    assert "profile slow: expected an expert geometry of hidden 32, found 2048" in capsys.readouterr().err


# ---- pieces


def side(seconds, decisions=(), busy=(), **counts):
    """Decode steps one after the other; spans (start, end, lane, unit)."""
    ends = np.cumsum(seconds)
    columns = {
        "phase": np.array(["decode"] * len(seconds)),
        "start": ends - seconds,
        "end": ends,
        "moe_time": np.asarray(seconds) / 2,
        "step": np.arange(len(seconds)),
    }
    time = np.array([span[:2] for span in busy], float).reshape(-1, 2)
    what = np.array([(lane, 0, 0, unit, 1, 1) for *_, lane, unit in busy], np.int32).reshape(-1, 6)
    return Side(columns, Spans(time, what), list(decisions), dict.fromkeys((*EXACT, "late"), 0) | counts)


def test_covered():
    """0 to 2 and 1 to 3 overlap: 3 seconds; 5 to 6 makes 4."""
    assert covered(np.array([[1.0, 3.0], [0.0, 2.0], [5.0, 6.0]])) == 4


def test_terms():
    """A step of 4 s, 2 of them in layer steps: GPU 2 to 2.5, CPU 2.25 to 3, so that for 1 s nobody works."""
    found = side([4.0], busy=[(0.0, 2.0, 0, -1), (2.0, 2.5, 0, 3), (2.25, 3.0, 1, 4), (1.0, 1.5, 3, 5)]).terms("decode")
    assert found == pytest.approx(
        {"dense part": 2.0, "GPU units": 0.5, "CPU units": 0.75, "link": 0.5, "all waiting": 1.0}
    )


def test_first_difference():
    ran = side([1.0], [(0, 0, [1], [2]), (0, 1, [1], [2, 3])], hits=3)
    simulated = side([1.0], [(0, 0, [1], [2]), (0, 1, [1, 3], [2])], hits=4)
    found = agreement(ran, simulated)
    assert not found.equal
    assert (found.layer_steps, found.differing) == (2, 1)
    assert found.first == "round 0, step 0, layer 1: on the GPU only as run [3], only as simulated []"
    assert found.counts == {"hits": (3, 4)}
    assert agreement(ran, ran).equal


def test_errors_of_a_report():
    """Measured 1 and 2 s (the median of three repeats), simulated 1.5 and 2: errors 50 % and 0, 3.5 over 3 in total."""
    ran = [side([1.0, 2.0]), side([1.0, 9.0]), side([0.5, 2.0])]
    outcome = RanAndSimulated("p", Setting(1, 0.5), ran, side([1.5, 2.0]), None, True, 0.0, 0.0, 1)
    row = Report([outcome]).table().iloc[0]
    assert row["mape"] == pytest.approx(0.25)
    assert row["error"] == pytest.approx(3.5 / 3 - 1)


def test_tau():
    assert tau(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])) == pytest.approx(1)
    # One of three pairs the wrong way round: (2 - 1) / 3.
    assert tau(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])) == pytest.approx(1 / 3)
