"""Predictors: by hand, against known dynamics, streamed or at once, on disk and back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dali.policies.types import InputError
from dali.traces import tensor_file

torch = pytest.importorskip("torch", reason="needs the runtime extra")
pytest.importorskip("transformers", reason="needs the runtime extra")

from tiny_models import prompts, tiny

from dali.runtime.model.moe_layers import (
    MoeLayer,
    moe_layers,
)
from dali.runtime.predict.fitting import Fitting
from dali.runtime.predict.predictors import (
    Predictors,
    beside,
)


class TopK(torch.nn.Module):
    """A router that says what it chose: the k largest logits, weighted by their softmax."""

    def __init__(self, weight, k: int) -> None:
        super().__init__()
        self.weight, self.k = torch.nn.Parameter(torch.as_tensor(weight, dtype=torch.float32)), k

    def forward(self, x):
        logits = x @ self.weight.T
        top = logits.topk(self.k, dim=-1)
        return logits, top.values.softmax(dim=-1), top.indices


def stack(weights, k: int = 1) -> list[MoeLayer]:
    """MoE layers that are nothing but their routers."""
    return [
        MoeLayer(f"layers.{number}.experts", torch.nn.Module(), len(weight), TopK(weight, k), torch.nn.Module())
        for number, weight in enumerate(weights)
    ]


def fit(layers, inputs, sources=("gate", "residual", "ridge"), ahead: int = 1, size: int = 1000) -> Predictors:
    """Fitted to inputs [L, N, hidden], `size` tokens a step."""
    fitting = Fitting(layers, sources, ahead)
    for at in range(0, inputs.shape[1], size):
        fitting.observe(list(inputs[:, at : at + size]))
    return fitting.finish("stack", "numbers")


def test_two_layers_by_hand():
    """Layer 0 reads (1, 0), (0, 1); layer 1 reads (2, 1), (1, 3): it adds (1, 1) and (1, 2), on average (1, 1.5).

    For x = (1, 0), the router of layer 1 with rows (1, 0), (0, 1.5): as it is, logits 1 and 0 choose expert 0;
    with the residual, (2, 1.5) and logits 2 and 2.25 choose expert 1.
    """
    layers = stack([np.eye(2), [[1, 0], [0, 1.5]]])
    inputs = torch.tensor([[[1.0, 0], [0, 1]], [[2, 1], [1, 3]]])
    found = fit(layers, inputs, ("residual",), size=1)
    assert found.arrays["residual"].tolist() == [[1.0, 1.5]]
    x = torch.tensor([[1.0, 0.0]])
    assert found["gate"].predict(0, 1, x).tolist() == [[1.0, 0.0]]
    assert found["gate"].choose(0, 1, x).tolist() == [[0]]
    assert found["residual"].predict(0, 1, x).tolist() == [[2.0, 1.5]]
    assert found["residual"].choose(0, 1, x).tolist() == [[1]]


def test_residuals_of_several_layers_add_up():
    """Layers add 1, 10 and 100 to every number: two layers on from the second, 110."""
    inputs = torch.stack([torch.zeros(3, 2) + value for value in (0.0, 1.0, 11.0, 111.0)])
    found = fit(stack([np.eye(2)] * 4), inputs, ("residual",), ahead=3)["residual"]
    assert found.predict(1, 2, torch.zeros(1, 2)).tolist() == [[110.0, 110.0]]
    assert found.predict(0, 3, torch.ones(1, 2)).tolist() == [[112.0, 112.0]]


@given(st.integers(0, 2**31), st.lists(st.integers(1, 900), min_size=1, max_size=5), st.sampled_from([0.0, 1e4]))
def test_running_mean_is_the_mean(seed, sizes, offset):
    """Whatever the steps: the mean of the differences as float32 holds them, taken at once in float64."""
    torch.manual_seed(seed)
    inputs = torch.randn(3, sum(sizes), 2) + offset * torch.arange(3)[:, None, None]
    fitting = Fitting(stack([np.eye(2)] * 3), ["residual"], 1)
    for step in inputs.split(sizes, dim=1):
        fitting.observe(list(step))
    found = fitting.finish("stack", "numbers").arrays["residual"]
    at_once = (inputs[1:] - inputs[:-1]).numpy().mean(axis=1, dtype=np.float64)
    np.testing.assert_allclose(found, at_once.astype(np.float32), rtol=2e-7, atol=1e-12)


def recall(predictor, h: int, inputs) -> float:
    """Share of the ids that the last layer truly chooses among those predicted h layers before it."""
    last = len(inputs) - 1
    true = predictor.routing.choose(last, inputs[last])[0]
    chosen = predictor.choose(last - h, h, inputs[last - h])
    return float((chosen[:, :, None] == true[:, None, :]).any(dim=1).float().mean())


def test_ridge_finds_linear_dynamics():
    """Layer 1 reads a rotation of what layer 0 reads, layer 2 another: logits are linear in x, and are found.

    A rotation far from the identity leaves x + mean without use: 2 of 8 experts by chance, a recall of 1/4.
    """
    generator = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q for _ in range(2)]
    first = torch.randn(3000, 12, generator=generator)
    second = first @ turns[0] + 0.2
    inputs = torch.stack([first, second, second @ turns[1]])
    layers = stack(torch.randn(3, 8, 12, generator=generator), k=2)
    found = fit(layers, inputs[:, :2000], ahead=2)
    held_out = inputs[:, 2000:]
    for h in (1, 2):
        logits = held_out[2] @ layers[2].router.weight.detach().T
        guess = found["ridge"].predict(2 - h, h, held_out[2 - h]) @ layers[2].router.weight.detach().T
        # Slopes are kept in half precision, and the smallest penalty is not none.
        assert float((guess - logits).abs().max()) < 0.02 * float(logits.std())
        assert recall(found["ridge"], h, held_out) > 0.99
        assert recall(found["residual"], h, held_out) < 0.7
    assert found.arrays["ridge.penalty"][:, 0].tolist() == pytest.approx([1e-4, 1e-4])


def test_ridge_sees_what_each_expert_adds():
    """Layer 1 reads x plus a vector of the expert that layer 0 chose: known from its gates, not linear in x."""
    generator = torch.Generator().manual_seed(1)
    layers = stack(torch.randn(2, 8, 16, generator=generator))
    x = torch.randn(4000, 16, generator=generator)
    added = 6 * torch.randn(8, 16, generator=generator)
    inputs = torch.stack([x, x + added[layers[0].router(x)[2][:, 0]]])
    found = fit(layers, inputs[:, :3000])
    assert recall(found["ridge"], 1, inputs[:, 3000:]) > 0.99
    assert recall(found["residual"], 1, inputs[:, 3000:]) < 0.6


def test_ridge_without_anything_to_learn_is_the_residual():
    """What layer 1 adds is noise: the penalty goes to its largest, and predictions stay where the residual is."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1200, 8, generator=generator)
    inputs = torch.stack([x, x + 2 + torch.randn(1200, 8, generator=generator)])
    found = fit(stack(torch.randn(2, 4, 8, generator=generator)), inputs)
    assert found.arrays["ridge.penalty"][0, 0] >= 1
    difference = found["ridge"].predict(0, 1, x) - found["residual"].predict(0, 1, x)
    assert float(difference.square().mean()) < 0.01


