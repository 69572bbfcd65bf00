"""Recording: the ids that the model used, outputs untouched, rows in order, whole steps only."""

import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dali.policies.types import InputError
from dali.traces.expert_ids import none_id
from dali.traces.trace import Trace

torch = pytest.importorskip("torch", reason="needs the runtime extra")
transformers = pytest.importorskip("transformers", reason="needs the runtime extra")

from tiny_models import CORRECTED, EXPERTS, SORTED, TOP_K, generate, prompts, routers, tiny
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dali.runtime.model.experts_hook import reading
from dali.runtime.model.moe_layers import moe_layers
from dali.runtime.predict.fitting import Fitting
from dali.runtime.predict.predictors import GatePredictor
from dali.runtime.predict.routing import Routing
from dali.runtime.record.recorder import Recorder


def record(model, path, ids, count: int, **others):
    with Recorder(model, path, **others) as recorder:
        recorder.batch(*ids.shape, count)
        scores = generate(model, ids, count)
    return scores, Trace.load(path)


@contextmanager
def overheard(model):
    """What each router itself returned, as [[(logits, weights, ids) of each call] of each layer]."""
    heard = [[] for _ in routers(model)]
    handles = []
    for calls, router in zip(heard, routers(model), strict=True):

        def keep(_module, _inputs, out, calls=calls):
            if not isinstance(out, tuple):
                pytest.skip(f"routers of transformers {transformers.__version__} do not say what they chose here")
            logits = next(t for t in out if t.shape[-1] == EXPERTS)
            chosen = [t.reshape(-1, TOP_K) for t in out if t.shape[-1] == TOP_K]
            ids = next(t for t in chosen if not t.is_floating_point())
            weights = next(t for t in chosen if t.is_floating_point())
            calls.append((logits.reshape(-1, EXPERTS).float().clone(), weights.clone(), ids.clone()))

        handles.append(router.register_forward_hook(keep))
    yield heard
    for handle in handles:
        handle.remove()


def in_rows(heard, sequences: int, part: int) -> np.ndarray:
    """[T, L, ...] of what was overheard: the tokens of a step are all of sequence 0, then all of sequence 1, ..."""
    layers = []
    for calls in heard:
        steps = [call[part].reshape(sequences, -1, call[part].shape[-1]) for call in calls]
        layers.append(torch.cat(steps, dim=1).reshape(-1, steps[0].shape[-1]))
    return torch.stack(layers, dim=1).detach().numpy()


@pytest.mark.parametrize("kind", [*SORTED, *CORRECTED])
def test_every_architecture(kind, tmp_path):
    model, ids = tiny(kind), prompts(3, 5)
    if not model._can_set_experts_implementation() or not routers(model):
        pytest.skip(f"{kind} of transformers {transformers.__version__}: no experts interface, or no router of its own")
    with overheard(model) as heard:
        before = generate(model, ids, 4)
    during, trace = record(model, tmp_path / "t.safetensors", ids, 4)
    after = generate(model, ids, 4)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    used = in_rows(heard, 3, 2)
    assert trace.experts.shape == used.shape == (3 * (5 + 4), len(routers(model)), TOP_K)
    assert np.array_equal(trace.experts, used)
    assert np.array_equal(trace.weights, in_rows(heard, 3, 1).astype(np.float16))
    if kind in SORTED:
        largest = np.argsort(-in_rows(heard, 3, 0), axis=-1, kind="stable")[..., :TOP_K]
        assert np.array_equal(np.sort(trace.experts, axis=-1), np.sort(largest, axis=-1))
    assert trace.sequence.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert trace.position.tolist() == list(range(9)) * 3
    assert trace.prompt_length.tolist() == [5, 5, 5]
    assert (trace.metadata.experts, trace.metadata.dtype) == (EXPERTS, "float32")


def test_router_logits_that_the_model_gives_out_agree(tmp_path):
    model, ids = tiny("mixtral"), prompts(2, 6)
    with Recorder(model, tmp_path / "t.safetensors") as recorder, torch.no_grad():
        recorder.batch(2, 6, 0)
        out = model(ids, output_router_logits=True)
    logits = torch.stack(out.router_logits, dim=1)
    trace = Trace.load(tmp_path / "t.safetensors")
    assert np.array_equal(trace.experts, logits.topk(TOP_K).indices.numpy())


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_implementation_that_the_model_had_runs(implementation, tmp_path):
    model, ids = tiny("qwen3_moe"), prompts(2, 4)
    model.set_experts_implementation(implementation)
    before = generate(model, ids, 2)
    during, _ = record(model, tmp_path / "t.safetensors", ids, 2)
    assert torch.equal(before, during)
    assert model.config._experts_implementation == implementation


