"""`dali.testing`: policies that are wrong in each of the ways it looks for, and the check that says so."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from dali.policies.assign.fixed import AllGPU
from dali.policies.cache.base import Cache, ScoreCache
from dali.policies.cache.classic import LRU
from dali.policies.planner import Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import InputError
from dali.testing import check_policy, checks
from dali.testing.partners import AnyHints, RandomAssignment, Whim

GLOBAL = np.random.default_rng(0)
CALLS = itertools.count()


def failing(make) -> dict[str, str]:
    """What each check that fails says."""
    said = {}
    for check in checks(make):
        try:
            check()
        except AssertionError as error:
            said[check.__name__] = str(error)
    return said


# ---- right ones --------------------------------------------------------------------------------------


def whole():
    return Policy("whole", RandomAssignment(), AnyHints(), Whim("global"), staging=3)


@pytest.mark.parametrize("check", checks(whole))
def test_a_whole_policy(check):
    check()


def test_a_check_is_a_test_by_its_name():
    names = [check.__name__ for check in checks(LRU)]
    assert len(set(names)) == len(names)
    assert "keeps_the_contract-0" in names
    assert "compiled_loops_agree-0" in names
    assert "compiled_loops_agree-0" not in [check.__name__ for check in checks(AllGPU)]


def test_it_needs_neither_pytest_nor_hypothesis(tmp_path):
    code = "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None; import dali.testing"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_something_else_is_refused():
    with pytest.raises(InputError, match="make: found dict, expected a dali"):
        check_policy(dict)


def test_python_without_assertions_is_refused(tmp_path):
    code = "from dali.testing import check_policy; from dali.policies.cache.classic import LRU; check_policy(LRU)"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "found Python without assertions" in done.stderr


# ---- wrong ones: objects -----------------------------------------------------------------------------


class NoOverlap(RandomAssignment):
    @property
    def overlap(self):
        raise AttributeError


class NoBase:
    """Its own loops are missing: a cache is a subclass of `Cache`."""

    def __init__(self):
        self.scope = "layer"

    def victim(self, view, unit, candidates):
        return None


class ForgetsItsArgument(LRU):
    def __init__(self, window=3):
        super().__init__()
        self.length = window


class ChangesItsArgument(LRU):
    def __init__(self, window=3):
        super().__init__()
        self.window = window + 1


class ChangesItsArgumentLater(LRU):
    def __init__(self, window=3):
        super().__init__()
        self.window = window

    def reset(self, shape, capacity, rng):
        super().reset(shape, capacity, rng)
        self.window -= 1


class TakesState(LRU):
    def __init__(self, rng=None):
        super().__init__()
        self.rng = rng


SHARED = LRU()


@pytest.mark.parametrize(
    ("make", "check", "said"),
    [
        (NoOverlap, "implements_its_protocol", "NoOverlap: found no overlap"),
        (NoBase, "implements_its_protocol", "NoBase: found no reset, initial, observe, admit, swaps, place, settle"),
        (ForgetsItsArgument, "constructor_keeps_hyper_parameters", "keeps no attribute window"),
        (ChangesItsArgument, "constructor_keeps_hyper_parameters", "window is not what its constructor was given"),
        (ChangesItsArgumentLater, "constructor_keeps_hyper_parameters", "ChangesItsArgumentLater.reset changes window"),
        (TakesState, "constructor_keeps_hyper_parameters", "takes rng, which reset gives it"),
        (lambda: SHARED, "makes_fresh_objects", "make returns the same cache twice"),
        (lambda: Policy("p", AllGPU(), NoPrefetch(), SHARED), "makes_fresh_objects", "the same cache twice"),
    ],
)
def test_wrong_objects(make, check, said):
    (wrong,) = [each for each in checks(make) if each.__name__ == check]
    with pytest.raises(AssertionError) as caught:
        wrong()
    assert said in str(caught.value)


def test_the_first_wrong_check_ends_it():
    with pytest.raises(AssertionError, match="keeps no attribute window"):
        check_policy(ForgetsItsArgument)


# ---- wrong ones: answers -----------------------------------------------------------------------------


class AssignsAList(RandomAssignment):
    def assign(self, view):
        return list(super().assign(view))


class AssignsNumbers(RandomAssignment):
    def assign(self, view):
        return super().assign(view).astype(float)


class AssignsTooMany(RandomAssignment):
    def assign(self, view):
        return np.ones(self.units + 1, np.bool_)


class RanksWideNumbers(AnyHints):
    def rank(self, view):
        return super().rank(view).astype(np.int64)


class RanksBeyond(AnyHints):
    def rank(self, view):
        return np.array([[0, self.shape.units]], np.int32)


class SwapsWhatIsNotThere(LRU):
    def swaps(self, view):
        absent = np.flatnonzero(view.status.ravel() == 0)[:1]
        return np.stack([absent, absent], 1).astype(np.int32)


class EvictsAnything(Cache):
    def admit(self, view, unit):
        return True

    def victim(self, view, unit, candidates):
        return view.layer * view.shape.units + unit


class FillsTooMuch(LRU):
    def initial(self):
        return np.arange(self.shape.layers * self.shape.units, dtype=np.int32)


ANSWERS = [
    (AssignsAList, "AssignsAList.assign: found list, expected bool ["),
    (AssignsNumbers, "AssignsNumbers.assign: found float64 ["),
    (AssignsTooMany, "AssignsTooMany.assign: found bool ["),
    (RanksWideNumbers, "RanksWideNumbers.rank: found int64 ["),
    (RanksBeyond, "RanksBeyond.rank: a (layer, unit) pair is out of range"),
    (SwapsWhatIsNotThere, "SwapsWhatIsNotThere.swaps: an outgoing unit is not resident"),
    (EvictsAnything, "EvictsAnything.victim: key"),
    (FillsTooMuch, "FillsTooMuch.initial: a key is out of range, occurs twice or has no slot left"),
]


@pytest.mark.parametrize(("make", "said"), ANSWERS, ids=lambda value: getattr(value, "__name__", ""))
def test_wrong_answers(make, said):
    found = failing(make)
    assert any(said in line for name, line in found.items() if name.startswith("keeps_the_contract")), found


class OneVictimIsEnough(Cache):
    """Where units differ in size it is asked for a second one, and names the first again."""

    def __init__(self, scope="global", fill="random"):
        super().__init__(scope, fill)

    def reset(self, shape, capacity, rng):
        super().reset(shape, capacity, rng)
        self.last = (-1, -1, -1, -1)

    def admit(self, view, unit):
        return True

    def victim(self, view, unit, candidates):
        asked = (view.step, view.layer, unit)
        if self.last[:3] != asked:
            self.last = (*asked, int(candidates[0]))
        return self.last[3]


def test_units_of_different_sizes():
    found = failing(OneVictimIsEnough)
    assert "OneVictimIsEnough.victim: key" in found["keeps_the_contract_under_pressure"]
    assert "is not among the candidates" in found["keeps_the_contract_under_pressure"]


# ---- wrong ones: what they touch ---------------------------------------------------------------------


class ChangesTheWorkload(RandomAssignment):
    def assign(self, view):
        view.workload[view.workload > 0] = 1
        return super().assign(view)


class ChangesThePrediction(AnyHints):
    def rank(self, view):
        view.predicted[:] = 0
        return super().rank(view)


class ChangesTheState(LRU):
    def observe(self, view):
        super().observe(view)
        view.status[view.layer] = 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (ChangesTheWorkload, "ChangesTheWorkload.assign changed view.workload, which it may only read"),
        (ChangesThePrediction, "ChangesThePrediction.rank changed view.predicted, which it may only read"),
        (ChangesTheState, "ChangesTheState.observe changed status, which it may only read"),
    ],
)
def test_changing_what_is_shown(make, said):
    found = failing(make)
    assert any(said in line for name, line in found.items() if name.startswith("keeps_the_contract")), found


# ---- wrong ones: memory ------------------------------------------------------------------------------


class DrawsElsewhere(RandomAssignment):
    def assign(self, view):
        return GLOBAL.random(self.units) < 0.5


class Counts(RandomAssignment):
    """Its first decisions in a process are others than its later ones."""

    def assign(self, view):
        return np.arange(self.units) % 5 != next(CALLS) % 5


class OfTheClass(RandomAssignment):
    """One memory for all objects, which `reset` clears: right as long as one runs at a time."""

    seen: dict = {}  # noqa: RUF012

    def reset(self, shape, capacity, rng):
        super().reset(shape, capacity, rng)
        self.seen.clear()

    def assign(self, view):
        self.seen[len(self.seen)] = int(view.workload.sum())
        return (np.arange(self.units) + len(self.seen)) % 2 > 0


class Remembers(RandomAssignment):
    """`reset` leaves what it learned on another model."""

    def __init__(self):
        self.steps = 0

    def assign(self, view):
        self.steps += 1
        return (np.arange(self.units) + self.steps) % 5 > 0


@pytest.mark.parametrize(
    ("make", "check", "said"),
    [
        (DrawsElsewhere, "same_seed_same_decisions", "a second run with the same seed decides otherwise"),
        (Counts, "same_seed_same_decisions", "a second run with the same seed decides otherwise"),
        (Counts, "replayed_log_gives_the_same_answers", "of a replayed log is answered otherwise"),
        (OfTheClass, "two_planners_share_nothing", "beside another planner it decides otherwise than alone"),
        (Remembers, "reset_forgets_an_earlier_model", "it decides otherwise than a fresh one"),
    ],
)
def test_memory_where_none_may_be(make, check, said):
    assert said in failing(make)[check]


def test_one_fault_is_one_check():
    """What only interleaving and what only a second model shows is found by these alone."""
    assert set(failing(OfTheClass)) == {"two_planners_share_nothing"}
    assert set(failing(Remembers)) == {"reset_forgets_an_earlier_model"}


# ---- wrong ones: loops -------------------------------------------------------------------------------


class OverridesVictim(ScoreCache):
    """The compiled loops evict the lowest score, whatever `victim` says."""

    def victim(self, view, unit, candidates):
        return int(candidates[-1])


class OverridesAdmit(ScoreCache):
    def admit(self, view, unit):
        return unit % 2 > 0


@pytest.mark.parametrize("make", [OverridesVictim, OverridesAdmit])
def test_loops_that_disagree(make):
    found = failing(make)
    assert found
    assert all(name.startswith("compiled_loops_agree") for name in found)
    assert any("the compiled loop" in line for line in found.values())
