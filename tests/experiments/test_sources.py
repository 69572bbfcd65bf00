"""The version of a sweep's code: what a job imports, wherever in its source, and nothing else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dali.experiments.verbs.sweep import sources
from dali.experiments.verbs.sweep.sources import JOB, closure, code_version, source_digest
from dali.policies.types import InputError

ROOM = "dali.experiments"


def test_a_job_depends_on_what_simulates():
    found = closure(JOB)
    assert {f"{ROOM}.scene", f"{ROOM}.simulation", f"{ROOM}.output.summary", f"{ROOM}.settings.objects"} <= set(found)
    assert {"dali.policies.planner", "dali.sim.engine", "dali.traces.workload"} <= set(found)
    assert all(file.is_file() for file in found.values())


def test_a_job_does_not_depend_on_what_shows():
    found = closure(JOB)
    shown = ("figures", "sentences", "results", "text", "launch", "verb")
    assert not [name for name in found if name.rpartition(".")[2] in shown]
    assert not [name for name in found if name.startswith((f"{ROOM}.page", f"{ROOM}.drawing", "dali.runtime"))]
    # The front door names everything, for checkers, and imports nothing.
    assert "dali" in found
    assert "dali.simulated" not in found


@pytest.mark.parametrize("name", [f"{ROOM}.scene", f"{ROOM}.simulation", f"{ROOM}.output.summary", JOB])
def test_a_changed_byte_is_another_version(tmp_path, monkeypatch, name):
    files = dict(closure(JOB))
    before = code_version()
    monkeypatch.setattr(sources, "closure", lambda module: files)
    code_version.cache_clear()
    try:
        assert code_version() == before
        files[name] = tmp_path / "changed.py"
        shutil.copy(closure(JOB)[name], files[name])
        files[name].write_text(files[name].read_text() + "#")
        code_version.cache_clear()
        assert code_version() != before
    finally:
        monkeypatch.undo()
        code_version.cache_clear()


# ---- a package to look at ----------------------------------------------------------------------------

CHECKED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from seen_package import checked\n"
PACKAGE = {
    "__init__": "",
    "top": "from seen_package import direct\nfrom seen_package.sub import thing\nimport json\n",
    "direct": "def later():\n    from seen_package.lazy import x\n    import seen_package.lazier as y\n",
    "lazy": "x = 1\n",
    "lazier": "class C:\n    from . import relative\n",
    "relative": "from .sub.deep import z\n",
    "checked": "",
    "sub/__init__": f"{CHECKED}thing = 1\n",
    "sub/deep": "from ..cycle import a\nz = 1\n",
    "cycle": "from seen_package import top\na = 1\n",
    "unseen": "",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    folder = tmp_path / "seen_package"
    (folder / "sub").mkdir(parents=True)
    for name, text in PACKAGE.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "seen_package"]:
        del sys.modules[name]


def test_imports_are_followed_wherever_they_stand(package):
    """In functions, in classes, relative, of a package's members and in a circle; not what only checkers read."""
    found = {name.removeprefix("seen_package").lstrip(".") for name in closure("seen_package.top")}
    assert found == {"", "top", "direct", "lazy", "lazier", "relative", "sub", "sub.deep", "cycle"}


def test_else_of_what_checkers_read_is_followed(package):
    (package / "either.py").write_text(f"{CHECKED}else:\n    from . import unseen\n")
    assert "seen_package.unseen" in closure("seen_package.either")
    assert "seen_package.checked" not in closure("seen_package.either")


def test_a_digest_is_of_the_whole_closure(package):
    before = source_digest("seen_package.top:anything")
    assert source_digest("seen_package.top.Class") == before
    (package / "unseen.py").write_text("# changed\n")
    assert source_digest("seen_package.top:anything") == before
    (package / "lazy.py").write_text("x = 2\n")
    assert source_digest("seen_package.top:anything") != before


def test_code_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="code nowhere_at_all:x: found no module 'nowhere_at_all'"):
        source_digest("nowhere_at_all:x")
