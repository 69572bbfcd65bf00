"""Steps of a benchmark as steps: what a step counts, by hand from the trace that it is taken from."""

from __future__ import annotations

import numpy as np
import pytest

from dali.experiments.verbs.backtest.timed_steps import APART, TimedSource, TimedStep, as_workload, calibration, routing
from dali.policies.columns import DECODE, PREFILL

SHAPE = 3, 16, 2
LONG, MANY = routing(*SHAPE, prefill=True), routing(*SHAPE, prefill=False)


def counted(trace, rows):
    """Tokens by expert of some rows of a trace."""
    found = np.zeros((trace.layers, trace.experts_count), np.int32)
    for row in rows:
        for layer in range(trace.layers):
            for expert in trace.experts[row, layer]:
                found[layer, expert] += 1
    return found


def test_passes_take_tokens_one_after_the_other():
    source = TimedSource(LONG, [TimedStep(PREFILL, 5, 1, 3.0), TimedStep(PREFILL, 7, 1, 9.0)])
    np.testing.assert_array_equal(source.workload(0), counted(LONG, range(5)))
    np.testing.assert_array_equal(source.workload(1), counted(LONG, range(5, 12)))
    assert source.about(1) == (PREFILL, 7, 1, 9.0)


def test_a_pass_longer_than_the_trace_counts_it_more_often():
    tokens = LONG.tokens
    (step,) = as_workload(LONG, [TimedStep(PREFILL, 3 * tokens, 1, 1.0)]).steps()
    np.testing.assert_array_equal(step.workload, 3 * counted(LONG, range(tokens)))
    assert step.tokens == 3 * tokens


def test_streams_are_texts_of_their_own_and_then_other_places_of_them():
    texts = MANY.sequences
    source = TimedSource(MANY, [TimedStep(DECODE, texts + 2, texts + 2, 10.0)] * 2)
    rows = [*MANY.starts[:texts], MANY.starts[0] + APART, MANY.starts[1] + APART]
    np.testing.assert_array_equal(source.workload(0), counted(MANY, rows))
    np.testing.assert_array_equal(source.workload(1), counted(MANY, np.add(rows, 1)))


def test_the_order_of_last_use_goes_with_the_counts():
    source = TimedSource(LONG, [TimedStep(PREFILL, 6, 1, 1.0)])
    workload, order, active = source.ordered(0, last=True)
    np.testing.assert_array_equal(workload, source.workload(0))
    for layer in range(3):
        flat = [int(e) for row in range(6) for e in LONG.experts[row, layer]]
        used = sorted(set(flat), key=lambda e: len(flat) - 1 - flat[::-1].index(e))
        assert order[layer, : active[layer]].tolist() == used


def test_popularity_comes_from_another_text():
    assert not np.array_equal(calibration(*SHAPE).experts[:100], LONG.experts[:100])
    with pytest.raises(ValueError, match="no predictor gate"):
        TimedSource(LONG, [TimedStep(PREFILL, 1, 1, 1.0)]).predicted(0, "gate", 1)
