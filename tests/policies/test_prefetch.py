"""Prefetch rules against hand-worked cases, and what holds for every one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dali.policies.costs.model import CostModel, Overheads
from dali.policies.prefetch.gain import GainPrefetch
from dali.policies.prefetch.predicted import OraclePrefetch, PredictedPrefetch, lose_recall
from dali.policies.prefetch.simple import FrequencyPrefetch, NextLayer, NoPrefetch, RandomPrefetch
from dali.policies.types import InputError, Shape, Status
from dali.policies.view import LayerView, PrefetchPolicy

ABSENT, LANDING, RESIDENT = Status.ABSENT, Status.LANDING, Status.RESIDENT
CONF = Path(__file__).parents[2] / "conf" / "prefetch"
UNREAD = None  # capacity and the planner's arrays: no policy here looks at them
# Each with the most hints it may give about one layer.
EVERY: list[tuple[Callable[[], PrefetchPolicy], int]] = [
    (NoPrefetch, 0),
    (lambda: RandomPrefetch(2), 2),
    (lambda: FrequencyPrefetch(2), 2),
    (NextLayer, 100),
    (lambda: NextLayer(3), 3),
    (lambda: PredictedPrefetch("residual", 2), 2),
    (lambda: PredictedPrefetch("gate", 100, ahead=2), 100),
    (lambda: OraclePrefetch(2, ahead=2), 2),
    (lambda: OraclePrefetch(2, recall=0.5), 2),
    (lambda: GainPrefetch(2), 2),
    (lambda: GainPrefetch(100, ahead=2, candidates=1), 1),
]


def make_view(status, layer=0, predicted=None, workload=None, cpu=None, gpu=1.0, copy=3.0, popularity=None):
    """A layer step of a model with residency `status` [L, U]; CPU time w (or the table `cpu`), GPU time `gpu`."""
    status = np.array(status, np.int8)
    layers, units = status.shape
    cpu = np.arange(50.0) if cpu is None else np.array(cpu, np.float64)
    gpu_table = np.full(cpu.size, gpu)
    gpu_table[0] = 0.0
    nothing = lambda tokens, sequences, context: 0.0  # noqa: E731
    copies = np.full(layers, copy)
    workload = np.zeros(units, np.int32) if workload is None else np.array(workload, np.int32)
    return LayerView(
        shape=Shape(layers, units, np.ones(layers, np.int64), popularity),
        cost=CostModel(cpu, cpu, gpu_table, copies, copies, Overheads(), nothing, nothing),
        state=UNREAD,
        raw=UNREAD,
        status=status,
        cpu_time=cpu[workload],
        gpu_time=gpu_table[workload],
        layer=layer,
        copy_time=copy,
        workload=workload,
        active=np.flatnonzero(workload).astype(np.int32),
        predicted=None if predicted is None else np.array(predicted, np.float32),
    )


def reset(policy, view, seed=0):
    policy.reset(view.shape, UNREAD, np.random.default_rng(seed))
    return policy


def pairs(policy, view):
    ranked = policy.rank(view)
    assert ranked.dtype == np.int32
    assert ranked.ndim == 2
    assert ranked.shape[1] == 2
    return [tuple(pair) for pair in ranked.tolist()]


def hints(policy, view, seed=0):
    return pairs(reset(policy, view, seed), view)


@st.composite
def views(draw):
    layers, units = draw(st.integers(1, 5)), draw(st.integers(1, 8))

    def grid(rows, values):
        return draw(st.lists(st.lists(values, min_size=units, max_size=units), min_size=rows, max_size=rows))

    layer = draw(st.integers(0, layers - 1))
    predicted = np.array(grid(3, st.one_of(st.integers(0, 4), st.floats(0, 6, width=32))), np.float32)
    predicted[layers - 1 - layer :] = 0  # rows past the last layer
    return make_view(
        grid(layers, st.integers(0, 2)),
        layer,
        predicted,
        workload=grid(1, st.integers(0, 4))[0],
        gpu=draw(st.floats(0.1, 5)),
        copy=draw(st.floats(0.1, 5)),
        popularity=draw(st.none() | st.just(np.full((layers, units), 1 / units))),
    )


# ---- without a prediction --------------------------------------------------------------------------


def test_none():
    assert hints(NoPrefetch(), make_view([[ABSENT]] * 2)) == []


def test_next_layer_streams_absent_units_in_order_and_wraps():
    status = [[RESIDENT, ABSENT, ABSENT], [ABSENT, LANDING, ABSENT]]
    assert hints(NextLayer(), make_view(status)) == [(1, 0), (1, 2)]
    assert hints(NextLayer(size=1), make_view(status)) == [(1, 0)]
    assert hints(NextLayer(), make_view(status, layer=1)) == [(0, 1), (0, 2)]


def test_random_draws_evenly_from_the_absent_units():
    # Four absent units, two drawn: each is among them with probability 1/2.  Over 2,000 draws the count has
    # mean 1,000 and standard deviation sqrt(2000 / 4) = 22.4; the seed is fixed, the bound is 5 deviations.
    view = make_view([[RESIDENT] * 6, [ABSENT, RESIDENT, ABSENT, ABSENT, LANDING, ABSENT]])
    policy = reset(RandomPrefetch(2), view)
    counts = np.zeros(6, int)
    for _ in range(2000):
        drawn = pairs(policy, view)
        assert len(set(drawn)) == 2
        for layer, unit in drawn:
            assert layer == 1
            counts[unit] += 1
    assert counts[[1, 4]].sum() == 0
    assert np.all(np.abs(counts[[0, 2, 3, 5]] - 1000) < 112)


def test_random_takes_all_when_few_are_absent_and_follows_its_generator():
    view = make_view([[RESIDENT] * 3, [ABSENT, RESIDENT, ABSENT]], layer=0)
    assert sorted(hints(RandomPrefetch(5), view)) == [(1, 0), (1, 2)]
    wide = make_view([[RESIDENT] * 64, [ABSENT] * 64])
    assert hints(RandomPrefetch(8), wide, seed=1) == hints(RandomPrefetch(8), wide, seed=1)
    assert hints(RandomPrefetch(8), wide, seed=1) != hints(RandomPrefetch(8), wide, seed=2)


def test_random_takes_equally_many_numbers_whatever_is_absent():
    wide = make_view([[RESIDENT] * 64, [ABSENT] * 64])
    none_absent = replace(wide, status=np.full((2, 64), RESIDENT, np.int8))
    one, other = reset(RandomPrefetch(4), wide), reset(RandomPrefetch(4), wide)
    assert pairs(one, none_absent) == []
    pairs(other, wide)
    assert pairs(one, wide) == pairs(other, wide)


def test_frequency_counts_what_it_observes():
    status = [[ABSENT] * 4, [ABSENT, ABSENT, ABSENT, RESIDENT]]
    at_0 = make_view(status, layer=0, workload=[5, 0, 5, 7])
    at_1 = make_view(status, layer=1, workload=[1, 3, 0, 9])
    policy = reset(FrequencyPrefetch(2), at_0)
    assert pairs(policy, at_0) == []  # nothing counted yet
    policy.observe(at_0)
    policy.observe(at_1)
    # Layer 1 counts 1, 3, 0, 9: unit 3 is resident, unit 2 was never counted.
    assert pairs(policy, at_0) == [(1, 1), (1, 0)]
    # The last layer wraps around.  Layer 0 counts 5, 0, 5, 7: of 0 and 2 the lower id.
    assert pairs(policy, at_1) == [(0, 3), (0, 0)]


def test_frequency_starts_from_the_popularity():
    # 10 tokens of prior: layer 1 counts 1, 2, 7; after observing 6 tokens for unit 0 they are 7, 2, 7.
    popularity = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    view = make_view([[ABSENT] * 3] * 2, popularity=popularity)
    policy = reset(FrequencyPrefetch(2, prior_tokens=10), view)
    assert pairs(policy, view) == [(1, 2), (1, 1)]
    policy.observe(make_view([[ABSENT] * 3] * 2, layer=1, workload=[6, 0, 0]))
    assert pairs(policy, view) == [(1, 0), (1, 2)]
    assert hints(FrequencyPrefetch(2, prior_tokens=0), view) == []
    assert np.array_equal(popularity, [[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])


# ---- from a prediction -----------------------------------------------------------------------------


def test_predicted_takes_the_heaviest_absent_units_per_layer():
    status = [[RESIDENT] * 4, [ABSENT, ABSENT, RESIDENT, ABSENT], [ABSENT, ABSENT, ABSENT, LANDING]]
    predicted = [[2, 5, 9, 2], [0, 1, 0, 8]]
    view = make_view(status, predicted=predicted)
    # Layer 1: 5, then of the twos the lower id; unit 2 is resident.  Layer 2: unit 1 alone is absent and predicted.
    assert hints(PredictedPrefetch("residual", 2), view) == [(1, 1), (1, 0)]
    assert hints(PredictedPrefetch("gate", 2, ahead=2), view) == [(1, 1), (1, 0), (2, 1)]
    # From layer 1 the first row is about layer 2, where unit 2 is absent, and the second past the last layer.
    assert hints(PredictedPrefetch("gate", 1, ahead=2), replace(view, layer=1)) == [(2, 2)]
    assert hints(PredictedPrefetch("gate", 1), replace(view, layer=2)) == []


def test_predicted_reads_whole_and_fractional_workloads():
    view = make_view([[RESIDENT] * 2, [ABSENT] * 2], predicted=[[0.25, 0.5]])
    whole = replace(view, predicted=np.array([[1, 2]], np.int32))
    assert hints(PredictedPrefetch("gate", 1), view) == hints(PredictedPrefetch("gate", 1), whole) == [(1, 1)]


@pytest.mark.parametrize("policy", [PredictedPrefetch("gate", 1, ahead=2), OraclePrefetch(1, ahead=2), GainPrefetch(1)])
def test_a_missing_prediction_is_the_drivers_error(policy):
    view = make_view([[ABSENT]] * 4)
    with pytest.raises(ValueError, match=rf"found 0 rows .* expected {policy.ahead} from source '{policy.source}'"):
        hints(policy, view)
    with pytest.raises(ValueError, match="found 1 rows of predicted workload"):
        hints(policy, replace(view, predicted=np.ones((1, 1), np.float32)))


def test_oracle_is_predicted_prefetch_on_the_truth():
    view = make_view([[RESIDENT] * 3, [ABSENT] * 3], predicted=[[1, 0, 4]])
    assert OraclePrefetch(3).source == "oracle"
    assert hints(OraclePrefetch(3), view) == [(1, 2), (1, 0)]


def test_oracle_without_recall_hints_at_inactive_units_only():
    # Recall 0: the workloads 4 and 1 of units 2 and 0 move to the two inactive units, in either order.
    view = make_view([[RESIDENT] * 4, [ABSENT] * 4], predicted=[[1, 0, 4, 0]])
    assert sorted(hints(OraclePrefetch(4, recall=0.0), view)) == [(1, 1), (1, 3)]


def test_lose_recall_by_hand():
    # Recall 0.5.  Unit 0 (0.4 < 0.5) is kept.  Unit 1 is not: inactive units 2, 3, 5, draw 0.9 -> index 2, unit 5.
    # Unit 4 is not: 2, 3 are left, draw 0.1 -> index 0, unit 2.
    truth = np.array([[7, 6, 0, 0, 5, 0]], np.int32)
    draws = np.array([[[0.4, 0.5, 0, 0, 0.8, 0], [0, 0.9, 0, 0, 0.1, 0]]])
    believed = np.full((1, 6), -1.0)
    lose_recall(truth, 0.5, draws, believed)
    assert believed.tolist() == [[7, 0, 5, 0, 0, 6]]


def test_lose_recall_without_an_inactive_unit():
    # Both units are lost; nothing is inactive, so no workload is believed anywhere.
    believed = np.full((1, 2), -1.0)
    lose_recall(np.array([[3, 4]], np.int32), 0.0, np.zeros((1, 2, 2)), believed)
    assert believed.tolist() == [[0, 0]]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12).map(lambda row: np.array([row], np.int32)),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_lose_recall_keeps_the_workloads(truth, recall, seed):
    draws = np.random.default_rng(seed).random((1, 2, truth.size))
    believed = np.zeros(truth.shape)
    lose_recall(truth, recall, draws, believed)
    kept = (truth > 0) & (draws[:, 0] < recall)
    assert np.array_equal(believed[kept], truth[kept])
    assert not believed[(truth > 0) & ~kept].any()
    moved = sorted(believed[truth == 0][believed[truth == 0] > 0].tolist())
    lost = sorted(truth[(truth > 0) & ~kept].tolist())
    if len(lost) <= np.count_nonzero(truth == 0):
        assert moved == lost
    else:
        assert len(moved) == np.count_nonzero(truth == 0)


def test_oracle_recall_is_the_share_of_active_units_hinted_at():
    # 8 of 64 units active, recall 0.75, 1,000 layer steps: mean 6,000 of 8,000, deviation sqrt(8000 * 3/16) = 38.7.
    truth = np.zeros((1, 64), np.float32)
    truth[0, ::8] = 1
    view = make_view([[RESIDENT] * 64, [ABSENT] * 64], predicted=truth)
    policy = reset(OraclePrefetch(8, recall=0.75), view)
    hits = 0
    for _ in range(1000):
        ranked = pairs(policy, view)
        assert len(ranked) == 8
        hits += sum(unit % 8 == 0 for _, unit in ranked)
    assert abs(hits - 6000) < 5 * 38.7


# ---- simulated gain --------------------------------------------------------------------------------


def test_gain_by_hand():
    # Layer 1, all absent, predicted 4, 3, 0; CPU time w, GPU time 1, copy 3.
    # Now:          queue 0, 1.  GPU 0 at 3+1 = 4, CPU 1 at 3: CPU.  GPU 0 at 4, CPU 0 at 7: GPU.  Makespan 4.
    # 0 resident:   GPU 0 at 1, CPU 1 at 3: GPU.  GPU 1 at 3+1 = 4, CPU 1 at 3: CPU.  Makespan 3, gain 1.
    # 1 resident:   queue 1, 0.  GPU 1 at 1, CPU 0 at 4: GPU.  GPU 0 at max(1, 3)+1 = 4, CPU 4: GPU.  Gain 0.
    view = make_view([[RESIDENT] * 3, [ABSENT] * 3], predicted=[[4, 3, 0]])
    assert hints(GainPrefetch(3, ahead=1), view) == [(1, 0)]


def test_gain_ranks_over_layers_and_prefers_the_nearer_on_a_draw():
    # One unit predicted a layer, absent, CPU time w, GPU time 1, copy 3: makespan min(w, 4) now, 1 with it resident.
    # Layer 1: w 2, gain 1.  Layer 2: w 9, gain 3.  Layer 3: w 4, gain 3 (after layer 2: it is further away).
    view = make_view([[RESIDENT] * 2] + [[ABSENT] * 2] * 3, predicted=[[2, 0], [0, 9], [4, 0]])
    assert hints(GainPrefetch(5), view) == [(2, 1), (3, 0), (1, 0)]
    assert hints(GainPrefetch(2), view) == [(2, 1), (3, 0)]
    # Two layers further the last row is past the model, the others are about layers 3 and 4.
    assert hints(GainPrefetch(5), replace(view, layer=2)) == [(3, 0)]


def test_gain_rounds_fractions_up_and_keeps_to_the_cost_tables():
    # 1.2 tokens count as 2: 2 s on the CPU against 1 s resident.  1,000 tokens: more than the table holds, 49 s.
    view = make_view([[RESIDENT] * 2, [ABSENT] * 2], predicted=[[1.2, 0]])
    assert hints(GainPrefetch(1, ahead=1), view) == [(1, 0)]
    view = make_view([[RESIDENT] * 2, [ABSENT] * 2], predicted=[[0, 1000.0]], copy=100.0)
    assert hints(GainPrefetch(1, ahead=1), view) == [(1, 1)]


def test_gain_tries_the_heaviest_candidates_only():
    # CPU time 1 up to 1 token, then 10: GPU 1, copy 50.  Predicted 3, 2, 1 and nothing resident: all on the CPU, 21.
    # Resident 0 or 1: 11, gain 10 each.  Resident 2: max(1, 20), gain 1.
    cpu = [0, 1, 10, 10]
    view = make_view([[RESIDENT] * 3, [ABSENT] * 3], predicted=[[3, 2, 1]], cpu=cpu, copy=50.0)
    assert hints(GainPrefetch(3, ahead=1), view) == [(1, 0), (1, 1), (1, 2)]
    assert hints(GainPrefetch(3, ahead=1, candidates=2), view) == [(1, 0), (1, 1)]


def plain_makespan(workload, resident, cost, copy):
    """HybriMoE's schedule with lists."""
    queue = sorted((u for u in range(len(workload)) if workload[u]), key=lambda u: (not resident[u], -workload[u], u))
    gpu = cpu = link = 0.0
    while queue:
        first, last = queue[0], queue[-1]
        landed = 0.0 if resident[first] else link + copy
        gpu_end = max(gpu, landed) + cost.gpu[workload[first]]
        cpu_end = cpu + cost.cpu[workload[last]]
        if gpu_end <= cpu_end:
            gpu, link, queue = gpu_end, max(link, landed), queue[1:]
        else:
            cpu, queue = cpu_end, queue[:-1]
    return max(gpu, cpu)


