"""What holds for every policy: `dali.testing` over all of `conf/assignment`, `conf/cache` and `conf/prefetch`.

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
from dali.policies.planner import Planner, Policy, replay_log
from dali.policies.prefetch.gain import GainPrefetch
from dali.policies.prefetch.predicted import OraclePrefetch, PredictedPrefetch
from dali.policies.prefetch.simple import FrequencyPrefetch, NextLayer, NoPrefetch, RandomPrefetch
from dali.policies.types import Capacity, InputError, LayerStep, Shape
from dali.testing import checks
from dali.testing.driving import full_log, run
from dali.testing.partners import AnyHints, RandomAssignment, Whim
from dali.testing.worlds import cost_model, random_world

CONF = Path(__file__).parents[2] / "conf"
KINDS = ("assignment", "prefetch", "cache")
HUGE = 2**31 - 1


@functools.cache
def _config(kind: str, name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(overrides=[f"+{kind}={name}"])[kind]


# ---- a policy that a user might write -----------------------------------------------------------------


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


class Oldest(ScoreCache):
    """The same by score, whichever of a layer step's units come first: a user's policy on the compiled loops."""

    def observe(self, view):
        self.score[view.status.ravel() == 0] = view.step + 1


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
        Oldest,
        lambda: Oldest("global", "empty"),
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
PARTNERS = {kind: list(EVERY[kind].values()) for kind in KINDS}
CHECKS = [
    pytest.param(check, id=f"{kind}-{name}-{check.__name__}")
    for kind in KINDS
    for name, make in EVERY[kind].items()
    for check in checks(make, PARTNERS)
]
CLASSES = sorted(
    {(kind, type(make())) for kind in KINDS for make in EVERY[kind].values()},
    key=lambda entry: (entry[0], entry[1].__name__),
)


@pytest.mark.parametrize("check", CHECKS)
def test_policy(check):
    check()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 4))
def test_contract_under_whims(seed, pooled, depth):
    # Nothing is sensible here: assignment, hints and cache are drawn.
    world = random_world(np.random.default_rng(seed), passes=6)
    cache = Whim("global" if pooled else "layer")
    policy = Policy("whims", RandomAssignment(), AnyHints(), cache, world.staging, swaps_first=seed % 3 == 0)
    run(policy, world, seed, depth)


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


# ---- drift -------------------------------------------------------------------------------------------


def _policy(staging):
    return Policy("test", Greedy(), AnyHints(), LRU(), staging=staging)


@functools.cache
def _log(seed):
    world = random_world(np.random.default_rng(seed))
    return full_log(run(_policy(world.staging), world, seed).planner)


def _fresh(seed):
    world = random_world(np.random.default_rng(seed))
    policy = _policy(world.staging)
    return Planner(policy, world.shape, world.capacity(policy.cache.scope), world.cost, seed=seed, log=True)


@settings(max_examples=25)
@given(st.data(), st.integers(0, 3))
def test_tampered_answer_is_found_where_it_is(data, seed):
    log = _log(seed)
    at = data.draw(st.integers(0, len(log) - 1).filter(lambda i: log[i][0] in ("begin", "next_copy")))
    entry = log[at]
    if entry[0] == "begin":
        other = ("begin", entry[1], [*entry[2], 0], entry[3])
    else:
        position = data.draw(st.integers(1, 3))
        other = tuple(value + 1 if i == position else value for i, value in enumerate(entry))
    assert replay_log([*log[:at], other, *log[at + 1 :]], _fresh(seed)) == at


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
