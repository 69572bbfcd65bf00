"""What the tests of `runtime.offload` share: tiny models, policies as configured, stand-ins for predictors."""

import copy
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")
transformers = pytest.importorskip("transformers", reason="needs the runtime extra")

from tiny_models import CORRECTED, EXPERTS, SORTED, STATE_SPACE, TINY, TOP_K, VOCABULARY, prompts  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM

from dali.experiments.settings.objects import make_policy
from dali.policies.costs.model import (
    CostModel,
    Overheads,
)
from dali.policies.planner import Policy
from dali.runtime.device.host import HostArena
from dali.runtime.execute.offload import (
    Offload,
    offload,
)
from dali.runtime.model.moe_layers import moe_layers

# Inner widths that four slices divide.
SIZES = TINY | {"intermediate_size": 32, "moe_intermediate_size": 32}
ARCHITECTURES = SORTED | CORRECTED | {"nemotron_h": {"moe_latent_size": 16, **STATE_SPACE}}
LIVE_POLICIES = ("naive", "on_demand", "hybrimoe", "dali", "frontier")


def tiny(kind: str, **others):
    if kind not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | ARCHITECTURES.get(kind, {}) | others))
    model = AutoModelForCausalLM.from_config(config).eval()
    if not model._can_set_experts_implementation():
        pytest.skip(f"{kind} of transformers {transformers.__version__}: no experts interface")
    # Biases and correction terms begin at zero: then a test would not see them left out.
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if name.endswith("bias") and tensor.is_floating_point():
            tensor.data.uniform_(-0.5, 0.5)
    return model


def generate(model, ids, count: int):
    """Logits [count, B, V] and tokens [B, count] of greedy decoding; none ends early."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        max_new_tokens=count,
        min_new_tokens=count,
    )
    return torch.stack(out.logits), out.sequences[:, ids.shape[1] :]


def costs(layers: int, copy: float = 3e-4, tokens: int = 512) -> CostModel:
    """The GPU takes 10 us and 2 us a token, the CPU 100 us a token, a copy 300 us: all policies mix both sides."""
    w = np.arange(tokens + 1, dtype=np.float64)
    cpu, gpu = w * 1e-4, np.where(w > 0, 1e-5 + w * 2e-6, 0)
    copies = np.full(layers, copy)

    def nothing(*_):
        return 0.0

    return CostModel(cpu, cpu, gpu, copies, copies, Overheads(), nothing, nothing)


class RawGate:
    """The next layers' matrices on what this layer's router reads: any guess will do, numbers must not depend on it."""

    ahead = 3

    def __init__(self, model):
        self._layers = moe_layers(model)

    def choose(self, layer, h, x):
        weight = self._layers[layer + h].router_weight
        if weight.shape[1] != x.shape[1]:
            return torch.zeros((len(x), 1), dtype=torch.int64)
        return (x.float() @ weight.float().T).topk(TOP_K).indices


@cache
def _configured(name: str) -> Policy:
    return make_policy("compare", [], name)[1]


def policy(name: str) -> Policy:
    """One of conf/policy with its overrides, unused; composed once, as that takes longer than most runs here."""
    return copy.deepcopy(_configured(name))


def offloaded(model, name: str, capacity=4, **others) -> Offload:
    """`runtime.offload` on the CPU of a policy of conf/policy, with costs and predictors for it."""
    guess = RawGate(model)
    defaults = {
        "capacity": capacity,
        "device": "cpu",
        "believed": costs(len(moe_layers(model))),
        "predictors": {"gate": guess, "residual": guess},
    }
    return offload(model, policy(name), **(defaults | others))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_restored(model, before) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    hooks = {(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()}
    assert hooks == {(0, 0)}
    assert {m.config._experts_implementation for m in (layer.experts for layer in moe_layers(model))} <= {
        "grouped_mm",
        "eager",
    }


def relative(found, expected) -> float:
    """Largest difference over the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


class SlowArena(HostArena):
    """A link whose copies are late by random times."""

    def __init__(self, rng, most: float):
        super().__init__()
        self._rng, self._most = rng, most

    def copy_bytes(self, to, what):
        import time

        time.sleep(float(self._rng.random()) * self._most)
        super().copy_bytes(to, what)
