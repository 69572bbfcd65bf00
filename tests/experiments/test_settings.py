"""Composing: a program's own hydra is left alone, values become overrides, a folder of one's own comes first."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose as foreign_compose
from hydra import initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime
from omegaconf import OmegaConf

import dali
from dali.experiments.cli import main
from dali.experiments.profiles import load, profile_path
from dali.experiments.settings import compose, folders
from dali.experiments.settings.compose import configuration, listing, value_of
from dali.experiments.settings.objects import make_policy
from dali.experiments.settings.shorthand import quoted, spelled, spelled_out
from dali.policies.types import InputError

RESULTS = Path(__file__).parents[2] / "experiments" / "results"

# ---- hydra -------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path):
    """A program that has hydra to itself: its folder, its version base, its job."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "theirs.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(tmp_path / "conf"), job_name="theirs", version_base="1.2"):
        yield GlobalHydra.instance().hydra


def test_a_programs_own_hydra_is_there_afterwards(foreign):
    assert dali.policy("dali", "cache.w_size=8").cache.w_size == 8
    listing("compare", [])
    assert GlobalHydra.instance().hydra is foreign
    assert foreign_compose("theirs").answer == 42
    assert str(version.getbase()) == "1.2"
    assert JobRuntime.instance().get("name") == "theirs"


def test_it_is_there_after_an_error_too(foreign):
    with pytest.raises(InputError):
        configuration("compare", ["model=nope"])
    assert GlobalHydra.instance().hydra is foreign


def test_without_one_none_is_left():
    configuration("compare", [])
    assert not GlobalHydra.instance().is_initialized()


def test_resolvers_are_ours_by_name_and_survive_a_reload():
    OmegaConf.register_new_resolver("few_experts", lambda *_: "theirs", replace=True)
    try:
        importlib.reload(compose)
        found = OmegaConf.create({"ours": "${dali.few_experts:16,1,4}", "theirs": "${few_experts:16,1,4}"})
        assert (found.ours, found.theirs) == (1, "theirs")
        assert OmegaConf.create({"x": "${dali.few_experts:17,1,4}"}).x == 4
        assert OmegaConf.create({"x": "${dali.model_units:8,2}"}).x == 16
        assert Path(OmegaConf.create({"x": "${dali.shipped:tiny_moe}"}).x).is_dir()
    finally:
        OmegaConf.clear_resolver("few_experts")


def test_what_is_replaced_is_what_others_refer_to():
    config = configuration("compare", ["trace=resized"], replaced={"model": {"layers": 3, "experts": 5, "top_k": 2}})
    assert (config.trace.layers, config.trace.experts, config.trace.top_k) == (3, 5, 2)


# ---- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", "it's", "C:\\x\\", "a\\'b", "\\", "a,b [c] {d: e}", "", "mypackage:My a=1", "é"])
def test_a_quoted_text_is_read_as_it_is(text):
    assert OverridesParser.create().parse_override(f"name={quoted(text)}").value() == text


def test_a_value_of_python_is_read_as_it_is():
    value = {"a": [1, 2.5, None, True, "x y"], "b": {"c": 1e-9}, "d": (np.int64(3), np.float64(0.25), Path("a/b"))}
    read = OverridesParser.create().parse_override(f"name={spelled('name', value)}").value()
    assert read == {"a": [1, 2.5, None, True, "x y"], "b": {"c": 1e-9}, "d": [3, 0.25, "a/b"]}


@pytest.mark.parametrize("value", [object(), {"a b": 1}, {1: 2}, [object()]])
def test_what_no_setting_takes_is_refused(value):
    with pytest.raises(InputError, match=r"^name: found "):
        spelled("name", value)


def test_a_setting_is_typed_as_an_override_is():
    assert value_of("a.b=3") == ("a.b", 3)
    assert value_of("a=[x,0.5,null]") == ("a", ["x", 0.5, None])
    for bad in ("a", "+a=1", "~a", "a=1,2", "=3"):
        with pytest.raises(InputError, match="expected NAME=VALUE"):
            value_of(bad)


