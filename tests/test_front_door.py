"""`import dali`: what the commands do, from Python."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import dali
from dali.experiments.cli import main
from dali.experiments.profiles import load
from dali.experiments.scene import make_workload, read_scene
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make
from dali.policies.columns import METRICS, STEP
from dali.policies.planner import Policy
from dali.traces.trace import Trace

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
TOY = ["workload.batch=[1,3]", "workload.prompt=8", "workload.generate=6", "cache_share=0.75"]
SETTINGS = {"workload": {"batch": [1, 3], "prompt": 8, "generate": 6}, "cache_share": 0.75}
SHORT = {"workload": {"prompt": 8, "generate": 6}, "cache_share": 0.75}
POLICIES = ["llama_cpp", "dali cache.w_size=2", "frontier"]


@pytest.fixture(scope="module")
def trace(random_trace) -> Trace:
    return random_trace(layers=3, experts=8, top_k=2, lengths=[20, 24, 30], seed=1)


@pytest.fixture(scope="module")
def toy(tmp_path_factory, trace) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    trace.save(path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


# ---- importing ---------------------------------------------------------------------------------------


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder)


def test_importing_it_imports_nothing_heavy(tmp_path):
    code = "import sys, dali; print([name for name in ('torch', 'hydra', 'omegaconf', 'pandas', 'numba', 'numpy', "
    code += "'dali.policies') if name in sys.modules])"
    assert python(tmp_path, "-c", code).stdout == "[]\n"


def test_it_has_exactly_these_names():
    assert sorted(dali.__all__) == [
        "InputError", "Policy", "Trace", "__version__", "compare", "offload", "policy", "record", "simulate",
    ]  # fmt: skip
    assert set(dali.__all__) <= set(dir(dali))
    assert all(getattr(dali, name) is not None for name in dali.__all__)
    assert (dali.Trace, dali.Policy) == (Trace, Policy)
    with pytest.raises(AttributeError, match="module 'dali' has no attribute 'nonsense'"):
        dali.nonsense  # noqa: B018


@pytest.mark.parametrize("module", ["dali", "dali.experiments.cli"])
def test_it_is_a_command_too(tmp_path, module):
    done = python(tmp_path, "-m", module, "nonsense")
    assert done.returncode == 2
    assert "found verb 'nonsense', expected one of compare, " in done.stderr
    assert "  compare " in python(tmp_path, "-m", module).stdout


# ---- compare and simulate ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(toy) -> Path:
    """What `dali compare` leaves behind."""
    listed = ",".join(f"'{entry}'" for entry in POLICIES)
    assert main(["compare", f"trace={toy}", f"output={toy.parent}", f"policies=[{listed}]", *TOY]) == 0
    (place,) = (toy.parent / "compare").iterdir()
    return place


def test_compare_gives_the_rows_of_the_command(here, toy, written, capsys):
    table = dali.compare(trace=toy, policies=POLICIES, **SETTINGS)
    pd.testing.assert_frame_equal(table, pd.read_parquet(written / "results.parquet"))
    assert capsys.readouterr() == ("", "")
    assert list(here.iterdir()) == []


def test_simulate_gives_the_steps_of_the_command(here, toy, written, capsys):
    wanted = pd.read_parquet(written / "steps.parquet")
    for entry in POLICIES:
        for batch in (1, 3):
            steps = dali.simulate(
                entry, trace=toy, batch=batch, workload={"prompt": 8, "generate": 6}, cache_share=0.75
            )
            same = wanted[(wanted["policy"] == entry) & (wanted["batch"] == batch)]
            assert list(steps.columns) == [*STEP, *METRICS]
            pd.testing.assert_frame_equal(steps, same[[*STEP, *METRICS]].reset_index(drop=True))
    assert capsys.readouterr() == ("", "")
    assert list(here.iterdir()) == []


def test_progress_is_a_bar(toy, capsys):
    dali.simulate("naive", trace=toy, progress=True, **SHORT)
    assert "simulating: 100%" in capsys.readouterr().err


def test_objects_stand_for_what_is_named(toy, trace, written):
    """A trace, a model, a machine and policies made elsewhere give what their names give."""
    config = configuration("compare", ["platform=laptop_8gb", "model=deepseek_v2_lite"])
    model, platform = make(config.model, "model"), make(config.platform, "platform")
    named = dali.compare(trace=str(toy), model="deepseek_v2_lite", platform="laptop_8gb", policies=POLICIES, **SETTINGS)
    # Names of policies come from their objects.
    sized = replace(model, layers=3, experts=8, top_k=2)
    objects = [dali.policy(entry, model=sized) for entry in POLICIES]
    assert [policy.name for policy in objects] == POLICIES
    given = dali.compare(trace=trace, model=model, platform=platform, policies=objects, **SETTINGS)
    pd.testing.assert_frame_equal(named, given)
    mixed = dali.compare(*TOY, trace=trace, model=model, platform=platform, policies=[POLICIES[0], *objects[1:]])
    pd.testing.assert_frame_equal(named, mixed)


def test_a_models_sizes_are_what_settings_refer_to():
    """Routing that is resized to the model, and a policy's staging slots: four for few experts, six for many."""
    shape = replace(make(configuration("compare", []).model, "model"), name="own", layers=5, experts=12, top_k=3)
    small = {"workload": {"batch": [1], "prompt": 4, "generate": 3}, "cache_share": 0.5}
    table = dali.compare("trace.sequences=2", trace="resized", model=shape, policies=["frontier"], **small)
    # Five layers of 12 experts, of which a token uses three.
    steps = dali.simulate("frontier", "trace.sequences=2", trace="resized", model=shape, batch=1, **small)
    assert steps["lookups"].tolist()[1:] == [15, 15, 15]
    assert table["steps"].tolist() == [1, 3]


