"""`dali run`: what it prints and writes, shapes with random weights, and one line for what it cannot do."""

import copy
import dataclasses
import gzip
import json
import math
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")
transformers = pytest.importorskip("transformers", reason="needs the runtime extra")

from dali.experiments.cli import main
from dali.experiments.models import shaped
from dali.experiments.models.fewer_layers import cut_to_layers, scaled_to_layers
from dali.experiments.scene import expert_popularity
from dali.experiments.settings.compose import SHIPPED, configuration, listing
from dali.experiments.settings.objects import make, make_policy
from dali.experiments.verbs.run import log, model, others, report
from dali.experiments.verbs.run import session as session_module
from dali.experiments.verbs.run.once import (
    Shown,
    Timing,
)
from dali.experiments.verbs.run.plan import RunPlan
from dali.experiments.verbs.run.session import (
    PolicyRun,
    Progress,
    Session,
)
from dali.policies.columns import LANES, METRICS, PLANNER
from dali.policies.costs.roofline import roofline
from dali.policies.planner import Planner
from dali.policies.types import Capacity, InputError, Shape
from dali.runtime.device.host import HostArena
from dali.runtime.execute.layer_steps import ForcedRouting
from dali.sim.engine import Engine
from dali.traces.trace import Trace

TINY = SHIPPED / "tiny_moe"
GIVEN = ["device=cpu", "cache_share=0.25"]
# A Qwen3-MoE whose experts are 64 x 16, on the routing of the shipped trace: 2 layers x 64 experts.
SHAPE = ["model=qwen3_30b_a3b", "model.hidden=64", "model.expert_width=16", "layers=2", "dtype=float32"]
FORCED = [*SHAPE, "routing=tiny_moe", "device=cpu", "cache_share=0.25", "prompt_tokens=8", "generate=4"]
PROMPT = "def merge_sorted(left, right):\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch, loaded):
    """The shipped model is loaded once, and bandwidths, which have tests of their own, are measured shortly."""
    load = model.load_model
    monkeypatch.setattr(model, "load_model", lambda name, *how: loaded(load, name, *how))
    for measured in ("copy_bandwidth", "read_bandwidth"):
        monkeypatch.setattr(session_module, measured, partial(getattr(session_module, measured), seconds=0.01))


