"""Offloaded runs: what the planner is told and decides, forced routing, results, errors before anything is moved."""

import itertools
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from offloading_cases import (
    EXPERTS,
    LIVE_POLICIES,
    assert_restored,
    costs,
    generate,
    offloaded,
    policy,
    prompts,
    relative,
    state,
    tiny,
)

import dali.runtime.execute.offload as offloading
from dali import runtime
from dali.policies.planner import Planner, replay_log
from dali.policies.types import InputError
from dali.runtime.execute import room
from dali.runtime.model.moe_layers import moe_layers
from dali.runtime.record.recorder import Recorder
from dali.sim.engine import Engine
from dali.sim.timeline import (
    Spans,
    check_exclusive,
)
from dali.traces.trace import Trace
from dali.traces.workload import Workload


def fresh_planner(run, name: str, **others) -> Planner:
    return Planner(policy(name), run.shape, run.capacity, costs(run.shape.layers), log=True, **others)


# ---- decisions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slices"), list(itertools.product(LIVE_POLICIES, (1, 4))))
def test_drift(name, slices):
    """The log of a live run, fed to a fresh planner, gives the same decisions."""
    model = tiny("qwen3_moe")
    with offloaded(model, name, 6, slices=slices, log=True) as run:
        generate(model, prompts(4, 5), 6)
    assert [entry[0] for entry in run.log].count("end") == 3 * 6
    assert replay_log(run.log, fresh_planner(run, name)) is None


@pytest.mark.parametrize("slices", [1, 2])
def test_live_steps_are_those_of_the_recorded_trace(slices, tmp_path):
    """Workload, router scores and order of use from the model are those that its recorded trace gives a simulator."""
    model, ids = tiny("mixtral"), prompts(3, 5)
    with Recorder(model, tmp_path / "t.safetensors") as recorder:
        recorder.batch(3, 5, 3)
        generate(model, ids, 4)
    trace = Trace.load(tmp_path / "t.safetensors")
    with offloaded(model, "hybrimoe", 6, slices=slices, log=True) as run:
        generate(model, ids, 4)
    live = run.trace(model="m")
    assert np.array_equal(live.experts, trace.experts)
    assert np.array_equal(live.weights, trace.weights)
    assert live.prompt_length.tolist() == trace.prompt_length.tolist()
    assert live.metadata.unit_bytes == trace.metadata.unit_bytes
    workload = Workload.from_trace(trace, 3, 5, 3, slices=slices)
    told = iter([entry[1] for entry in run.log if entry[0] == "begin"])
    for step in workload.steps(router_scores=True):
        for layer in range(3):
            found, expected = next(told), step.layer_step(layer)
            assert found.tokens == expected.tokens
            assert np.array_equal(found.workload, expected.workload)
            assert np.array_equal(found.router_scores, expected.router_scores)
    assert next(told, None) is None


def test_order_of_use(make_trace):
    """Two tokens choose experts 3, 1 and 1, 5: last used in the order 3, 1, 5; each slice follows its expert."""
    from dali.runtime.execute.layer_steps import LiveSteps, routed

    asked = {"source": None, "ahead": 1, "next_use": False, "router_scores": False, "order": "last"}
    routing = routed(np.array([[3, 1], [1, 5]], np.int32), np.ones((2, 2), np.float32), EXPERTS)
    assert LiveSteps(asked, EXPERTS, 1).layer_step(0, 0, routing, None).order.tolist() == [3, 1, 5]
    assert LiveSteps(asked, EXPERTS, 2).layer_step(0, 0, routing, None).order.tolist() == [6, 7, 2, 3, 10, 11]


def test_a_token_without_an_expert():
    """Ids of no expert, as models hand over for dropped tokens, are nobody's work."""
    model, hidden = tiny("mixtral"), torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    experts = moe_layers(model)[0].experts
    ids, weights = torch.tensor([[0, 8], [8, 8], [3, 0]]), torch.full((3, 2), 0.5)
    with torch.no_grad():
        # The reference gets the first expert with no weight in their place.
        expected = experts(hidden, ids % 8, weights.masked_fill(ids == 8, 0))
        for name in ("naive", "on_demand"):
            with offloaded(model, name) as run:
                found = experts(hidden, ids, weights)
            assert relative(found, expected) < 1e-5
            assert run.planner.view.workload[[0, 3]].tolist() == [2, 1]
    assert not expected[1].any()


