"""How many units fit a device beside the rest of a model, before anything is moved."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dali.policies.types import InputError
from dali.runtime.device.arena import Arena
from dali.runtime.device.memory import free_host_bytes
from dali.runtime.model.layout import UnitLayout
from dali.runtime.model.moe_layers import MoeLayer

# Left free on a GPU that is sized automatically: activations, the KV cache, the kernels' own memory.
RESERVE = 2 << 30


class Room:
    """Memory of a device and of the host, for the units of a model.

    layers, layouts  the model's MoE layers, and how the units of each lie in memory
    staging          slots of the policy that come on top of those for what stays
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[MoeLayer], layouts: Sequence[UnitLayout], arena: Arena, staging: int
    ) -> None:
        self._model, self._layers, self._layouts = model, layers, layouts
        self._arena, self._staging = arena, staging
        self._block = max(layout.block_bytes for layout in layouts)

    def units(self, capacity: int | float | None, memory: int | None) -> int:
        """Units that stay, of what `Offload` is given.

        InputError for more than there are, and where what is free does not hold one.
        """
        every = sum(layout.units for layout in self._layouts)
        if capacity is not None and memory is not None:
            raise InputError("capacity, memory: found both, expected at most one of them")
        if isinstance(capacity, float):
            if not 0 <= capacity <= 1:
                raise InputError(f"capacity: found a share of {capacity}, expected 0 to 1")
            if 0 < capacity < 1 / every:
                raise InputError(f"capacity: found 0 units in a share of {capacity}, expected one or more, or 0")
            capacity = int(capacity * every)
        elif capacity is None:
            if memory is None:
                memory = self._arena.free_bytes() - self._rest() - RESERVE
            capacity = min(memory // self._block - self._staging, every)
            if capacity < 1:
                raise InputError(
                    f"GPU memory: found {memory / 1e6:.1f} MB for units, expected at least "
                    f"{(self._staging + 1) * self._block / 1e6:.1f} MB: one unit and {self._staging} staging slots"
                )
        if capacity < 0 or capacity > every:
            raise InputError(f"capacity: found {capacity} units, expected 0 to {every}")
        return capacity

    def check(self, units: int) -> None:
        """InputError unless so many slots and the rest of the model fit on the device, and all units on the host."""
        sizes = [layout.units * layout.block_bytes for layout in self._layouts]
        homes = [next(layer.experts.parameters()).device.type for layer in self._layers]
        slots = (units + self._staging) * self._block
        # Layers leave the host one by one as they enter the store; those that are on a device only enter it.
        host = max(sizes) + sum(size for size, home in zip(sizes, homes, strict=True) if home != "cpu")
        if self._arena.device.type == "cpu":
            host += slots
        else:
            needed = slots + self._rest()
            leaving = sum(size for size, home in zip(sizes, homes, strict=True) if home == self._arena.device.type)
            free = self._arena.free_bytes() + leaving
            if needed > free:
                raise InputError(
                    f"GPU memory: found {free / 1e9:.2f} GB free, expected {needed / 1e9:.2f} GB: "
                    f"{slots / 1e9:.2f} GB of slots and the model without its experts"
                )
        available = free_host_bytes()
        if host > available:
            raise InputError(f"host memory: found {available / 1e9:.2f} GB free, expected {host / 1e9:.2f} GB")

    def _rest(self) -> int:
        """Bytes of what is not experts and not on the device yet."""
        experts = {id(p) for layer in self._layers for p in layer.experts.parameters(recurse=False)}
        tensors: list[Tensor] = [*self._model.parameters(), *self._model.buffers()]
        coming = [t for t in tensors if id(t) not in experts and t.device.type != self._arena.device.type]
        return sum(t.numel() * t.element_size() for t in coming)
