"""What is installed: one name, `dali`, with everything that runs without the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import dali

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = PROJECT["tool"]["setuptools"]
# Folder of the repository: the package it is installed as.
FOLDERS = {folder: name for name, folder in SETTINGS["package-dir"].items()}
# Committed results lie beside the code and are not installed.
LEFT_OUT = ("experiments/results/", "experiments/README")


def installed(file: Path) -> str:
    """Where a file of the repository goes."""
    top, *rest = file.relative_to(ROOT).parts
    return "/".join([*FOLDERS[top].split("."), *rest])


def files() -> list[Path]:
    """All files of the folders that are installed."""
    found = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    kept = [file for file in found if "__pycache__" not in file.parts and file.suffix != ".pyc"]
    return [file for file in kept if not str(file.relative_to(ROOT)).startswith(LEFT_OUT)]


def test_the_list_of_packages_is_the_folders():
    folders = {installed(file.parent).replace("/", ".") for file in files() if file.name == "__init__.py"}
    assert sorted(SETTINGS["packages"]) == sorted(folders)
    assert set(FOLDERS.values()) <= folders


def test_folders_of_code_are_packages():
    """One without `__init__.py` would be left out of a wheel."""
    assert [file for file in files() if file.suffix == ".py" and not (file.parent / "__init__.py").exists()] == []


def test_the_version_is_the_distributions():
    assert dali.__version__ == version("dali-moe")


@pytest.mark.slow
def test_a_wheel_holds_one_package_and_all_of_it(tmp_path):
    # Building writes beside the sources.
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns("__pycache__", "results")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = [sys.executable, "-m", "pip", "wheel", str(copy), "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    about = re.compile(rf"dali_moe-{re.escape(PROJECT['project']['version'])}\.dist-info/")
    assert sorted(name for name in names if not about.match(name)) == sorted(map(installed, files()))
    assert {name.partition("/")[0] for name in names if not about.match(name)} == {"dali"}
    for needed in ("py.typed", "conf/compare.yaml", "conf/policy/dali.yaml", "experiments/page/page.html"):
        assert f"dali/{needed}" in names
    assert {"dali/traces/data/tiny_moe.safetensors", "dali/traces/data/tiny_moe/model.safetensors"} <= set(names)
    assert "dali = dali.experiments.cli:main" in entry