def test_a_profile_is_a_platform(toy):
    profile = load(str(RESULTS / "throttled_cpu" / "platform.yaml"))
    sizes = {"hidden": profile.geometry.hidden, "expert_width": profile.geometry.expert_width, "expert_bits": 32}
    shape = replace(make(configuration("compare", []).model, "model"), **sizes)
    rows = {"model": shape, "policies": ["naive"], **SETTINGS}
    by_object = dali.compare(trace=toy, platform=profile, **rows)
    by_path = dali.compare(trace=toy, platform=RESULTS / "throttled_cpu" / "platform.yaml", **rows)
    pd.testing.assert_frame_equal(by_object, by_path)


def test_counts_are_a_trace(toy, trace):
    config = configuration("compare", [f"trace={toy}", *TOY])
    scene = read_scene(config)
    counts = make_workload(scene, config, 3)
    policy = dali.policy("ktransformers")
    assert dali.compare(trace=counts, policies=[policy], cache_share=0.75)["batch"].unique().tolist() == [3]
    steps = dali.simulate("naive", trace=counts, cache_share=0.75)
    whole = dali.simulate("naive", trace=trace, batch=3, **SHORT)
    pd.testing.assert_frame_equal(steps, whole)
    with pytest.raises(dali.InputError, match="batch: found 2 beside a workload of counts, expected none"):
        dali.simulate("naive", trace=counts, batch=2)


def test_speedups_are_over_the_first_where_the_usual_baseline_is_not_there(toy):
    table = dali.compare(trace=toy, policies=["naive", "on_demand"], **SETTINGS)
    assert (table[table["policy"] == "naive"]["speedup"] == 1).all()
    table = dali.compare(trace=toy, policies=["naive", "on_demand"], baseline="on_demand", **SETTINGS)
    assert (table[table["policy"] == "on_demand"]["speedup"] == 1).all()
    table = dali.compare(trace=toy, policies=["naive", "llama_cpp"], **SETTINGS)
    assert (table[table["policy"] == "llama_cpp"]["speedup"] == 1).all()


