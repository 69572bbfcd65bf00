"""What has to hold for every policy, whoever wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dali.policies.assign.fixed import AllGPU
from dali.policies.cache.base import SCOPES, Cache, ScoreCache
from dali.policies.planner import Planner, Policy, replay_log
from dali.policies.types import Capacity, InputError
from dali.policies.view import AssignmentPolicy, PrefetchPolicy
from dali.testing.driving import Checked, decisions, drive, full_log, run
from dali.testing.loops import loops_agree
from dali.testing.partners import PARTNERS, AnyHints, Makers
from dali.testing.worlds import World, random_world

PARTS: dict[str, type] = {"assignment": AssignmentPolicy, "prefetch": PrefetchPolicy, "cache": Cache}
Log = list[tuple[Any, ...]]


class Check:
    """One property; called, it raises AssertionError that says what is wrong.  pytest takes its name as an id."""

    def __init__(self, name: str, holds: Callable[[], None]) -> None:
        self.__name__ = name
        self._holds = holds

    def __call__(self) -> None:
        """Check it."""
        if not __debug__:
            raise InputError("dali.testing: found Python without assertions (-O), expected it with them")
        try:
            self._holds()
        except ValueError as error:  # the planner's word on an answer, or a policy's own on its arguments
            raise AssertionError(f"{self.__name__}: {error}") from error

    def __repr__(self) -> str:
        return self.__name__


def check_policy(make: Callable[[], Any], partners: Makers | None = None) -> None:
    """All of `checks`, one after the other: AssertionError at the first that does not hold."""
    for check in checks(make, partners):
        check()


def checks(make: Callable[[], Any], partners: Makers | None = None) -> list[Check]:
    """What has to hold for the policies that `make` makes.

    make      returns a fresh `dali.Policy`, or a fresh assignment, prefetch or cache policy: a class will do
    partners  {"assignment", "prefetch", "cache": makers} of what a part is paired with; None = some of ours, and some
              that answer as drawn

    InputError if it returns anything else.  A policy may keep nothing outside its objects, draws from the generator
    that `reset` gives it alone, and only reads what it is shown.
    """
    subject = _Subject(make, partners or PARTNERS)
    kind = subject.kind
    found: dict[str, Callable[[], None]] = {
        "makes_fresh_objects": subject.makes_fresh_objects,
        "implements_its_protocol": subject.implements_its_protocol,
    }
    if kind != "policy":
        found["constructor_keeps_hyper_parameters"] = subject.constructor_keeps_hyper_parameters
    found |= {f"keeps_the_contract-{seed}": partial(subject.keeps_the_contract, seed) for seed in range(3)}
    found["keeps_the_contract_without_room"] = subject.keeps_the_contract_without_room
    if kind == "cache":
        found["keeps_the_contract_under_pressure"] = subject.keeps_the_contract_under_pressure
    found |= {
        "same_seed_same_decisions": subject.same_seed_same_decisions,
        "two_planners_share_nothing": subject.two_planners_share_nothing,
        "reset_forgets_an_earlier_model": subject.reset_forgets_an_earlier_model,
        "replayed_log_gives_the_same_answers": subject.replayed_log_gives_the_same_answers,
    }
    if subject.has_two_loops:
        found |= {f"compiled_loops_agree-{seed}": partial(loops_agree, subject.cache, seed) for seed in range(3)}
    return [Check(name, holds) for name, holds in found.items()]


def kind_of(made: object) -> str:
    """ "policy", "assignment", "prefetch" or "cache"; InputError for anything else."""
    if isinstance(made, Policy):
        return "policy"
    for kind, method in (("assignment", "assign"), ("prefetch", "rank"), ("cache", "victim")):
        if hasattr(made, method):
            return kind
    raise InputError(
        f"make: found {type(made).__name__}, expected a dali.Policy, or something with assign, rank or victim"
    )


class _Subject:
    """What is checked.

    kind           see `kind_of`
    has_two_loops  whether its cache has compiled loops that have to decide as the plain ones do
    """

    def __init__(self, make: Callable[[], Any], partners: Makers) -> None:
        self.make, self.partners = make, partners
        made = make()
        self.kind = kind_of(made)
        self._logs: dict[int, Log] = {}
        cache = made.cache if self.kind == "policy" else made
        # Units that outscore others of the running layer step have victims that the plain loop never offers.
        self.has_two_loops = isinstance(cache, ScoreCache) and not (cache.OWN_VICTIMS and cache.ENTRY == "scored")

    def cache(self) -> ScoreCache:
        """A fresh cache."""
        made = self.make()
        found: ScoreCache = made.cache if self.kind == "policy" else made
        return found

    def policy(self, seed: int, staging: int) -> Policy:
        """The policy under test, or the part and one drawn partner of each other kind."""
        made = self.make()
        if isinstance(made, Policy):
            return made
        rng = np.random.default_rng(seed)
        drawn = {kind: self.partners[kind][int(rng.integers(len(self.partners[kind])))] for kind in PARTS}
        parts = {kind: made if kind == self.kind else partner() for kind, partner in drawn.items()}
        return Policy("test", **parts, staging=staging, swaps_first=seed % 2 > 0)

    def world(self, *seed: int) -> World:
        """A random one, with as many layers predicted as may be asked for."""
        made = self.make()
        ahead = getattr(made.prefetch if self.kind == "policy" else made, "ahead", 1)
        return random_world(np.random.default_rng(seed), ahead=max(4, ahead))

    def log(self, seed: int) -> Log:
        """Of a fresh policy's run through a world, each run once."""
        if seed not in self._logs:
            self._logs[seed] = self.fresh_log(seed)
        return self._logs[seed]

    def fresh_log(self, seed: int) -> Log:
        """The same, run again."""
        world = self.world(seed)
        return full_log(run(self.policy(seed, world.staging), world, seed).planner)

    def _parts(self, made: Any) -> dict[str, Any]:
        return {kind: getattr(made, kind) for kind in PARTS} if self.kind == "policy" else {self.kind: made}

    # ---- what has to hold

    def makes_fresh_objects(self) -> None:
        """No object is made twice: a planner owns what it is given."""
        first, second = (self._parts(self.make()) for _ in range(2))
        shared = [kind for kind, part in first.items() if part is second[kind]]
        assert not shared, f"make returns the same {', '.join(shared)} twice, expected a fresh one each time"

    def implements_its_protocol(self) -> None:
        """All members that the planner asks for are there."""
        for kind, part in self._parts(self.make()).items():
            wanted = PARTS[kind]
            missing = [name for name in _members(wanted) if not hasattr(part, name)]
            assert not missing, f"{type(part).__name__}: found no {', '.join(missing)}, expected it of a {kind} policy"
            assert isinstance(part, wanted), f"{type(part).__name__}: expected a subclass of {wanted.__name__}"

    def constructor_keeps_hyper_parameters(self) -> None:
        """Arguments are attributes of the same name, before and after `reset`; no state is among them."""
        made = self.make()
        name = type(made).__name__
        wanted = list(inspect.signature(type(made)).parameters)
        state = {"shape", "capacity", "rng"} & set(wanted)
        assert not state, f"{name}: takes {', '.join(sorted(state))}, which reset gives it"
        for argument in wanted:
            assert hasattr(made, argument), f"{name}: keeps no attribute {argument}, which its constructor takes"
        kept = {argument: getattr(made, argument) for argument in wanted}
        again = type(made)(**kept)
        for argument in wanted:
            assert getattr(again, argument) == kept[argument], (
                f"{name}: {argument} is not what its constructor was given"
            )
        for seed in (0, 1):
            world = self.world(seed)
            made.reset(world.shape, world.capacity(getattr(made, "scope", "layer")), np.random.default_rng(seed))
            changed = [argument for argument in wanted if getattr(made, argument) != kept[argument]]
            assert not changed, f"{name}.reset changes {', '.join(changed)}"

    def keeps_the_contract(self, seed: int) -> None:
        """The planner's answers are right after every call, and policies only read (`driving.Checked`)."""
        world = self.world(seed, 5)
        run(self.policy(seed, world.staging), world, seed, depth=1 + seed % 3, watched=True)

    def keeps_the_contract_without_room(self) -> None:
        """The same in GPU memory with staging slots alone: nothing can stay."""
        for seed in range(3):
            world = self.world(seed, 7)
            none = {scope: Capacity.in_units(0, scope, world.shape.layers) for scope in SCOPES}
            world = replace(world, capacity=none.__getitem__)
            run(self.policy(seed, world.staging), world, seed, watched=True)

    def keeps_the_contract_under_pressure(self) -> None:
        """Units of different sizes, all on the GPU, in memory that is mostly too small: places change all the time."""
        for seed in range(10):
            world = random_world(np.random.default_rng([seed, 5]), passes=6, uneven=1.0)
            policy = Policy("test", AllGPU(), AnyHints(), self.make(), world.staging, swaps_first=seed % 2 > 0)
            run(policy, world, seed)

    def same_seed_same_decisions(self) -> None:
        """Randomness comes from the generator of `reset` alone."""
        assert decisions(self.fresh_log(6)) == decisions(self.log(6)), (
            "a second run with the same seed decides otherwise"
        )

    def two_planners_share_nothing(self) -> None:
        """Objects of two planners that take turns decide as they do alone."""
        seeds = (6, 9)
        worlds = [self.world(seed) for seed in seeds]
        planners = [
            Checked(self.policy(seed, world.staging), world, seed) for seed, world in zip(seeds, worlds, strict=True)
        ]
        runs: list[Iterator[None]] = [
            drive(planner, world.steps, seed) for planner, world, seed in zip(planners, worlds, seeds, strict=True)
        ]
        while runs:
            runs = [calls for calls in runs if next(calls, "over") != "over"]
        for planner, seed in zip(planners, seeds, strict=True):
            alone = decisions(self.log(seed))
            assert decisions(full_log(planner.planner)) == alone, (
                "beside another planner it decides otherwise than alone"
            )

    def reset_forgets_an_earlier_model(self) -> None:
        """A policy that has run on one model decides on the next as a fresh one does."""
        other, world = self.world(8), self.world(9)
        policy = self.policy(9, world.staging)
        run(policy, other, 8)
        again = decisions(full_log(run(policy, world, 9).planner))
        assert again == decisions(self.log(9)), "after a run on another model it decides otherwise than a fresh one"

    def replayed_log_gives_the_same_answers(self) -> None:
        """Decisions depend on what was reported, not on when or by whom: the drift test."""
        log, world = self.log(9), self.world(9)
        assert any(entry[0] == "next_copy" for entry in log), "the run asked for no copy"
        policy = self.policy(9, world.staging)
        planner = Planner(policy, world.shape, world.capacity(policy.cache.scope), world.cost, seed=9, log=True)
        at = replay_log(log, planner)
        assert at is None, f"call {at} of a replayed log is answered otherwise: {log[at or 0][0]}"


def _members(protocol: type) -> list[str]:
    """Names that a protocol or a base class asks for."""
    if protocol is Cache:
        return ["scope", "reset", "initial", "observe", "admit", "victim", "swaps", "place", "settle"]
    declared = {**inspect.get_annotations(protocol), **vars(protocol)}
    return [name for name in declared if not name.startswith("_")]
