"""Every file of conf/engine: it loads, and each of its constants says where it comes from."""

from __future__ import annotations

from dataclasses import fields

import pytest

from dali.experiments.settings.folders import names
from dali.experiments.settings.objects import engine_named
from dali.policies.costs.constants import constant
from dali.policies.costs.engine import IDEAL, Kernels

ABOUT = ("name", "sources", "fitted", "fitted_on")


def constants(engine) -> list[str]:
    """Names of all that an engine sets otherwise than the ideal one: `launch_us`, `cpu.bandwidth`."""
    found = []
    for each in fields(engine):
        value, ideal = getattr(engine, each.name), getattr(IDEAL, each.name)
        if each.name in ABOUT or value == ideal:
            continue
        if isinstance(value, Kernels):
            found += [
                f"{each.name}.{part.name}"
                for part in fields(value)
                if getattr(value, part.name) != getattr(ideal, part.name)
            ]
        else:
            found.append(each.name)
    return found


@pytest.mark.parametrize("name", sorted(names("engine")))
def test_every_constant_has_a_source_or_is_fitted(name: str) -> None:
    engine = engine_named(name)
    assert engine.name == name
    told = {part.strip() for key in engine.sources for part in key.split(",")}
    fitted = {each.rpartition(".default")[0] or each for each in engine.fitted}
    missing = [each for each in constants(engine) if each not in told and each not in fitted]
    assert not missing, f"{name}: neither source nor fit of {missing}"
    assert not [each for each in told if each not in constants(engine)], f"{name}: sources of what it does not set"


@pytest.mark.parametrize("name", sorted(names("engine")))
def test_fitted_constants_have_a_prior_and_stay_near_it(name: str) -> None:
    engine = engine_named(name)
    for each, (prior, factor) in engine.fitted.items():
        assert prior > 0
        assert factor > 1
        # Farther than three deviations: the prior, or the model, is wrong.
        assert 1 / factor**3 <= constant(engine, each) / prior <= factor**3, each


def test_ideal_is_the_engine_that_costs_nothing() -> None:
    assert engine_named("ideal") == IDEAL
