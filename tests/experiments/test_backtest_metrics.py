"""Metrics of a backtest by hand, what they do not depend on, and the rule by which series are held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dali.experiments.settings.folders import OWN
from dali.experiments.verbs.backtest.metrics import by, measures, pairs, summary, with_errors
from dali.experiments.verbs.backtest.split import fitted_series, for_fitting
from dali.policies.types import InputError


def table(*rows, **columns) -> pd.DataFrame:
    """Rows of series, phase, measured, predicted."""
    made = pd.DataFrame(rows, columns=["series", "phase", "measured", "predicted"])
    made["id"] = [f"{name}.{i:02}" for i, name in enumerate(made["series"])]
    made = made.assign(
        engine="e", machine="m", absolute=True, held_out=True, left_out=made["predicted"], data_sheet=made["predicted"]
    )
    return with_errors(made.assign(**columns))


def test_errors_by_hand():
    """Ratios 2 and 0.5: off by +100 and -50 %.  The best scale is 1, and within the series each is as far off."""
    found = table(("a", "decode", 10, 20), ("a", "decode", 10, 5), ("b", "decode", 4, 6))
    assert list(found["error"]) == pytest.approx([1.0, -0.5, 0.5])
    assert list(found["series_error"]) == pytest.approx([1.0, -0.5, np.nan], nan_ok=True)
    # Ratios 2 and 8 have the mean 4 in logarithms: half and twice of it.
    found = table(("a", "decode", 10, 20), ("a", "decode", 10, 80), ("a", "prefill", 10, 1))
    assert list(found["series_error"]) == pytest.approx([-0.5, 1.0, np.nan], nan_ok=True)


def test_pairs_by_hand():
    """Measured 100, 104, 110, 120: 100-104 and 104-110... differ by 4 and 5.8 %; so five of six pairs count."""
    found = pairs(
        table(*(("a", "decode", speed, guess) for speed, guess in ((100, 1), (104, 3), (110, 2), (120, 2.001))))
    )
    assert len(found) == 5
    right = {(row.slower, row.faster): row.right for row in found.itertuples()}
    assert right == {
        ("a.00", "a.02"): True,
        ("a.00", "a.03"): True,
        ("a.01", "a.02"): False,
        ("a.01", "a.03"): False,
        ("a.02", "a.03"): False,  # apart by less than half a per cent is no order
    }
    assert pairs(table(("a", "decode", 1, 1), ("a", "prefill", 9, 9), ("b", "decode", 9, 9))).empty


def test_measures_by_hand():
    found = measures(
        table(
            ("a", "decode", 10, 11),
            ("a", "decode", 20, 26),
            ("b", "decode", 10, 30),
            ("b", "prefill", 100, 50),
            absolute=[True, True, False, True],
        )
    )
    assert found["rows_priced"] == 4
    # 10 and 30 %; the third counts for ratios only, and is alone in its series.
    assert found["decode_points"] == 3
    assert found["decode_absolute"] == 2
    assert found["decode_median_abs"] == pytest.approx(0.2)
    assert found["decode_series_points"] == 2
    scale = np.sqrt(1.1 * 1.3)
    within = [abs(1.1 / scale - 1), abs(1.3 / scale - 1)]
    assert found["decode_series_mape"] == found["decode_series_mape_by_series"] == pytest.approx(np.mean(within))
    assert found["prefill_median_abs"] == pytest.approx(0.5)
    assert found["prefill_median"] == pytest.approx(-0.5)
    assert found["prefill_series_mape"] is None
    assert (found["pairs"], found["pairs_right"]) == (1, 1.0)


def test_nothing_to_measure_is_none_and_not_zero():
    nothing = measures(table(("a", "decode", 1, 1)).iloc[:0])
    assert nothing["rows_priced"] == 0
    assert nothing["decode_median_abs"] is nothing["prefill_series_mape"] is nothing["pairs_right"] is None


def test_summary_is_of_held_out_series():
    rows = table(("a", "decode", 10, 20), ("b", "decode", 10, 11), held_out=[False, True], engine=["x", "y"])
    found = summary(rows, 5, pd.Series(["no speed", "no speed", "not priced"]))
    assert (found["rows_given"], found["rows_priced"]) == (5, 2)
    assert found["rows_refused"] == {"no speed": 2, "not priced": 1}
    assert found["decode_median_abs"] == found["held_out"]["decode_median_abs"] == pytest.approx(0.1)
    assert found["fitted"]["decode_median_abs"] == pytest.approx(1.0)
    assert found["all"]["decode_median_abs"] == pytest.approx(0.55)
    assert list(found["held_out_by_engine"]) == ["y"]
    assert set(by(rows, "engine")) == {"x", "y"}
    wanted = {"decode_median_abs", "prefill_median_abs", "decode_series_mape", "prefill_series_mape", "pairs_right"}
    assert wanted <= set(found)


speeds = st.floats(0.1, 1e4)
points = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["decode", "prefill"]), speeds, speeds), min_size=1)


@given(points, st.floats(0.01, 100))
def test_one_scale_for_all_predictions_changes_nothing_within_series(rows, scale):
    before = table(*rows)
    after = table(*((series, phase, measured, scale * guess) for series, phase, measured, guess in rows))
    np.testing.assert_allclose(after["series_error"], before["series_error"], rtol=1e-9, atol=1e-9)


@given(points)
def test_perfect_predictions_have_no_error_and_all_pairs_right(rows):
    found = measures(table(*((series, phase, measured, measured) for series, phase, measured, _ in rows)))
    for name, value in found.items():
        if value is not None and name.endswith(("median_abs", "median", "series_mape")):
            assert value == pytest.approx(0, abs=1e-9)
    assert found["pairs_right"] in (None, 1.0)


@given(points)
def test_order_of_rows_is_of_no_account(rows):
    one, other = measures(table(*rows)), measures(table(*reversed(rows)))
    assert one == pytest.approx(other, nan_ok=True)


# ---- the split -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeCase:
    series: str
    engine: str


def test_every_other_series_of_an_engine_is_fitted_on():
    cases = [FakeCase(name, "x") for name in "dbcadb"] + [FakeCase("z", "y"), FakeCase("z", "x")]
    assert for_fitting(cases) == {"x": ["a", "c"], "y": ["z"]}


def test_what_was_fitted_on_stands_with_the_constants(tmp_path, monkeypatch):
    (tmp_path / "engine").mkdir()
    file = tmp_path / "engine" / "llama_cpp.yaml"
    file.write_text("fitted_on: [one, two]\nlaunch_us: 3\n")
    (tmp_path / "engine" / "mine.yaml").write_text("launch_us: 3\n")
    monkeypatch.setenv(OWN, str(tmp_path))
    found = fitted_series()
    assert {"one", "two"} <= found
    file.write_text("fitted_on: [three]\n")
    assert fitted_series() - found == {"three"}
    file.write_text("fitted_on: one\n")
    with pytest.raises(InputError, match="fitted_on: found 'one', expected a list"):
        fitted_series()
