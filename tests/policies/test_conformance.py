"""What holds for every policy: one suite over all of `conf/assignment`, `conf/cache` and `conf/prefetch`.

A new YAML file is covered by being there; a new class at extreme hyper-parameters by a line below.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import Checked, arrays, cost_model, decisions, drive, full_log, random_world, run
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from dali.policies.assign.fixed import AllGPU, LayerSplit
from dali.policies.assign.greedy import Greedy
from dali.policies.cache.base import Cache, ScoreCache
from dali.policies.cache.classic import LFU, LRU, Belady
from dali.policies.cache.fixed import Static
from dali.policies.cache.mrs import MRS
from dali.policies.cache.workload import WorkloadAware
from dali.policies.core.planner import Planner, Policy, replay_log
from dali.policies.core.state import STAGING, STAY
from dali.policies.prefetch.gain import GainPrefetch
from dali.policies.prefetch.predicted import OraclePrefetch, PredictedPrefetch
from dali.policies.prefetch.simple import FrequencyPrefetch, NextLayer, NoPrefetch, RandomPrefetch
from dali.policies.types import AssignmentPolicy, CachePolicy, Capacity, InputError, LayerStep, PrefetchPolicy, Shape

CONF = Path(__file__).parents[2] / "conf"
KINDS = ("assignment", "prefetch", "cache")
PROTOCOLS = {"assignment": AssignmentPolicy, "prefetch": PrefetchPolicy, "cache": CachePolicy}
HUGE = 2**31 - 1


@functools.cache
def _config(kind: str, name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(overrides=[f"+{kind}={name}"])[kind]


# ---- policies that a user might write ----------------------------------------------------------------


class RandomAssignment:
    """Any assignment is a legal one."""

    overlap = True

    def reset(self, shape, capacity, rng):
        self.rng, self.units = rng, shape.units

    def assign(self, view):
        return self.rng.random(self.units) < 0.6


class AnyHints:
    """Hints at any layer, the running one included, at what is not absent, and twice at the same unit."""

    source, ahead = None, 1

    def reset(self, shape, capacity, rng):
        self.rng, self.shape = rng, shape

    def rank(self, view):
        drawn = self.rng.integers((0, 0), (self.shape.layers, self.shape.units), (5, 2))
        return np.concatenate([drawn, drawn[:2]])[: self.shape.layers * self.shape.units].astype(np.int32)


class FIFO(Cache):
    """Evict what has been here longest: a user's policy in plain Python."""

    def reset(self, shape, capacity, rng):
        super().reset(shape, capacity, rng)
        self.since: dict[int, int] = {}
        self.clock = 0

    def observe(self, view):
        self.clock += 1
        for key in np.flatnonzero(view.status):
            self.since.setdefault(int(key), self.clock)
        for key in set(self.since) - set(np.flatnonzero(view.status).tolist()):
            del self.since[key]

    def admit(self, view, unit):
        return True

    def victim(self, view, unit, candidates):
        return min(candidates.tolist(), key=lambda key: (self.since.get(key, 0), key))


class Whim(Cache):
    """Admits, evicts and swaps as drawn."""

    def admit(self, view, unit):
        return self.rng.random() < 0.7

    def victim(self, view, unit, candidates):
        return None if self.rng.random() < 0.2 else int(self.rng.choice(candidates))

    def swaps(self, view):
        state, group = view.state, self.capacity.group_of[view.layer]
        here = np.flatnonzero(state.status == 2)
        outgoing = here[state.group[state.slot[here]] == group]
        first = 0 if self.scope == "global" else view.layer * self.shape.units
        last = self.shape.layers * self.shape.units if self.scope == "global" else first + self.shape.units
        count = int(self.rng.integers(0, min(4, outgoing.size) + 1))
        incoming = self.rng.integers(first, last, count)  # may be resident, staged or landing: then nothing happens
        return np.stack([incoming, self.rng.choice(outgoing, count, replace=False)], 1).astype(np.int32)


