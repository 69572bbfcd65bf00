"""Fixtures that tests of several verbs share: a small trace, a comparison of it with its page, a browser."""

from __future__ import annotations

from pathlib import Path

import browser
import pytest
from toys import TOY

from dali.experiments.cli import main


@pytest.fixture(scope="session")
def toy(tmp_path_factory, random_trace) -> Path:
    """Three sequences of a model of 3 layers of 8 experts."""
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    random_trace(layers=3, experts=8, top_k=2, lengths=[20, 24, 30], seed=1).save(path)
    return path


@pytest.fixture(scope="session")
def compared(toy, tmp_path_factory) -> Path:
    """The results folder of four policies on it."""
    place = tmp_path_factory.mktemp("compared")
    policies = "policies=[llama_cpp,on_demand,dali,oracle]"
    assert main(["compare", f"trace={toy}", f"output={place}", *TOY, policies]) == 0
    (found,) = (place / "compare").iterdir()
    return found


@pytest.fixture(scope="session")
def report(compared) -> Path:
    """Its page."""
    assert main(["report", f"results={compared}"]) == 0
    return compared / "report.html"


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """A tab of a browser."""
    program = browser.find()
    if program is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(browser.NAMES)})")
    with browser.browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened
