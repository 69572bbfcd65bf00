"""What stays on the GPU.  A policy is its score; the base classes own the loops.

`Cache` is for policies that decide unit by unit (`admit`, `victim`); its loops are plain Python.
`ScoreCache` is for "keep the highest score": its loops are compiled, and a policy only maintains
`score`.  The conformance suite checks that the two loops agree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from dali.policies.cache.placing import place_demands, settle_staged
from dali.policies.core.state import RESIDENT, STAY, evict, keep_staged
from dali.policies.require import require_choice
from dali.policies.types import Capacity, Floats, InputError, Ints, Shape
from dali.policies.view import LayerView

SCOPES = ("layer", "global")
FILLS = ("empty", "random", "popular")
NO_PAIRS: Ints = np.zeros((0, 2), np.int32)
NO_SCORES: Floats = np.zeros(0)


class Cache(ABC):
    """Base of all cache policies.

    scope  "layer": each layer has its own slots; "global": one pool over all layers
    fill   what is resident before the first step: "empty", "random" (as DALI starts) or "popular"

    `needs_next_use`, `needs_router_scores` and `needs_order` tell a driver what to annotate layer steps with;
    `fixed` is True where nothing ever moves; `OWN_VICTIMS` where a unit of the layer step that has just ended may
    make room for another one of it (the loops of this class do not let it).
    """

    OWN_VICTIMS: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    needs_next_use: ClassVar[bool] = False
    needs_order: ClassVar[bool] = False
    needs_router_scores: ClassVar[bool] = False

    def __init__(self, scope: str = "layer", fill: str = "random") -> None:
        self.scope = require_choice("cache.scope", scope, SCOPES)
        self.fill = require_choice("cache.fill", fill, FILLS)

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh."""
        self.shape = shape
        self.capacity = capacity
        self.rng = rng

    @property
    def needs_popularity(self) -> bool:
        """Whether it reads `Shape.popularity`, which a driver may otherwise leave unknown."""
        return self.fill == "popular"

    def initial(self) -> Ints:
        """Keys resident before the first step: as many a group as it has slots, by `fill`."""
        if self.fill == "empty":
            return np.zeros(0, np.int32)
        if self.fill == "popular":
            return self._best(self._popularity())
        return self._best(self.rng.random((self.shape.layers, self.shape.units)))

    def _popularity(self) -> Floats:
        if self.shape.popularity is None:
            raise InputError(
                "cache.fill: found 'popular' but the popularity of the units is not known, expected a "
                "trace with sequences left over for calibration"
            )
        return self.shape.popularity

    def _best(self, score: Floats) -> Ints:
        """Keys with the highest score [L, U] that fit in each group; ties to the lower key."""
        room = self.capacity.room.copy()
        chosen: list[int] = []
        flat = score.ravel()
        for key in np.lexsort((np.arange(flat.size), -flat)).tolist():
            layer = key // self.shape.units
            group = self.capacity.group_of[layer]
            if room[group] >= self.capacity.size[layer]:
                room[group] -= self.capacity.size[layer]
                chosen.append(key)
        return np.array(sorted(chosen), np.int32)

    def observe(self, view: LayerView) -> None:
        """Called at the end of each layer step."""

    @abstractmethod
    def admit(self, view: LayerView, unit: int) -> bool:
        """Whether a copied or staged unit of this layer should stay."""

    @abstractmethod
    def victim(self, view: LayerView, unit: int, candidates: Ints) -> int | None:
        """Key among `candidates` that makes room for `unit`, or None."""

    def swaps(self, view: LayerView) -> Ints:
        """Pairs (incoming key, outgoing key) to exchange when the link is idle."""
        return NO_PAIRS

    # ---- the loops ---------------------------------------------------------------------------------

    def place(self, view: LayerView) -> None:
        """Choose destination and victims of every demand copy of the running layer step."""
        state = view.state
        demand = state.demand[: state.n.to_copy].tolist()
        used = 0
        for i, victims in enumerate(self._make_room(view, demand)):
            if victims is None:
                continue  # to staging, as queued
            state.demand_to[i] = STAY
            state.victim_first[i], state.victim_count[i] = used, len(victims)
            state.victims[used : used + len(victims)] = victims
            used += len(victims)

    def settle(self, view: LayerView) -> None:
        """Let active staged units stay, in the place of their victims, without a copy."""
        state = view.state
        owners = state.owner[state.staged]
        staged = [k for k in owners.tolist() if k >= 0 and state.pinned[k] and state.status[k] == RESIDENT]
        base = view.layer * self.shape.units
        for key, victims in zip(staged, self._make_room(view, [key - base for key in staged]), strict=True):
            if victims is not None:
                for victim in victims:
                    evict(view.raw, victim)
                keep_staged(view.raw, key)

    def _make_room(self, view: LayerView, units: list[int]) -> list[list[int] | None]:
        """For each unit of the layer the keys to evict so that it may stay, or None if it does not stay."""
        state, size = view.state, view.state.size
        group = int(state.group_of[view.layer])
        room = int(state.room[group])
        keys = state.owner[state.group == group]
        keys = keys[keys >= 0]
        candidates = np.sort(keys[(state.status[keys] == RESIDENT) & ~state.pinned[keys]])
        result: list[list[int] | None] = []
        for unit in units:
            victims: list[int] | None = [] if self.admit(view, unit) else None
            left, gained = candidates, 0
            while victims is not None and room + gained < size[view.layer]:
                key = self.victim(view, unit, left) if left.size else None
                if key is None:
                    victims = None
                    break
                if key not in left:
                    raise ValueError(f"{type(self).__name__}.victim: key {key} is not among the candidates")
                left = left[left != key]
                gained += int(size[key // self.shape.units])
                victims.append(key)
            if victims is not None:
                candidates, room = left, room + gained - int(size[view.layer])
            result.append(victims)
        return result


class ScoreCache(Cache):
    """Keeps the units with the highest `score` (float64 [K], by key).

    ENTRY  "always": a copied unit takes the place of the lowest score that the layer step does not use, as long as
           there is one (first come, first served; by score in `policies.cache.counted`); "scored": only where its own
           entry score (`entry`) is higher; "never": nothing enters but by `swaps`
    """

    ENTRY: ClassVar[str] = "always"

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh with all scores 0."""
        super().reset(shape, capacity, rng)
        self.score: Floats = np.zeros(shape.layers * shape.units)

    def entry(self, view: LayerView) -> Floats:
        """Float64 [U], the score with which a unit of this layer would enter; empty if all may."""
        return NO_SCORES

    def admit(self, view: LayerView, unit: int) -> bool:
        """By `ENTRY`; whether the score suffices is for `victim` to say."""
        return self.ENTRY != "never"

    def victim(self, view: LayerView, unit: int, candidates: Ints) -> int | None:
        """The lowest score, unless the unit would enter with one that is not higher."""
        entry = self.entry(view)  # first: it may bring the scores up to date
        key = int(candidates[np.argmin(self.score[candidates])])
        return None if self.ENTRY == "scored" and entry.size and entry[unit] <= self.score[key] else key

    def place(self, view: LayerView) -> None:
        """`Cache.place`, compiled."""
        if self.ENTRY != "never":
            entry = self.entry(view)
            contested = self.ENTRY == "scored" and entry.size > 0
            place_demands(view.raw, view.layer, self.score, entry, contested, self.OWN_VICTIMS)

    def settle(self, view: LayerView) -> None:
        """`Cache.settle`, compiled."""
        if self.ENTRY != "never":
            entry = self.entry(view)
            contested = self.ENTRY == "scored" and entry.size > 0
            settle_staged(view.raw, view.layer, self.score, entry, contested, self.OWN_VICTIMS)