def test_an_input_that_does_not_vary():
    """A number that is 1000 for every token, and experts that no token chooses: no slope, no division by zero."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 4, generator=generator)
    x[:, 0] = 1000.0
    inputs = torch.stack([x, x + x.roll(1, dims=1) * torch.tensor([0.0, 0, 1, 1])])
    weight = torch.randn(6, 4, generator=generator)
    weight[3] = torch.tensor([-1000.0, 0, 0, 0])
    found = fit(stack([weight, weight], k=2), inputs)
    slope = found.arrays["ridge.slope"][0, 0]
    assert np.isfinite(slope).all()
    assert (np.abs(slope[:, [0, 4 + 3]]) < 1e-6).all()


def test_predicting_waits_for_no_device():
    """On the meta device a tensor has no values: anything that asked for one would raise."""
    layers = stack(torch.randn(3, 8, 12), k=2)
    found = fit(layers, torch.randn(3, 400, 12), ahead=2)
    for predictor in found.values():
        predictor.place("meta", torch.float32)
    for layer in layers:
        layer.router.to("meta")
    x = torch.empty(5, 12, device="meta")
    for predictor in found.values():
        assert predictor.predict(0, 2, x).shape == (5, 12)
        assert predictor.choose(1, 1, x).shape == (5, 2)


def test_half_precision():
    layers = stack(torch.randn(2, 8, 12), k=2)
    for layer in layers:
        layer.router.to(torch.bfloat16)
    found = fit(layers, torch.randn(2, 400, 12).bfloat16())
    for predictor in found.values():
        assert predictor.predict(0, 1, torch.randn(5, 12).bfloat16()).dtype == torch.bfloat16


# ---- files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny("deepseek_v3")


@pytest.fixture(scope="module")
def found(model):
    fitting = Fitting(moe_layers(model), ["ridge"], 1)
    with fitting.watching(model), torch.no_grad():
        model(prompts(4, 12))
    return fitting.finish("tiny", "random tokens")


def test_watching_a_model_leaves_it_as_it_was(model, found):
    assert {len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()} == {0}
    assert (found.origin.tokens, found.origin.layers, found.origin.hidden) == (48, 2, 32)


def test_file(model, found, tmp_path):
    path = beside(tmp_path / "trace.safetensors")
    assert path.name == "trace.predictors.safetensors"
    found.save(path)
    loaded = Predictors.load(path, moe_layers(model))
    assert loaded.origin == found.origin
    assert list(loaded) == ["gate", "residual", "ridge"]
    x = torch.randn(7, 32)
    for source, predictor in found.items():
        assert torch.equal(loaded[source].predict(0, 1, x), predictor.predict(0, 1, x))
        assert torch.equal(loaded[source].choose(0, 1, x), predictor.choose(0, 1, x))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_file_of_the_same_weights_in_another_type(model, found, tmp_path):
    found.save(tmp_path / "p.safetensors")
    half = tiny("deepseek_v3")
    half.load_state_dict(model.state_dict())
    assert Predictors.load(tmp_path / "p.safetensors", moe_layers(half.bfloat16())).origin == found.origin


def test_file_of_another_model(found, tmp_path):
    path = tmp_path / "p.safetensors"
    found.save(path)
    other = tiny("deepseek_v3")
    moe_layers(other)[1].router.weight.data[0, 0] += 1
    with pytest.raises(InputError, match=r"p\.safetensors: fitted for tiny with routers \w+, found .* routers \w+$"):
        Predictors.load(path, moe_layers(other))
    with pytest.raises(
        InputError, match=r"p\.safetensors: fitted for tiny with layers 2, found a model with layers 3$"
    ):
        Predictors.load(path, moe_layers(tiny("mixtral")))


def test_file_that_is_not_whole(model, found, tmp_path):
    path, layers = tmp_path / "p.safetensors", moe_layers(model)
    with pytest.raises(InputError, match="no such file"):
        Predictors.load(path, layers)
    tensor_file.write(path, found.arrays, {"format": "dali-trace"})
    with pytest.raises(InputError, match="'dali-trace', expected 'dali-predictors'"):
        Predictors.load(path, layers)
    strings = {name: str(value) for name, value in dataclasses.asdict(found.origin).items()}
    head = {"format": "dali-predictors", "format_version": "1"}
    for change, match in (
        ({"format_version": "2"}, "format_version 1"),
        ({"tokens": "many"}, "tokens: found 'many'"),
        ({"ahead": "7"}, "for 7 layers ahead"),
    ):
        tensor_file.write(path, found.arrays, head | strings | change)
        with pytest.raises(InputError, match=match):
            Predictors.load(path, layers)
    tensor_file.write(path, {"ridge.slope": found.arrays["ridge.slope"]}, head | strings)
    with pytest.raises(InputError, match=r"found arrays .*ridge\.slope.*residual"):
        Predictors.load(path, layers)


# ---- bad input -------------------------------------------------------------------------------------


def test_what_cannot_be_fitted(found):
    layers = stack([np.eye(2)] * 3)
    with pytest.raises(InputError, match="found 'magic', expected of gate, residual, ridge"):
        Fitting(layers, ["magic"], 1)
    for ahead in (0, 3):
        with pytest.raises(InputError, match=rf"ahead: found {ahead}, expected 1 to 2 for 3 MoE layers"):
            Fitting(layers, ["gate"], ahead)
    with pytest.raises(InputError, match="found inputs of"):
        Fitting(stack([np.eye(2), np.ones((2, 3))]), ["gate"], 1)
    with pytest.raises(InputError, match="calibration: found no token"):
        Fitting(layers, ["residual"], 1).finish("stack", "nothing")
    with pytest.raises(InputError, match="not finite"):
        fit(layers, torch.full((3, 4, 2), float("nan")))
    with pytest.raises(InputError, match="found 'oracle', expected one of gate, residual, ridge"):
        found["oracle"]


def test_a_model_that_leaves_a_layer_out():
    model = tiny("mixtral")
    fitting = Fitting(moe_layers(model), ["residual"], 1)
    model.config.num_hidden_layers = 2
    with pytest.raises(InputError, match=r"layers\.2\..*: found no call of its router"), fitting.watching(model):
        model(prompts(1, 2))
