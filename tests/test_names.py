"""Names in the sources: one thing each."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("dali", "policies", "traces", "sim", "runtime", "experiments", "tools")


def test_no_two_classes_of_one_name() -> None:
    """A leading underscore makes no other name of it to a reader."""
    places = defaultdict(list)
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places[node.name.lstrip("_")].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 100, "found hardly any class: are these the folders?"
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
