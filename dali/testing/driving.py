"""A driver that reports at random, and a planner that is checked after every call.

The checks keep their own picture of the GPU memory (`Checked.memory`): which weights each slot really
holds, from the copies alone.  A unit that the planner calls resident must lie where it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from dali.policies.core.state import STAGING
from dali.policies.planner import Planner, Policy
from dali.policies.types import Bytes, Copy, CopyKind, LayerPlan, LayerStep, Status
from dali.testing.watching import watch
from dali.testing.worlds import World

ABSENT, LANDING, RESIDENT = (int(status) for status in (Status.ABSENT, Status.LANDING, Status.RESIDENT))


class Checked:
    """A planner whose every answer is checked against the contract (DESIGN.md): AssertionError says what is wrong.

    watched  also check that its policies only read what they are shown
    """

    def __init__(self, policy: Policy, world: World, seed: int = 0, watched: bool = False) -> None:
        watch(policy, reading=watched)
        self.capacity = world.capacity(policy.cache.scope)
        self.planner = Planner(policy, world.shape, self.capacity, world.cost, seed=seed, log=True)
        self.units = world.shape.units
        self.state = self.planner.state
        self.memory: dict[int, int] = {s: k for s, k in enumerate(self.state.owner.tolist()) if k >= 0}
        self.flying: dict[int, Copy] = {}  # by slot
        self.waiting: list[int] = []  # units of the running GPU plan whose kernel is not done
        self.to_copy: list[int] = []  # units that still need their demand copy
        self.layer = -1
        self.running = False
        self.check()

    # ---- calls -------------------------------------------------------------------------------------

    def begin(self, step: LayerStep) -> LayerPlan:
        """`Planner.begin`."""
        state, self.layer = self.state, step.layer
        base = step.layer * self.units
        given = _copied(step)
        before = self._here()
        held = state.owner.copy()
        plan = self.planner.begin(step)
        self.running = True
        assert _same(given, step), "begin changed the layer step"
        active = set(np.flatnonzero(step.workload).tolist())
        gpu, cpu = plan.gpu.tolist(), plan.cpu.tolist()
        assert sorted(gpu + cpu) == sorted(active), "each active unit runs once"
        assert plan.overlap == self.planner.policy.assignment.overlap, "the plan's overlap is not the assignment's"
        w = step.workload
        assert cpu == sorted(cpu, key=lambda u: (-w[u], u)), f"CPU order {cpu}: heavier units first"
        in_order = sorted(gpu, key=lambda u: (-before[base + u], -w[u], u))
        assert gpu == in_order, f"GPU order {gpu}: resident, landing, to copy, heavier units first in each"
        absent = [unit for unit in gpu if before[base + unit] == ABSENT]
        assert gpu[len(gpu) - plan.to_copy :] == absent, f"to copy are {absent}, the plan has {plan.to_copy} of {gpu}"
        # Only staged units of this layer without workload are given up.
        for key in np.flatnonzero(before != self._here()).tolist():
            slot = int(np.flatnonzero(held == key)[0])
            idle = key // self.units == step.layer and key - base not in active
            assert state.group[slot] == STAGING, f"begin gives up key {key}, which stays"
            assert idle, f"begin gives up staged key {key}, which may still be used"
        self.waiting, self.to_copy = gpu, gpu[len(gpu) - plan.to_copy :]
        pinned = np.flatnonzero(state.pinned).tolist()
        assert pinned == sorted(base + u for u in active), f"pinned are {pinned}, not the active units"
        self.check()
        return plan

    def next_copy(self) -> Copy | None:
        """`Planner.next_copy`."""
        state, n, before = self.state, self.state.n, self._here()
        assert n.demand_tail - n.demand_head == len(self.to_copy), "the queue of demand copies lost one"
        possible = self._possible()
        blocked = n.reusable_count == 0
        owner, group = state.owner.copy(), state.group.copy()
        staged = bool(self.to_copy) and state.demand_to[n.demand_head] == STAGING
        copy = self.planner.next_copy()
        if copy is None:
            assert not self.to_copy or (staged and blocked), "a demand copy waits without need"
            assert self.to_copy or not possible, "a prefetch or a swap waits without need"
            assert np.array_equal(before, self._here()), "a unit moved although nothing is copied"
            return None
        key = copy.layer * self.units + copy.unit
        assert before[key] == ABSENT, "only absent units are copied"
        assert (state.status[key], state.slot[key]) == (LANDING, copy.slot), "what is copied is not landing in its slot"
        if self.to_copy:
            first = (CopyKind.DEMAND, self.layer, self.to_copy.pop(0))
            assert (copy.kind, copy.layer, copy.unit) == first, f"{copy} goes before the demand copy {first}"
        else:
            assert (copy.kind, key) == possible[0], f"{copy} goes before {possible[0]}"
            staged = copy.kind == CopyKind.PREFETCH
            assert not staged or n.reusable_count >= n.reserve >= 1, "a prefetch takes the reserve of demand copies"
        place = STAGING if staged else self.capacity.group_of[copy.layer]
        assert group[copy.slot] == place, f"{copy} goes to a slot of group {group[copy.slot]}, not {place}"
        for gone in np.flatnonzero((before != ABSENT) & (self._here() == ABSENT)).tolist():
            assert before[gone] == RESIDENT, "a unit is taken away before it has landed"
            assert staged == (group[owner == gone] == STAGING).all(), f"{copy} pushes out a unit of another group"
            self._may_leave(gone, copy.kind, staged)
        assert not self.running or copy.kind != CopyKind.SWAP or copy.layer != self.layer, "a stale swap"
        self._overwrite(copy)
        self.check()
        return copy

    def _may_leave(self, key: int, kind: CopyKind, staged: bool) -> None:
        """Nothing leaves that the running layer step needs, but a staged unit whose kernel is done."""
        if not self.running or key // self.units != self.layer:
            return
        assert kind != CopyKind.SWAP, "a stale swap"
        done = key - self.layer * self.units not in self.waiting
        assert not self.state.pinned[key] or (staged and done), "a pinned unit is evicted"

    def _possible(self) -> list[tuple[CopyKind, int]]:
        """The best hint and the oldest swap that could be issued now, first what the policy wants first."""
        s, n, size = self.state, self.state.n, self.capacity.size
        hints = [key for key in s.hint[n.hint_head : n.hint_tail].tolist() if s.status[key] == ABSENT]
        found = [(CopyKind.PREFETCH, key) for key in hints[:1] if n.reusable_count > n.reserve]
        queued = slice(n.swap_head, n.swap_tail)
        for incoming, outgoing in zip(s.swap_in[queued].tolist(), s.swap_out[queued].tolist(), strict=True):
            group = self.capacity.group_of[incoming // self.units]
            frees = s.status[outgoing] == RESIDENT and s.group[s.slot[outgoing]] == group and not s.pinned[outgoing]
            fits = s.room[group] + size[outgoing // self.units] >= size[incoming // self.units]
            if s.status[incoming] == ABSENT and frees and fits:
                found.append((CopyKind.SWAP, incoming))
                break
        return found[::-1] if self.planner.policy.swaps_first else found

    def _overwrite(self, copy: Copy) -> None:
        assert copy.slot not in self.flying, "two copies into one slot"
        base = self.layer * self.units
        needed = {int(self.state.slot[base + unit]) for unit in self.waiting if self.state.slot[base + unit] >= 0}
        needed.discard(int(self.state.slot[copy.layer * self.units + copy.unit]))
        assert copy.slot not in needed, "overwritten before its kernel is done"
        self.memory.pop(copy.slot, None)
        self.flying[copy.slot] = copy

    def landed(self, copy: Copy) -> None:
        """`Planner.landed`."""
        del self.flying[copy.slot]
        self.memory[copy.slot] = copy.layer * self.units + copy.unit
        self.planner.landed(copy)
        self.check()

    def computed(self, unit: int) -> None:
        """`Planner.computed`."""
        assert self.waiting.pop(0) == unit, "units are computed in the plan's order"
        key = self.layer * self.units + unit
        assert self.memory[int(self.state.slot[key])] == key, "the kernel read another unit's weights"
        self.planner.computed(unit)
        self.check()

    def end(self) -> None:
        """`Planner.end`."""
        assert not self.waiting, f"units {self.waiting} were not computed"
        assert not self.to_copy, f"units {self.to_copy} were not copied"
        before = self._here()
        self.planner.end()
        self.running = False
        assert not self.state.pinned.any(), "a unit is pinned after the end"
        assert np.all((self._here() == before) | (before != ABSENT)), "end makes nothing resident that was absent"
        staged = self.state.owner[self.state.staged]
        staged = staged[staged >= 0]
        left = staged[(staged // self.units == self.layer) & ~self.state.unwanted[staged]]
        assert left.size == 0, "units of a layer step that is over keep a staging slot"
        self.check()

    # ---- the state ---------------------------------------------------------------------------------

    def _here(self) -> Bytes:
        return self.state.status.copy()

    def check(self) -> None:
        """Slots, owners, memory and stacks tell one story, within the memory there is."""
        s, capacity, n = self.state, self.capacity, self.state.n
        here = np.flatnonzero(s.status != ABSENT)
        assert np.all(s.slot[s.status == ABSENT] == -1), "an absent unit has a slot"
        assert np.array_equal(s.owner[s.slot[here]], here), "a slot's owner is not the unit that lies in it"
        assert np.count_nonzero(s.owner >= 0) == here.size, "a slot without its unit, or a unit in two"
        for group, slots in enumerate(capacity.slots.tolist()):
            mine = np.flatnonzero(s.group == group)
            assert mine.size == slots, f"group {group} has {mine.size} slots, not its {slots}"
            owners = s.owner[mine]
            layers = owners[owners >= 0] // self.units
            assert np.all(capacity.group_of[layers] == group), f"group {group} holds units of another group"
            used = int(capacity.size[layers].sum())
            assert used <= capacity.room[group], f"group {group} holds {used}, more than its {capacity.room[group]}"
            assert s.room[group] == capacity.room[group] - used, f"the room left of group {group} is wrong"
            first, count = int(s.empty_base[group]), int(s.empty_count[group])
            empty = sorted(s.empty[first : first + count].tolist())
            assert empty == mine[owners < 0].tolist(), f"the empty slots of group {group} are wrong"
        staged = np.flatnonzero(s.group == STAGING)
        assert staged.size == self.planner.policy.staging, f"{staged.size} staging slots"
        assert sorted(s.staged.tolist()) == staged.tolist(), "the list of staging slots is wrong"
        ring = [int(s.reusable[(n.reusable_head + i) % s.reusable.size]) for i in range(n.reusable_count)]
        assert sorted(ring) == np.flatnonzero(s.in_reusable).tolist(), "the ring of reusable slots is wrong"
        for slot in staged.tolist():
            key = int(s.owner[slot])
            if slot in ring and key >= 0:
                done = s.pinned[key] and key - self.layer * self.units not in self.waiting
                assert done, f"staging slot {slot} is reusable although key {key} is still needed"
            assert slot in ring or key >= 0, "a staging slot is lost"
        assert np.all(s.status[s.unwanted] == LANDING), "an unwanted unit is kept"
        # A slot is written to although nobody owns it: never.  A unit is where the planner says: always.
        for slot, copy in self.flying.items():
            assert s.owner[slot] == copy.layer * self.units + copy.unit, f"{copy} lands where another unit is"
        for key in np.flatnonzero(s.status == RESIDENT).tolist():
            assert self.memory[int(s.slot[key])] == key, f"resident key {key} is not in its slot"
        assert np.count_nonzero(s.status == LANDING) == len(self.flying), "a unit lands without a copy"


def drive(planner: Checked, steps: list[LayerStep], seed: int = 0, depth: int = 2) -> Iterator[None]:
    """Run `steps`; which report comes next, and how late, is drawn.  At most `depth` copies are under way.

    Yields after every call, so that two runs can be interleaved.  Fails on a deadlock.
    """
    rng = np.random.default_rng(seed)
    lazy = rng.choice([0.2, 0.5, 0.8])  # how often a copy under way is not the next thing to end
    for step in steps:
        plan = planner.begin(step)
        queue = plan.gpu.tolist()
        yield
        stuck = False  # the last question was answered by None, and nothing was reported since
        while queue or rng.random() < 0.3:
            choices = []
            if len(planner.flying) < depth and not stuck:
                choices.append("ask")
            if planner.flying and (rng.random() > lazy or not choices):
                choices.append("land")
            if queue and planner.planner.view.here[queue[0]] == RESIDENT:
                choices.append("compute")
            if not choices and queue and not planner.flying:
                raise AssertionError(f"deadlock: unit {queue[0]} of layer {step.layer} never lands")
            if not choices:
                break
            stuck = _act(planner, str(rng.choice(choices)), queue, rng)
            yield
        planner.end()
        yield
        for _ in range(int(rng.integers(0, 6))):
            if planner.flying and rng.random() < 0.5:
                planner.landed(planner.flying[int(rng.choice(list(planner.flying)))])
            elif len(planner.flying) < depth:
                planner.next_copy()
            yield


def _act(planner: Checked, choice: str, queue: list[int], rng: np.random.Generator) -> bool:
    if choice == "ask":
        return planner.next_copy() is None
    if choice == "land":
        planner.landed(planner.flying[int(rng.choice(list(planner.flying)))])
    else:
        planner.computed(queue.pop(0))
    return False


def run(policy: Policy, world: World, seed: int = 0, depth: int = 2, watched: bool = False) -> Checked:
    """Drive a policy through all of a world."""
    planner = Checked(policy, world, seed, watched)
    for _ in drive(planner, world.steps, seed, depth):
        pass
    return planner


def full_log(planner: Planner) -> list[tuple[Any, ...]]:
    """The planner's log with the calls since its last `end`."""
    planner.flush_log()
    assert planner.log is not None
    return planner.log


def decisions(log: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """A log without the layer steps that were fed in: comparable with `==`."""
    return [(entry[0], *entry[2:]) if entry[0] == "begin" else entry for entry in log]


def _copied(step: LayerStep) -> SimpleNamespace:
    return SimpleNamespace(**{k: v.copy() if isinstance(v, np.ndarray) else v for k, v in step._asdict().items()})


def _same(before: SimpleNamespace, step: LayerStep) -> bool:
    return all(np.array_equal(value, getattr(step, name)) for name, value in vars(before).items())