def test_a_predictors_recall_may_be_given(toy):
    staged = [
        dali.simulate("dali", trace=toy, batch=3, predictor_recall={"residual": recall}, **SHORT)["staged"].sum()
        for recall in (0.01, 1.0)
    ]
    assert staged[0] < staged[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bogus": 1}, "'bogus'"),
        ({"workload": {"bach": 1}}, "'bach'"),
        ({"workload": object()}, "workload: found object, expected a number"),
        ({"workload": {"batch": 0}}, "workload.batch: found 0"),
        ({"cache_share": "much"}, "cache_share: found 'much'"),
        ({"hydra": {"verbose": True}}, "found no setting of ours"),
        ({"policies": []}, "policies: found [], expected a list of one or more"),
        ({"policies": "dali"}, "policies: found 'dali', expected a list"),
        ({"policies": ["dali", "dali"]}, "policies: found 'dali' twice"),
        ({"policies": ["dali", 3]}, "policies: found int, expected names and dali.Policy objects"),
        ({"policies": ["nope"]}, "policy: found 'nope', expected one of dali, "),
        ({"policies": ["nowhere:My"]}, "policy nowhere:My: No module named 'nowhere'"),
        ({"policies": ["dali"], "baseline": "naive"}, "baseline: found 'naive'"),
        ({"trace": 3}, "trace: found int, expected a name or an object of its kind"),
        ({"trace": "nope"}, "trace: found 'nope', expected one of deepseek_v2_lite"),
        ({"trace": Path("nope")}, "nope: no such file"),
        ({"model": "nope"}, "model: found 'nope', expected one of "),
        ({"model": 3}, "model: found int"),
        ({"platform": "nope"}, "platform: found 'nope', expected one of "),
        ({"platform": Path("nope.yaml")}, "found no file"),
    ],
)
def test_bad_arguments_are_one_line(toy, arguments, said):
    with pytest.raises(dali.InputError) as caught:
        dali.compare(**{"trace": toy, "policies": ["naive"], **arguments})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_override_is_one_line():
    with pytest.raises(dali.InputError, match="'nonsense': missing EQUAL"):
        dali.compare("nonsense")


# ---- policy ------------------------------------------------------------------------------------------


def test_a_policy_by_name():
    policy = dali.policy("dali", "cache.w_size=8", "staging=9")
    assert (policy.name, policy.cache.w_size, policy.staging) == ("dali cache.w_size=8 staging=9", 8, 9)
    assert dali.policy("dali").name == "dali"
    assert type(dali.policy("dali cache=lru").cache).__name__ == "LRU"


def test_settings_follow_the_model():
    shape = make(configuration("compare", []).model, "model")
    assert (shape.experts, dali.policy("frontier").staging) == (128, 6)
    assert dali.policy("frontier", model="mixtral_8x7b").staging == 4
    assert dali.policy("frontier", model=replace(shape, experts=16)).staging == 4
    assert dali.policy("frontier", model=replace(shape, experts=17)).staging == 6


@pytest.mark.parametrize(
    ("entry", "arguments", "said"),
    [
        (["nope"], {}, "policy: found 'nope', expected one of "),
        (["dali", "nope=3"], {}, "'policy.nope'"),
        (["dali", 3], {}, "policy: found int"),
        ([3], {}, "policy: found int"),
        ([""], {}, "policy: found ''"),
        (["dali"], {"model": "nope"}, "model: found 'nope'"),
    ],
)
def test_a_bad_policy_is_one_line(entry, arguments, said):
    with pytest.raises(dali.InputError) as caught:
        dali.policy(*entry, **arguments)
    assert said in str(caught.value)


def test_a_policy_from_outside(here, toy):
    (here / "from_outside.py").write_text(
        "import dali\n\n"
        "def make_policy(window=4):\n"
        "    return dali.policy('dali', f'cache.w_size={window}', model='mixtral_8x7b')\n"
    )
    table = dali.compare(trace=toy, policies=["dali", "from_outside:make_policy window=8"], **SETTINGS)
    theirs = table[table["policy"] == "from_outside:make_policy window=8"]["seconds"].tolist()
    ours = dali.compare(trace=toy, policies=["dali cache.w_size=8"], **SETTINGS)["seconds"].tolist()
    assert theirs == ours
    assert dali.policy("from_outside:make_policy", "window=2").cache.w_size == 2
    del sys.modules["from_outside"]