def fail(attached: bool) -> None:
    assert attached
    raise ZeroDivisionError


def test_interface_and_model_are_as_before_even_after_an_exception(tmp_path):
    model = tiny("mixtral")
    entries = dict(ALL_EXPERTS_FUNCTIONS)
    with pytest.raises(ZeroDivisionError), Recorder(model, tmp_path / "t.safetensors", router_input=True):
        fail(dict(ALL_EXPERTS_FUNCTIONS) != entries)
    assert dict(ALL_EXPERTS_FUNCTIONS) == entries
    hooks = [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.modules()]
    assert set(hooks) == {(0, 0)}
    assert list(tmp_path.iterdir()) == []


def test_an_implementation_of_somebody_else_is_called_and_kept(tmp_path):
    model, ids = tiny("mixtral"), prompts(1, 3)
    calls = []

    def counting(module, *arguments):
        calls.append(module)
        return original(module, *arguments)

    original = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    ALL_EXPERTS_FUNCTIONS["grouped_mm"] = counting
    try:
        record(model, tmp_path / "t.safetensors", ids, 0)
        assert ALL_EXPERTS_FUNCTIONS["grouped_mm"] is counting
    finally:
        del ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    assert len(calls) == 3  # layers, one forward pass


def test_only_the_recorded_model_is_recorded(tmp_path):
    model, other, ids = tiny("mixtral"), tiny("mixtral"), prompts(2, 3)
    with Recorder(model, tmp_path / "t.safetensors") as recorder, torch.no_grad():
        recorder.batch(2, 3, 0)
        other(ids)
        model(ids)
        other(ids)
    assert Trace.load(tmp_path / "t.safetensors").tokens == 6


def test_batches_follow_one_another(tmp_path):
    """Batches of 3 and 2 sequences of different lengths: each is what it is by itself."""
    model, first, second = tiny("olmoe"), prompts(3, 4), prompts(2, 6)
    with Recorder(model, tmp_path / "both.safetensors") as recorder:
        recorder.batch(3, 4, 2)
        generate(model, first, 2)
        recorder.batch(2, 6, 1)
        generate(model, second, 1)
    _, alone = record(model, tmp_path / "first.safetensors", first, 2)
    _, last = record(model, tmp_path / "second.safetensors", second, 1)
    both = Trace.load(tmp_path / "both.safetensors")
    assert np.array_equal(both.experts, np.concatenate([alone.experts, last.experts]))
    assert both.prompt_length.tolist() == [4, 4, 4, 6, 6]
    assert np.diff(both.starts).tolist() == [6, 6, 6, 7, 7]


def twice(recorder, model, ids) -> None:
    with recorder:
        for _ in range(2):
            recorder.batch(*ids.shape, 5)
            generate(model, ids, 5)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_interrupt_leaves_the_whole_steps(steps, tmp_path):
    """The second batch is stopped in the second layer of its step number `steps`."""
    model, ids = tiny("qwen3_moe"), prompts(2, 4)
    _, whole = record(model, tmp_path / "whole.safetensors", ids, 5)
    calls = []

    def stop(*_):
        calls.append(None)
        if len(calls) == 6 + steps + 1:  # the first batch has 1 + 5 steps
            raise KeyboardInterrupt

    handle = routers(model)[1].register_forward_pre_hook(stop)
    recorder = Recorder(model, tmp_path / "cut.safetensors")
    with pytest.raises(KeyboardInterrupt):
        twice(recorder, model, ids)
    handle.remove()
    cut = Trace.load(recorder.written)
    length = 0 if steps == 0 else 4 + steps - 1
    assert np.diff(cut.starts).tolist() == [9, 9] + [length] * 2 * (steps > 0)
    assert cut.prompt_length.tolist() == [4] * cut.sequences
    assert recorder.tokens == cut.tokens
    for number in range(cut.sequences):
        expected = whole.experts[whole.rows(number % 2)][: 9 if number < 2 else length]
        assert np.array_equal(cut.experts[cut.rows(number)], expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


def test_nothing_finished_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), Recorder(tiny("mixtral"), tmp_path / "t.safetensors") as recorder:
        raise KeyboardInterrupt
    assert recorder.written is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["mixtral", "nemotron_h"])  # nemotron_h projects what its experts get, not its router
def test_router_input_and_matrix(kind, tmp_path):
    model, ids = tiny(kind, moe_latent_size=16), prompts(2, 4)
    with overheard(model) as heard:
        _, trace = record(model, tmp_path / "t.safetensors", ids, 2, router_input=True)
    logits = np.einsum("tlh,leh->tle", trace.router_input.astype(np.float32), trace.router_weight)
    # Half precision keeps 11 bits of inputs that a norm has brought to about 1.
    assert np.allclose(logits, in_rows(heard, 2, 0), atol=2e-3)


