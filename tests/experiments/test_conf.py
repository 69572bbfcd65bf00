"""Every file of conf composes, and what it names can be made."""

from pathlib import Path

import pytest

from dali import conf
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make, make_policy
from dali.experiments.verbs.table import VERBS
from dali.policies.planner import Policy

FOLDER = Path(conf.__file__).parent
OPTIONS = sorted((path.parent.name, path.stem) for path in FOLDER.glob("*/*.yaml"))
# Files that wait for a value have tests of their own.
MADE = [
    (group, name)
    for group, name in OPTIONS
    if group not in ("policy", "workload", "trace", "experiment") and name not in ("file", "parts")
]
NEED_AN_ARGUMENT = ("import", "record", "report", "calibrate", "validate")


def test_every_verb_has_a_configuration():
    assert set(VERBS) | {"config"} == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in NEED_AN_ARGUMENT])
def test_verbs_compose(verb):
    assert configuration(verb, [])


@pytest.mark.parametrize(("group", "name"), MADE)
def test_options_instantiate(group, name):
    target = "policy" if group in ("assignment", "cache", "prefetch") else group
    key = f"+{group}@{target}.{group}={name}" if target != group else f"{group}={name}"
    node = configuration("config", [key])[target]
    assert make(node[group] if target != group else node, group) is not None


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "policy"])
@pytest.mark.parametrize("model", ["mixtral_8x7b", "qwen3_30b_a3b"])
def test_policies_instantiate_and_carry_their_name(name, model):
    entry, policy = make_policy("compare", [f"model={model}"], name)
    assert isinstance(policy, Policy)
    assert entry == policy.name == name


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "policy"])
def test_policy_files_say_what_is_modelled_and_what_not(name):
    text = (FOLDER / "policy" / f"{name}.yaml").read_text()
    assert "# Modelled: " in text
    assert "# Not modelled: " in text


def test_the_papers_sizes_depend_on_the_model():
    """DALI, main results: one hint and one exchange on Mixtral, four and eight on DeepSeek and Qwen."""
    for model, hints, exchanges in (("mixtral_8x7b", 1, 1), ("deepseek_v2_lite", 4, 8), ("qwen3_30b_a3b", 4, 8)):
        _, policy = make_policy("compare", [f"model={model}"], "dali")
        assert policy.prefetch.size == hints
        assert policy.cache.u_size == exchanges


def test_an_entry_may_change_its_policy():
    entry, policy = make_policy("compare", [], "dali cache.w_size=8 staging=16")
    assert entry == "dali cache.w_size=8 staging=16"
    assert policy.cache.w_size == 8
    assert policy.staging == 16