@pytest.mark.parametrize("policy", ["naive", "llama_cpp", "on_demand", "dali prefetch=none"])
@pytest.mark.parametrize("capacity", [0, 0.0])
def test_without_a_slot_for_what_stays(policy, capacity):
    """Every expert runs on the CPU, or passes through staging: the numbers are the model's own."""
    model, ids = tiny("mixtral"), prompts(2, 20)  # 40 tokens: llama.cpp copies from 32 on
    with torch.no_grad():
        expected = model(ids).logits
        with offloaded(model, policy, capacity) as run:
            assert relative(model(ids).logits, expected) < 1e-5
    assert run.planner.capacity.total == 0
    assert run.columns()["hits"].tolist() == [0]


def test_predictors_are_asked_for_the_layers_ahead():
    """Layer l of 3 predicts l + 1 .. 2 at most; what they choose is counted by expert, zero beyond the last layer."""
    model, asked = tiny("mixtral"), []

    class Fixed:
        ahead = 3

        def choose(self, layer, h, x):
            asked.append((layer, h, tuple(x.shape)))
            return torch.full((len(x), 1), layer + h)

    with offloaded(model, "hybrimoe", predictors={"gate": Fixed()}, log=True) as run, torch.no_grad():
        model(prompts(2, 4))
    assert asked == [(0, 1, (8, 32)), (0, 2, (8, 32)), (1, 1, (8, 32))]
    first, second, third = (entry[1].predicted for entry in run.log if entry[0] == "begin")
    expected = np.zeros((3, EXPERTS))
    expected[0, 1] = expected[1, 2] = 8
    assert np.array_equal(first, expected)
    assert np.flatnonzero(second.ravel()).tolist() == [2]
    assert not third.any()


# ---- forced routing --------------------------------------------------------------------------------


def routed_by(model, trace: Trace, rows):
    """The model's logits with the trace's choices put in place of its routers' outputs."""
    handles = []
    for number, layer in enumerate(moe_layers(model)):

        def replace(_module, _inputs, out, number=number):
            weights = torch.from_numpy(trace.weights[rows, number].astype(np.float32))
            return out[0], weights, torch.from_numpy(trace.experts[rows, number].astype(np.int64))

        handles.append(layer.router.register_forward_hook(replace))
    return handles


def test_forced_routing(random_trace):
    """Sequences 0 and 1, 4 tokens as a prompt and then 2 more; the second run starts again."""
    trace, model, ids = random_trace(5), tiny("mixtral"), prompts(2, 4)
    routing = runtime.ForcedRouting(trace, batch=2, prompt=4, generate=2)
    rows = [[*range(0, 4), *range(12, 16)], [4, 16], [5, 17]]
    with offloaded(model, "on_demand", 6, routing=routing) as run:
        found, tokens = generate(model, ids, 3)
        again, _ = generate(model, ids, 3)
    assert torch.equal(found, again)
    inputs = [ids, torch.cat([ids, tokens[:, :1]], 1), torch.cat([ids, tokens[:, :2]], 1)]
    so_far = {0: rows[0], 1: [*range(0, 5), *range(12, 17)], 2: [*range(0, 6), *range(12, 18)]}
    for step, whole in enumerate(inputs):
        handles = routed_by(model, trace, so_far[step])
        with torch.no_grad():
            expected = model(whole).logits[:, -1]
        for handle in handles:
            handle.remove()
        assert relative(found[step], expected) < 1e-5
    assert run.columns()["step"].tolist() == [0, 1, 2] * 2
    live = run.trace(model="m")
    assert np.array_equal(live.experts[live.rows(0)], trace.experts[0:6])
    assert np.array_equal(live.experts[live.rows(3)], trace.experts[12:18])


def test_forced_routing_must_be_followed(random_trace):
    model = tiny("mixtral")
    routing = runtime.ForcedRouting(random_trace(5), batch=2, prompt=4, generate=1)
    with offloaded(model, "naive", routing=routing), torch.no_grad():
        with pytest.raises(InputError, match="found a forward pass of 10 tokens, expected 8 in step 0"):
            model(prompts(2, 5))
        model(prompts(2, 4))
        with pytest.raises(InputError, match="found a forward pass of 2 tokens, expected no further one"):
            generate(model, prompts(2, 4), 3)


BELADY = "on_demand cache._target_=dali.policies.cache.classic.Belady"


