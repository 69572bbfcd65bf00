"""The one place that decides which unit is copied, where to, and what leaves; for both drivers.

A driver reports what happened and does what it is told:

    plan = planner.begin(layer_step)       after the router
    copy = planner.next_copy()             whenever the link has room
    planner.landed(copy)                   when it has ended
    planner.computed(unit)                 when a GPU unit's kernel is done
    planner.end()                          when both sides are joined

The planner holds no clock and no tensor.  Its state and transitions are in `policies.core.state`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from dali.policies.cache.base import Cache
from dali.policies.core.packing import pack
from dali.policies.core.state import LOG_LANDED, LOG_NEXT, NONE, State, fill, new_state
from dali.policies.core.transitions import begin_step, computed, end_step, landed, next_copy, plan_step, queue_hints
from dali.policies.costs.model import CostModel
from dali.policies.require import require_count
from dali.policies.types import Capacity, Copy, CopyKind, InputError, Ints, LayerPlan, LayerStep, Shape
from dali.policies.view import AssignmentPolicy, LayerView, PrefetchPolicy


class Annotations(TypedDict):
    """See `Planner.annotations`."""

    source: str | None
    ahead: int
    next_use: bool
    router_scores: bool
    order: Literal["last", False]


LOG_ROWS = 1 << 16
_NO_ORDER: Ints = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Policy:
    """An offloading system: who runs what, what is copied early, what stays.

    staging       slots of the GPU memory set aside for copies that do not stay, at least 2
    swaps_first   whether the link serves swaps before prefetches
    attention_on  "gpu" or "cpu": where decode attention runs; a driver's business, no policy reads it
    slices        units an expert is cut into, a driver's business too: a number, "auto" = what
                  `policies.slicing` chooses for the model, machine and batch, None = as the run says
    """

    name: str
    assignment: AssignmentPolicy
    prefetch: PrefetchPolicy
    cache: Cache
    staging: int = 2
    swaps_first: bool = False
    attention_on: str = "gpu"
    slices: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        if self.staging < 2:
            raise InputError(f"policy {self.name}: found staging {self.staging}, expected at least 2 slots")
        if self.slices is not None and self.slices != "auto":
            require_count(f"policy {self.name}: slices", self.slices, least=1)

    @property
    def knows_future(self) -> bool:
        """Whether it reads what will be routed, which no running model can tell."""
        return self.prefetch.source == "oracle" or self.cache.needs_next_use


class Planner:
    """Residency, slots and the copy queue of one model under one policy.

    policy   its objects are reset here: a planner owns them
    capacity GPU memory for what stays; `policy.staging` slots come on top
    believed what jobs cost as far as the policies know
    log      keep every call and answer in `log`, for `replay_log`
    """

    def __init__(
        self, policy: Policy, shape: Shape, capacity: Capacity, believed: CostModel, seed: int = 0, log: bool = False
    ) -> None:
        cache = policy.cache
        self.policy = policy
        self.shape = shape
        self.capacity = capacity
        if believed.copy.size != shape.layers:
            raise InputError(f"cost model: found copy times of {believed.copy.size} layers, expected {shape.layers}")
        if capacity.group_of.size != shape.layers:
            raise InputError(f"cache capacity: found {capacity.group_of.size} layers, expected {shape.layers}")
        parts: tuple[Any, ...] = (policy.assignment, policy.prefetch, cache)
        for part, rng in zip(parts, np.random.default_rng(seed).spawn(3), strict=True):
            part.reset(shape, capacity, rng)
        self.state: State = new_state(capacity, shape.units, policy.staging, policy.swaps_first, LOG_ROWS if log else 0)
        self.raw = pack(self.state)
        self.n = self.state.n
        if not fill(self.raw, cache.initial()):
            raise ValueError(f"{type(cache).__name__}.initial: a key is out of range, occurs twice or has no slot left")
        self.view = LayerView(
            shape=shape,
            cost=believed,
            state=self.state,
            raw=self.raw,
            status=self.state.status.reshape(shape.layers, shape.units),
            cpu_time=np.zeros(shape.units),
            gpu_time=np.zeros(shape.units),
        )
        self.log: list[tuple[Any, ...]] | None = [] if log else None
        self._copy_time = believed.copy.tolist()
        self._observers: list[Callable[[LayerView], None]] = [
            part.observe for part in parts if hasattr(part, "observe")
        ]

    @property
    def slots(self) -> int:
        """GPU slots in use of this planner, staging included."""
        return int(self.state.owner.size)

    @property
    def annotations(self) -> Annotations:
        """What a driver has to put into layer steps for the policies: arguments of `Workload.steps`."""
        cache, prefetch = self.policy.cache, self.policy.prefetch
        return {
            "source": prefetch.source,
            "ahead": prefetch.ahead,
            "next_use": cache.needs_next_use,
            "router_scores": cache.needs_router_scores,
            "order": "last" if cache.needs_order else False,
        }

    def check_tokens(self, most: int) -> None:
        """InputError if the cost model the policies believe does not cover a workload of `most` tokens."""
        if most > self.view.cost.max_tokens:
            raise InputError(f"cost model: covers workloads up to {self.view.cost.max_tokens} tokens, found {most}")

    def begin(self, step: LayerStep) -> LayerPlan:
        """Assign, order and pin the active units; queue demand copies and hints; drop what is stale."""
        view, state, layer = self.view, self.state, step.layer
        if not 0 <= layer < self.shape.layers or step.workload.shape != (self.shape.units,):
            raise InputError(
                f"layer step: found layer {layer} with {step.workload.shape} workloads, expected a layer below "
                f"{self.shape.layers} with ({self.shape.units},)"
            )
        order = _NO_ORDER if step.order is None else step.order
        cost = view.cost
        active = begin_step(self.raw, layer, step.workload, order, cost.cpu, cost.gpu, view.cpu_time, view.gpu_time)
        if active < 0:
            raise InputError(
                f"layer step {step.step}/{layer}: expected workloads from 0 to {cost.max_tokens} (the cost model's "
                "range) and an order that lists each active unit once"
            )
        view.step, view.layer, view.tokens = step.step, layer, step.tokens
        view.workload = step.workload
        view.active = state.active[:active]
        view.predicted, view.router_scores, view.next_use = step.predicted, step.router_scores, step.next_use
        view.copy_time = self._copy_time[layer]

        policy = self.policy
        demands = plan_step(self.raw, layer, step.workload, policy.assignment.assign(view))
        if demands < 0:
            raise ValueError(f"{type(policy.assignment).__name__}.assign: expected one entry a unit")
        if demands:
            policy.cache.place(view)
        if not queue_hints(self.raw, policy.prefetch.rank(view)):
            raise ValueError(f"{type(policy.prefetch).__name__}.rank: a (layer, unit) pair is out of range")
        plan = LayerPlan(state.cpu[: self.n.cpu], state.gpu[: self.n.gpu], demands, policy.assignment.overlap)
        if self.log is not None:
            self.flush_log()
            self.log.append(("begin", _own(step), plan.cpu.tolist(), plan.gpu.tolist()))
        return plan

    def next_copy(self) -> Copy | None:
        """The next copy to issue, or None while there is none or no slot is free for it."""
        kind = next_copy(self.raw, self.view.layer)
        if kind == NONE:
            return None
        layer, unit = divmod(self.n.out_key, self.shape.units)
        return Copy(layer, unit, self.n.out_slot, CopyKind(kind))

    def landed(self, copy: Copy) -> None:
        """The copy has ended: its unit is resident."""
        landed(self.raw, copy.layer * self.shape.units + copy.unit)

    def computed(self, unit: int) -> None:
        """The GPU kernel of a unit of the running layer step is done."""
        computed(self.raw, self.view.layer * self.shape.units + unit)

    def end(self) -> None:
        """Both sides are joined: policies observe, wanted staged units stay, swaps are queued, units unpinned."""
        view = self.view
        for observe in self._observers:
            observe(view)
        cache = self.policy.cache
        cache.settle(view)
        if not end_step(self.raw, view.layer, cache.swaps(view)):
            raise ValueError(
                f"{type(cache).__name__}.swaps: an outgoing unit is not resident in the incoming one's group"
            )
        if self.log is not None:
            self.flush_log()
            self.log.append(("end",))

    def flush_log(self) -> None:
        """Move what drivers reported and were told since the last `begin` or `end` into `log`."""
        assert self.log is not None
        rows = self.n.log_count
        if 4 * rows > self.state.log.size:
            raise ValueError(f"planner log: {rows} calls in one layer step, expected at most {LOG_ROWS}")
        for what, a, b, c in self.state.log[: 4 * rows].reshape(-1, 4).tolist():
            if what == LOG_NEXT:
                self.log.append(("next_copy", a, b, c))
            else:
                self.log.append(("landed" if what == LOG_LANDED else "computed", a))
        self.n.log_count = 0


def _own(step: LayerStep) -> LayerStep:
    """A copy that survives the driver's reuse of its buffers."""
    fields: list[Any] = [value.copy() if isinstance(value, np.ndarray) else value for value in step]
    return LayerStep(*fields)


def replay_log(log: list[tuple[Any, ...]], planner: Planner) -> int | None:
    """Feed the log of one driver to a fresh planner with `log=True`: position of the first difference, or None.

    This is the drift test: whatever drove the planner, the same reports must give the same answers.
    """
    if planner.log is None:
        raise ValueError("replay_log: expected a planner with log=True")
    for position, entry in enumerate(log):
        match entry[0]:
            case "begin":
                planner.begin(entry[1])
            case "next_copy":
                planner.next_copy()
            case "landed":
                landed(planner.raw, entry[1])
            case "computed":
                computed(planner.raw, entry[1])
            case "end":
                planner.end()
        planner.flush_log()
        ours = planner.log[position]
        # A layer step holds arrays; it was fed in unchanged, so the answers are what is compared.
        if ours[2:] != entry[2:] if entry[0] == "begin" else ours != entry:
            # Later reports are about other copies than this planner's.
            return position
    return None
