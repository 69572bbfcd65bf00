"""Which copied units stay and which leave for them, by score: the loops of `policies.cache.base.ScoreCache`."""

from __future__ import annotations

import numpy as np

from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed
from dali.policies.core.state import RESIDENT, STAGING, STAY, evict, keep_staged, stays, unpack
from dali.policies.types import Floats, Ints


@kernel
def lowest(raw: Packed, layer: int, score: Floats, count: int, pinned_too: bool, out: Ints) -> int:
    """The `count` keys that stay in the layer's group with the lowest score, lowest first, ties to the lower key."""
    s = unpack(raw)
    group = s.group_of[layer]
    per_layer = s.empty_count.size == s.layers
    first = layer * s.units if per_layer else 0
    last = first + s.units if per_layer else s.status.size
    n = 0
    for key in range(first, last):
        if s.status[key] != RESIDENT or (n == count and score[key] >= score[out[n - 1]]):
            continue
        if not stays(raw, key, group) or (s.pinned[key] and not pinned_too):
            continue
        i = n if n < count else n - 1
        while i > 0 and score[out[i - 1]] > score[key]:
            out[i] = out[i - 1]
            i -= 1
        out[i] = key
        n = min(n + 1, count)
    return n


@kernel
def _victims(raw: Packed, layer: int, score: Floats, n: int, contested: bool, own_too: bool, out: Ints) -> int:
    """Keys that may have to leave for `n` units, first to leave first; how many there are.

    By score alone where a unit has to outscore its victims, else those of the running layer step after all others, and
    none of them where the others suffice.
    """
    s = unpack(raw)
    need = n * s.size[layer] - s.room[s.group_of[layer]]
    if need <= 0:
        return 0
    most = (need + s.size.min() - 1) // s.size.min()
    if contested or not own_too:
        return lowest(raw, layer, score, most, own_too, out)
    found = lowest(raw, layer, score, most, False, out)
    freed = 0
    for i in range(found):
        freed += s.size[out[i] // s.units]
    if freed >= need:
        return found
    base = layer * s.units
    for i in range(s.n.active):
        key = base + s.active[i]
        if not stays(raw, key, s.group_of[layer]):
            continue
        j = found
        while j > 0 and s.pinned[out[j - 1]] and score[out[j - 1]] > score[key]:
            out[j] = out[j - 1]
            j -= 1
        out[j] = key
        found += 1
    return found


@kernel
def _match(
    raw: Packed,
    layer: int,
    score: Floats,
    entry: Floats,
    contested: bool,
    own_too: bool,
    enter: Ints,
    n: int,
    to: Ints,
    first: Ints,
    count: Ints,
    victims: Ints,
) -> None:
    """Which of the units `enter[:n]` stay (`to`), each after victims[first : first + count] left.

    With `entry` scores given, those that score highest enter.
    contested: a unit enters only past victims that score lower; else that holds for victims of the running layer step.
    own_too: units of the running layer step may be victims.
    """
    s = unpack(raw)
    need = s.size[layer]
    room = s.room[s.group_of[layer]]
    found = _victims(raw, layer, score, n, contested, own_too, victims)
    # All stay, in the place of units that the layer step does not use: whose score is the highest does not matter.
    all_stay = not contested and _room_of(raw, victims, found) + room >= n * need
    entered = np.empty(n, np.int32)  # units in the order in which they are given their victims
    for i in range(n):
        to[i] = STAGING
        place = i
        if entry.size > 0 and not all_stay:
            while place > 0 and entry[enter[entered[place - 1]]] < entry[enter[i]]:
                entered[place] = entered[place - 1]
                place -= 1
        entered[place] = i
    stay = used = 0
    for turn in range(n):
        i = entered[turn]
        last = used
        after = room
        while after < need and last < found:
            key = victims[last]
            if entry.size > 0 and (contested or s.pinned[key]) and entry[enter[i]] <= score[key]:
                break
            after += s.size[key // s.units]
            last += 1
        if after < need:
            break  # and so it is for all that score no higher
        to[i] = STAY
        first[i] = used
        count[i] = last - used
        used = last
        stay += 1
        # Units that outscore their own victims keep these, and are copied in another order: what is left stays free.
        room = 0 if contested and count[i] > 0 else after - need
    if not contested and not all_stay:
        _hand_out(n, to, entered[:stay], first, count)


@kernel
def _room_of(raw: Packed, keys: Ints, n: int) -> int:
    """What the first keys leave if they go, as far as none of them belongs to the running layer step."""
    s = unpack(raw)
    freed = 0
    for i in range(n):
        if s.pinned[keys[i]]:
            break
        freed += s.size[keys[i] // s.units]
    return freed


@kernel
def _hand_out(n: int, to: Ints, entered: Ints, first: Ints, count: Ints) -> None:
    """Give victims to the units that stay in the order of their copies, so that one may use what another's leave."""
    chunks = np.empty((entered.size, 2), np.int32)
    for turn in range(entered.size):
        chunks[turn, 0] = first[entered[turn]]
        chunks[turn, 1] = count[entered[turn]]
    turn = 0
    for i in range(n):
        if to[i] == STAY:
            first[i] = chunks[turn, 0]
            count[i] = chunks[turn, 1]
            turn += 1


@kernel
def place_demands(raw: Packed, layer: int, score: Floats, entry: Floats, contested: bool, own_too: bool) -> None:
    """Destination and victims of every demand copy of the running layer step, as `_match` says."""
    s = unpack(raw)
    n = s.n.to_copy
    to, first, count, victims = s.demand_to, s.victim_first, s.victim_count, s.victims
    _match(raw, layer, score, entry, contested, own_too, s.demand, n, to, first, count, victims)
    for i in range(n):
        if to[i] == STAY:
            for key in victims[first[i] : first[i] + count[i]]:
                if s.pinned[key]:  # still to be computed: `settle_staged` lets the two change places
                    to[i] = STAGING


@kernel
def settle_staged(raw: Packed, layer: int, score: Floats, entry: Floats, contested: bool, own_too: bool) -> None:
    """Let active staged units stay in the place of their victims, as `_match` says."""
    s = unpack(raw)
    enter = np.empty(s.staged.size, np.int32)
    n = 0
    for slot in s.staged:
        key = s.owner[slot]
        if key >= 0 and s.pinned[key] and s.status[key] == RESIDENT:
            enter[n] = key - layer * s.units
            n += 1
    if n == 0:
        return
    to = np.empty(n, np.int32)
    first = np.empty(n, np.int32)
    count = np.empty(n, np.int32)
    # Every demand copy of this layer step is issued: its list of victims may be used again.
    _match(raw, layer, score, entry, contested, own_too, enter, n, to, first, count, s.victims)
    for i in range(n):
        if to[i] == STAY:
            for j in range(first[i], first[i] + count[i]):
                evict(raw, s.victims[j])
            keep_staged(raw, layer * s.units + enter[i])
