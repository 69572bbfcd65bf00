"""Every file of conf/engine: it loads, and each of its constants says where it comes from."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

import dali
from dali.experiments.scene import cost_model
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.folders import names
from dali.experiments.settings.objects import engine_named
from dali.experiments.shapes.catalogue import load_shape
from dali.experiments.verbs.compare.comparison import Comparison
from dali.experiments.verbs.compare.text import title
from dali.policies.costs.constants import constant
from dali.policies.costs.engine import IDEAL, Kernels
from dali.policies.costs.measured import Profile
from dali.policies.types import InputError

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


# ---- as a setting ----------------------------------------------------------------------------------

FEW = ("policies=[llama_cpp]", "baseline=llama_cpp", "workload.batch=[1]", "workload.generate=4", "workload.prompt=64")


def speeds(*more: str) -> dict[str, float]:
    return dali.compare(*FEW, *more).set_index("phase")["tokens_per_s"].to_dict()


def test_an_engine_is_charged_on_top_of_the_machine() -> None:
    ideal, charged = speeds(), speeds("engine=llama_cpp")
    assert speeds("engine=ideal") == ideal
    # 30 launches a layer, a handover, copies that kernels wait for: both phases are slower.
    assert charged["decode"] < 0.8 * ideal["decode"]
    assert charged["prefill"] < 0.9 * ideal["prefill"]
    assert speeds("engine=llama_cpp", "engine.launch_us=50")["decode"] < charged["decode"]


def test_what_is_believed_is_another_argument() -> None:
    # Greedy places experts by what it believes; a policy that looks at no costs does not care.
    greedy = ("policies=[dali]", "baseline=dali", "engine=llama_cpp")
    wrong = Comparison.read(configuration("compare", [*FEW, *greedy, "believed_engine=ideal"]), [])
    assert wrong.believed_engine == IDEAL
    assert "Policies believe the costs of another engine: ideal." in wrong.notes()
    assert speeds(*greedy) != speeds(*greedy, "believed_engine=ideal")
    assert speeds("engine=llama_cpp") == speeds("engine=llama_cpp", "believed_engine=ideal")


def test_the_title_names_the_engine() -> None:
    scene = Comparison.read(configuration("compare", [*FEW, "engine=ktransformers"]), []).scene
    assert " in ktransformers, " in title(scene)
    assert " in " not in title(Comparison.read(configuration("compare", [*FEW]), []).scene).partition(",")[0]


def test_measured_costs_have_an_engine_already() -> None:
    profile = object.__new__(Profile)  # refused for what it is, before what it holds
    with pytest.raises(InputError, match="engine: found llama_cpp beside measured costs, expected ideal"):
        cost_model(load_shape("qwen3_30b_a3b"), profile, 4, engine=engine_named("llama_cpp"))


@pytest.mark.parametrize(
    ("override", "said"),
    [("engine=vllm", "found 'vllm', expected one of"), ("engine.launch_us=-1", "engine.launch_us: found -1")],
)
def test_a_wrong_engine_is_one_line(override: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        speeds(override)
