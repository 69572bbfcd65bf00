"""Policies that live outside the repository: named as `module:attribute`, by those who may name code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from dali.experiments.cli import main
from dali.experiments.settings import outside
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make, make_part, make_policy, policy_from, policy_of, policy_settings
from dali.experiments.verbs.run.log import LogOrigin, SavedLog
from dali.experiments.verbs.sweep import points
from dali.experiments.verbs.sweep.job import RunFolder
from dali.experiments.verbs.sweep.request import request
from dali.policies.types import InputError

CODE = """
from dali.policies.assign.fixed import AllGPU
from dali.policies.cache.classic import LRU
from dali.policies.planner import Policy
from dali.policies.prefetch.simple import NoPrefetch

def make_policy(size=3, scope="layer", names=()):
    return Policy("own", AllGPU(), NoPrefetch(), LRU(scope), staging=size)

FINISHED = make_policy()

class MyPolicy(Policy):
    def __init__(self):
        super().__init__("class", AllGPU(), NoPrefetch(), LRU(), staging=4)

class MyCache(LRU):
    def __init__(self, window=2):
        super().__init__()
        self.window = window

class Outer:
    Inner = MyCache

def refuses():
    raise ValueError("not today")

def breaks():
    return {}["gone"]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with modules of the user's own in it."""
    (tmp_path / "plain_module.py").write_text(CODE)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "parts.py").write_text("from plain_module import *\nfrom .sizes import SIZE\n")
    (tmp_path / "own_package" / "sizes.py").write_text("SIZE = 3\n")
    (tmp_path / "needy.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in list(sys.modules):
        if name.partition(".")[0] in ("plain_module", "own_package", "needy", "broken"):
            del sys.modules[name]


# ---- what may be named -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "name", "staging"),
    [
        ("plain_module:FINISHED", "own", 3),
        ("plain_module:MyPolicy", "class", 4),
        ("plain_module:make_policy", "own", 3),
        ("own_package.parts:make_policy size=5 scope=global names=[a,b]", "own", 5),
    ],
)
def test_a_whole_policy(here, entry, name, staging):
    row, policy = make_policy("compare", [], entry)
    assert (row, policy.name, policy.staging) == (entry, name, staging)


def test_a_part_of_a_policy(here):
    _, policy = make_policy("compare", [], "dali cache=plain_module:MyCache cache.window=5 staging=9")
    assert (type(policy.cache).__name__, policy.cache.window, policy.staging) == ("MyCache", 5, 9)
    assert type(policy.assignment).__name__ == "Greedy"
    assert make_policy("compare", [], "dali cache=plain_module:Outer.Inner")[1].cache.window == 2


def test_settings_may_refer_to_the_model(here):
    entry = "plain_module:make_policy size=${model.top_k}"
    assert make_policy("compare", ["model=qwen3_30b_a3b"], entry)[1].staging == 8
    assert make_policy("compare", ["model=mixtral_8x7b"], entry)[1].staging == 2


def test_a_part_by_itself(here):
    assert make_part("cache", "plain_module:MyCache", "window=7").window == 7