@pytest.mark.parametrize("name", ["naive", "on_demand", BELADY, "ktransformers"])
def test_decisions_are_the_simulators(name, random_trace):
    """4 slots a layer have room for the 2 units of a layer step, so no decision depends on the time of a copy."""
    trace, model = random_trace(7), tiny("mixtral")
    workload = Workload.from_trace(trace, 1, 1, 8)
    routing = runtime.ForcedRouting(trace, batch=1, prompt=1, generate=8)
    with offloaded(model, name, 12, routing=routing, log=True) as run:
        generate(model, prompts(1, 1), 9)
    simulated = fresh_planner(run, name)
    result = Engine(simulated, costs(3)).run(workload)

    def decisions(log):
        return [(entry[1].step, entry[1].layer, *entry[2:]) for entry in log if entry[0] == "begin"]

    assert decisions(run.log) == decisions(simulated.log)
    columns = run.columns()
    assert (columns["copies_demand"].sum() > 0) == name.startswith("on_demand")
    for metric in ("hits", "lookups", "gpu_units", "cpu_units", "bytes_demand", "copies_demand", "copies_swap"):
        assert columns[metric].tolist() == result.columns[metric].tolist(), metric


def test_oracle_runs_on_forced_routing(random_trace):
    trace, model, ids = random_trace(9), tiny("mixtral"), prompts(2, 4)
    routing = runtime.ForcedRouting(trace, batch=2, prompt=4, generate=3)
    with offloaded(model, "naive", routing=routing):
        expected, _ = generate(model, ids, 4)
    with offloaded(model, "oracle", 5, slices=2, routing=routing, log=True) as run:
        found, _ = generate(model, ids, 4)
    assert relative(found, expected) < 1e-5
    told = next(entry[1] for entry in run.log if entry[0] == "begin")
    assert told.next_use is not None
    first = next(Workload.from_trace(trace, 2, 4, 3, slices=2).steps())
    assert np.array_equal(told.predicted[0], first.workload[1])


# ---- results ---------------------------------------------------------------------------------------


def test_metrics_and_timeline():
    """on_demand, 2 tokens a decode step: copies and hits are the active units, spans are each machine's own."""
    model = tiny("mixtral")
    with offloaded(model, "on_demand", 6, record=range(10)) as run:
        generate(model, prompts(2, 5), 4)
    columns = run.columns()
    assert columns["phase"].tolist() == ["prefill", "decode", "decode", "decode"]
    assert columns["tokens"].tolist() == [10, 2, 2, 2]
    assert columns["sequences"].tolist() == [2] * 4
    assert np.array_equal(columns["hits"] + columns["copies_demand"], columns["lookups"])
    # A unit of the tiny Mixtral: gate and up of 32 x 32 and down of 32 x 32, 4 bytes each.
    assert np.array_equal(columns["bytes_demand"], columns["copies_demand"] * 3 * 32 * 32 * 4)
    assert (columns["end"] > columns["start"]).all()
    assert (columns["start"][1:] >= columns["end"][:-1]).all()
    for name in ("moe_time", "gpu_busy", "planner"):
        assert (columns[name] > 0).all(), name
    assert (columns["gpu_busy"] <= columns["end"] - columns["start"]).all()
    spans = Spans(*run.spans())
    check_exclusive(spans)
    lane, step, _, unit, tokens, _ = spans.what.T
    assert np.count_nonzero(lane == 2) == columns["copies_demand"].sum()
    assert np.count_nonzero(unit == -1) == 3 * 4
    assert tokens[(lane == 0) & (unit >= 0)].sum() == (10 + 2 + 2 + 2) * 3 * 2
    assert set(step.tolist()) == {0, 1, 2, 3}


def test_only_the_recorded_steps_have_spans():
    model = tiny("mixtral")
    with offloaded(model, "dali", 6, record={2}) as run:
        generate(model, prompts(2, 5), 4)
    assert set(run.spans()[1][:, 1].tolist()) == {2}


@pytest.mark.parametrize("name", ["fiddler", "llama_cpp", "moe_lightning", "ktransformers"])
def test_other_policies(name):
    model, ids = tiny("mixtral"), prompts(2, 5)
    expected, _ = generate(model, ids, 3)
    popularity = np.full((3, EXPERTS), 1 / EXPERTS)
    with offloaded(model, name, 12, popularity=popularity):
        found, _ = generate(model, ids, 3)
    assert relative(found, expected) < 1e-5


