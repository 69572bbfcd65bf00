"""Constants that are fitted to speeds: known ones are found again, priors hold where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from dali.experiments.verbs.backtest.fit import Speeds, fit, left_out
from dali.policies.costs.constants import constant
from dali.policies.costs.engine import Kernels, ServingEngine

# A token takes launches x 100 and bytes over the CPU's share; row i reads BYTES[i].
BYTES = np.array([1.0, 2.0, 4.0, 8.0, 1.5, 3.0])
GROUP = np.array([0, 0, 0, 0, 1, 1])
SERIES = ["A", "A", "A", "A", "B", "B"]


def engine(launch_us=4.0, share=0.5, factor=2.0):
    return ServingEngine(
        "e",
        cpu=Kernels(bandwidth={"default": share}),
        launch_us=launch_us,
        fitted={"launch_us": (4.0, factor), "cpu.bandwidth.default": (0.5, factor)},
    )


def predict(tried, scale=1.0):
    seconds = 100 * tried.launch_us * 1e-3 + BYTES / tried.cpu.bandwidth["default"]
    return scale / seconds


def speeds(measured, absolute=True):
    return Speeds(measured, GROUP, np.full(6, absolute))


def values(found):
    return constant(found, "launch_us"), constant(found, "cpu.bandwidth.default")


def test_known_constants_are_found_again():
    true = engine(launch_us=6.0, share=0.4)
    found = values(fit(engine(factor=100.0), speeds(predict(true)), predict))
    assert found == pytest.approx((6.0, 0.4), rel=0.05)


def test_a_narrow_prior_outweighs_a_few_speeds():
    true = engine(launch_us=6.0, share=0.4)
    found = values(fit(engine(factor=1.001), speeds(predict(true)), predict))
    assert found == pytest.approx((4.0, 0.5), rel=0.01)


def test_the_scale_of_a_machine_that_is_not_named_does_not_count():
    # The same shape at a third of the speed: no constant moves to explain it.
    true = engine(launch_us=6.0, share=0.4)
    found = values(fit(engine(factor=100.0), speeds(predict(true, 1 / 3), absolute=False), predict))
    absolute = values(fit(engine(factor=100.0), speeds(predict(true, 1 / 3)), predict))
    # launches x share is what the shape says: 6 x 0.4.
    assert found[0] * found[1] == pytest.approx(2.4, rel=0.05)
    assert absolute[1] < 0.7 * found[1]


def test_one_wild_series_hardly_moves_the_constants():
    true = engine(launch_us=6.0, share=0.4)
    measured = predict(true)
    measured[4:] *= 8
    found = fit(engine(factor=3.0), speeds(measured), predict)
    np.testing.assert_allclose(predict(found)[:4], measured[:4], rtol=0.1)


def test_leaving_out_a_series_is_fitting_without_it():
    rng = np.random.default_rng(0)
    true = engine(launch_us=5.0, share=0.45)
    measured = predict(true) * np.exp(rng.normal(0, 0.03, 6))
    whole = fit(engine(factor=1.5), speeds(measured), predict)
    predicted = predict(whole)
    steps = {name: constant(whole, name) for name in whole.fitted}
    slopes = np.empty((6, 2))
    for column, (name, value) in enumerate(steps.items()):
        changed = engine(*(each * (1.001 if other == name else 1) for other, each in steps.items()))
        slopes[:, column] = np.log(predict(changed) / predicted) / np.log(1.001)
        assert value > 0
    out = left_out(whole, speeds(measured), predicted, slopes, SERIES)
    for name, rows in (("A", slice(0, 4)), ("B", slice(4, 6))):
        kept = np.array([each != name for each in SERIES])
        rest = Speeds(measured[kept], GROUP[kept], np.full(kept.sum(), True))
        again = fit(engine(factor=1.5), rest, lambda tried, kept=kept: predict(tried)[kept])
        np.testing.assert_allclose(out[rows], predict(again)[rows], rtol=0.02)
        assert not np.allclose(out[rows], predicted[rows], rtol=1e-4)
