"""One set of formulas for simulated and measured steps, by hand."""

import math

import numpy as np
import pytest

from dali.experiments.output.summary import MeasuredSteps, summarise, work
from dali.policies.columns import METRICS, PLANNER
from dali.sim.engine import Simulation
from dali.sim.timeline import Spans

LAYERS = 5


def columns(**more):
    """A step of prefill, two of decode: 2 sequences of 8 tokens, then 1 token each; 4 s, then 1 s each."""
    about = {
        "step": np.arange(3),
        "phase": np.array(["prefill", "decode", "decode"]),
        "tokens": np.array([16, 2, 2]),
        "sequences": np.array([2, 2, 2]),
        "start": np.array([0.0, 4.0, 5.0]),
        "end": np.array([4.0, 5.0, 6.0]),
    }
    return {name: np.zeros(3) for name in METRICS} | about | more


COUNTED = columns(
    lookups=np.array([0.0, 6, 2]),
    hits=np.array([0.0, 1, 1]),
    late=np.array([0.0, 1, 0]),
    staged=np.array([0.0, 2, 1]),
    gpu_units=np.array([0.0, 3, 1]),
    imbalance=np.array([0.0, 4, 1]),
    gpu_busy=np.array([3.0, 0.25, 0.75]),
    link_demand=np.array([1.0, 0.5, 0.1]),
    bytes_demand=np.array([7.0, 10, 20]),
    copies_swap=np.array([0.0, 1, 2]),
)


def test_decode_by_hand():
    found = summarise(MeasuredSteps(COUNTED | {PLANNER: np.array([9.0, 0.1, 0.1])}, LAYERS, slices=4), "decode")
    expected = {
        "slices": 4,
        "steps": 2,
        "tokens": 4,
        "seconds": 2.0,
        "tokens_per_s": 2.0,
        "tokens_per_s_per_sequence": 1.0,
        "time_per_output_token": 1.0,
        "gpu_busy": 0.5,
        "link_demand": 0.3,
        "bytes_demand": 30,
        "copies_swap": 3,
        "hit_rate": 2 / 8,
        "prefetch_recall": 3 / (3 + 8 - 2 - 1),  # staged, of what was staged or absent
        "gpu_share": 4 / 8,
        "imbalance": 5 / (2 * LAYERS),
        "planning": 0.1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert math.isnan(found["time_to_first_token"])


def test_simulated_and_measured_steps_are_one():
    """But for the planner, whose seconds a simulation charges by layer step: 2 x 5 of 20 ms in 2 s."""
    spans = Spans(np.zeros((0, 2)), np.zeros((0, 6), np.int32))
    simulated = Simulation(COUNTED, spans, LAYERS, planning=0.02, slices=1)
    measured = MeasuredSteps(COUNTED | {PLANNER: np.array([9.0, 0.1, 0.1])}, LAYERS)
    assert work(simulated, "decode") == work(measured, "decode")
    assert summarise(simulated, "decode")["planning"] == pytest.approx(0.1)
    assert list(summarise(simulated, "decode")) == list(summarise(measured, "decode"))


def test_what_does_not_apply_is_nan():
    """Nothing was looked up in prefill."""
    found = summarise(MeasuredSteps(COUNTED | {PLANNER: np.zeros(3)}, LAYERS), "prefill")
    assert math.isnan(found["hit_rate"])
    assert math.isnan(found["prefetch_recall"])
    assert math.isnan(found["time_per_output_token"])
    assert found["time_to_first_token"] == 4.0
    assert found["tokens_per_s"] == 4.0