EXTREME: dict[str, list[Callable[[], Any]]] = {
    "assignment": [
        RandomAssignment,
        lambda: LayerSplit(1),
        lambda: LayerSplit(HUGE),
        lambda: Greedy(0),
        lambda: Greedy(1),
    ],
    "prefetch": [
        AnyHints,
        lambda: RandomPrefetch(100),
        lambda: FrequencyPrefetch(HUGE, prior_tokens=0),
        lambda: NextLayer(1),
        lambda: PredictedPrefetch("gate", HUGE, ahead=4),
        lambda: OraclePrefetch(HUGE, ahead=3, recall=0.0),
        lambda: OraclePrefetch(2, ahead=4, recall=0.5),
        lambda: GainPrefetch(HUGE, ahead=4, candidates=HUGE),
    ],
    "cache": [
        FIFO,
        lambda: FIFO("global", "empty"),
        Whim,
        lambda: Whim("global"),
        lambda: Static("global", "random"),
        lambda: Static("layer", "empty"),
        lambda: LRU("global", "empty"),
        lambda: LFU("global", "popular"),
        lambda: MRS("global", "empty", alpha=1.0, spread=HUGE),
        lambda: WorkloadAware("layer", w_size=1, u_size=1),
        lambda: WorkloadAware("global", w_size=2, u_size=HUGE),
        lambda: WorkloadAware("layer", w_size=HUGE, u_size=3),
        lambda: Belady("global", "empty"),
    ],
}


def _every(kind: str) -> dict[str, Callable[[], Any]]:
    found = {
        path.stem: lambda name=path.stem: instantiate(_config(kind, name))
        for path in sorted((CONF / kind).glob("*.yaml"))
    }
    assert found, f"no policy in conf/{kind}"
    return found | {f"extreme {i}": make for i, make in enumerate(EXTREME[kind])}


EVERY = {kind: _every(kind) for kind in KINDS}
EACH = [pytest.param(kind, name, id=f"{kind}-{name}") for kind in KINDS for name in EVERY[kind]]
CLASSES = sorted(
    {(kind, type(make())) for kind in KINDS for make in EVERY[kind].values()},
    key=lambda entry: (entry[0], entry[1].__name__),
)


def _with_partners(kind: str, name: str, seed: int, staging: int) -> Policy:
    """The policy under test, and one drawn of each other kind."""
    rng = np.random.default_rng(seed)
    names = {other: name if other == kind else str(rng.choice(sorted(EVERY[other]))) for other in KINDS}
    return Policy(
        "test", **{other: EVERY[other][names[other]]() for other in KINDS}, staging=staging, swaps_first=seed % 2 > 0
    )


@functools.cache
def _log(kind, name, seed):
    world = random_world(np.random.default_rng(seed))
    return full_log(run(_with_partners(kind, name, seed, world.staging), world, seed).planner)


# ---- the contract ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), EACH)
@pytest.mark.parametrize("seed", range(3))
def test_contract(kind, name, seed):
    # What is asserted stands in `driving.Checked`, after every call.
    world = random_world(np.random.default_rng([seed, len(name)]))
    run(_with_partners(kind, name, seed, world.staging), world, seed, depth=1 + seed % 3, watched=True)


@pytest.mark.parametrize("name", EVERY["cache"])
def test_contract_of_caches_under_pressure(name):
    # Units of different sizes, all on the GPU, in memory that is mostly too small: places change all the time.
    for seed in range(10):
        world = random_world(np.random.default_rng([seed, 5]), passes=6, uneven=1.0)
        policy = Policy("test", AllGPU(), AnyHints(), EVERY["cache"][name](), world.staging, swaps_first=seed % 2 > 0)
        run(policy, world, seed)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 4))
