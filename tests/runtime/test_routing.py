"""The model's own routers, called by themselves: the ids that the model used, on every architecture."""

import numpy as np
import pytest

from dali.policies.types import InputError
from dali.traces.trace import Trace

torch = pytest.importorskip("torch", reason="needs the runtime extra")
pytest.importorskip("transformers", reason="needs the runtime extra")

from tiny_models import CORRECTED, SORTED, prompts, routers, tiny

from dali.runtime.model.experts_hook import (
    reading,
    watching,
)
from dali.runtime.model.moe_layers import moe_layers
from dali.runtime.predict.predictors import GatePredictor
from dali.runtime.predict.routing import Routing
from dali.runtime.record.recorder import Recorder


def run(model, ids):
    """Router inputs, ids and weights of each MoE layer, and the logits, of one forward pass."""
    layers = moe_layers(model)
    number = {id(layer.experts): n for n, layer in enumerate(layers)}
    inputs, chosen = {}, {}

    def seen(experts, top, weights):
        chosen[number[id(experts)]] = (top.reshape(-1, top.shape[-1]).clone(), weights.clone())

    with reading(layers, lambda n, x: inputs.update({n: x.clone()})), watching(seen), torch.no_grad():
        logits = model(ids).logits
    return inputs, chosen, logits


@pytest.mark.parametrize("kind", [*SORTED, *CORRECTED])
def test_every_architecture(kind, tmp_path):
    """True inputs give the model's ids and weights; the recorded raw gate is each router on the input before it."""
    model, ids = tiny(kind), prompts(3, 5)
    if not model._can_set_experts_implementation() or not routers(model):
        pytest.skip(f"{kind}: no experts interface, or no router of its own, in this version of transformers")
    inputs, chosen, logits = run(model, ids)
    layers = moe_layers(model)
    routing = Routing(layers)
    for n in range(len(layers)):
        found, weights = routing.choose(n, inputs[n])
        assert torch.equal(found, chosen[n][0])
        assert torch.equal(weights, chosen[n][1].reshape(weights.shape))
        routing.check(n, inputs[n], found)
    if len(layers) < 2:
        return
    path = tmp_path / "t.safetensors"
    with Recorder(model, path, predictors=[GatePredictor(routing, 1)], router_input=True) as recorder, torch.no_grad():
        recorder.batch(3, 5, 0)
        assert torch.equal(model(ids).logits, logits)
    trace = Trace.load(path)
    for n in range(len(layers)):
        assert np.array_equal(trace.experts[:, n], chosen[n][0])
        assert np.array_equal(trace.router_input[:, n], inputs[n].half())
        if n > 0:
            assert np.array_equal(trace.predicted["gate"][:, n], routing.choose(n, inputs[n - 1])[0])
    hooks = [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.modules()]
    assert set(hooks) == {(0, 0)}


def test_a_correction_term_decides(tmp_path):
    """DeepSeek-V3: with a large term on experts 2 and 3 every input goes there."""
    model = tiny("deepseek_v3")
    gate = moe_layers(model)[0].router
    gate.e_score_correction_bias.data = torch.tensor([0.0, 0, 9, 9, 0, 0, 0, 0])
    ids, _ = Routing(moe_layers(model)).choose(0, torch.randn(20, 32))
    assert ids.sort(dim=-1).values.unique(dim=0).tolist() == [[2, 3]]


def test_a_router_that_needs_what_only_a_forward_pass_has():
    """Its second argument comes from the block, and the block's from the model."""
    model = tiny("mixtral")
    block = model.model.layers[1].mlp
    gate = block.gate.forward
    block.gate.forward = lambda x, tokens: gate(x[: len(tokens)])
    with pytest.raises(InputError, match=r"router of model\.layers\.1\.mlp\.experts: cannot be called by itself"):
        Routing(moe_layers(model))


def test_check_names_the_layer_and_the_count():
    model = tiny("mixtral")
    routing, x = Routing(moe_layers(model)), torch.randn(200, 32)
    ids = routing.choose(2, x)[0]
    others = (ids + torch.tensor([1, 2])) % 8  # {a + 1, b + 2} is never {a, b}
    routing.check(2, x, torch.cat([others[:2], ids[2:]]))  # two of 200 may be rounding
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.experts: .* for 3 of 200 tokens"):
        routing.check(2, x, torch.cat([others[:3], ids[3:]]))
    with pytest.raises(InputError, match="for 200 of 200 tokens"):
        routing.check(2, x, ids[:, :1])
