"""The planner's state as arrays, and every transition on it as a compiled function.

One implementation for both drivers: the executor reaches it through `Planner`'s methods, the simulator's
compiled event loop calls `next_copy`, `landed` and `computed` directly.  Nothing here knows time.

Slots.  A slot belongs to a capacity group (what stays) or is a staging slot (group `STAGING`).  When a
staged unit is kept, its slot and its victim's slot exchange roles, so no bytes move.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.jit import Packed, array_at, kernel
from policies.types import Bools, Bytes, Capacity, CopyKind, Floats, Ints, Status

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

# Positions in `State.n`.
(
    N_ACTIVE,
    N_CPU,
    N_GPU,
    N_TO_COPY,
    DEMAND_HEAD,
    DEMAND_TAIL,
    HINT_HEAD,
    HINT_TAIL,
    SWAP_HEAD,
    SWAP_TAIL,
    REUSABLE_HEAD,
    REUSABLE_COUNT,
    RESERVE,
    SWAPS_FIRST,
    OUT_KEY,
    OUT_SLOT,
    HITS,
    LATE,
    IN_STAGING,
    LOGGING,
    LOG_COUNT,
    COUNTERS,
) = range(22)


class State(NamedTuple):
    """All of it.  K = L * U keys, S slots, G groups, P staging slots.

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
    n                int64 [COUNTERS]
    log              int32 [rows * 4], a row is what, then three numbers
    """

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
    n: NDArray[np.int64]
    log: Ints


@kernel
def unpack(raw: Packed) -> State:
    """The state whose arrays `policies.jit.pack` packed."""
    return State(
        status=array_at(raw, 0, np.int8),
        slot=array_at(raw, 1, np.int32),
        pinned=array_at(raw, 2, np.bool_),
        unwanted=array_at(raw, 3, np.bool_),
        owner=array_at(raw, 4, np.int32),
        group=array_at(raw, 5, np.int32),
        group_of=array_at(raw, 6, np.int32),
        staged=array_at(raw, 7, np.int32),
        in_reusable=array_at(raw, 8, np.bool_),
        reusable=array_at(raw, 9, np.int32),
        empty=array_at(raw, 10, np.int32),
        empty_base=array_at(raw, 11, np.int64),
        empty_count=array_at(raw, 12, np.int64),
        size=array_at(raw, 13, np.int64),
        room=array_at(raw, 14, np.int64),
        active=array_at(raw, 15, np.int32),
        cpu=array_at(raw, 16, np.int32),
        gpu=array_at(raw, 17, np.int32),
        sort=array_at(raw, 18, np.int64),
        demand=array_at(raw, 19, np.int32),
        demand_to=array_at(raw, 20, np.int32),
        victim_first=array_at(raw, 21, np.int32),
        victim_count=array_at(raw, 22, np.int32),
        victims=array_at(raw, 23, np.int32),
        hint=array_at(raw, 24, np.int32),
        swap_in=array_at(raw, 25, np.int32),
        swap_out=array_at(raw, 26, np.int32),
        n=array_at(raw, 27, np.int64),
        log=array_at(raw, 28, np.int32),
    )


def new_state(memory: Capacity, units: int, staging: int, swaps_first: bool, log_rows: int) -> State:
    """State with every slot empty."""
    group_slots = memory.slots
    capacity = memory.total
    slots = capacity + staging
    keys = memory.group_of.size * units
    group = np.full(slots, STAGING, np.int32)
    group[:capacity] = np.repeat(np.arange(group_slots.size, dtype=np.int32), group_slots)
    base = np.concatenate(([0], np.cumsum(group_slots)[:-1])).astype(np.int64)
    n = np.zeros(COUNTERS, np.int64)
    n[REUSABLE_COUNT] = staging
    n[RESERVE] = min(2, staging - 1)
    n[SWAPS_FIRST] = swaps_first
    n[LOGGING] = log_rows > 0
    # Stacks are popped from the end: fill them so that lower slots go first.
    empty = np.concatenate([b + np.arange(c)[::-1] for b, c in zip(base, group_slots, strict=True)])
    in_reusable = np.zeros(slots, np.bool_)
    in_reusable[capacity:] = True
    staged = np.arange(capacity, slots, dtype=np.int32)
    return State(
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
def _push_reusable(raw: Packed, slot: int) -> None:
    s = unpack(raw)
    if not s.in_reusable[slot]:
        s.in_reusable[slot] = True
        s.reusable[(s.n[REUSABLE_HEAD] + s.n[REUSABLE_COUNT]) % s.reusable.size] = slot
        s.n[REUSABLE_COUNT] += 1


@kernel
def _forget(raw: Packed, key: int) -> None:
    """The unit's weights are no longer on the GPU."""
    s = unpack(raw)
    s.owner[s.slot[key]] = NONE
    s.slot[key] = NONE
    s.status[key] = ABSENT


