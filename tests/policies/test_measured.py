"""Measured costs: monotone curves, lines between points, surfaces over tokens and context, refusal of other units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dali.policies.costs.measured import Curve, Geometry, Profile, Surface, monotone
from dali.policies.types import InputError

TIMES = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12)


def profile(**others):
    """1 us a token on the CPU (2 us contended), 0.1 us on the GPU, 1 ns a byte."""
    rows = [[1, 1, 10.0, 1e-3, 0.0], [1, 1, 30.0, 3e-3, 0.0]]
    prompt = [[8, 1, 4.5, 2e-3, 0.0]]
    fields = {
        "name": "machine",
        "version": 2,
        "machine": {"cpu": "c"},
        "model": "m",
        "geometry": {"hidden": 8, "expert_width": 4, "gated": True, "bits": 32, "slices": 1},
        "gpu_memory_gb": 1,
        "cpu": {"at": [1, 4], "seconds": [1e-6, 4e-6]},
        "cpu_contended": {"at": [1, 4], "seconds": [2e-6, 8e-6]},
        "gpu": {"at": [1, 4], "seconds": [1e-7, 4e-7]},
        "copy": {"at": [100, 200], "seconds": [1e-7, 2e-7]},
        "copy_contended": {"at": [100, 200], "seconds": [5e-8, 4e-7]},
        "copy_alone": {"at": [100], "seconds": [1e-7]},
        "dense": {"decode": rows, "prefill": prompt},
        "outside": {"decode": rows, "prefill": prompt},
        "overheads": {"readback": 1e-5, "planning": 2e-5},
        "contention": {"gpu_beside_copy": 1.5},
        "parts": {"both_beyond_model": -1e-6},
        "quality": {"drift": 0.0},
    }
    return Profile(**(fields | others))


GEOMETRY = Geometry(8, 4, True, 32, 1)


def test_monotone_pools_what_falls():
    """3, 1 pool to 2; then 2, 2, 5, and 4 after 5 pools to 4.5."""
    assert monotone(np.array([3.0, 1.0, 5.0, 4.0])).tolist() == [2.0, 2.0, 4.5, 4.5]


@given(TIMES)
def test_monotone_never_falls_and_keeps_the_mean(values):
    found = monotone(np.array(values))
    assert (np.diff(found) >= 0).all()
    assert found.mean() == pytest.approx(np.mean(values))
    assert monotone(found) == pytest.approx(found)


@given(TIMES)
def test_tables_are_what_cost_models_take(seconds):
    table = Curve([3 * i + 1 for i in range(len(seconds))], seconds).table(50)
    assert table[0] == 0
    assert (table[1:] > 0).all()
    assert (np.diff(table) >= -1e-15).all()


def test_curve_between_and_beyond_the_points():
    """1 at 2, 3 at 4: the line gives 2 at 3, goes on to 5 at 6, and stays 1 below 2."""
    curve = Curve([2, 4], [1.0, 3.0])
    assert curve(np.array([1.0, 2.0, 3.0, 6.0])).tolist() == [1.0, 1.0, 2.0, 5.0]
    assert Curve([2], [1.0])(4.0) == 2.0


def test_curve_says_how_well_lines_fit():
    """Between 1 at 1 and 3 at 3 the line gives 2 at 2; measured is 2.5: 20 % less."""
    assert Curve([1, 2, 3], [1.0, 2.5, 3.0]).left_out() == pytest.approx([-0.2])


@pytest.mark.parametrize(
    ("at", "seconds"),
    [([], []), ([1, 1], [1, 2]), ([0, 1], [1, 2]), ([1], [0.0]), ([1, 2], [1, float("nan")]), ([1], [1, 2])],
)
def test_curve_refuses(at, seconds):
    with pytest.raises(InputError, match="measured curve"):
        Curve(at, seconds)


def test_surface_is_linear_in_context_and_tokens():
    """1 token: 1 ms at context 10, 3 ms at 30, so 2 ms at 20; 3 tokens: 4 ms; 2 tokens lie between."""
    surface = Surface([[1, 1, 10, 1e-3, 0], [1, 1, 30, 3e-3, 0], [3, 3, 20, 4e-3, 0]])
    assert surface(1, 20) == pytest.approx(2e-3)
    assert surface(1, 30) == pytest.approx(3e-3)
    assert surface(2, 20) == pytest.approx(3e-3)
    assert surface(6, 20) == pytest.approx(8e-3)


def test_surface_does_not_reward_context():
    """Noise that makes a longer context cheaper is no slope; far below what was measured, half of it remains."""
    assert Surface([[1, 1, 10, 3e-3, 0], [1, 1, 30, 1e-3, 0]])(1, 1000) == pytest.approx(2e-3)
    assert Surface([[1, 1, 100, 1e-3, 0], [1, 1, 200, 3e-3, 0]])(1, 1) == pytest.approx(1e-3)


def test_costs():
    cost = profile().costs(GEOMETRY, [100, 150], 6)
    assert cost.cpu == pytest.approx(np.array([0, 1, 2, 3, 4, 5, 6]) * 1e-6)
    assert cost.cpu_contended == pytest.approx(2 * cost.cpu)
    assert cost.gpu[4] == pytest.approx(4e-7)
    assert cost.copy == pytest.approx([1e-7, 1.5e-7])
    # 5e-8 and 2.25e-7: what is contended is never cheaper than what is not.
    assert cost.copy_contended == pytest.approx([1e-7, 2.25e-7])
    assert cost.overheads.planning == 2e-5
    assert cost.dense(1, 1, 20.0) == pytest.approx(2e-3)
    assert cost.dense(8, 1, 4.5) == pytest.approx(2e-3)
    assert profile().costs(GEOMETRY, [100], 6, planning=7e-5).overheads.planning == 7e-5


def test_another_geometry_is_refused():
    with pytest.raises(
        InputError, match="profile machine: expected an expert geometry of hidden 8, found 16, slices 1, found 2"
    ):
        profile().costs(Geometry(16, 4, True, 32, 2), [100], 6)


def test_another_version_is_refused():
    with pytest.raises(InputError, match="found version 3, expected 2"):
        profile(version=3)
    with pytest.raises(InputError, match="dense has decode, expected decode and prefill"):
        profile(dense={"decode": [[1, 1, 1, 1, 0]]})


def test_written_and_read_back_it_costs_the_same():
    first = profile()
    again = Profile(**first.to_config())
    assert again.to_config() == first.to_config()
    mine, theirs = (each.costs(GEOMETRY, [100, 150], 6) for each in (first, again))
    assert np.array_equal(mine.cpu, theirs.cpu)
    assert mine.dense(1, 1, 25.0) == theirs.dense(1, 1, 25.0)