@pytest.fixture(scope="module")
def loaded():
    """Function (how to load, name, other arguments) -> model, a copy of what the same arguments gave before."""
    models = {}

    def load(really, name, *how):
        if name != str(TINY):
            return really(name, *how)
        if how not in models:
            models[how] = really(name, *how)
        return copy.deepcopy(models[how])

    return load


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(capsys, *arguments: str) -> str:
    assert main(["run", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fails(capsys, *arguments: str) -> str:
    assert main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("dali run: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert out == ""
    return lines[0]


def results(here):
    (folder,) = (here / "outputs" / "run").iterdir()
    return folder


def session(*arguments: str) -> Session:
    overrides = list(arguments)
    return Session(RunPlan(configuration("run", overrides), overrides))


def silent() -> Progress:
    return Progress(None, lambda _: None)


# ---- the shipped model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unaided():
    """The text that the shipped model writes by itself: prompt and 32 tokens, greedy."""
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype="auto").eval()
    ids = torch.tensor([list(PROMPT.encode())])
    tokens = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=0
    )
    return bytes(tokens[0].tolist()).decode(errors="replace")


@pytest.mark.parametrize("policy", ["dali", "frontier"])
def test_same_text_with_and_without_offloading(here, capsys, unaided, policy):
    out = ran(capsys, *GIVEN, f"policy={policy}", f"prompt='{PROMPT}'", "generate=32")
    assert out.startswith(unaided)
    assert f"| {policy}" in out
    assert "say nothing of a GPU's speed" in out


def test_leaves_everything_behind(here, capsys):
    """6 tokens of prompt and 5 generated are one prefill and 4 decode steps of 8 layers: the last token is not run."""
    (here / "p.txt").write_text("import\nclass \n")
    out = ran(capsys, *GIVEN, "prompts=p.txt", "batch=2", "generate=5", "tokenizer=bytes")
    assert out.startswith("The first of 2 sequences:\nimport")
    folder = results(here)
    assert {file.name for file in folder.iterdir()} == {
        "config.yaml",
        "dali.planner.npz",
        "dali.timeline.json.gz",
        "dali.trace.safetensors",
        "results.parquet",
        "run.json",
        "steps.parquet",
        "summary.md",
        "manifest.json",
    }

    trace = Trace.load(folder / "dali.trace.safetensors")
    assert (trace.layers, trace.experts_count, trace.top_k) == (8, 64, 4)
    assert (trace.prompt_length.tolist(), trace.tokens) == ([6, 6], 2 * (6 + 4))
    assert trace.metadata.text == "p.txt"

    steps = pd.read_parquet(folder / "steps.parquet")
    assert steps["phase"].tolist() == ["prefill"] + ["decode"] * 4
    assert steps["tokens"].tolist() == [12, 2, 2, 2, 2]
    rows = pd.read_parquet(folder / "results.parquet").set_index("phase")
    assert rows["steps"].tolist() == [1, 4]
    assert rows["slots"].tolist() == [128, 128]  # a quarter of 8 x 64 units
    decode = steps[steps["phase"] == "decode"]
    assert rows.at["decode", "hit_rate"] == pytest.approx(decode["hits"].sum() / decode["lookups"].sum())
    assert rows.at["decode", "bytes_demand"] == decode["copies_demand"].sum() * 3 * 128 * 32 * 2

    with gzip.open(folder / "dali.timeline.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    assert [e["args"]["name"] for e in events if e["name"] == "thread_name"] == list(LANES)
    assert min(e["ts"] for e in events if e["ph"] == "X") == 0
    # The prefill step and the first three of decode, each with the dense part of all 8 layers.
    dense = {(e["args"]["step"], e["args"]["layer"]) for e in events if e["ph"] == "X" and e["args"]["unit"] == -1}
    assert dense == {(step, layer) for step in range(4) for layer in range(8)}


def test_saved_log_of_a_live_run_replays(here, capsys):
    """The drift test, from the file: a fresh planner answers as the run's did."""
    ran(capsys, *GIVEN, "policy=frontier", "prompt=abc", "generate=4", "slices=2")
    saved = log.load(results(here) / "frontier.planner.npz")
    assert (saved.shape.units, saved.origin.slices) == (128, 2)
    assert sum(entry[0] == "begin" for entry in saved.entries) == 8 * 4
    assert saved.replay() is None
    copied = next(i for i, entry in enumerate(saved.entries) if entry[0] == "next_copy" and entry[1] >= 0)
    what, kind, key, slot = saved.entries[copied]
    saved.entries[copied] = (what, kind, key, slot + 1)
    assert saved.replay() == copied


def test_gate_needs_no_file(here, capsys):
    """Predictors are known for the shipped folder alone: of another one, residual is refused and gate is not."""
    shutil.copytree(TINY, here / "model")
    said = fails(capsys, "model=./model", *GIVEN)
    assert "policy dali: asks for predictor residual, expected predictors=FILE" in said
    ran(capsys, "model=./model", *GIVEN, 'policy="dali prefetch.source=gate"', "generate=2")
    rows = pd.read_parquet(results(here) / "results.parquet")
    assert (rows["copies_prefetch"] > 0).any()


def test_gpu_memory_in_gb_is_a_share_of_the_units(here):
    """8 x 64 units of 24,576 bytes are 12.58 MB; 3.2 MB hold 130 of them, 6 for staging."""
    live = session("device=cpu", "gpu_memory_gb=0.0032", "generate=2")
    assert live.offloads["dali"].planner.slots == 130


# ---- shapes ----------------------------------------------------------------------------------------

SHAPES = sorted(shaped.ARCHITECTURES)


def shape_of(name: str, *changes: str):
    return make(configuration("run", [f"model={name}", *changes]).model, "model")


@pytest.mark.parametrize("name", SHAPES)
def test_architecture_has_the_sizes_of_its_shape(name):
    """Weights of a layer's attention are the shape's but for norms, biases and sinks; experts are the shape's."""
    shape = scaled_to_layers(shape_of(name), 5 if name == "deepseek_v3" else 2)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(shaped.architecture(name, shape))
    layers = model.model.layers
    assert len(layers) == shape.layers + shape.dense_layers
    assert sum("experts" in dict(layer.mlp.named_children()) for layer in layers) == shape.layers
    attention = sum(p.numel() for p in layers[-1].self_attn.parameters())
    assert attention == pytest.approx(shape.attention_params, rel=1e-3)
    experts = layers[-1].mlp.experts
    matrices = [p for name, p in experts.named_parameters() if p.ndim == 3]
    assert experts.num_experts == shape.experts
    assert sum(p.numel() for p in matrices) == shape.experts * shape.expert_params
    shared = [p for name, p in layers[-1].mlp.named_parameters() if "shared" in name and "gate." not in name]
    assert sum(p.numel() for p in shared) <= 3 * shape.hidden * shape.shared_width


def test_fewer_layers_in_two_ways():
    """DeepSeek-V3: 58 MoE layers, 3 dense ones and a vocabulary of 129,280; 29 layers are half of it."""
    shape = shape_of("deepseek_v3")
    half, cut = scaled_to_layers(shape, 29), cut_to_layers(shape, 29)
    assert (shape.layers, shape.dense_layers, shape.vocabulary) == (58, 3, 129280)
    assert (half.layers, half.dense_layers, half.vocabulary) == (29, 2, 64640)
    assert half.name == "deepseek_v3 cut to 29 layers"
    assert cut == dataclasses.replace(shape, layers=29)
    assert scaled_to_layers(shape, 58) == cut_to_layers(shape, 58) == shape
    for fewer in (scaled_to_layers, cut_to_layers):
        for layers in (0, 59):
            with pytest.raises(InputError, match=f"layers: found {layers}, expected 1 to the 58 of deepseek_v3"):
                fewer(shape, layers)


def test_every_architecture_is_a_file_of_conf_model():
    loader = listing("run", ["checkpoint=null"])
    line = next(line for line in loader.splitlines() if line.startswith("  model: "))
    assert set(SHAPES) <= set(line.removeprefix("  model: ").split(", "))


def test_a_shape_without_an_architecture_is_one_line(capsys):
    said = fails(capsys, "model=minimax_m2", "layers=1", "policy=naive", "device=cpu", "routing=resized")
    assert "model minimax_m2: no architecture of transformers is known for it, expected qwen3_30b_a3b, " in said


SMALL = ["model.hidden=64", "model.expert_width=32", "model.vocabulary=640", "model.experts=16", "model.top_k=2"]


@pytest.mark.parametrize("name", ["qwen3_30b_a3b", "gpt_oss_20b", "deepseek_v3"])
def test_random_weights_are_whole(name):
    """Attention sinks, biases and correction terms of routers too: a model with numbers left as they were is not."""
    shared = ["model.shared_width=32"] if name == "deepseek_v3" else []
    model = shaped.shaped_model(name, scaled_to_layers(shape_of(name, *SMALL, *shared), 1))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for key, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), key
    experts = model.model.layers[-1].mlp.experts.gate_up_proj.float()
    assert experts.std().item() == pytest.approx(0.02, rel=0.02)
    # No two experts alike: products that should differ do.
    assert len(torch.unique(experts.flatten(1), dim=0)) == 16
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(8)[None]).logits).all()