def test_the_current_folder_comes_last(here):
    """A file there may have the name of anything that is installed."""
    (here / "json.py").write_text("raise RuntimeError('shadowed')\n")
    make_policy("compare", [], "plain_module:FINISHED")
    assert sys.path[-1] == str(here)
    assert json.dumps(1) == "1"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("nowhere:My", "policy nowhere:My: No module named 'nowhere', expected it installed or in the current folder"),
        ("own_package.no:My", "policy own_package.no:My: No module named 'own_package.no', expected it installed"),
        ("needy:My", "policy needy:My: No module named 'not_installed_anywhere'"),
        ("broken:f", "policy broken:f: SyntaxError: invalid syntax (broken.py, line 1)"),
        ("plain_module:Nope", "policy plain_module:Nope: found no Nope in "),
        ("plain_module:", "policy: found 'plain_module:', expected module:attribute"),
        (":My", "policy: found ':My', expected module:attribute"),
        ("a-b:My", "policy: found 'a-b:My', expected module:attribute"),
        ("plain_module:MyCache", "found MyCache, expected a dali.policies.planner.Policy"),
        ("plain_module:LRU scope=layer", "found LRU, expected a dali.policies.planner.Policy"),
        ("plain_module:CODE", "found no CODE"),
        ("plain_module:__name__", "found str, expected a dali.policies.planner.Policy"),
        ("plain_module:FINISHED size=3", "found settings {'size': 3} for a finished object, expected none"),
        ("plain_module:refuses", "policy plain_module:refuses: not today"),
        ("plain_module:breaks", "policy plain_module:breaks: KeyError: 'gone'"),
        ("plain_module:make_policy siez=3", "unexpected keyword argument 'siez'"),
        ("plain_module:make_policy size=1", "policy own: found staging 1, expected at least 2"),
        ("plain_module:make_policy size", "'size': missing EQUAL"),
        ("plain_module:make_policy size=1,2", "'size=1,2': found no single value"),
        ("dali cache=plain_module:make_policy", "cache plain_module:make_policy: found Policy, expected a dali"),
        ("dali assignment=plain_module:MyCache", "found MyCache, expected a dali.policies.view.AssignmentPolicy"),
        ("dali prefetch=plain_module:MyCache prefetch.windo=3", "unexpected keyword argument 'windo'"),
        ("dali cache._target_=plain_module.refuses", "unexpected keyword argument"),
    ],
)
def test_a_wrong_name_is_one_line(here, entry, said):
    with pytest.raises(InputError) as caught:
        make_policy("compare", [], entry)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_another_kind_is_refused():
    settings = OmegaConf.to_container(policy_settings("dali", configuration("compare", [])))
    settings["prefetch"] = settings["assignment"]
    with pytest.raises(InputError, match=r"policy dali: found Greedy as prefetch, expected a dali\.policies\.view\."):
        policy_from(settings, "dali")


# ---- through the verbs -------------------------------------------------------------------------------

SMALL = ["workload.batch=[2]", "workload.prompt=4", "workload.generate=3"]
OWN = "plain_module:make_policy size=4"


def test_compare(here, capsys):
    arguments = [f"policies=[llama_cpp,plain_module:FINISHED,'{OWN}','dali cache=plain_module:MyCache']", *SMALL]
    assert main(["compare", *arguments]) == 0
    (place,) = (here / "outputs" / "compare").iterdir()
    rows = pd.read_parquet(place / "results.parquet")
    assert set(rows["policy"]) == {"llama_cpp", "plain_module:FINISHED", OWN, "dali cache=plain_module:MyCache"}
    assert main(["compare", "policies=[llama_cpp,plain_module:Nope]"]) == 2
    assert "plain_module:Nope: found no Nope in " in capsys.readouterr().err


def test_gap(here):
    scene = "model=qwen3_30b_a3b trace=tiny_moe"
    arguments = [f"scenes=['{scene}']", "others=[plain_module:FINISHED]", "cache_shares=[0.25]", "batch=[2]"]
    arguments += ["decode.steps=3", "decode.prompt=4", "prefill.sequences=2", "prefill.tokens=4"]
    assert main(["gap", *arguments, "assignments=[greedy,exact]", "against=plain_module:make_policy"]) == 0
    (place,) = (here / "outputs" / "gap").iterdir()
    names = set(pd.read_parquet(place / "results.parquet")["name"])
    assert {"plain_module:FINISHED", "plain_module:make_policy"} <= names


SWEEP = ["sweep", "experiment=winner", f"policies=[llama_cpp,'{OWN}']", "experiment.grid.model=[qwen3_30b_a3b]"]
SWEEP += ["experiment.grid.batch=[2]", "experiment.grid.cache_share=[0.25]", "trace=tiny_moe", *SMALL[1:]]


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sweep(here, launcher):
    assert main([*SWEEP, f"hydra/launcher={launcher}"]) == 0
    rows = pd.read_parquet(here / "outputs" / "sweep" / "winner" / "results.parquet")
    assert set(rows["policy"]) == {"llama_cpp", OWN}