def test_products_that_cannot_be_grouped():
    """Slices 6 wide: 24 bytes are no multiple of the 16 that grouped products want."""
    model, ids = tiny("mixtral", intermediate_size=24), prompts(2, 5)
    expected, _ = generate(model, ids, 2)
    for name in ("naive", "on_demand"):
        with offloaded(model, name, 12, slices=4):
            found, _ = generate(model, ids, 2)
        assert relative(found, expected) < 1e-5


def test_costs_are_timed_where_none_are_given(capsys):
    model, ids = tiny("gpt_oss"), prompts(2, 4)
    expected, _ = generate(model, ids, 2)
    with offloaded(model, "dali", 6, believed=None) as run:
        found, _ = generate(model, ids, 2)
    assert relative(found, expected) < 1e-5
    cost = run.planner.view.cost
    assert cost.max_tokens == offloading.MAX_TOKENS
    assert cost.cpu[1] > 0 < cost.gpu[1]


def test_device_cpu_says_what_it_is_not_for(capsys, monkeypatch):
    monkeypatch.setattr(offloading, "_said", set())
    model = tiny("mixtral")
    for _ in range(2):
        with offloaded(model, "naive"):
            pass
    assert capsys.readouterr().err.count("say nothing of a GPU's") == 1


def test_attach_and_detach():
    model, ids = tiny("mixtral"), prompts(1, 4)
    before, (expected, _) = state(model), generate(model, ids, 2)
    run = offloaded(model, "dali").attach()
    assert {p.numel() for layer in moe_layers(model) for p in layer.experts.parameters()} == {0}
    assert relative(generate(model, ids, 2)[0], expected) < 1e-5
    run.detach()
    run.detach()
    assert_restored(model, before)
    assert torch.equal(generate(model, ids, 2)[0], expected)
    with pytest.raises(InputError, match="attached before"):
        run.attach()


@pytest.mark.parametrize("name", ["naive", "dali"])
def test_inference_mode(name):
    """Attached in it, used in it and outside, detached outside: the parameters are ordinary ones again."""
    model, ids = tiny("mixtral"), prompts(2, 4)
    expected = model(ids).logits.detach()
    with torch.inference_mode():
        run = offloaded(model, name, 6).attach()
        assert relative(model(ids).logits, expected) < 1e-5
    assert relative(model(ids).logits.detach(), expected) < 1e-5
    run.detach()
    assert not any(p.is_inference() for p in model.parameters())
    assert relative(model(ids).logits.detach(), expected) == 0


def test_another_model_of_the_same_configuration_is_left_alone():
    model = tiny("mixtral")
    other = type(model)(model.config).eval()
    with torch.no_grad():
        expected = other(prompts(1, 4)).logits
        with offloaded(model, "naive"):
            assert torch.equal(other(prompts(1, 4)).logits, expected)


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": -1}, "capacity: found -1 units, expected 0 to 24"),
        ({"capacity": 25}, "capacity: found 25 units"),
        ({"capacity": 1.5}, "capacity: found a share of 1.5"),
        ({"capacity": 0.01}, "capacity: found 0 units"),
        ({"capacity": None, "memory": 20_000}, "GPU memory: found 0.0 MB for units, expected at least 0.1 MB"),
        ({"capacity": 3, "memory": 20_000}, "capacity, memory: found both"),
        ({"slices": 3}, "slices: found 3, expected a divisor of the inner width 32"),
        ({"predictors": {}}, "policy dali: found predictors none, expected residual 1 layers ahead"),
        ({"device": "cuda"}, "device: found cuda, but torch sees no CUDA device"),
        ({"device": "meta"}, "device: found meta, expected cuda or cpu"),
        ({"link_bytes_per_s": 0}, "link_bytes_per_s: found 0"),
        ({"believed": costs(2)}, "cost model: found copy times of 2 layers, expected 3"),
    ],
)
def test_bad_options(options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    model = tiny("mixtral")
    before = state(model)
    with pytest.raises(InputError, match=message):
        offloaded(model, "dali", **options)
    assert_restored(model, before)


def test_bad_models(monkeypatch):
    with pytest.raises(InputError, match="LlamaForCausalLM: found no experts"):
        offloading.offload(tiny_dense(), policy("naive"), device="cpu")
    model = tiny("mixtral")
    experts = moe_layers(model)[1].experts
    experts.gate_up_proj_scale = torch.nn.Parameter(torch.ones(EXPERTS))
    with pytest.raises(
        InputError, match=r"layers\.1\.mlp\.experts: found parameters .*scale, expected gate_up_proj, d"
    ):
        offloaded(model, "naive")


def tiny_dense():
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                             num_attention_heads=2, num_key_value_heads=1)
    )  # fmt: skip