def test_contract_under_whims(seed, pooled, depth):
    # Nothing is sensible here: assignment, hints and cache are drawn.
    world = random_world(np.random.default_rng(seed), passes=6)
    cache = Whim("global" if pooled else "layer")
    policy = Policy("whims", RandomAssignment(), AnyHints(), cache, world.staging, swaps_first=seed % 3 == 0)
    run(policy, world, seed, depth)


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_same_seed_same_decisions(kind, name):
    assert decisions(_log.__wrapped__(kind, name, 6)) == decisions(_log(kind, name, 6))


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_two_planners_share_nothing(kind, name):
    seeds = (6, 9)
    worlds = [random_world(np.random.default_rng(seed)) for seed in seeds]
    planners = [
        Checked(_with_partners(kind, name, seed, world.staging), world, seed)
        for seed, world in zip(seeds, worlds, strict=True)
    ]
    runs = [drive(planner, world.steps, seed) for planner, world, seed in zip(planners, worlds, seeds, strict=True)]
    while runs:
        runs = [calls for calls in runs if next(calls, "over") != "over"]
    for planner, seed in zip(planners, seeds, strict=True):
        assert decisions(full_log(planner.planner)) == decisions(_log(kind, name, seed))


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_reset_forgets_an_earlier_model(kind, name):
    other, world = (random_world(np.random.default_rng(seed)) for seed in (8, 9))
    policy = _with_partners(kind, name, 9, world.staging)
    run(policy, other, 8)
    assert decisions(full_log(run(policy, world, 9).planner)) == decisions(_log(kind, name, 9))


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_implements_its_protocol(kind, name):
    assert isinstance(EVERY[kind][name](), PROTOCOLS[kind])


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_constructor_keeps_hyper_parameters_and_nothing_else(kind, name):
    policy = EVERY[kind][name]()
    wanted = [parameter for parameter in inspect.signature(type(policy)).parameters if parameter != "self"]
    assert not {"shape", "capacity", "rng"} & set(wanted)
    kept = {parameter: getattr(policy, parameter) for parameter in wanted}
    again = type(policy)(**kept)
    assert {parameter: getattr(again, parameter) for parameter in wanted} == kept
    for seed in (0, 1):
        world = random_world(np.random.default_rng(seed))
        scope = policy.scope if kind == "cache" else "layer"
        policy.reset(world.shape, world.capacity(scope), np.random.default_rng(seed))
        assert {parameter: getattr(policy, parameter) for parameter in wanted} == kept


@pytest.mark.parametrize("bad", [-1, 1.5, float("nan")], ids=str)
@pytest.mark.parametrize(("kind", "policy"), CLASSES, ids=lambda value: getattr(value, "__name__", value))
def test_bad_hyper_parameter_is_an_input_error(kind, policy, bad):
    # Neither a count, nor a share, nor a choice, nor a name: no hyper-parameter of any policy takes these.
    parameters = inspect.signature(policy).parameters
    needed = {"source": "gate", "size": 1}
    for name in parameters:
        given_ = {other: needed[other] for other, p in parameters.items() if p.default is p.empty} | {name: bad}
        with pytest.raises(InputError) as caught:
            policy(**given_)
        assert name in str(caught.value)
        assert repr(bad) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "cache").glob("*.yaml"))])
def test_cache_yaml_names_every_hyper_parameter(name):
    config = _config("cache", name)
    policy = instantiate(config)
    assert set(config) == {"_target_"} | set(inspect.signature(type(policy)).parameters)


# ---- the compiled loops and the plain ones -----------------------------------------------------------

SCORED = {name: make for name, make in EVERY["cache"].items() if isinstance(make(), ScoreCache)}


def _placed(state):
    """(stays, victims) of each demand copy as `place` left them."""
    answer = []
    for i in range(state.n.to_copy):
        stays = bool(state.demand_to[i] == STAY)
        first, count = (int(state.victim_first[i]), int(state.victim_count[i])) if stays else (0, 0)
        answer.append((stays, state.victims[first : first + count].tolist()))
    return answer