def test_short_forms():
    assert spelled_out("compare", "trace=x.safetensors") == ["trace=file", "trace.path='x.safetensors'"]
    assert spelled_out("compare", "trace=tiny_moe") == ["trace=tiny_moe"]
    assert spelled_out("run", "model=mixtral_8x7b") == ["model=mixtral_8x7b", "checkpoint=null"]
    assert spelled_out("run", "model=some/hub") == ["checkpoint='some/hub'"]
    assert spelled_out("compare", "gpu=rtx_5080") == ["platform=parts", "platform.gpu=rtx_5080"]
    assert spelled_out("sweep", "host_gbs=62.5") == ["platform=parts", "platform.host_gbs=62.5"]
    assert spelled_out("run", "gpu=rtx_5080") == ["gpu=rtx_5080"]
    assert spelled_out("run", "policy=dali cache.w_size=8") == ["policies=['dali cache.w_size=8']"]


# ---- a folder of one's own ---------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder with a space in its name, a policy that builds on ours, and one by a class beside it."""
    folder = tmp_path / "my conf"
    (folder / "policy").mkdir(parents=True)
    (folder / "cache").mkdir()
    (folder / "policy" / "mine.yaml").write_text("defaults: [dali, _self_]\nname: mine\nstaging: 9\n")
    (folder / "cache" / "own.yaml").write_text("_target_: own_caches.Own\nwindow: 3\n")
    (tmp_path / "own_caches.py").write_text(
        "from dali.policies.cache.classic import LRU\n"
        "class Own(LRU):\n"
        "    def __init__(self, window):\n"
        "        super().__init__()\n"
        "        self.window = window\n"
    )
    monkeypatch.setenv(folders.OWN, str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    sys.modules.pop("own_caches", None)


def test_its_files_are_found_beside_ours(own):
    _, policy = make_policy("compare", [], "mine cache.w_size=2")
    assert (policy.name, policy.staging, policy.cache.w_size, policy.swaps_first) == ("mine", 9, 2, True)
    assert make_policy("compare", [], "dali")[1].staging == 6


def test_it_may_name_classes_of_the_current_folder(own):
    _, policy = make_policy("compare", [], "mine cache=own cache.window=5")
    assert (type(policy.cache).__name__, policy.cache.window) == ("Own", 5)


def test_of_two_files_of_one_name_the_users_counts(own):
    (own / "policy" / "dali.yaml").write_text((folders.CONF / "policy" / "dali.yaml").read_text() + "slices: 2\n")
    assert make_policy("compare", [], "dali")[1].slices == 2


def test_a_changed_file_is_read_again(own):
    file = own / "policy" / "mine.yaml"
    assert make_policy("compare", [], "mine")[1].staging == 9
    file.write_text(file.read_text().replace("9", "12"))
    assert make_policy("compare", [], "mine")[1].staging == 12


def test_help_lists_them(own, capsys):
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert f"({own}/NAME, then conf/NAME)" in text
    assert "llama_cpp, mine, moe_lightning" in text
    assert "own, static" in text


def test_an_unknown_name_lists_them(own):
    with pytest.raises(InputError, match=r"policy: found 'nope', expected one of .* mine, "):
        make_policy("compare", [], "nope")


def test_its_models_are_models_of_a_run(own):
    (own / "model").mkdir()
    (own / "model" / "mine.yaml").write_text("name: mine\n")
    assert spelled_out("run", "model=mine") == ["model=mine", "checkpoint=null"]
    assert "mine" in folders.names("model")


def test_its_profiles_are_profiles_by_name(own):
    (own / "platform").mkdir()
    file = RESULTS / "throttled_cpu" / "platform.yaml"
    (own / "platform" / "slow.yaml").write_text(file.read_text())
    assert load("slow").to_config() == load(str(file)).to_config()
    assert profile_path("fresh", None) == own / "platform" / "fresh.yaml"


@pytest.mark.parametrize("spoil", ["name: [\n", "_target_: nowhere.Policy\n", "defaults: [nope]\n"])
def test_a_bad_file_is_one_line(own, spoil):
    (own / "policy" / "bad.yaml").write_text(spoil)
    with pytest.raises(InputError) as caught:
        make_policy("compare", [], "bad")
    assert "\n" not in str(caught.value)


def test_a_wrong_folder_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv(folders.OWN, "nowhere")
    assert main(["compare"]) == 2
    assert "DALI_CONF: found 'nowhere', expected a folder" in capsys.readouterr().err