@kernel
def _pop_reusable(raw: Packed) -> int:
    s = unpack(raw)
    slot: int = s.reusable[s.n[REUSABLE_HEAD]]
    s.n[REUSABLE_HEAD] = (s.n[REUSABLE_HEAD] + 1) % s.reusable.size
    s.n[REUSABLE_COUNT] -= 1
    s.in_reusable[slot] = False
    if s.owner[slot] != NONE:
        _forget(raw, s.owner[slot])
    return slot


@kernel
def _own(raw: Packed, key: int, slot: int, status: int) -> None:
    s = unpack(raw)
    s.owner[slot] = key
    s.slot[key] = slot
    s.status[key] = status


@kernel
def _take_empty(raw: Packed, layer: int) -> int:
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
    layer = key // (s.status.size // s.group_of.size)
    group = s.group_of[layer]
    s.empty[s.empty_base[group] + s.empty_count[group]] = s.slot[key]
    s.empty_count[group] += 1
    s.room[group] += s.size[layer]
    _forget(raw, key)


@kernel
def fill(raw: Packed, keys: Ints) -> bool:
    """Make `keys` resident in empty capacity slots; False if one is out of range, there already or has no room."""
    s = unpack(raw)
    units = s.status.size // s.group_of.size
    for key in keys:
        if not 0 <= key < s.status.size:
            return False
        layer = key // units
        group = s.group_of[layer]
        if s.empty_count[group] == 0 or s.room[group] < s.size[layer] or s.slot[key] != NONE:
            return False
        _own(raw, key, _take_empty(raw, layer), RESIDENT)
    return True


