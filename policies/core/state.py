"""The planner's state as arrays, and how slots change hands.

One implementation for all drivers: an executor reaches it through `Planner`'s methods, the simulator's
compiled event loop calls `policies.core.transitions` directly.  Nothing here knows time.

Slots.  A slot belongs to a capacity group (what stays) or is a staging slot (group `STAGING`).  When a
staged unit is kept, its slot and its victim's slot exchange roles, so no bytes move.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed, unpacker
from dali.policies.core.records import Record
from dali.policies.types import Bools, Bytes, Capacity, CopyKind, Ints, Status

ABSENT = int(Status.ABSENT)
LANDING = int(Status.LANDING)
RESIDENT = int(Status.RESIDENT)
DEMAND = int(CopyKind.DEMAND)
PREFETCH = int(CopyKind.PREFETCH)
SWAP = int(CopyKind.SWAP)

STAGING = -1  # group of a staging slot; also the destination of a demand copy that does not stay
STAY = 0  # destination of a demand copy: a capacity slot
NONE = -1  # no copy, no owner, no slot

# What a row of the log records; its other columns are listed in `Planner.log`.
LOG_NEXT, LOG_LANDED, LOG_COMPUTED = range(3)


class Counters(Record):
    """The planner's single numbers.

    active, cpu, gpu  lengths of the lists of the running layer step
    to_copy           length of the end of `gpu` that waits for demand copies
    hits, late, in_staging  active units that were resident, landing, in a staging slot when the layer step began
    demand_head, demand_tail  where in `demand` the next copy stands, and where they end; so for hints and swaps
    reusable_head, reusable_count  where in `reusable` the oldest slot stands, and how many there are
    reserve           staging slots that hints leave to demand copies
    swaps_first       1 if swaps go before hints
    out_key, out_slot the copy that `next_copy` bound last
    logging, log_count  1 if calls are logged, and rows of `log` in use
    """

    active: int
    cpu: int
    gpu: int
    to_copy: int
    hits: int
    late: int
    in_staging: int
    demand_head: int
    demand_tail: int
    hint_head: int
    hint_tail: int
    swap_head: int
    swap_tail: int
    reusable_head: int
    reusable_count: int
    reserve: int
    swaps_first: int
    out_key: int
    out_slot: int
    logging: int
    log_count: int


class State(NamedTuple):
    """All of it.  K = L * U keys, S slots, G groups, P staging slots.

    layers, units    L and U
    status, slot     int8 and int32 [K]; slot is NONE for an absent unit
    pinned           bool [K], active in the running layer step
    unwanted         bool [K], landing, to be released as soon as it has landed
    owner, group     int32 [S], key whose weights a slot holds (or will), and its group
    group_of         int32 [L]
    staged           int32 [P], the staging slots
    in_reusable      bool [S]; reusable int32 [P], ring of staging slots that may be overwritten, oldest first
    empty, empty_base, empty_count   stacks of free capacity slots by group: int32 [S], int64 [G], int64 [G]
    size, room       int64 [L] and [G], see `policies.types.Capacity`: what a unit takes, what a group has left
    active, cpu, gpu int32 [U], lists of the running layer step, lengths in `n`
    sort             int64 [U], scratch
    demand, demand_to  int32 [U], units to copy and where to (STAY or STAGING)
    victim_first, victim_count  int32 [U], where in `victims` those of each demand copy stand
    victims          int32 [K], keys
    hint             int32 [K], keys to prefetch, best first
    swap_in, swap_out  int32 [K], queued exchanges of keys
    n                single numbers
    log              int32 [rows * 4], a row is what, then three numbers
    """

    layers: int
    units: int
    status: Bytes
    slot: Ints
    pinned: Bools
    unwanted: Bools
    owner: Ints
    group: Ints
    group_of: Ints
    staged: Ints
    in_reusable: Bools
    reusable: Ints
    empty: Ints
    empty_base: NDArray[np.int64]
    empty_count: NDArray[np.int64]
    size: NDArray[np.int64]
    room: NDArray[np.int64]
    active: Ints
    cpu: Ints
    gpu: Ints
    sort: NDArray[np.int64]
    demand: Ints
    demand_to: Ints
    victim_first: Ints
    victim_count: Ints
    victims: Ints
    hint: Ints
    swap_in: Ints
    swap_out: Ints
    n: Counters
    log: Ints


unpack = unpacker(State)


def new_state(memory: Capacity, units: int, staging: int, swaps_first: bool, log_rows: int) -> State:
    """State with every slot empty."""
    group_slots = memory.slots
    capacity = memory.total
    slots = capacity + staging
    keys = memory.group_of.size * units
    group = np.full(slots, STAGING, np.int32)
    group[:capacity] = np.repeat(np.arange(group_slots.size, dtype=np.int32), group_slots)
    base = np.concatenate(([0], np.cumsum(group_slots)[:-1])).astype(np.int64)
    n = Counters()
    n.reusable_count = staging
    n.reserve = min(2, staging - 1)
    n.swaps_first = swaps_first
    n.logging = log_rows > 0
    # Stacks are popped from the end: fill them so that lower slots go first.
    empty = np.concatenate([b + np.arange(c)[::-1] for b, c in zip(base, group_slots, strict=True)])
    in_reusable = np.zeros(slots, np.bool_)
    in_reusable[capacity:] = True
    staged = np.arange(capacity, slots, dtype=np.int32)
    return State(
        layers=memory.group_of.size,
        units=units,
        status=np.zeros(keys, np.int8),
        slot=np.full(keys, NONE, np.int32),
        pinned=np.zeros(keys, np.bool_),
        unwanted=np.zeros(keys, np.bool_),
        owner=np.full(slots, NONE, np.int32),
        group=group,
        group_of=memory.group_of,
        staged=staged,
        in_reusable=in_reusable,
        reusable=staged.copy(),
        empty=empty.astype(np.int32),
        empty_base=base,
        empty_count=group_slots.copy(),
        size=memory.size,
        room=memory.room.copy(),
        active=np.zeros(units, np.int32),
        cpu=np.zeros(units, np.int32),
        gpu=np.zeros(units, np.int32),
        sort=np.zeros(units, np.int64),
        demand=np.zeros(units, np.int32),
        demand_to=np.zeros(units, np.int32),
        victim_first=np.zeros(units, np.int32),
        victim_count=np.zeros(units, np.int32),
        victims=np.zeros(keys, np.int32),
        hint=np.zeros(keys, np.int32),
        swap_in=np.zeros(keys, np.int32),
        swap_out=np.zeros(keys, np.int32),
        n=n,
        log=np.zeros(4 * log_rows, np.int32),
    )


# ---- slots -----------------------------------------------------------------------------------------


@kernel
def push_reusable(raw: Packed, slot: int) -> None:
    """Staging slot `slot` may be overwritten from now on."""
    s = unpack(raw)
    if not s.in_reusable[slot]:
        s.in_reusable[slot] = True
        s.reusable[(s.n.reusable_head + s.n.reusable_count) % s.reusable.size] = slot
        s.n.reusable_count += 1


@kernel
def forget(raw: Packed, key: int) -> None:
    """The unit's weights are no longer on the GPU."""
    s = unpack(raw)
    s.owner[s.slot[key]] = NONE
    s.slot[key] = NONE
    s.status[key] = ABSENT


