"""Numbers: offloaded models compute what they computed before, for every layout of experts and every policy."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from offloading_cases import (
    ARCHITECTURES,
    LIVE_POLICIES,
    assert_restored,
    generate,
    offloaded,
    prompts,
    relative,
    state,
    tiny,
)

from dali.runtime.model.moe_layers import moe_layers

GENERATED = 3
CAPACITIES = (2, 7, 1.0)
# Every layout and every policy with every other setting at least once: the settings rotate over the architectures.
SETTINGS = list(itertools.product(LIVE_POLICIES, (1, 4), CAPACITIES, (1, 8)))
QUICK = [(kind, *SETTINGS[(i * 7 + 5) % len(SETTINGS)]) for i, kind in enumerate(ARCHITECTURES)] + [
    (kind, name, 4, 5, 2) for kind in ("gpt_oss", "nemotron_h") for name in LIVE_POLICIES
]


def check(kind: str, name: str, slices: int, capacity, batch: int, **others) -> None:
    model, ids = tiny(kind, **others), prompts(batch, 6)
    expected, tokens = generate(model, ids, GENERATED)
    before = state(model)
    with offloaded(model, name, capacity, slices=slices) as run:
        found, chosen = generate(model, ids, GENERATED)
    assert relative(found, expected) < 1e-5
    assert torch.equal(chosen, tokens)
    assert_restored(model, before)
    columns = run.columns()
    assert columns["tokens"].tolist() == [6 * batch] + [batch] * (GENERATED - 1)
    assert np.array_equal(columns["lookups"], columns["gpu_units"] + columns["cpu_units"])


@pytest.mark.parametrize(("kind", "name", "slices", "capacity", "batch"), QUICK)
def test_logits_and_tokens(kind, name, slices, capacity, batch):
    check(kind, name, slices, capacity, batch)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slices", "capacity", "batch"), SETTINGS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_and_tokens_in_full(kind, name, slices, capacity, batch):
    check(kind, name, slices, capacity, batch)


def test_the_architectures_have_every_layout():
    """(gate, concatenated, transposed, bias) of the experts interface; transposed without bias: see below."""
    found = set()
    for kind in ("mixtral", "gpt_oss", "nemotron_h"):
        experts = moe_layers(tiny(kind))[0].experts
        found.add((experts.has_gate, experts.is_concatenated, experts.is_transposed, experts.has_bias))
    assert found == {(True, True, False, False), (True, False, True, True), (False, True, False, False)}


class Doubling(torch.nn.Module):
    """A norm that is no sum over its input, and has a parameter."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


FLAGS = list(itertools.product((True, False), (True, False), (True, False), (True, False), (True, False)))


@pytest.mark.parametrize(("gated", "concatenated", "transposed", "biased", "normed"), FLAGS)
def test_every_combination_of_flags(gated, concatenated, transposed, biased, normed):
    """Experts of a Mixtral rewritten with other flags, run by transformers' own batched implementation and by us."""
    model, ids = tiny("mixtral", num_hidden_layers=2), prompts(2, 5)
    for layer in moe_layers(model):
        rewrite(layer.experts, gated, concatenated, transposed, biased, normed)
    model.set_experts_implementation("batched_mm")
    if normed and not knows_norms():
        pytest.skip("the installed transformers has no norm after experts")
    with torch.no_grad():
        expected = model(ids).logits
        for slices in (1, 2):
            with offloaded(model, "hybrimoe", 5, slices=slices):
                found = model(ids).logits
            assert relative(found, expected) < 1e-5


def knows_norms() -> bool:
    import inspect

    from transformers.integrations.moe import batched_mm_experts_forward

    return "has_post_expert_norm" in inspect.getsource(batched_mm_experts_forward)


def rewrite(experts, gated, concatenated, transposed, biased, normed) -> None:
    """Give an experts module other flags, random parameters in the layout they say, and a gate for it."""
    count, hidden, inner = experts.num_experts, 32, 32
    width = 2 * inner if gated else inner
    del experts.gate_up_proj, experts.down_proj
    generator = torch.Generator().manual_seed(3)

    def parameter(*shape):
        return torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.2)

    first = "gate_up_proj" if gated else "up_proj"
    setattr(experts, first, parameter(*((count, hidden, width) if transposed else (count, width, hidden))))
    experts.down_proj = parameter(*((count, inner, hidden) if transposed else (count, hidden, inner)))
    if biased:
        setattr(experts, f"{first}_bias", parameter(count, width))
        experts.down_proj_bias = parameter(count, hidden)
    experts.has_gate, experts.is_concatenated, experts.is_transposed = gated, concatenated, transposed
    experts.has_bias, experts.has_post_expert_norm = biased, normed
    if normed:
        experts.post_expert_norm = Doubling(hidden)
    if not concatenated:
        experts._apply_gate = lambda pairs: experts.act_fn(pairs[..., ::2]) * pairs[..., 1::2]


@pytest.mark.parametrize("name", ["on_demand", "dali"])
def test_bfloat16(name):
    """bf16 has 8 bits: a sum of numbers rounded to it in another order is off by some of 2**-8 = 0.4 %."""
    model, ids = tiny("qwen3_moe").to(torch.bfloat16), prompts(4, 6)
    with torch.no_grad():
        expected = model(ids).logits.float()
        with offloaded(model, name, 6, slices=2):
            found = model(ids).logits
    assert found.dtype == torch.bfloat16
    assert relative(found.float(), expected) < 2e-2
