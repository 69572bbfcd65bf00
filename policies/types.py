"""What the planner, its drivers and its policies say to each other.

Indices.  `L` MoE layers, `U` units a layer (unit = expert * slices + slice).  A *key* names one unit of
the whole model in one integer: `key = layer * U + unit`.  Policies that work on one layer see units;
those that work across layers see keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Bytes = NDArray[np.int8]


class InputError(ValueError):
    """Bad input from outside: the message is one line naming what was found and what was expected.

    The console command prints it and leaves with status 2; nothing else in the project catches it.
    """


class Status(IntEnum):
    """Where a unit's weights are, as `LayerView.status` holds it."""

    ABSENT = 0
    LANDING = 1
    RESIDENT = 2


class CopyKind(IntEnum):
    """Why a unit is copied to the GPU."""

    DEMAND = 0
    PREFETCH = 1
    SWAP = 2


class LayerStep(NamedTuple):
    """One MoE layer of one forward pass, as a driver reports it once the router is done.

    step      number of the forward pass, from 0
    layer     MoE layer, from 0
    tokens    tokens of the whole batch in this step
    workload  int32 [U], tokens routed to each unit (`w` in arXiv 2602.03495)
    predicted float32 or int32 [H, U], predicted workload of layers +1..+H of this step; rows beyond
              the last layer are zero.  None where the prefetch policy asked for no source
    router_scores float32 [U], router weight of each unit averaged over the tokens of the batch
    next_use  int32 [U], step in which this layer next uses each unit, `NEVER` where it does not again
    order     int32 [n], active units in the order they were last used within the step (recency for LRU);
              None = ascending unit id
    """

    step: int
    layer: int
    tokens: int
    workload: Ints
    predicted: NDArray[np.float32] | Ints | None = None
    router_scores: NDArray[np.float32] | None = None
    next_use: Ints | None = None
    order: Ints | None = None


NEVER = int(np.iinfo(np.int32).max)


class Copy(NamedTuple):
    """Bring (layer, unit) into GPU slot `slot`; what was there is gone from now on."""

    layer: int
    unit: int
    slot: int
    kind: CopyKind


@dataclass(slots=True)
class LayerPlan:
    """Which units run where, in execution order (unit ids of the layer; int32 arrays).

    gpu = resident, then landing, then to copy; heavier workload first within each; `to_copy` is the
    number of units at the end of `gpu` that wait for a demand copy.  The CPU runs heavier units first.
    overlap = False asks for the CPU units only after all GPU units (Fiddler runs the two in turn).
    """

    cpu: Ints
    gpu: Ints
    to_copy: int
    overlap: bool = True


@dataclass(frozen=True)
class Shape:
    """The model as policies see it: array sizes, and what is known before the first step.

    layers, units  L and U
    unit_bytes     int64 [L], bytes of one unit in each layer
    popularity     float64 [L, U], share of tokens per unit on calibration text; None if unknown
    """

    layers: int
    units: int
    unit_bytes: NDArray[np.int64]
    popularity: Floats | None = None

    def __post_init__(self) -> None:
        if self.layers < 1 or self.units < 1:
            raise InputError(f"model shape: found {self.layers} layers x {self.units} units, expected at least 1 x 1")
        if self.unit_bytes.shape != (self.layers,) or int(self.unit_bytes.min()) < 1:
            raise InputError(f"unit_bytes: expected {self.layers} positive sizes, found {self.unit_bytes!r}")
        if self.popularity is not None and self.popularity.shape != (self.layers, self.units):
            raise InputError(f"popularity: found shape {self.popularity.shape}, expected {(self.layers, self.units)}")


@dataclass(frozen=True)
class Capacity:
    """GPU memory for what stays, split into groups that do not lend to each other; none at all is a capacity too.

    group_of  int32 [L], the group that a layer's units live in: its own layer, or 0 for all
    size      int64 [L], what a unit of each layer takes; room int64 [G], what each group has, in the same
              measure (units, or bytes where units differ in size by layer)
    slots     int64 [G], the most units a group can hold
    """

    group_of: Ints
    size: NDArray[np.int64]
    room: NDArray[np.int64]
    slots: NDArray[np.int64]

    @classmethod
    def in_units(cls, units: int, scope: str, layers: int) -> Capacity:
        """`units` slots, shared among the layers as evenly as whole slots allow (the first get one more) or pooled."""
        return cls._split(units, scope, np.ones(layers, np.int64), 1)

    @classmethod
    def in_bytes(cls, size: int, scope: str, unit_bytes: NDArray[np.int64]) -> Capacity:
        """`size` bytes, shared evenly among the layers or pooled."""
        return cls._split(size, scope, unit_bytes.astype(np.int64), 0)

    @classmethod
    def _split(cls, total: int, scope: str, size: NDArray[np.int64], spread: int) -> Capacity:
        layers = size.size
        if total != 0 and total < int(size.min()):
            raise InputError(
                f"cache capacity: found {total}, expected room for a unit ({int(size.min())}) or more, or 0"
            )
        if scope == "global":
            room = np.array([total], np.int64)
            return cls(np.zeros(layers, np.int32), size, room, room // size.min())
        room = np.full(layers, total // layers, np.int64)
        room[: total % layers * spread] += 1
        if total != 0 and not np.any(room >= size):
            raise InputError(f"cache capacity: found {int(room[0])} a layer, expected room for a unit or more, or 0")
        return cls(np.arange(layers, dtype=np.int32), size, room, room // size)

    @property
    def total(self) -> int:
        """Slots over all groups."""
        return int(self.slots.sum())