# ---- requests, and who may name code -----------------------------------------------------------------


def point(*entries: str) -> points.Point:
    return points.Point("toy", {}, ["trace=tiny_moe", f"policies={json.dumps(entries)}", *SMALL], {})


def test_a_request_is_plain_and_names_the_code(here):
    made = request(point("dali", OWN), [0])
    assert json.loads(json.dumps(made.policies))[OWN]["name"] == "plain_module:make_policy"
    assert list(made.code) == ["plain_module:make_policy"]
    assert request(point("dali"), [0]).code == {}


def test_a_changed_source_is_another_key(here):
    """That of the module, and of what it imports from its package."""
    entry = "own_package.parts:make_policy"
    first = request(point(entry), [0]).key
    assert request(point(entry), [0]).key == first
    assert request(point("plain_module:make_policy"), [0]).key != first
    sizes = here / "own_package" / "sizes.py"
    sizes.write_text(sizes.read_text() + "# changed\n")
    assert request(point(entry), [0]).key != first


def test_names_of_code():
    ours = {"_target_": "dali.policies.ilp.ILP", "name": "x:y", "list": [{"_target_": "other.Thing"}]}
    assert outside.names(ours) == {"other.Thing"}
    assert outside.names(outside.node("cache", "a.b:C", ["size=3"])) == {"a.b:C"}


@pytest.mark.parametrize("entry", ["plain_module:FINISHED", "dali cache=plain_module:MyCache"])
def test_a_request_of_a_stranger_may_name_none(here, entry):
    made = request(point(entry), [0])
    (name,) = made.code
    place = here / "run"
    place.mkdir()
    for typed, said in (((), f"request: found code '{name}' in a file"), ((name,), None)):
        folder = RunFolder(place, place, typed)
        folder.ask(0, made, again=True)
        folder.answer(0)
        error = folder.error(0)
        assert (error is None) == (said is None)
        assert said is None or said in error["error"]
        (place / "0.error").unlink(missing_ok=True)


@pytest.mark.parametrize("target", ["os.system", "dali.traces.files.os.system", "dali.traces.tensor_file.write"])
def test_a_target_of_a_stranger_is_refused(target):
    """Also what can be reached through a module of ours."""
    with pytest.raises(InputError, match=f"trace: found code '{target}' in a file"):
        make({"_target_": target, "command": "true"}, "trace", typed=())


def test_an_entry_of_a_stranger_is_refused(here):
    """A job composes entries again where the trace cuts the model: their names are checked too."""
    config = configuration("compare", [])
    for entry in ("plain_module:FINISHED", "dali cache._target_=plain_module.MyCache"):
        with pytest.raises(InputError, match="found code 'plain_module"):
            policy_of(entry, config, typed=())
    assert policy_of("dali", config, typed=()).name == "dali"
    assert "plain_module" not in sys.modules


def test_a_log_may_name_none(here):
    """The policy of a planner's log is text in a file."""
    origin = LogOrigin("plain_module:FINISHED", layers=3, experts=8, top_k=2, slices=1, seed=0)
    with pytest.raises(InputError, match="found code 'plain_module:FINISHED' in a file"):
        SavedLog(origin, [], None, None, None).fresh()
    assert "plain_module" not in sys.modules


def test_settings_alone_import_nothing(here):
    policy_settings("plain_module:FINISHED", configuration("compare", []))
    assert "plain_module" not in sys.modules


def test_a_profile_may_name_none(here, capsys):
    marker = here / "touched"
    Path("evil.yaml").write_text(f"_target_: os.mkdir\npath: {marker}\n")
    assert main(["compare", "platform=evil.yaml"]) == 2
    assert "found no measured costs" in capsys.readouterr().err
    assert not marker.exists()