@given(views())
def test_gain_equals_simulating_each_candidate(view):
    # Copy times differ from layer to layer.
    copies = view.copy_time * np.arange(1, view.shape.layers + 1)
    view = replace(view, cost=replace(view.cost, copy=copies))
    expected = {}
    for row in range(min(3, view.shape.layers - 1 - view.layer)):
        layer = view.layer + 1 + row
        workload = np.ceil(view.predicted[row]).astype(int)
        resident = view.status[layer] != ABSENT
        before = plain_makespan(workload, resident, view.cost, copies[layer])
        for unit in np.flatnonzero((workload > 0) & ~resident):
            changed = resident.copy()
            changed[unit] = True
            gain = before - plain_makespan(workload, changed, view.cost, copies[layer])
            if gain > 1e-9 * before:
                expected[layer, int(unit)] = gain
    found = hints(GainPrefetch(100), view)
    assert set(found) == set(expected)
    gains = [expected[pair] for pair in found]
    assert gains == sorted(gains, reverse=True)


# ---- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "most"), EVERY)
@settings(max_examples=40)
@given(view=views())
def test_hints_are_valid(make, most, view):
    policy = reset(make(), view)
    assert isinstance(policy, PrefetchPolicy)
    if hasattr(policy, "observe"):
        policy.observe(view)
    found = pairs(policy, view)
    assert len(set(found)) == len(found)
    assert all(view.status[pair] == ABSENT for pair in found)
    layers = [layer for layer, _ in found]
    assert all(layers.count(layer) <= most for layer in layers)
    if policy.source is None:
        assert set(layers) <= {(view.layer + 1) % view.shape.layers}
    else:
        assert all(view.layer < layer <= view.layer + policy.ahead for layer in layers)
    if isinstance(policy, PredictedPrefetch):
        assert layers == sorted(layers)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomPrefetch(0),
        lambda: FrequencyPrefetch(0),
        lambda: FrequencyPrefetch(1, prior_tokens=-1),
        lambda: NextLayer(0),
        lambda: PredictedPrefetch("", 1),
        lambda: PredictedPrefetch("gate", 1.5),
        lambda: PredictedPrefetch("gate", 1, ahead=0),
        lambda: OraclePrefetch(1, recall=1.5),
        lambda: OraclePrefetch(1, recall=float("nan")),
        lambda: GainPrefetch(0),
        lambda: GainPrefetch(1, source=""),
        lambda: GainPrefetch(1, ahead=0),
        lambda: GainPrefetch(1, candidates=0),
    ],
)
def test_bad_hyper_parameters(make):
    with pytest.raises(
        InputError, match=r"^\w+\.(size|prior_tokens|source|ahead|recall|candidates): found .*, expected"
    ):
        make()


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("none", NoPrefetch, {}),
        ("random", RandomPrefetch, {"size": 4}),
        ("frequency", FrequencyPrefetch, {"size": 4, "prior_tokens": 1024}),
        ("predicted", PredictedPrefetch, {"source": "residual", "size": 4, "ahead": 1}),
        ("oracle", OraclePrefetch, {"size": 4, "ahead": 1, "recall": 1.0}),
        ("gain", GainPrefetch, {"size": 4, "source": "gate", "ahead": 3, "candidates": 8}),
        ("next_layer", NextLayer, {"size": None}),
    ],
)
def test_configuration_names_every_hyper_parameter(name, kind, values):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    policy = instantiate(config)
    assert type(policy) is kind
    assert {key: getattr(policy, key) for key in values} == values
    assert set(config) - {"_target_"} == set(inspect.signature(kind).parameters) == set(values)
