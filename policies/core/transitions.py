"""What the planner does at each call of a driver, as compiled functions on its state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed
from dali.policies.core.state import (
    ABSENT,
    DEMAND,
    LANDING,
    LOG_COMPUTED,
    LOG_LANDED,
    LOG_NEXT,
    NONE,
    PREFETCH,
    RESIDENT,
    STAGING,
    SWAP,
    evict,
    exchangeable,
    forget,
    keep_staged,
    own,
    pop_reusable,
    push_reusable,
    release_staged,
    stays,
    take_empty,
    unpack,
)
from dali.policies.types import Bools, Floats, Ints


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
    s.n.hits = s.n.late = s.n.in_staging = 0
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
            s.n.hits += s.status[key] == RESIDENT
            s.n.late += s.status[key] == LANDING
            s.n.in_staging += s.group[s.slot[key]] == STAGING
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
    s.n.active = n
    release_staged(raw, layer)
    s.n.hint_head = s.n.hint_tail = 0
    kept = 0
    for i in range(s.n.swap_head, s.n.swap_tail):
        if s.swap_in[i] // units != layer and s.swap_out[i] // units != layer:
            s.swap_in[kept] = s.swap_in[i]
            s.swap_out[kept] = s.swap_out[i]
            kept += 1
    s.n.swap_head = 0
    s.n.swap_tail = kept
    return n


@kernel
def _sort(keys: NDArray[np.int64], n: int) -> None:
    """Sort the first `n` keys, all different: the place of each is the number of smaller ones."""
    unsorted = keys[:n].copy()
    for i in range(n):
        place = 0
        for j in range(n):
            place += unsorted[j] < unsorted[i]
        keys[place] = unsorted[i]


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
    for i in range(s.n.active):
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
    for i in range(s.n.active):
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
    s.n.cpu = n_cpu
    s.n.gpu = n_gpu
    s.n.to_copy = demands
    s.n.demand_head = 0
    s.n.demand_tail = demands
    return demands


@kernel
def queue_hints(raw: Packed, pairs: Ints) -> bool:
    """Replace the hints by `pairs` of (layer, unit), skipping what is not absent; False if one is out of range."""
    s = unpack(raw)
    n = 0
    for i in range(pairs.shape[0]):
        if not (0 <= pairs[i, 0] < s.layers and 0 <= pairs[i, 1] < s.units) or n == s.hint.size:
            return False
        key = pairs[i, 0] * s.units + pairs[i, 1]
        if s.status[key] == ABSENT:
            s.hint[n] = key
            n += 1
    s.n.hint_head = 0
    s.n.hint_tail = n
    return True


@kernel
def _log(raw: Packed, what: int, a: int, b: int, c: int) -> None:
    s = unpack(raw)
    if s.n.logging:
        row = s.n.log_count
        if row < s.log.size // 4:
            s.log[4 * row + 0] = what
            s.log[4 * row + 1] = a
            s.log[4 * row + 2] = b
            s.log[4 * row + 3] = c
        s.n.log_count = row + 1


@kernel
def _issue(raw: Packed, kind: int, key: int, slot: int) -> int:
    s = unpack(raw)
    own(raw, key, slot, LANDING)
    s.n.out_key = key
    s.n.out_slot = slot
    _log(raw, LOG_NEXT, kind, key, slot)
    return kind


@kernel
def _next_hint(raw: Packed) -> int:
    s = unpack(raw)
    while s.n.hint_head < s.n.hint_tail:
        key = s.hint[s.n.hint_head]
        if s.status[key] == ABSENT:
            if s.n.reusable_count <= s.n.reserve:
                return NONE
            s.n.hint_head += 1
            return _issue(raw, PREFETCH, key, pop_reusable(raw))
        s.n.hint_head += 1
    return NONE


@kernel
def _next_swap(raw: Packed) -> int:
    s = unpack(raw)
    while s.n.swap_head < s.n.swap_tail:
        i = s.n.swap_head
        s.n.swap_head += 1
        incoming = s.swap_in[i]
        outgoing = s.swap_out[i]
        if s.status[incoming] == ABSENT and not s.pinned[outgoing] and exchangeable(raw, incoming, outgoing):
            evict(raw, outgoing)
            return _issue(raw, SWAP, incoming, take_empty(raw, incoming // s.units))
    return NONE


@kernel
def next_copy(raw: Packed, layer: int) -> int:
    """Bind the next copy: its kind, with key and slot in `n.out_key`, `n.out_slot`; NONE if there is none.

    Demand copies come first and in order: while one waits for a staging slot nothing else is issued, or
    hints would take the slot it waits for.  Then hints by rank, which leave `n.reserve` staging slots to
    demand copies, and swaps; or swaps and hints, if `n.swaps_first`.
    """
    s = unpack(raw)
    if s.n.demand_head < s.n.demand_tail:
        i = s.n.demand_head
        if s.demand_to[i] == STAGING:
            if s.n.reusable_count == 0:
                _log(raw, LOG_NEXT, NONE, NONE, NONE)
                return NONE
            slot = pop_reusable(raw)
        else:
            for j in range(s.victim_count[i]):
                evict(raw, s.victims[s.victim_first[i] + j])
            slot = take_empty(raw, layer)
        s.n.demand_head += 1
        return _issue(raw, DEMAND, layer * s.units + s.demand[i], slot)
    if s.n.swaps_first:
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
        forget(raw, key)
        push_reusable(raw, slot)


@kernel
def computed(raw: Packed, key: int) -> None:
    """The GPU kernel of `key` is done: its staging slot, if it is in one, may be overwritten."""
    s = unpack(raw)
    _log(raw, LOG_COMPUTED, key, NONE, NONE)
    if s.group[s.slot[key]] == STAGING:
        push_reusable(raw, s.slot[key])


@kernel
def end_step(raw: Packed, layer: int, pairs: Ints) -> bool:
    """Unpin, queue swaps (an incoming unit that is staged stays without a copy), release the other staged units.

    False if a pair names an outgoing unit that is not resident in the incoming unit's group.
    """
    s = unpack(raw)
    for i in range(s.n.active):
        s.pinned[layer * s.units + s.active[i]] = False
    s.n.active = 0
    for i in range(pairs.shape[0]):
        incoming = pairs[i, 0]
        outgoing = pairs[i, 1]
        if not (0 <= incoming < s.status.size and 0 <= outgoing < s.status.size):
            return False
        if not stays(raw, outgoing, s.group_of[incoming // s.units]):
            return False
        if not exchangeable(raw, incoming, outgoing):
            continue
        if s.status[incoming] == RESIDENT and s.group[s.slot[incoming]] == STAGING:
            evict(raw, outgoing)
            keep_staged(raw, incoming)
        elif s.status[incoming] == ABSENT and s.n.swap_tail < s.swap_in.size:
            s.swap_in[s.n.swap_tail] = incoming
            s.swap_out[s.n.swap_tail] = outgoing
            s.n.swap_tail += 1
    release_staged(raw, layer)
    return True