def test_random_weights_are_the_same_by_seed():
    shape, state = scaled_to_layers(shape_of("gpt_oss_20b", *SMALL), 1), torch.random.get_rng_state()
    one, same, other = (shaped.shaped_model("gpt_oss_20b", shape, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, tensor in one.items():
        assert torch.equal(tensor, same[key]), key
        assert torch.equal(tensor, other[key]) == (("norm" in key) or (key.endswith("bias") and tensor.ndim == 1)), key


def test_a_shape_runs_and_says_what_its_text_is_worth(here, capsys, monkeypatch):
    """mixtral_8x7b at 1 layer: its vocabulary of 32,000 shrinks with the layers to 1,000; no text is shown.

    torch is the package index's own: its distribution says 2.13.0, itself which build it is.
    """
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    small = ["model=mixtral_8x7b", "model.hidden=64", "model.expert_width=32", "layers=1", "device=cpu"]
    out = ran(capsys, *small, "policy=naive", "cache_share=0.5", "prompt_tokens=4", "generate=1")
    assert out.startswith("\nmixtral_8x7b cut to 1 layers")
    about = json.loads((results(here) / "run.json").read_text())
    assert (about["moe_layers"], about["experts"], about["dtype"]) == (1, 8, "bfloat16")
    assert about["weights"] == "random, seed 0"
    assert list(about["tokens_per_s"]["naive"]) == ["prefill"]
    assert about["machine"]["torch"] == "2.13.0+cu130"


def test_no_expert_stays(here, capsys):
    """llama.cpp's --cpu-moe: no layer fits, and four tokens are too few to copy for."""
    small = ["model=mixtral_8x7b", "model.hidden=64", "model.expert_width=32", "layers=1", "device=cpu"]
    ran(capsys, *small, "policies=[naive,llama_cpp]", "cache_share=0", "prompt_tokens=4", "generate=2")
    steps = pd.read_parquet(results(here) / "steps.parquet")
    assert steps["hits"].sum() == 0
    assert steps[[name for name in steps if name.startswith("copies")]].to_numpy().sum() == 0


# ---- comparisons on forced routing -----------------------------------------------------------------


def test_compares_policies_and_baselines_in_one_run(here, capsys):
    entries = ["on_demand", "fiddler", '"frontier staging=4"']
    out = ran(capsys, *FORCED, f"policies=[{','.join(entries)}]", "baselines=[all_gpu]", "repeats=2", "batch=2")
    folder = results(here)
    about = json.loads((folder / "run.json").read_text())
    names = ["on_demand", "fiddler", "frontier staging=4"]
    assert list(about["tokens_per_s"]) == [*names, "all_gpu"]
    for speeds in about["tokens_per_s"].values():
        for phase in ("prefill", "decode"):
            assert 0 < speeds[phase]["min"] <= speeds[phase]["median"] <= speeds[phase]["max"]
            assert speeds[phase]["runs"] == 2
    speed = {name: speeds["decode"]["median"] for name, speeds in about["tokens_per_s"].items()}
    assert about["all_gpu_ratio"] == pytest.approx(speed[about["fastest"]] / speed["all_gpu"])
    assert set(about["planner_share_by_policy"]) == set(about["copy_bandwidth_share_by_policy"]) == set(names)
    assert about["copy_bandwidth_share_by_policy"]["on_demand"] > 0
    assert about["host_bandwidth_share_by_policy"]["on_demand"] is None  # it has no CPU units
    assert (about["moe_layers"], about["experts"], about["top_k"], about["cache_share"]) == (2, 64, 4, 0.25)
    assert about["machine"]["torch"] == str(torch.__version__)
    assert "Routing is tiny_moe's: 2 layers x 64 experts" in out
    # Not kept where speed is compared: it takes time.
    assert not list(folder.glob("*.npz"))
    steps = pd.read_parquet(folder / "steps.parquet")
    # Two runs of one prefill and 3 decode steps count, the warm-up does not.
    assert steps.groupby("policy")["step"].apply(list).to_dict() == {name: [0, 1, 2, 3] * 2 for name in names}
    # The routing that was forced is the one that ran, of the same sequences each time.
    trace = Trace.load(folder / "frontier_staging_4.trace.safetensors")
    shipped = Trace.load(SHIPPED / "tiny_moe.safetensors")
    for sequence in range(6):
        used = shipped.experts[shipped.rows(sequence % 2)][:11, :2]
        assert np.array_equal(trace.experts[trace.rows(sequence)], used)


@pytest.mark.parametrize("slices", [1, 4])
def test_policies_and_the_unchanged_model_agree_on_forced_routing(here, slices):
    """The baseline's routing is forced by hooks, the policies' by the executor: the same tokens come out."""
    live = session(*FORCED, "policies=[hybrimoe,dali]", "baselines=[all_gpu]", "batch=2", f"slices={slices}")
    outcomes = [live.run_policy(entry, here, silent()) for entry in live.policies]
    forced = live.run_baseline("all_gpu", silent())
    free = live.model.generate(live.ids, attention_mask=torch.ones_like(live.ids), max_new_tokens=4, do_sample=False)
    assert forced.tokens.shape == (2, 8 + 4)
    for outcome in outcomes:
        assert torch.equal(outcome.tokens, forced.tokens), outcome.name
    assert not torch.equal(free, forced.tokens)
    assert [(outcome.slices, outcome.slots) for outcome in outcomes] == [(slices, 32 * slices)] * 2


def test_routing_reaches_a_model_that_accelerate_takes_apart(here):
    """accelerate's own hooks, which fetch each module's weights as it runs, leave ours in place."""
    accelerate = pytest.importorskip("accelerate", reason="needs the runtime extra")
    live = session(*FORCED, "policy=naive", "baselines=[all_gpu]")
    expected = live.run_baseline("all_gpu", silent()).tokens
    limit = 2 * sum(p.numel() * p.element_size() for p in live.model.model.layers[0].parameters())
    placed = others.accelerate_map(live.model, 0, limit + 4 * 64 * live.model.config.vocab_size)
    assert set(placed.values()) == {0, "cpu"}
    accelerate.cpu_offload(live.model, torch.device("cpu"))
    assert next(live.model.parameters()).is_meta
    with others.forcing(live.model, live.routing, torch.device("cpu")):
        _, tokens = live._generate(None)
    assert torch.equal(tokens, expected)


def test_a_choice_of_no_expert_counts_nothing():
    ids, weights = others.usable(torch.tensor([[2, -1]]), torch.tensor([[0.5, 0.5]]), torch.zeros(1, dtype=torch.half))
    assert (ids.tolist(), weights.tolist()) == ([[2, 0]], [[0.5, 0.0]])
    assert (ids.dtype, weights.dtype) == (torch.int64, torch.float16)


# ---- the planner's log -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told():
    """The shipped trace's workload and popularity, and costs of its 8 layers of Qwen3-30B-A3B's units."""
    trace = Trace.load(SHIPPED / "tiny_moe.safetensors")
    workload = ForcedRouting(trace, batch=2, prompt=4, generate=6).workload(1)
    machine = make(configuration("compare", []).platform, "platform")
    cost = roofline(cut_to_layers(shape_of("qwen3_30b_a3b"), 8), machine, workload.max_tokens)
    return workload, expert_popularity(trace, workload)[0], cost


@pytest.mark.parametrize("name", ["naive", "on_demand", "hybrimoe", "dali", "oracle", "fiddler"])
def test_log_survives_its_file(tmp_path, told, name):
    """Each kind of annotation: none, order, router scores, predicted workloads, next use, popularity."""
    workload, known, cost = told
    origin = log.LogOrigin(f"{name} staging=5", 8, 64, 4, 1, 3)
    _, policy = make_policy("run", ["checkpoint=x"], origin.policy, origin)
    shape = Shape(8, 64, np.full(8, 1000), known)
    planner = Planner(policy, shape, Capacity.in_units(100, policy.cache.scope, 8), cost, seed=3, log=True)
    Engine(planner, cost).run(workload)
    log.save(tmp_path / "log.npz", origin, planner)
    saved = log.load(tmp_path / "log.npz")
    assert saved.origin == origin
    assert len(saved.entries) == len(planner.log)
    for found, kept in zip(saved.entries, planner.log, strict=True):
        if kept[0] != "begin":
            assert found == kept
            continue
        assert found[2:] == kept[2:]
        for ours, theirs in zip(found[1], kept[1], strict=True):
            assert np.array_equal(ours, theirs)
            assert (ours is None) == (theirs is None)
    assert saved.replay() is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nonsense", None])
def test_a_file_that_is_no_log(tmp_path, content):
    path = tmp_path / "log.npz"
    if content is None:
        np.savez(path, header=np.frombuffer(b'{"format": "other"}', np.uint8))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="expected a planner log"):
        log.load(path)
    with pytest.raises(InputError, match="no such file"):
        log.load(tmp_path / "missing.npz")


# ---- figures ---------------------------------------------------------------------------------------


def test_speeds_are_those_a_user_sees():
    """16 prompt tokens in 2 s and 3 steps of 2 sequences in 1 s; the same again at half the speed."""
    timings = [Timing(2.0, 1.0, 3), Timing(4.0, 2.0, 3)]
    rows = report.rows(PolicyRun("x", timings, torch.zeros(1)), 16, 2, 1.0, 1.0).set_index("phase")
    assert rows["tokens_per_s"].to_dict() == {"prefill": 6.0, "decode": 4.5}  # medians of 8, 4 and of 6, 3
    assert rows["tokens_per_s_min"].to_dict() == {"prefill": 4.0, "decode": 3.0}


def test_shares_of_a_phase():
    """Steps of 2 s: 1 s copying 30 bytes where 60 a second are possible, and CPU units of 10 bytes each."""
    columns = {name: np.zeros(3) for name in (*METRICS, PLANNER)}
    columns |= {"phase": np.array(["prefill", "decode", "decode"]), "start": np.zeros(3), "end": np.array([9.0, 1, 1])}
    columns |= {"link_demand": np.array([0, 0.25, 0.75]), "bytes_demand": np.array([0, 10.0, 20])}
    columns |= {
        "cpu_busy": np.array([0, 0.5, 0]),
        "cpu_units": np.array([7.0, 4, 0]),
        "planner": np.array([9.0, 0.1, 0.1]),
    }
    columns |= {"lookups": np.array([0, 6.0, 2]), "hits": np.array([0, 1.0, 1])}
    outcome = PolicyRun("x", [Timing(9.0, 2.0, 2)], torch.zeros(1), columns, layers=5, unit_bytes=10)
    row = report.rows(outcome, 16, 1, 60.0, 160.0).set_index("phase").loc["decode"]
    expected = {
        "copy_bandwidth_share": 0.5,
        "host_bandwidth_share": 0.5,  # 40 bytes in 0.5 s of 160 a second
        "link_demand": 0.5,
        "cpu_busy": 0.25,
        "planner_share": 0.1,
        "planner_us": 0.2 / (2 * 5) * 1e6,
        "hit_rate": 0.25,
        "bytes_demand": 30.0,
    }
    assert row[list(expected)].to_dict() == pytest.approx(expected)
    assert math.isnan(report.rows(outcome, 16, 1, 60.0, 160.0).set_index("phase").at["prefill", "hit_rate"])


def test_headline_is_of_what_could_run_anywhere():
    """The oracle is fastest and knows the future; of the others, b: 6 tokens/s, 3 times accelerate's 2."""
    speeds = {"a": 5.0, "b": 6.0, "oracle": 9.0, "accelerate": 2.0}
    frame = pd.DataFrame({"policy": speeds.keys(), "phase": "decode", "tokens_per_s": speeds.values(), "runs": 1})
    frame["tokens_per_s_min"] = frame["tokens_per_s_max"] = frame["tokens_per_s"]
    frame["slots"] = [4, 4, 4, np.nan]
    frame["knows_future"] = frame["policy"] == "oracle"
    for number, name in enumerate(("planner_share", "copy_bandwidth_share", "host_bandwidth_share")):
        frame[name] = [0.1, 0.2 + number, 0.3, np.nan]
    found = report.headline(frame)
    assert (found["fastest"], found["accelerate_ratio"], found["planner_share"]) == ("b", 3.0, 0.2)
    assert found["accelerate_ratio_by_policy"] == {"a": 2.5, "b": 3.0, "oracle": 4.5}
    assert found["copy_bandwidth_share"] == 1.2
    assert "all_gpu_ratio" not in found
    assert found["tokens_per_s"]["accelerate"]["decode"] == {"median": 2.0, "min": 2.0, "max": 2.0, "runs": 1}


def test_text_comes_character_by_character():
    """A letter of two bytes is held back until its second byte is there."""
    written = []
    shown = Shown(lambda ids: bytes(ids).decode(errors="replace"), written.append, list(b"a"))
    for token in "bäc".encode():
        shown.token(token)
    assert "".join(written) == "abäc"
    assert written == ["a", "b", "ä", "c"]


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=qwen"], "model: found 'qwen', expected a folder, a hub id (owner/name) or one of "),
        (["model=no/such/folder/here", "policy=naive"], "model no/such/folder/here: "),
        (["layers=4"], "layers: found 4 with a checkpoint"),
        (["policy=best"], "policy: found 'best', expected one of "),
        (["predictors=none.safetensors"], "none.safetensors: no such file"),
        ([f"predictors={SHIPPED / 'tiny_moe.safetensors'}"], "header says format"),
        (["policy=oracle"], "knows the future, which a live model does not tell; expected routing="),
        (["policy=naive", "routing=none.safetensors"], "none.safetensors: no such file"),
        (["policy=naive", "routing=nowhere"], "trace: found 'nowhere', expected one of"),
        ([*GIVEN, "policy=fiddler"], "popularity of the units is not known"),
        (
            ["device=cpu", "cache_share=0.001"],
            "policy dali: found GPU memory for 1 units, expected more than its staging",
        ),
        (["device=cpu", "gpu_memory_gb=1e-6"], "gpu_memory_gb, policy.staging: found "),
        (["device=cpu", "cache_share=-0.1"], "cache_share: found -0.1, expected a number from 0 to 1"),
        (
            [*GIVEN, "policies=[naive,dali]", "baselines=[accelerate]"],
            "accelerate with device cpu, expected it with a CUDA",
        ),
        ([*GIVEN, "baselines=[vllm]"], "baselines: found 'vllm', expected accelerate or all_gpu"),
        ([*GIVEN, "device=tpu"], "device: found"),
        ([*GIVEN, "slices=3"], "slices"),
        ([*GIVEN, "log=yes please"], "log: found 'yes please', expected true, false or null"),
        ([*FORCED, "prompt_tokens=500"], "needs sequences of 503 tokens (prompt + generate), the longest has 256"),
        ([*FORCED, "layers=9"], "layers: found 9, expected 1 to the 8 of tiny_moe's routing"),
        (
            [*FORCED, "emulate_predictors=false", 'policy="dali prefetch.ahead=4"'],
            "the trace has 3, expected a recording",
        ),
        ([*SHAPE[:3], "layers=49", "device=cpu"], "layers: found 49, expected 1 to the 48 of qwen3_30b_a3b"),
        (["model=qwen3_30b_a3b", "model.name=mine", "policy=naive"], "no architecture of transformers is known for it"),
    ],
)
def test_one_line_for_bad_input(here, capsys, arguments, said):
    assert said in fails(capsys, *arguments)
    assert not list(here.rglob("*.parquet"))


