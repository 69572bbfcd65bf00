"""README's snippets run, and its commands say what is set.

Names that a snippet uses without making them are stand-ins: the shipped model in the place of a large one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dali
from dali.experiments.cli import main
from dali.experiments.settings import folders
from dali.experiments.settings.compose import SHIPPED, configuration
from dali.policies.cache.base import Cache
from dali.testing import check_policy

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
# A command, and the lines of its output that stand below it.
BLOCKS = re.findall(r"^    (?:\$ )?(dali .*)\n((?:    \|.*\n)*)", README, re.MULTILINE)
COMMANDS = [(shlex.split(line, comments=True)[1:], shown) for line, shown in BLOCKS]
# What needs a model from elsewhere, a GPU, or minutes; of these the settings are checked.
NOT_RUN = ("record", "run", "backtest", "calibrate", "validate", "doctor", "gap", "sweep")
NVMOE = "".join(f"[[0, {token % 4}], [0, {4 + token % 3}], [1, 2], [1, {3 + token % 5}]]\n" for token in range(16))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with the files that README takes to be there."""
    shutil.copy(SHIPPED / "tiny_moe.safetensors", tmp_path / "olmoe.safetensors")
    (tmp_path / "theirs.jsonl").write_text(NVMOE)
    (tmp_path / "my_conf" / "platform").mkdir(parents=True)
    shutil.copy(folders.CONF / "platform" / "laptop_8gb.yaml", tmp_path / "my_conf" / "platform" / "mine.yaml")
    monkeypatch.setenv(folders.OWN, "my_conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


# ---- snippets ----------------------------------------------------------------------------------------


def stand_ins(snippet: str) -> Iterator[tuple[str, Any]]:
    """`model` and `inputs` for the snippets that use them."""
    yield "dali", dali
    if re.search(r"\b(model|inputs)\.|\(model,|\binputs\b", snippet):
        torch = pytest.importorskip("torch", reason="needs the runtime extra")
        transformers = pytest.importorskip("transformers", reason="needs the runtime extra")
        yield "model", transformers.AutoModelForCausalLM.from_pretrained(SHIPPED / "tiny_moe").eval()
        ids = torch.tensor([list(b"Once upon a time")])
        yield "inputs", {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def title(snippet: str) -> str:
    """What it is about, as an id."""
    found = re.search(r"dali\.(\w+)\(|class (\w+)", snippet)
    return next(filter(None, found.groups())) if found else "other"


def test_the_front_door_is_shown():
    shown = {name for snippet in SNIPPETS for name in re.findall(r"dali\.(\w+)\(", snippet)}
    assert {"compare", "simulate", "policy", "offload", "record"} <= shown


@pytest.mark.parametrize("snippet", SNIPPETS, ids=title)
def test_a_snippet_runs(here, snippet):
    if "dali." in snippet and "class " not in snippet:
        assert len([line for line in snippet.splitlines() if line.strip()]) <= 5
    names = {"__name__": "snippet", **dict(stand_ins(snippet))}
    exec(compile(snippet, "README.md", "exec"), names)
    for made in [each for each in names.values() if getattr(each, "__module__", "") == "snippet"]:
        assert issubclass(made, Cache)
        check_policy(made)


# ---- commands ----------------------------------------------------------------------------------------


def test_there_are_commands():
    assert {"compare", "record", "import", "replay", "predict", "sweep", "run"} <= {words[0] for words, _ in COMMANDS}


@pytest.mark.parametrize("words", [words for words, _ in COMMANDS if "--help" not in words], ids=" ".join)
def test_a_commands_settings_exist(here, words):
    assert configuration(words[0], words[1:])


@pytest.mark.parametrize(("words", "shown"), [pair for pair in COMMANDS if pair[1]], ids=lambda value: str(value[0]))
def test_the_output_that_is_shown_is_the_output(here, capsys, words, shown):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(line.strip() in printed for line in shown.splitlines())


@pytest.mark.slow
def test_commands_run(here, capsys):
    """One after the other, in one folder; a report is made of the first comparison."""
    for words, _ in COMMANDS:
        if words[0] not in NOT_RUN:
            place = next(iter(here.glob("outputs/compare/*")), Path("nowhere"))
            arguments = [word.replace("outputs/compare/TIME", str(place)) for word in words]
            assert main(arguments) == 0, (arguments, capsys.readouterr().err)
    assert (here / "theirs.safetensors").exists()