@kernel
def keep_staged(raw: Packed, key: int) -> None:
    """Let staged `key` stay: a free capacity slot, which there must be, becomes a staging slot in its place."""
    s = unpack(raw)
    slot = _take_empty(raw, key // (s.status.size // s.group_of.size))
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
        _push_reusable(raw, slot)


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
    units = s.status.size // s.group_of.size
    group = s.group_of[incoming // units]
    if not stays(raw, outgoing, group):
        return False
    fits: bool = s.room[group] + s.size[outgoing // units] >= s.size[incoming // units]
    return fits


@kernel
def _release_staged(raw: Packed, layer: int) -> None:
    """Give back the staging slots held by units of `layer` that are not pinned."""
    s = unpack(raw)
    units = s.status.size // s.group_of.size
    for i in range(s.staged.size):
        slot = s.staged[i]
        key = s.owner[slot]
        if key == NONE or key // units != layer or s.pinned[key]:
            continue
        if s.status[key] == RESIDENT:
            _forget(raw, key)
            _push_reusable(raw, slot)
        else:
            s.unwanted[key] = True


# ---- the layer step --------------------------------------------------------------------------------


@kernel
def begin_step(
    raw: Packed,
    layer: int,
    workload: Ints,
    order: Ints,
    cpu_table: Floats,
    gpu_table: Floats,
    cpu_time: Floats,
    gpu_time: Floats,
) -> int:
    """List and pin the active units, look up their times, drop what is stale.

    `order` may be empty (ascending ids).  Returns the number of active units; -1 if a workload is
    negative or beyond the cost tables, -2 if `order` does not list the active units.
    """
    s = unpack(raw)
    units = workload.size
    base = layer * units
    n = 0
    s.n[HITS] = s.n[LATE] = s.n[IN_STAGING] = 0
    for unit in range(units):
        w = workload[unit]
        if w < 0 or w >= cpu_table.size:
            return -1
        cpu_time[unit] = cpu_table[w]
        gpu_time[unit] = gpu_table[w]
        if w == 0:
            continue
        s.active[n] = unit
        n += 1
        key = base + unit
        s.pinned[key] = True
        if s.status[key] != ABSENT:
            s.unwanted[key] = False
            s.n[HITS] += s.status[key] == RESIDENT
            s.n[LATE] += s.status[key] == LANDING
            s.n[IN_STAGING] += s.group[s.slot[key]] == STAGING
    if order.size > 0:
        if order.size != n:
            return -2
        s.sort[:] = 0  # marks units already listed
        for i in range(n):
            unit = order[i]
            if unit < 0 or unit >= units or workload[unit] == 0 or s.sort[unit] == 1:
                return -2
            s.sort[unit] = 1
            s.active[i] = unit
    s.n[N_ACTIVE] = n
    _release_staged(raw, layer)
    s.n[HINT_HEAD] = s.n[HINT_TAIL] = 0
    kept = 0
    for i in range(s.n[SWAP_HEAD], s.n[SWAP_TAIL]):
        if s.swap_in[i] // units != layer and s.swap_out[i] // units != layer:
            s.swap_in[kept] = s.swap_in[i]
            s.swap_out[kept] = s.swap_out[i]
            kept += 1
    s.n[SWAP_HEAD] = 0
    s.n[SWAP_TAIL] = kept
    return n


@kernel
def _sort(keys: NDArray[np.int64], n: int) -> None:
    for i in range(1, n):
        key = keys[i]
        j = i - 1
        while j >= 0 and keys[j] > key:
            keys[j + 1] = keys[j]
            j -= 1
        keys[j + 1] = key


@kernel
def plan_step(raw: Packed, layer: int, workload: Ints, on_gpu: Bools) -> int:
    """Order both sides and queue the demand copies (to staging until `Cache.place` says otherwise).

    Returns the number of demand copies; -1 if `on_gpu` is not one entry a unit.
    """
    s = unpack(raw)
    if on_gpu.size != workload.size:
        return -1
    base = layer * workload.size
    n_cpu = 0
    n_gpu = 0
    # One integer a unit sorts by status (resident, landing, to copy), then heavier, then lower id.
    for i in range(s.n[N_ACTIVE]):
        unit = s.active[i]
        if on_gpu[unit]:
            rank = RESIDENT - np.int64(s.status[base + unit])
            s.sort[n_gpu] = (rank << 50) - (np.int64(workload[unit]) << 20) + unit
            n_gpu += 1
    _sort(s.sort, n_gpu)
    first_copy = n_gpu
    for i in range(n_gpu):
        unit = s.sort[i] & 0xFFFFF
        s.gpu[i] = unit
        if s.status[base + unit] == ABSENT:
            first_copy = min(first_copy, i)
    for i in range(s.n[N_ACTIVE]):
        unit = s.active[i]
        if not on_gpu[unit]:
            s.sort[n_cpu] = unit - (np.int64(workload[unit]) << 20)
            n_cpu += 1
    _sort(s.sort, n_cpu)
    for i in range(n_cpu):
        s.cpu[i] = s.sort[i] & 0xFFFFF
    demands = n_gpu - first_copy
    for i in range(demands):
        s.demand[i] = s.gpu[first_copy + i]
        s.demand_to[i] = STAGING
    s.n[N_CPU] = n_cpu
    s.n[N_GPU] = n_gpu
    s.n[N_TO_COPY] = demands
    s.n[DEMAND_HEAD] = 0
    s.n[DEMAND_TAIL] = demands
    return demands


@kernel
def queue_hints(raw: Packed, pairs: Ints) -> bool:
    """Replace the hints by `pairs` of (layer, unit), skipping what is not absent; False if one is out of range."""
    s = unpack(raw)
    layers = s.group_of.size
    units = s.status.size // layers
    n = 0
    for i in range(pairs.shape[0]):
        if not (0 <= pairs[i, 0] < layers and 0 <= pairs[i, 1] < units) or n == s.hint.size:
            return False
        key = pairs[i, 0] * units + pairs[i, 1]
        if s.status[key] == ABSENT:
            s.hint[n] = key
            n += 1
    s.n[HINT_HEAD] = 0
    s.n[HINT_TAIL] = n
    return True


@kernel
def _log(raw: Packed, what: int, a: int, b: int, c: int) -> None:
    s = unpack(raw)
    if s.n[LOGGING]:
        row = s.n[LOG_COUNT]
        if row < s.log.size // 4:
            s.log[4 * row + 0] = what
            s.log[4 * row + 1] = a
            s.log[4 * row + 2] = b
            s.log[4 * row + 3] = c
        s.n[LOG_COUNT] = row + 1


@kernel
def _issue(raw: Packed, kind: int, key: int, slot: int) -> int:
    s = unpack(raw)
    _own(raw, key, slot, LANDING)
    s.n[OUT_KEY] = key
    s.n[OUT_SLOT] = slot
    _log(raw, LOG_NEXT, kind, key, slot)
    return kind


@kernel
def _next_hint(raw: Packed) -> int:
    s = unpack(raw)
    while s.n[HINT_HEAD] < s.n[HINT_TAIL]:
        key = s.hint[s.n[HINT_HEAD]]
        if s.status[key] == ABSENT:
            if s.n[REUSABLE_COUNT] <= s.n[RESERVE]:
                return NONE
            s.n[HINT_HEAD] += 1
            return _issue(raw, PREFETCH, key, _pop_reusable(raw))
        s.n[HINT_HEAD] += 1
    return NONE


@kernel
def _next_swap(raw: Packed) -> int:
    s = unpack(raw)
    units = s.status.size // s.group_of.size
    while s.n[SWAP_HEAD] < s.n[SWAP_TAIL]:
        i = s.n[SWAP_HEAD]
        s.n[SWAP_HEAD] += 1
        incoming = s.swap_in[i]
        outgoing = s.swap_out[i]
        if s.status[incoming] == ABSENT and not s.pinned[outgoing] and exchangeable(raw, incoming, outgoing):
            evict(raw, outgoing)
            return _issue(raw, SWAP, incoming, _take_empty(raw, incoming // units))
    return NONE


@kernel
def next_copy(raw: Packed, layer: int) -> int:
    """Bind the next copy: its kind, with key and slot in `n[OUT_KEY]`, `n[OUT_SLOT]`; NONE if there is none.

    Demand copies come first and in order: while one waits for a staging slot nothing else is issued, or
    hints would take the slot it waits for.  Then hints by rank, which leave `n[RESERVE]` staging slots to
    demand copies, and swaps; or swaps and hints, if `n[SWAPS_FIRST]`.
    """
    s = unpack(raw)
    units = s.status.size // s.group_of.size
    if s.n[DEMAND_HEAD] < s.n[DEMAND_TAIL]:
        i = s.n[DEMAND_HEAD]
        if s.demand_to[i] == STAGING:
            if s.n[REUSABLE_COUNT] == 0:
                _log(raw, LOG_NEXT, NONE, NONE, NONE)
                return NONE
            slot = _pop_reusable(raw)
        else:
            for j in range(s.victim_count[i]):
                evict(raw, s.victims[s.victim_first[i] + j])
            slot = _take_empty(raw, layer)
        s.n[DEMAND_HEAD] += 1
        return _issue(raw, DEMAND, layer * units + s.demand[i], slot)
    if s.n[SWAPS_FIRST]:
        kind = _next_swap(raw)
        if kind == NONE:
            kind = _next_hint(raw)
    else:
        kind = _next_hint(raw)
        if kind == NONE:
            kind = _next_swap(raw)
    if kind == NONE:
        _log(raw, LOG_NEXT, NONE, NONE, NONE)
    return kind


@kernel
def landed(raw: Packed, key: int) -> None:
    """The copy of `key` has ended."""
    s = unpack(raw)
    _log(raw, LOG_LANDED, key, NONE, NONE)
    s.status[key] = RESIDENT
    if s.unwanted[key]:
        s.unwanted[key] = False
        slot = s.slot[key]
        _forget(raw, key)
        _push_reusable(raw, slot)


@kernel
def computed(raw: Packed, key: int) -> None:
    """The GPU kernel of `key` is done: its staging slot, if it is in one, may be overwritten."""
    s = unpack(raw)
    _log(raw, LOG_COMPUTED, key, NONE, NONE)
    if s.group[s.slot[key]] == STAGING:
        _push_reusable(raw, s.slot[key])


@kernel
def end_step(raw: Packed, layer: int, pairs: Ints) -> bool:
    """Unpin, queue swaps (an incoming unit that is staged stays without a copy), release the other staged units.

    False if a pair names an outgoing unit that is not resident in the incoming unit's group.
    """
    s = unpack(raw)
    units = s.status.size // s.group_of.size
    for i in range(s.n[N_ACTIVE]):
        s.pinned[layer * units + s.active[i]] = False
    s.n[N_ACTIVE] = 0
    for i in range(pairs.shape[0]):
        incoming = pairs[i, 0]
        outgoing = pairs[i, 1]
        if not (0 <= incoming < s.status.size and 0 <= outgoing < s.status.size):
            return False
        if not stays(raw, outgoing, s.group_of[incoming // units]):
            return False
        if not exchangeable(raw, incoming, outgoing):
            continue
        if s.status[incoming] == RESIDENT and s.group[s.slot[incoming]] == STAGING:
            evict(raw, outgoing)
            keep_staged(raw, incoming)
        elif s.status[incoming] == ABSENT and s.n[SWAP_TAIL] < s.swap_in.size:
            s.swap_in[s.n[SWAP_TAIL]] = incoming
            s.swap_out[s.n[SWAP_TAIL]] = outgoing
            s.n[SWAP_TAIL] += 1
    _release_staged(raw, layer)
    return True