def test_a_model_that_is_attached_already():
    model = tiny("mixtral")
    with offloaded(model, "naive"), pytest.raises(InputError, match="offloaded already"):
        offloaded(model, "naive")


@pytest.mark.parametrize("name", ["oracle", BELADY])
def test_the_future_is_not_known_live(name):
    with pytest.raises(InputError, match="knows the future"):
        offloaded(tiny("mixtral"), name)


def test_too_little_host_memory(monkeypatch):
    monkeypatch.setattr(room, "free_host_bytes", lambda: 1000)
    model = tiny("mixtral")
    before = state(model)
    with pytest.raises(InputError, match=r"host memory: found 0\.00 GB free"):
        offloaded(model, "naive")
    assert_restored(model, before)


def test_more_tokens_than_the_cost_model_covers():
    """Said before the layer step begins: the next forward pass runs."""
    model = tiny("mixtral")
    with offloaded(model, "dali", believed=costs(3, tokens=8)), torch.no_grad():
        with pytest.raises(InputError, match="covers workloads up to 8 tokens, found 10"):
            model(prompts(2, 5))
        model(prompts(2, 4))


def test_a_trace_of_another_model(random_trace):
    routing = runtime.ForcedRouting(random_trace(1, layers=2), batch=1, prompt=4, generate=2)
    with pytest.raises(InputError, match="trace of test has 2 layers x 8 experts"):
        offloaded(tiny("mixtral"), "naive", routing=routing)


def test_a_trace_without_the_predictor(random_trace):
    routing = runtime.ForcedRouting(random_trace(1), batch=1, prompt=4, generate=2)
    with pytest.raises(InputError, match="predictor source: found 'residual'"):
        offloaded(tiny("mixtral"), "dali", routing=routing)


# ---- CUDA ------------------------------------------------------------------------------------------


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("start", ["cpu", "cuda"])
@pytest.mark.parametrize("name", LIVE_POLICIES)
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "nemotron_h"])
def test_numbers_on_a_gpu(kind, name, start, cuda):
    model, ids = tiny(kind), prompts(4, 6)
    expected, tokens = (part.cpu() for part in generate(model.to(cuda), ids.to(cuda), 4))
    model.to(start)
    before = state(model)
    with offloaded(model, name, 6, device=cuda, slices=2, log=True, record=range(9)) as run:
        found, chosen = generate(model, ids.to(cuda), 4)
    assert relative(found.cpu(), expected) < 1e-5
    assert torch.equal(chosen.cpu(), tokens)
    assert {p.device.type for p in model.parameters()} == {start}
    assert_restored(model, before)
    assert replay_log(run.log, fresh_planner(run, name)) is None
    check_exclusive(Spans(*run.spans()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", LIVE_POLICIES)
def test_grouped_products_on_a_gpu(name, cuda):
    model, ids = tiny("mixtral", hidden_size=64, intermediate_size=64).to(torch.bfloat16), prompts(4, 6)
    model.to(cuda)
    with torch.no_grad():
        expected = model(ids.to(cuda)).logits.float()
        with offloaded(model, name, 12, device=cuda):
            found = model(ids.to(cuda)).logits.float()
    assert relative(found, expected) < 2e-2


@pytest.mark.gpu
def test_too_little_gpu_memory(cuda):
    with pytest.raises(InputError, match="GPU memory: found"):
        offloaded(tiny("mixtral"), "naive", None, device=cuda, memory=1000)


def test_a_backward_pass_fails_instead_of_leaving_the_experts_out():
    model, ids = tiny("mixtral"), prompts(2, 5)
    with offloaded(model, "on_demand", 6):
        loss = model(ids).logits.sum()
        with pytest.raises(RuntimeError, match="forward passes only"):
            loss.backward()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"capacity": "0.25"}, "capacity: found '0.25'"),
        ({"slices": 1.0}, "slices: found 1.0"),
        ({"cpu_threads": 0}, "cpu_threads: found 0"),
        ({"device": "foo"}, "device: found 'foo'"),
        ({"routing": "x.safetensors"}, "routing: found str"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        offloaded(tiny("mixtral"), "on_demand", **options)


def test_a_second_one_made_before_the_first_was_attached_is_refused():
    model = tiny("mixtral")
    first, second = offloaded(model, "on_demand", 6), offloaded(model, "on_demand", 6)
    with first, pytest.raises(InputError, match="offloaded already"):
        second.attach()
