"""GPU slots: preallocated places for one unit each, and when each was last read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from dali.policies.types import Copy
from dali.runtime.device.arena import Arena, Transfer
from dali.runtime.model.layout import UnitLayout, Weights


class Slots:
    """`count` slots, each large enough for a unit of any layer.

    Which unit is in which slot is the planner's knowledge.  This keeps the memory, and makes a copy wait for
    the kernels that read what it overwrites.
    """

    def __init__(self, arena: Arena, count: int, layouts: Sequence[UnitLayout]) -> None:
        self._arena = arena
        self._memory = arena.memory(count, max(layout.block_bytes for layout in layouts))
        self._sizes = [layout.block_bytes for layout in layouts]
        views = {layout: layout.weights(self._memory) for layout in layouts}
        self._weights: list[Weights] = [views[layout] for layout in layouts]
        self._last_use: list[Any] = [None] * count

    def weights(self, layer: int) -> Weights:
        """Views of all slots as units of a layer; valid for the slots that hold one."""
        return self._weights[layer]

    def fill(self, copy: Copy, unit: Tensor) -> Transfer:
        """Start copying a unit, uint8 [block_bytes], into its slot."""
        to = self._memory[copy.slot, : self._sizes[copy.layer]]
        return self._arena.copy(to, unit, self._last_use[copy.slot])

    def read(self, slots: Iterable[int]) -> None:
        """Kernels that read these slots have been launched."""
        now = self._arena.used()
        for slot in slots:
            self._last_use[slot] = now
