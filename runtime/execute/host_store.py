"""Where all units live: host memory, each unit one contiguous block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dali.runtime.device.arena import Arena
from dali.runtime.model.layout import UnitLayout, Weights
from dali.runtime.model.moe_layers import MoeLayer


class HostStore:
    """The experts of a model, taken out of it layer by layer and given back the same way.

    layers, layouts  MoE layers and how the units of each lie in memory
    arena            gives host memory from which it can copy

    While a layer is taken, its module's parameters are empty tensors of their type; the parameter objects stay.
    Never more than the model and one layer are in memory.
    """

    def __init__(self, layers: Sequence[MoeLayer], layouts: Sequence[UnitLayout], arena: Arena) -> None:
        self._layers, self._layouts, self._arena = list(layers), list(layouts), arena
        self._memory: list[Tensor | None] = [None] * len(self._layers)
        self._weights: list[Weights | None] = [None] * len(self._layers)
        self._origins: list[dict[str, tuple[torch.Size, torch.device]]] = [{} for _ in self._layers]

    def take(self, layer: int) -> None:
        """Move one layer's parameters into blocks."""
        experts, layout = self._layers[layer].experts, self._layouts[layer]
        memory = self._arena.host_memory(layout.units, layout.block_bytes)
        layout.pack(experts, memory)
        self._memory[layer], self._weights[layer] = memory, layout.weights(memory)
        for part in layout.parts:
            parameter = _parameter(experts, part.name)
            self._origins[layer][part.name] = parameter.shape, parameter.device
            parameter.data = torch.empty(0, dtype=layout.dtype, device=parameter.device)

    def give_back(self, layer: int) -> None:
        """Move one layer's blocks back into its module's parameters; does nothing for a layer that was not taken."""
        memory, layout = self._memory[layer], self._layouts[layer]
        if memory is None:
            return
        for part in layout.parts:
            if part.name not in self._origins[layer]:
                continue
            shape, device = self._origins[layer].pop(part.name)
            data = torch.empty(shape, dtype=layout.dtype, device=device)
            layout.unpack(part, memory, data)
            _parameter(self._layers[layer].experts, part.name).data = data
        self._memory[layer] = self._weights[layer] = None
        self._arena.release(memory)

    def unit(self, layer: int, unit: int) -> Tensor:
        """uint8 [block_bytes], one unit."""
        return self._taken(layer)[unit]

    def weights(self, layer: int) -> Weights:
        """Views of all units of a layer."""
        weights = self._weights[layer]
        if weights is None:
            raise RuntimeError(f"layer {layer}: its units are not in the store")
        return weights

    def _taken(self, layer: int) -> Tensor:
        memory = self._memory[layer]
        if memory is None:
            raise RuntimeError(f"layer {layer}: its units are not in the store")
        return memory


def _parameter(experts: nn.Module, name: str) -> nn.Parameter:
    parameter: nn.Parameter = getattr(experts, name)
    return parameter