@kernel
def pop_reusable(raw: Packed) -> int:
    """The staging slot that may be overwritten for longest, of which there must be one; what it held is gone."""
    s = unpack(raw)
    slot: int = s.reusable[s.n.reusable_head]
    s.n.reusable_head = (s.n.reusable_head + 1) % s.reusable.size
    s.n.reusable_count -= 1
    s.in_reusable[slot] = False
    if s.owner[slot] != NONE:
        forget(raw, s.owner[slot])
    return slot


@kernel
def own(raw: Packed, key: int, slot: int, status: int) -> None:
    """Slot `slot` is for the weights of `key` from now on."""
    s = unpack(raw)
    s.owner[slot] = key
    s.slot[key] = slot
    s.status[key] = status


@kernel
def take_empty(raw: Packed, layer: int) -> int:
    """A free capacity slot for a unit of `layer`, whose group must have one and room."""
    s = unpack(raw)
    group = s.group_of[layer]
    s.room[group] -= s.size[layer]
    s.empty_count[group] -= 1
    slot: int = s.empty[s.empty_base[group] + s.empty_count[group]]
    return slot


@kernel
def evict(raw: Packed, key: int) -> None:
    """Free the capacity slot of resident `key`."""
    s = unpack(raw)
    layer = key // s.units
    group = s.group_of[layer]
    s.empty[s.empty_base[group] + s.empty_count[group]] = s.slot[key]
    s.empty_count[group] += 1
    s.room[group] += s.size[layer]
    forget(raw, key)


@kernel
def fill(raw: Packed, keys: Ints) -> bool:
    """Make `keys` resident in empty capacity slots; False if one is out of range, there already or has no room."""
    s = unpack(raw)
    for key in keys:
        if not 0 <= key < s.status.size:
            return False
        layer = key // s.units
        group = s.group_of[layer]
        if s.empty_count[group] == 0 or s.room[group] < s.size[layer] or s.slot[key] != NONE:
            return False
        own(raw, key, take_empty(raw, layer), RESIDENT)
    return True


@kernel
def keep_staged(raw: Packed, key: int) -> None:
    """Let staged `key` stay: a free capacity slot, which there must be, becomes a staging slot in its place."""
    s = unpack(raw)
    slot = take_empty(raw, key // s.units)
    old = s.slot[key]
    s.group[old] = s.group[slot]
    s.group[slot] = STAGING
    for i in range(s.staged.size):
        if s.staged[i] == old:
            s.staged[i] = slot
    if s.in_reusable[old]:
        s.in_reusable[old] = False
        s.in_reusable[slot] = True
        for i in range(s.reusable.size):
            if s.reusable[i] == old:
                s.reusable[i] = slot
    else:
        push_reusable(raw, slot)


@kernel
def stays(raw: Packed, key: int, group: int) -> bool:
    """Whether `key` is resident in a capacity slot of `group`."""
    s = unpack(raw)
    found: bool = s.status[key] == RESIDENT and s.group[s.slot[key]] == group
    return found


@kernel
def exchangeable(raw: Packed, incoming: int, outgoing: int) -> bool:
    """Whether `outgoing` stays in the group of `incoming` and leaves room enough for it."""
    s = unpack(raw)
    group = s.group_of[incoming // s.units]
    if not stays(raw, outgoing, group):
        return False
    fits: bool = s.room[group] + s.size[outgoing // s.units] >= s.size[incoming // s.units]
    return fits


@kernel
def release_staged(raw: Packed, layer: int) -> None:
    """Give back the staging slots held by units of `layer` that are not pinned."""
    s = unpack(raw)
    for i in range(s.staged.size):
        slot = s.staged[i]
        key = s.owner[slot]
        if key == NONE or key // s.units != layer or s.pinned[key]:
            continue
        if s.status[key] == RESIDENT:
            forget(raw, key)
            push_reusable(raw, slot)
        else:
            s.unwanted[key] = True