def test_routing_of_another_model(here, capsys):
    Trace.load(SHIPPED / "tiny_moe.safetensors").first_layers(2).save(here / "short.safetensors")
    said = fails(capsys, *GIVEN, "routing=./short.safetensors")
    assert "trace of tiny_moe has 2 layers x 64 experts, model Qwen3MoeForCausalLM has 8 x 64" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu(here, capsys):
    assert "torch sees no CUDA device; device=cpu runs without" in fails(capsys, *GIVEN, "device=cuda")


def test_a_dense_model(here, capsys):
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(here / "dense")
    said = fails(capsys, "model=./dense", "tokenizer=bytes", "policy=naive", "device=cpu")
    assert "LlamaForCausalLM: found no experts behind transformers' experts interface" in said


def test_too_little_host_memory_for_a_shape(here, capsys, monkeypatch):
    """The 48 layers of Qwen3-30B-A3B are 30.5 B weights, 61.1 GB of bfloat16: refused before any is allocated."""
    monkeypatch.setattr(shaped, "free_host_bytes", lambda: 8 * 10**9)
    said = fails(capsys, "model=qwen3_30b_a3b", "policy=naive", "device=cpu")
    assert "host memory: found 8.0 GB free, expected 61.1 GB for qwen3_30b_a3b" in said


def test_too_little_gpu_memory(here, capsys, monkeypatch):
    """Nothing given: as many units as what is free leaves room for, here none."""
    monkeypatch.setattr(HostArena, "free_bytes", lambda self: 1 << 31)
    said = fails(capsys, "device=cpu")
    assert "GPU memory: found" in said


def test_interrupted(here, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.Qwen3MoeForCausalLM, "generate", interrupt)
    assert main(["run", *GIVEN, "policy=naive"]) == 130
    assert "interrupted, nothing was written" in capsys.readouterr().err
    assert list((here / "outputs" / "run").iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_beside_accelerate_on_a_gpu(here, capsys):
    ran(capsys, *FORCED, "device=cuda", "dtype=bfloat16", "baselines=[all_gpu,accelerate]", "repeats=2")
    about = json.loads((results(here) / "run.json").read_text())
    speed = {name: speeds["decode"]["median"] for name, speeds in about["tokens_per_s"].items()}
    assert list(speed) == ["dali", "all_gpu", "accelerate"]
    assert about["accelerate_ratio"] == pytest.approx(speed["dali"] / speed["accelerate"])
    assert about["machine"]["gpu"] == torch.cuda.get_device_name()
