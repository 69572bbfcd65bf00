"""What a policy looks at, and what it has to offer: one protocol for each part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.packing import Packed
from dali.policies.core.state import State
from dali.policies.costs.model import CostModel
from dali.policies.types import Bools, Bytes, Capacity, Floats, Ints, Shape


@dataclass(slots=True)
class LayerView:
    """What a policy may look at, valid from `begin` until `end`.  Arrays belong to the planner: read only.

    active     int32 [n], units with workload > 0, in the step's order of use
    status     int8 [L, U], `Status` of every unit (live)
    cpu_time, gpu_time  float64 [U], believed seconds of each unit's job; 0 for inactive units
    copy_time  believed seconds to copy one unit of this layer
    state, raw the planner's arrays, and the same packed, for base classes that own compiled loops
    Remaining fields: see `LayerStep` and `Shape`.
    """

    shape: Shape
    cost: CostModel
    state: State
    raw: Packed
    status: Bytes
    cpu_time: Floats
    gpu_time: Floats
    step: int = 0
    layer: int = 0
    tokens: int = 0
    copy_time: float = 0.0
    workload: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    active: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    predicted: NDArray[np.float32] | Ints | None = None
    router_scores: NDArray[np.float32] | None = None
    next_use: Ints | None = None

    @property
    def here(self) -> Bytes:
        """int8 [U], `Status` of the units of this layer."""
        row: Bytes = self.status[self.layer]
        return row


@runtime_checkable
class AssignmentPolicy(Protocol):
    """Decides which active units run on the GPU.  May also define `observe(view)`."""

    overlap: bool

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""

    def assign(self, view: LayerView) -> Bools:
        """Bool [U], True = GPU; what it says of inactive units is ignored."""


@runtime_checkable
class PrefetchPolicy(Protocol):
    """Says what to copy early.  May also define `observe(view)`.

    source  name of the predictor whose `predicted` it reads; None = it reads none; "oracle" = the truth
    ahead   how many layers ahead it looks (rows of `predicted`)
    """

    source: str | None
    ahead: int

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""

    def rank(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (layer, unit), best first; units that are not absent are skipped."""


@runtime_checkable
class CachePolicy(Protocol):
    """Decides what stays on the GPU.  `policies.cache.base.Cache` is the base class that owns the loops."""

    scope: str

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""

    def initial(self) -> Ints:
        """Keys resident before the first step, at most as many a group as it has slots."""

    def observe(self, view: LayerView) -> None:
        """Called once a layer step, at its end."""

    def admit(self, view: LayerView, unit: int) -> bool:
        """Whether a unit of this layer that is copied or staged should stay."""

    def victim(self, view: LayerView, unit: int, candidates: Ints) -> int | None:
        """Key to evict so that `unit` of this layer may stay, from `candidates` (keys), or None to keep all.

        `candidates` holds no unit of the running layer step that is active.
        """

    def swaps(self, view: LayerView) -> Ints:
        """int32 [n, 2] of (incoming key, outgoing key) to exchange when the link is idle."""