def test_more_experts_than_a_byte_counts(tmp_path):
    model = tiny("qwen3_moe", num_experts=300, num_local_experts=300)
    with Recorder(model, tmp_path / "t.safetensors", weights=False) as recorder:
        recorder.batch(1, 3, 0)
        model(prompts(1, 3))
    trace = Trace.load(tmp_path / "t.safetensors")
    assert (trace.experts.dtype, trace.metadata.experts, trace.weights) == (np.uint16, 300, None)


def test_unit_bytes(tmp_path):
    """One expert of the tiny Mixtral: gate and up of 24 x 32 and down of 32 x 24, 4 bytes each: 9216."""
    _, trace = record(tiny("mixtral"), tmp_path / "t.safetensors", prompts(1, 2), 0)
    assert trace.metadata.unit_bytes == (9216,) * 3


def test_a_token_without_an_expert(tmp_path):
    """An id that is no expert's, as expert parallelism hands over, is none in the trace."""
    model = tiny("mixtral")
    recorder = Recorder(model, tmp_path / "t.safetensors")
    ids = recorder._ids(np.array([[[8, 3]], [[-1, 8]]], np.int32))
    none = none_id(ids)
    assert ids.tolist() == [[[none, 3]], [[none, none]]]
    with pytest.raises(InputError, match="twice"):
        recorder._ids(np.array([[[3, 3]]], np.int32))


# ---- predictors ------------------------------------------------------------------------------------


def fitted(model, ahead: int, sources=("gate", "residual", "ridge")):
    """Predictors fitted to two batches of random tokens."""
    fitting = Fitting(moe_layers(model), sources, ahead)
    with fitting.watching(model), torch.no_grad():
        for seed in (5, 6):
            model(prompts(4, 12, seed))
    found = fitting.finish("tiny", "random tokens")
    return [found[source] for source in sources]


@contextmanager
def true_inputs(model):
    """What the router of each layer read, [[N, hidden] of each step] of each layer."""
    layers = moe_layers(model)
    heard = [[] for _ in layers]
    with reading(layers, lambda number, x: heard[number].append(x.clone())):
        yield heard


def rows(steps, sequences: int):
    """[T, hidden] of one layer in the order of a trace."""
    parts = [step.reshape(sequences, -1, step.shape[-1]) for step in steps]
    return torch.cat(parts, dim=1).flatten(0, 1)


