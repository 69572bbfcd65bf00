"""Recall of predictors: by hand, against all ways to break ties, against a plain reading of the workloads."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dali.policies.types import InputError
from dali.traces import recall, stats
from dali.traces.trace import Trace
from dali.traces.workload import Workload

Make = Callable[..., Trace]
NONE = 255


def top(trace: Trace, batch: int, sizes: Sequence[int], guess=None, scores=None, phase="decode") -> list[float]:
    """Recall of the top n for each n, all layers and clusters together."""
    tallies = recall.workload_tallies(trace, recall.groups(trace, batch, phase), sizes, guess, scores)
    return [float(tallies[size].shares(0)[-1]) for size in sizes]


def per_token(trace: Trace, batch: int, guess) -> float:
    return float(recall.token_tally(trace, recall.groups(trace, batch, "decode"), guess).shares(0)[-1])


def plain_top(true: Sequence[float], predicted: Sequence[float], n: int) -> tuple[float, int]:
    """Hits and places by the definition, hits averaged over every choice of guesses that respects the prediction."""
    threshold = sorted(true, reverse=True)[n - 1]
    right = {u for u, w in enumerate(true) if w > 0 and w >= threshold}
    candidates = [u for u, p in enumerate(predicted) if p > 0]
    count = min(n, len(candidates))
    best = sorted((predicted[u] for u in candidates), reverse=True)[:count]
    choices = [
        choice
        for choice in itertools.combinations(candidates, count)
        if sorted((predicted[u] for u in choice), reverse=True) == best
    ]
    hits = float(np.mean([len(right & set(choice)) for choice in choices]))
    return hits, min(n, sum(w > 0 for w in true))


# ---- recall by workload ---------------------------------------------------------------------------


def test_top_n_by_hand(make_trace: Make) -> None:
    # Two sequences of two tokens, one layer, top-2; evaluated is the one step of their second tokens.
    # True: 0 1 and 0 2, so w = 2 1 1 0.  Predicted: 0 3 and 1 3, so p = 1 1 0 2.
    trace = make_trace([[[0, 1]], [[0, 1]], [[0, 1]], [[0, 2]]], lengths=(2, 2), experts=4)
    guess = np.array([[[0, 1]], [[0, 3]], [[0, 1]], [[1, 3]]], np.uint8)
    # n = 1: 3 is guessed, wrong.  n = 2: 3 and one of 0, 1 (tied); 1 and 2 tie for the second place of the truth, so
    # both 0 and 1 are right: 1 of 2.  n = 3 (of 3 active): 3, 0, 1: 2 of 3.  n = 4: places are the 3 active units.
    assert top(trace, 2, (1, 2, 3, 4), guess) == pytest.approx([0, 1 / 2, 2 / 3, 2 / 3])
    # The other way round: p = 2 1 1 0 for w = 1 1 0 2.  n = 1: 0 is guessed, but 3 leads.  n = 2: right are 3, 0, 1;
    # guessed 0 and one of 1, 2: 1 + 1/2 of 2.
    turned = make_trace(guess, lengths=(2, 2), experts=4)
    assert top(turned, 2, (1, 2), trace.experts) == pytest.approx([0, 3 / 4])


def test_at_batch_1_any_active_unit_is_right(make_trace: Make) -> None:
    # True 0 1 2, predicted 2 5 1: two of three, whatever n <= 3; for n = 4 there are three places and three guesses.
    trace = make_trace([[[0, 1, 2]], [[0, 1, 2]]])
    guess = np.array([[[0, 1, 2]], [[2, 5, 1]]], np.uint8)
    assert top(trace, 1, (1, 2, 3, 4), guess) == pytest.approx([2 / 3] * 4)
    assert per_token(trace, 1, guess) == pytest.approx(2 / 3)


def test_what_is_missing_is_no_guess_and_no_place(make_trace: Make) -> None:
    # One true id (the other is none), and nothing predicted: no hit of one place, for n = 1 and n = 2.
    trace = make_trace([[[0, 1]], [[0, NONE]]])
    nothing = np.full_like(trace.experts, NONE)
    assert top(trace, 1, (1, 2), nothing) == [0, 0]
    assert top(trace, 1, (1, 2), trace.experts) == [1, 1]
    # A step without any active unit has no place: the share is unknown, not 0.
    idle = make_trace([[[0, 1]], [[NONE, NONE]]])
    assert np.isnan(top(idle, 1, (1,), idle.experts)).all()


@given(
    pairs=st.integers(2, 6).flatmap(
        lambda units: st.tuples(*[st.lists(st.integers(0, 3), min_size=units, max_size=units)] * 2)
    )
)
def test_ties_are_averaged_over_all_choices(pairs: tuple[list[int], list[int]]) -> None:
    true, predicted = (np.array(row, np.float64) for row in pairs)
    sizes = np.arange(1, true.size + 1)
    best_true, best_predicted, hits = np.empty(true.size), np.empty(true.size), np.zeros(true.size)
    active = recall.largest(true, best_true)
    recall.largest(predicted, best_predicted)
    recall.add_hits(true, predicted, sizes, best_true, best_predicted, hits)
    expected = [plain_top(true, predicted, int(n)) for n in sizes]
    np.testing.assert_allclose(hits, [found for found, _ in expected])
    assert [min(int(n), active) for n in sizes] == [places for _, places in expected]


def test_workloads_are_those_of_the_simulator(random_trace: Make) -> None:
    trace = random_trace(seed=4, lengths=(9, 9, 9, 9, 9), layers=2, experts=6, top_k=2)
    trace = trace.with_predictor("gate", 0.6, np.random.default_rng(0))
    # Prompts of one token: the decode steps of the first four sequences are one batch, the fifth is left over.
    workload = Workload.from_trace(trace, 4, 1, 8)
    total = {n: np.zeros(2) for n in (1, 2, 3)}
    for step in workload.steps("gate"):
        if step.phase == "decode":
            assert step.predicted is not None
            for n, sums in total.items():
                sums += plain_top(step.workload[1].tolist(), step.predicted[0, 0].tolist(), n)
    groups = recall.groups(trace, 4, "decode")
    found = recall.workload_tallies(trace, groups, (1, 2, 3), trace.predicted["gate"])
    for n, (hits, places) in total.items():
        assert found[n].hits[:, 1].sum() == pytest.approx(hits)
        assert found[n].places[:, 1].sum() == places


def test_random_choice_is_the_mean_of_draws(random_trace: Make) -> None:
    trace = random_trace(seed=5, lengths=(40, 40), layers=2, experts=6, top_k=2)
    rng = np.random.default_rng(0)
    drawn = [top(trace, 2, (1, 3), scores=1 + rng.random((1, 2, 6))) for _ in range(3000)]
    spread = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(np.mean(drawn, axis=0) - top(trace, 2, (1, 3))) < 4 * spread)
    assert per_token(trace, 2, None) == pytest.approx(2 / 6)


# ---- recall of a token, predictors from ids ---------------------------------------------------------


def test_token_recall_agrees_with_the_statistics(random_trace: Make) -> None:
    trace = random_trace(seed=6, lengths=(30, 20), layers=3)
    groups = recall.groups(trace, 1, "decode")
    # Without prompts both leave out the first token of each sequence.
    repeated = recall.token_tally(trace, groups, recall.previous(trace))
    np.testing.assert_allclose(repeated.shares(0)[:-1], stats.reuse(trace, 1))
    trace = trace.with_predictor("gate", 0.5, np.random.default_rng(1))
    starts = np.isin(np.arange(trace.tokens), trace.starts[:-1])
    guess = np.where(starts[:, None, None], trace.experts, trace.predicted["gate"])
    found = recall.token_tally(trace, groups, guess)
    every = recall.token_tally(trace, groups, trace.predicted["gate"])
    np.testing.assert_array_equal(found.hits, every.hits)  # what is said of first tokens does not count


def test_the_step_before_is_what_repetition_predicts(make_trace: Make) -> None:
    # Steps of two sequences: w = [2 0 0], then [1 1 0], then [0 0 2]: the leader 0 stays among the leaders, then not.
    trace = make_trace([[[0]], [[0]], [[2]], [[0]], [[1]], [[2]]], lengths=(3, 3), experts=3)
    # Step 1: 0 is guessed, right (tied with 1).  Step 2: 0 or 1 is guessed, both wrong.
    assert top(trace, 2, (1,), recall.previous(trace)) == [1 / 2]


def test_popularity_never_sees_what_it_predicts(make_trace: Make) -> None:
    ids = [[[0]], [[0]], [[1]], [[1]], [[2]], [[2]]]
    trace = make_trace(ids, lengths=(2, 2, 2), experts=4)
    groups = recall.groups(trace, 1, "decode")
    found = recall.popularity_scores(trace, groups, "decode")
    assert found is not None
    scores, outside = found
    assert outside
    assert scores[:, 0].tolist() == [[0, 2, 2, 0], [2, 0, 2, 0], [2, 2, 0, 0]]
    assert recall.most_popular(trace, groups, scores)[:, 0, 0].tolist() == [1, 1, 0, 0, 0, 0]  # ties: lower id
    # All three together leave nothing outside, and there are no prompts.
    assert recall.popularity_scores(trace, recall.groups(trace, 3, "decode"), "decode") is None


def test_popularity_of_the_whole_trace_is_that_of_its_prompts(make_trace: Make) -> None:
    trace = make_trace([[[0]], [[0]], [[1]], [[3]]], lengths=(4,), experts=4, prompt_length=[3])
    found = recall.popularity_scores(trace, recall.groups(trace, 1, "decode"), "decode")
    assert found is not None
    assert found[0].tolist() == [[[2, 1, 0, 0]]]
    assert not found[1]
    assert recall.popularity_scores(trace, recall.groups(trace, 1, "prefill"), "prefill") is None


def test_units_never_used_are_not_named(make_trace: Make) -> None:
    trace = make_trace([[[0, 1]], [[0, 1]], [[0, 1]]], experts=4)
    scores = np.array([[[0.0, 3.0, 0.0, 0.0]]])
    guess = recall.most_popular(trace, recall.groups(trace, 1, "decode"), scores)
    assert guess[0, 0].tolist() == [1, NONE]


# ---- which tokens --------------------------------------------------------------------------------


def test_groups(random_trace: Make, make_trace: Make) -> None:
    ids = random_trace(seed=0, lengths=(16,)).experts
    # Tokens 0-4, 5-8, 9-11 and 12-15, prompts of 2, 0, 3 and 1: generated are 2-4, 6-8 (without the first token of a
    # sequence), none, and 13-15.
    trace = make_trace(ids, lengths=(5, 4, 3, 4), prompt_length=[2, 0, 3, 1])
    first, second, third = recall.groups(trace, 1, "decode")
    assert [group.sequences for group in (first, second, third)] == [[0], [1], [3]]
    assert first.first.tolist() == [[2], [3], [4]]
    assert second.first.tolist() == [[6], [7], [8]]
    (pair,) = recall.groups(trace, 2, "decode")
    assert pair.first.tolist() == [[2, 6], [3, 7], [4, 8]]
    assert (pair.last - pair.first == 1).all()
    # Prompts without their first token: 1, 10-11; the others have nothing left.
    (prompts,) = recall.groups(trace, 2, "prefill")
    assert prompts.sequences == [0, 2]
    assert (prompts.first.tolist(), prompts.last.tolist()) == ([[1, 10]], [[2, 12]])
    assert recall.groups(trace, 4, "decode") == []
    with pytest.raises(InputError, match="phase"):
        recall.groups(trace, 1, "all")


def test_the_shortest_sequence_ends_a_batch(random_trace: Make) -> None:
    trace = random_trace(seed=0, lengths=(5, 3))
    (group,) = recall.groups(trace, 2, "decode")
    assert len(group.first) == 2


# ---- intervals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.35, 0.9])
def test_intervals_hold_the_recall_that_was_drawn(random_trace: Make, share: float) -> None:
    trace = random_trace(seed=8, lengths=[60] * 24, layers=4, experts=16, top_k=4)
    trace = trace.with_predictor("gate", share, np.random.default_rng(2))
    groups = recall.groups(trace, 1, "decode")
    tallies = [
        recall.token_tally(trace, groups, trace.predicted["gate"]),
        recall.workload_tallies(trace, groups, (1,), trace.predicted["gate"])[1],
    ]
    for tally in tallies:
        draws = recall.resamples(len(tally.hits), 1000, 0)
        low, high = recall.interval(tally.shares(1, draws))
        value = tally.shares(1)
        assert low[-1] < share < high[-1]
        assert low[-1] < value[-1] < high[-1]
        # 24 x 59 x 3 x 4 draws: an interval of 1.96 standard errors of a share to either side, or thereabouts.
        error = np.sqrt(share * (1 - share) / (24 * 59 * 3 * 4))
        assert 2 * error < high[-1] - low[-1] < 8 * error


def test_few_batches_resample_stretches_of_steps(random_trace: Make) -> None:
    trace = random_trace(seed=9, lengths=[34] * 8)
    for batch, clusters in ((1, 8), (2, 4 * 3), (8, 3)):  # 33 steps are 3 stretches of at most 16
        tallies = recall.workload_tallies(trace, recall.groups(trace, batch, "decode"), (1,), trace.experts)
        assert len(tallies[1].hits) == clusters
        assert tallies[1].shares(0)[-1] == 1


def test_shares_and_resamples_by_hand() -> None:
    # Layers by cluster: 1 of 1 and 0 of 2; 1 of 3 and nothing.
    tally = recall.Tally(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 2.0], [3.0, 0.0]]))
    np.testing.assert_allclose(tally.shares(0), [2 / 4, 0, 2 / 6])
    np.testing.assert_allclose(tally.shares(1), [0, 0])
    # The second cluster twice: 2 of 6, and no place in layer 1.
    np.testing.assert_allclose(tally.shares(0, np.array([[0.0, 2.0]])), [[1 / 3, np.nan, 1 / 3]])
    draws = recall.resamples(5, 200, 3)
    assert (draws.sum(axis=1) == 5).all()
    np.testing.assert_array_equal(draws, recall.resamples(5, 200, 3))
    assert np.isnan(recall.resamples(1, 4, 3)).all()


def test_cosines_are_averaged_where_there_are_any() -> None:
    cosine = np.array([[np.nan, 0.5, 1.0], [np.nan, 0.7, np.nan]], np.float32)
    np.testing.assert_allclose(recall.cosine_tally(cosine).shares(1), [0.6, 1.0, 2.2 / 3], rtol=1e-6)
