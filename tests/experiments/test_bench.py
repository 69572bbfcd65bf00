"""`dali bench`: what an installation lacks is left out and said."""

import json

import pytest

from dali.experiments.cli import main
from dali.experiments.verbs.bench import optional
from dali.policies.types import InputError

QUICK = ["repeats=3", "generate=2", "simpy_steps=1", "assignment_steps=1", "batch=2", "assignment_batch=2"]


def test_the_twin_is_in_a_checkout_only(tmp_path, monkeypatch):
    assert callable(optional.simpy_twin().simulate)
    monkeypatch.setattr(optional, "TWIN", tmp_path / "simpy_twin.py")
    assert optional.simpy_twin() == "a checkout of the sources with tests/oracles"


def test_without_the_runtime_extra(monkeypatch):
    def missing(*names):
        raise InputError("needs the runtime extra: pip install 'dali-moe[runtime]'")

    monkeypatch.setattr(optional, "runtime_modules", missing)
    assert optional.recording() == "the runtime extra: pip install 'dali-moe[runtime]'"


@pytest.mark.slow
def test_figures_are_those_that_can_be_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optional, "TWIN", tmp_path / "simpy_twin.py")
    assert main(["bench", "output=b.json", *QUICK]) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["layer_steps_per_s"] > 0
    assert "simpy_ratio" not in found
    assert "what needs a checkout of the sources with tests/oracles is not measured" in capsys.readouterr().out
