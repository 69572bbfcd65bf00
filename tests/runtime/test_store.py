"""The host store: every unit one block, bit for bit, and never more than a layer in memory twice."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from offloading_cases import ARCHITECTURES, tiny

from dali.policies.types import InputError
from dali.runtime.device import memory
from dali.runtime.device.host import HostArena
from dali.runtime.device.memory import (
    free_host_bytes,
    page_memory,
)
from dali.runtime.execute.host_store import HostStore
from dali.runtime.model.layout import unit_layout
from dali.runtime.model.moe_layers import moe_layers


def store_of(model, slices: int, arena=None) -> HostStore:
    layers = moe_layers(model)
    return HostStore(layers, [unit_layout(layer, slices) for layer in layers], arena or HostArena())


@pytest.mark.parametrize(("kind", "slices"), list(itertools.product(["mixtral", "gpt_oss", "nemotron_h"], [1, 4])))
def test_back_bit_for_bit(kind, slices):
    """Also numbers that are none, and zeros below zero."""
    model = tiny(kind).to(torch.bfloat16)
    experts = moe_layers(model)[0].experts
    experts.down_proj.data.view(torch.int16).flatten()[:4] = torch.tensor([0x7FC1, 0x7F81, -0x8000, -0x80]).short()
    before = {name: p.data.clone() for name, p in experts.named_parameters()}
    store = store_of(model, slices)
    store.take(0)
    assert {p.numel() for p in experts.parameters()} == {0}
    store.give_back(0)
    for name, parameter in experts.named_parameters():
        assert torch.equal(parameter.data.view(torch.int16), before[name].view(torch.int16)), name


def test_units_of_a_mixtral_by_hand():
    """Unit 11 of 4 slices is slice 3 of expert 2: rows 24-31 of gate and of up (32 further down), columns of down."""
    model = tiny("mixtral")
    experts = moe_layers(model)[1].experts
    up, down = experts.gate_up_proj.data.clone(), experts.down_proj.data.clone()
    store = store_of(model, 4)
    store.take(1)
    weights = store.weights(1)
    assert torch.equal(weights.up[11].T, torch.cat([up[2, 24:32], up[2, 56:64]]))
    assert torch.equal(weights.down[11].T, down[2][:, 24:32])
    # 16 x 32 and 32 x 8 numbers of 4 bytes, one after the other.
    unit = store.unit(1, 11)
    assert unit.is_contiguous()
    assert unit.numel() == (16 * 32 + 32 * 8) * 4
    assert torch.equal(unit.view(torch.float32), torch.cat([weights.up[11].T.flatten(), weights.down[11].T.flatten()]))


def test_units_of_a_gpt_oss_by_hand():
    """Interleaved and transposed: slice 1 of 2 has columns 32-63 of gate_up; only slice 0 has the bias of down."""
    model = tiny("gpt_oss")
    experts = moe_layers(model)[0].experts
    parameters = {name: p.data.clone() for name, p in experts.named_parameters()}
    store = store_of(model, 2)
    store.take(0)
    weights = store.weights(0)
    assert torch.equal(weights.up[7], parameters["gate_up_proj"][3][:, 32:])
    assert torch.equal(weights.up_bias[7], parameters["gate_up_proj_bias"][3, 32:])
    assert torch.equal(weights.down[7], parameters["down_proj"][3, 16:])
    assert not weights.down_bias[7].any()
    assert torch.equal(weights.down_bias[6], parameters["down_proj_bias"][3])


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES.keys() - {"gpt_oss"}))
def test_slices_have_every_number_once(kind):
    layer = moe_layers(tiny(kind))[0]
    whole, parts = unit_layout(layer, 1), unit_layout(layer, 4)
    assert parts.unit_bytes * 4 == whole.unit_bytes
    for mine, theirs in zip(numbers(layer, parts), numbers(layer, whole), strict=True):
        assert torch.equal(mine, theirs)


def numbers(layer, layout):
    """Of each part, the numbers of each expert in order of size."""
    memory = torch.zeros((layout.units, layout.block_bytes), dtype=torch.uint8)
    layout.pack(layer.experts, memory)
    found = [part.of(memory, layout.dtype).reshape(layout.experts, -1) for part in layout.parts]
    return [each.sort(dim=1).values for each in found]


def test_only_one_slice_carries_the_last_bias():
    """gpt-oss: 3 of 4 slices have zeros in place of down's bias, 32 numbers of 4 bytes."""
    layer = moe_layers(tiny("gpt_oss"))[0]
    assert unit_layout(layer, 4).unit_bytes * 4 == unit_layout(layer, 1).unit_bytes + 3 * 32 * 4


def test_peak_is_the_model_and_one_layer():
    """When a layer's blocks are allocated, the layers before it are in their blocks only."""
    model = tiny("mixtral")
    layers = moe_layers(model)
    size = sum(p.numel() * p.element_size() for p in layers[0].experts.parameters())
    seen, taken = [], 0

    class Counting(HostArena):
        def host_memory(self, blocks, size):
            nonlocal taken
            taken += blocks * size
            left = sum(p.numel() * p.element_size() for layer in layers for p in layer.experts.parameters())
            seen.append(left + taken)
            return super().host_memory(blocks, size)

    store = store_of(model, 1, Counting())
    for layer in range(3):
        store.take(layer)
    assert seen == [4 * size] * 3


def test_pages_of_their_own():
    memory = page_memory(3, 100)
    assert memory.shape == (3, 100)
    assert memory.data_ptr() % 4096 == 0
    memory.fill_(7)
    assert np.array_equal(memory.numpy(), np.full((3, 100), 7))


@pytest.mark.parametrize(
    ("limit", "free"),
    # 1000 kB are available; a container may take 900 kB, has 500 kB of which 200 kB are files that it has read.
    [("max", 1000 * 1024), (900 * 1024, (900 - 500 + 200) * 1024), (5000 * 1024, 1000 * 1024)],
)
def test_free_host_memory(limit, free, tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 1000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{500 * 1024}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\nactive_file {50 * 1024}\ninactive_file {150 * 1024}\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert free_host_bytes() == free


def test_experts_of_several_types():
    model = tiny("mixtral")
    layer = moe_layers(model)[0]
    layer.experts.down_proj.data = layer.experts.down_proj.data.half()
    with pytest.raises(InputError, match="expected one type of"):
        unit_layout(layer, 1)


def test_experts_of_a_wrong_shape():
    layer = moe_layers(tiny("mixtral"))[0]
    layer.experts.gate_up_proj.data = layer.experts.gate_up_proj.data[:, :60]
    with pytest.raises(InputError, match=r"gate_up_proj: found shape \[8, 60, 32\], expected \[8, 64, 32\]"):
        unit_layout(layer, 1)
