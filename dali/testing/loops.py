"""Whether the compiled loops of a `ScoreCache` decide as the plain ones of `Cache` do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dali.policies.assign.fixed import AllGPU
from dali.policies.cache.base import Cache, ScoreCache
from dali.policies.core.state import STAGING, STAY, State
from dali.policies.planner import Policy
from dali.policies.prefetch.predicted import OraclePrefetch
from dali.policies.view import LayerView
from dali.testing.driving import run
from dali.testing.watching import arrays
from dali.testing.worlds import World, random_world

Placed = list[tuple[bool, list[int]]]


def loops_agree(make: Callable[[], ScoreCache], seed: int) -> None:
    """Run one in random worlds, asking both loops at every call; AssertionError where they differ.

    They do where a subclass overrides `admit` or `victim`, which the compiled loops do not call.
    """
    # In many a world there is room for all, or all is pinned: nothing leaves.
    for number in range(77, 81):
        _agree_in(random_world(np.random.default_rng([seed, number]), passes=12), make(), seed)


def _agree_in(world: World, cache: Any, seed: int) -> None:
    order_free = cache.ENTRY != "scored" and not cache.OWN_VICTIMS
    equal_sizes = len(set(world.shape.unit_bytes.tolist())) == 1
    compiled_place, compiled_settle = cache.place, cache.settle

    def place(view: LayerView) -> None:
        compiled_place(view)  # first: it may bring scores up to date
        kept = _saved(view.state)
        compiled = _placed(view.state)
        view.state.demand_to[: view.state.n.to_copy] = STAGING
        Cache.place(cache, view)
        plain = _placed(view.state)
        _restore(view.state, kept)
        if cache.OWN_VICTIMS:
            _compare_leaving(compiled, plain)
        else:
            _compare(compiled, plain, equal_sizes, order_free)

    def settle(view: LayerView) -> None:
        # `settle` changes the state: keep what the plain loop leaves, put the state back, then the compiled one.
        before = _saved(view.state)
        staged = view.state.owner[view.state.staged]
        entering = staged[staged >= 0][view.state.pinned[staged[staged >= 0]]]
        Cache.settle(cache, view)
        all_stay = not np.any(view.state.group[view.state.slot[entering]] == STAGING)
        plain = _saved(view.state)
        _restore(view.state, before)
        compiled_settle(view)
        if order_free or (all_stay if cache.OWN_VICTIMS else entering.size <= 1):
            for name, array in arrays(view.state).items():  # victims is scratch of the compiled loop
                same = name == "victims" or np.array_equal(array, plain[name])
                assert same, f"the compiled loop of settle leaves another {name} than admit and victim ask for"

    cache.place, cache.settle = place, settle
    run(Policy("test", AllGPU(), OraclePrefetch(3, ahead=1, recall=0.6), cache, world.staging), world, seed)


def _saved(state: State) -> dict[str, Any]:
    return {name: array.copy() for name, array in arrays(state).items()}


def _restore(state: State, saved: dict[str, Any]) -> None:
    for name, array in arrays(state).items():
        array[...] = saved[name]


def _placed(state: State) -> Placed:
    """(stays, victims) of each demand copy as `place` left them."""
    answer = []
    for i in range(state.n.to_copy):
        stays = bool(state.demand_to[i] == STAY)
        first, count = (int(state.victim_first[i]), int(state.victim_count[i])) if stays else (0, 0)
        answer.append((stays, state.victims[first : first + count].tolist()))
    return answer


def _compare_leaving(compiled: Placed, plain: Placed) -> None:
    """Where units of a layer step compete for the places, the two may let other ones stay, not make others leave."""
    ours, theirs = ([victims for stays, victims in placed if stays] for placed in (compiled, plain))
    assert ours == theirs, f"the compiled loop makes {ours} leave for demand copies, admit and victim {theirs}"


def _compare(compiled: Placed, plain: Placed, equal_sizes: bool, order_free: bool) -> None:
    """`order_free`: units do not compete by entry score, so which is first does not matter to the loops."""
    said = f"the compiled loop places demand copies as {compiled}, admit and victim as {plain}"
    if order_free or len(plain) == 1:
        assert compiled == plain, said
        return
    # "scored" policies: the compiled loop lets the highest entry score choose first, the plain one takes units as
    # they are queued.  A low entry may then push out the lowest score before a high one comes, and both enter
    # where the compiled loop lets one in.  The order cannot matter to where the lowest score is: both loops evict
    # from the bottom, so with units of equal size the compiled victims are the first of the plain ones.
    ours = sorted(key for _, victims in compiled for key in victims)
    theirs = sorted(key for _, victims in plain for key in victims)
    assert set(ours) <= set(theirs) or not equal_sizes, said
    assert sum(stays for stays, _ in compiled) <= sum(stays for stays, _ in plain) or not equal_sizes, said