def _compare(compiled, plain, equal_sizes, order_free):
    """`order_free`: units do not compete by entry score, so which is first does not matter to the loops."""
    if order_free or len(plain) == 1:
        assert compiled == plain
        return
    # "scored" policies: the compiled loop lets the highest entry score choose first, the plain one takes units as
    # they are queued.  A low entry may then push out the lowest score before a high one comes, and both enter
    # where the compiled loop lets one in.  The order cannot matter to where the lowest score is: both loops evict
    # from the bottom, so with units of equal size the compiled victims are the first of the plain ones.
    ours = sorted(key for _, victims in compiled for key in victims)
    theirs = sorted(key for _, victims in plain for key in victims)
    assert set(ours) <= set(theirs) or not equal_sizes
    assert sum(stays for stays, _ in compiled) <= sum(stays for stays, _ in plain) or not equal_sizes


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("seed", range(3))
def test_compiled_loops_agree_with_plain_ones(name, seed):
    world = random_world(np.random.default_rng([seed, 77]), passes=12)
    cache = SCORED[name]()
    order_free = cache.ENTRY != "scored"
    equal_sizes = len(set(world.shape.unit_bytes.tolist())) == 1
    compiled_place, compiled_settle = cache.place, cache.settle

    def place(view):
        Cache.place(cache, view)
        plain = _placed(view.state)
        view.state.demand_to[: view.state.n.to_copy] = STAGING
        compiled_place(view)
        _compare(_placed(view.state), plain, equal_sizes, order_free)

    def settle(view):
        # `settle` changes the state: keep what the plain loop leaves, put the state back, then the compiled one.
        state = arrays(view.state)
        saved = {name: array.copy() for name, array in state.items()}
        staged = view.state.owner[view.state.staged]
        entering = int(np.count_nonzero(view.state.pinned[staged[staged >= 0]]))
        Cache.settle(cache, view)
        plain = {name: array.copy() for name, array in state.items()}
        for name, array in state.items():
            array[...] = saved[name]
        compiled_settle(view)
        if order_free or entering <= 1:
            for name, array in state.items():
                assert name == "victims" or np.array_equal(array, plain[name])  # victims: scratch of the compiled loop

    cache.place, cache.settle = place, settle
    run(Policy("test", AllGPU(), OraclePrefetch(3, ahead=1, recall=0.6), cache, world.staging), world, seed)


# ---- drift -------------------------------------------------------------------------------------------


def _fresh(kind, name, seed):
    world = random_world(np.random.default_rng(seed))
    policy = _with_partners(kind, name, seed, world.staging)
    return Planner(policy, world.shape, world.capacity(policy.cache.scope), world.cost, seed=seed, log=True)


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_replayed_log_gives_the_same_answers(kind, name):
    log = _log(kind, name, 9)
    assert any(entry[0] == "next_copy" for entry in log)
    assert replay_log(log, _fresh(kind, name, 9)) is None


@settings(max_examples=25)
@given(st.data(), st.integers(0, 3))
def test_tampered_answer_is_found_where_it_is(data, seed):
    log = _log("cache", "lru", seed)
    at = data.draw(st.integers(0, len(log) - 1).filter(lambda i: log[i][0] in ("begin", "next_copy")))
    entry = log[at]
    if entry[0] == "begin":
        other = ("begin", entry[1], [*entry[2], 0], entry[3])
    else:
        position = data.draw(st.integers(1, 3))
        other = tuple(value + 1 if i == position else value for i, value in enumerate(entry))
    assert replay_log([*log[:at], other, *log[at + 1 :]], _fresh("cache", "lru", seed)) == at


def test_report_of_another_copy_is_found_at_the_next_answer():
    # LRU of one slot, two units copied: landed and computed are withheld from the second planner, which then
    # cannot reuse its staging slots.
    def planner():
        policy = Policy("test", AllGPU(), NoPrefetch(), Static(fill="empty"), staging=2)
        shape = Shape(1, 3, np.ones(1, np.int64))
        return Planner(policy, shape, Capacity.in_units(1, "layer", 1), cost_model(1), log=True)

    driver = planner()
    plan = driver.begin(LayerStep(0, 0, 3, np.array([1, 1, 1], np.int32)))
    for _ in range(2):
        driver.landed(driver.next_copy())
    driver.computed(int(plan.gpu[0]))
    driver.landed(driver.next_copy())
    log = full_log(driver)
    assert [entry[0] for entry in log] == ["begin", *["next_copy", "landed"] * 2, "computed", "next_copy", "landed"]
    assert replay_log(log, planner()) is None
    del log[5]
    assert replay_log(log, planner()) == 5


def test_replay_needs_a_log():
    policy = Policy("test", AllGPU(), NoPrefetch(), LRU())
    shape = Shape(1, 3, np.ones(1, np.int64))
    silent = Planner(policy, shape, Capacity.in_units(1, "layer", 1), cost_model(1))
    with pytest.raises(ValueError, match="log=True"):
        replay_log([], silent)