def test_predictions_are_what_the_predictors_choose(tmp_path):
    """Recomputed from the router inputs of the same run: ids for every h, cosines averaged over a sequence."""
    model, ids = tiny("qwen3_moe", num_hidden_layers=4), prompts(3, 5)
    plain, without = record(model, tmp_path / "plain.safetensors", ids, 4)
    predictors = fitted(model, 2)
    with true_inputs(model) as heard:
        scores, trace = record(model, tmp_path / "t.safetensors", ids, 4, predictors=predictors)
    assert torch.equal(plain, scores)
    assert np.array_equal(without.experts, trace.experts)
    assert trace.sources == {"gate": 2, "residual": 2, "ridge": 2}
    x = [rows(steps, 3) for steps in heard]
    assert x[0].shape == (27, 32)  # a prediction calls no router that a hook can see
    for predictor in predictors:
        for h, name in ((1, predictor.source), (2, f"{predictor.source}.2")):
            assert (trace.predicted[name][:, :h] == none_id(trace.experts)).all()
            assert np.isnan(trace.cosine[name][:, :h]).all()
            for layer in range(h, 4):
                chosen = predictor.choose(layer - h, h, x[layer - h]).numpy()
                # In other blocks than while recording, products may round otherwise: one token in 27 may tie.
                assert (np.sort(trace.predicted[name][:, layer]) == np.sort(chosen)).all(axis=1).sum() >= 26
                guess = predictor.predict(layer - h, h, x[layer - h])
                cosine = torch.cosine_similarity(guess, x[layer], dim=-1).reshape(3, 9).mean(dim=1)
                np.testing.assert_allclose(trace.cosine[name][:, layer], cosine, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_interrupted_predictions_are_those_of_the_whole_steps(steps, tmp_path):
    """Stopped in the second layer: what is left equals a recording that was shorter by plan."""
    model, ids = tiny("mixtral"), prompts(2, 4)
    predictors = fitted(model, 2)
    _, short = record(model, tmp_path / "short.safetensors", ids, steps - 1, predictors=predictors)
    calls = []

    def stop(*_):
        calls.append(None)
        if len(calls) == steps + 1:
            raise KeyboardInterrupt

    handle = model.model.layers[1].mlp.experts.register_forward_pre_hook(stop)
    recorder = Recorder(model, tmp_path / "cut.safetensors", predictors=predictors)
    with pytest.raises(KeyboardInterrupt):
        twice(recorder, model, ids)
    handle.remove()
    cut = Trace.load(recorder.written)
    assert cut.tokens == 2 * (4 + steps - 1)
    for name, expected in short.arrays().items():
        assert np.array_equal(cut.arrays()[name], expected, equal_nan=expected.dtype == np.float32), name


def test_a_router_that_chooses_otherwise_by_itself(tmp_path):
    """A block that changes what its router chose: nothing says so but the model's own run."""
    model = tiny("mixtral")
    layer = model.model.layers[1].mlp
    predictor = GatePredictor(Routing(moe_layers(model)), 1)
    shift = layer.experts.register_forward_pre_hook(lambda _, inputs: (inputs[0], (inputs[1] + 1) % EXPERTS, inputs[2]))
    fails(
        model,
        tmp_path / "t.safetensors",
        r"router of model\.layers\.1\.mlp\.experts: called by itself it chose otherwise .* \d+ of 6 tokens",
        lambda r: (r.batch(2, 3, 0), model(prompts(2, 3))),
        predictors=[predictor],
    )
    shift.remove()


def test_predictors_of_a_source_each_once_and_not_beyond_the_model(tmp_path):
    model, path = tiny("mixtral"), tmp_path / "t.safetensors"
    routing = Routing(moe_layers(model))
    with pytest.raises(InputError, match="found gate, gate, expected each once"):
        Recorder(model, path, predictors=[GatePredictor(routing, 1)] * 2)
    with pytest.raises(InputError, match="found 3 layers ahead, expected fewer than the 3 MoE layers"):
        Recorder(model, path, predictors=[GatePredictor(routing, 3)])


# ---- bad input -------------------------------------------------------------------------------------


def fails(model, path, match: str, run, **others) -> None:
    with pytest.raises(InputError, match=match), Recorder(model, path, **others) as recorder:
        run(recorder)
    assert list(path.parent.iterdir()) == []


def test_dense_model(tmp_path):
    with pytest.raises(InputError, match=r"LlamaForCausalLM: found no experts"):
        Recorder(tiny("llama"), tmp_path / "t.safetensors")


def test_no_router(tmp_path):
    model = tiny("mixtral")
    layer = model.model.layers[1].mlp
    layer.chooser = layer.gate
    del layer.gate
    with pytest.raises(
        InputError, match=r"router of model\.layers\.1\.mlp\.experts: found none among experts, chooser"
    ):
        Recorder(model, tmp_path / "t.safetensors")


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Recorder(tiny("mixtral"), tmp_path / "nowhere" / "t.safetensors")


def test_steps_that_do_not_fit(tmp_path):
    model, path = tiny("mixtral"), tmp_path / "t.safetensors"
    fails(model, path, r"expected batch\(\) before", lambda r: model(prompts(2, 3)))
    fails(model, path, "found 8 tokens, expected at most 3", lambda r: (r.batch(2, 3, 0), model(prompts(2, 4))))
    fails(model, path, "found 3 tokens", lambda r: (r.batch(2, 3, 0), model(prompts(1, 3))))
    fails(model, path, "found 0 sequences", lambda r: r.batch(0, 3, 0))


def test_weights_that_are_no_numbers(tmp_path):
    model, path = tiny("mixtral"), tmp_path / "t.safetensors"
    model.model.layers[0].mlp.gate.weight.data.fill_(float("nan"))
    fails(
        model,
        path,
        "router weights: found one below zero or not finite",
        lambda r: (r.batch(1, 2, 0), model(prompts(1, 2))),
    )


def test_a_layer_that_does_not_run(tmp_path):
    model, path = tiny("mixtral"), tmp_path / "t.safetensors"
    model.config.num_hidden_layers = 2  # the model then leaves out its last layer
    fails(
        model,
        path,
        r"layers\.2\..*found no experts in a forward pass",
        lambda r: (r.batch(1, 2, 0), model(prompts(1, 2))),
    )


@pytest.mark.parametrize("limit", [64, 600])  # bytes a file: full while recording, full while assembling
def test_full_disk(limit, tmp_path):
    """24 tokens x 3 layers x 2: 144 bytes of ids and 288 of weights, and a header of more than that."""
    model, ids, path = tiny("mixtral"), prompts(2, 12), tmp_path / "t.safetensors"
    path.write_bytes(b"what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"t\.safetensors"):
            record(model, path, ids, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]
    assert Path(path).read_bytes() == b"what was there"
