"""What a results folder says of itself: the document, the manifest, and how both are read back."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dali.experiments.output.document import Document, Items, Paragraph, Picture, Section, Table
from dali.experiments.output.folder import folder
from dali.experiments.output.manifest import Manifest
from dali.policies.types import InputError

WORDS = st.text(max_size=9)
TABLES = st.integers(1, 3).flatmap(
    lambda width: st.builds(
        Table,
        st.lists(WORDS, min_size=width, max_size=width),
        st.lists(st.lists(WORDS, min_size=width, max_size=width), max_size=3),
        WORDS,
    )
)
BLOCKS = st.lists(
    st.one_of(
        st.builds(Paragraph, WORDS),
        st.builds(Items, st.lists(WORDS, max_size=3)),
        st.builds(Picture, WORDS),
        TABLES,
    ),
    max_size=4,
)
DOCUMENTS = st.builds(
    Document, WORDS, st.lists(WORDS, max_size=3), BLOCKS, st.lists(st.builds(Section, WORDS, BLOCKS), max_size=3)
)

EVERYTHING = Document(
    "Title",
    ["one", "two"],
    [Paragraph("Said."), Table(["a", "bb"], [["x", "1"]], "Caption."), Picture("p.png")],
    [Section("First", [Items(["y"])]), Section("Second", [Table(["c"], [])])],
)


# ---- the document ----------------------------------------------------------------------------------


def test_markdown_by_hand():
    assert EVERYTHING.markdown("by hand") == (
        "# Title\n\n- one\n- two\n\nSaid.\n\nCaption.\n\n| a | bb |\n|---|---:|\n| x |  1 |\n\n![p.png](p.png)\n\n"
        "## First\n\n- y\n\n## Second\n\n| c |\n|---|\n\nby hand\n"
    )
    assert Document("Alone").markdown("s") == "# Alone\n\ns\n"


@given(DOCUMENTS)
def test_a_document_survives_json(document):
    assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document


def changed(path, value):
    """EVERYTHING as JSON with one value of it replaced."""
    whole = json.loads(json.dumps(EVERYTHING.to_json()))
    inner = whole
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return whole


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "document: found 3, expected title, notes, blocks, sections"),
        ({"title": "x"}, "document: found no notes, expected title, notes, blocks, sections"),
        (changed(["title"], 3), "document.title: found 3, expected text"),
        (changed(["notes"], "one"), "document.notes: found 'one', expected a list"),
        (changed(["notes", 1], None), "document.notes[1]: found None, expected text"),
        (changed(["blocks", 0], "Said."), "document.blocks[0]: found 'Said.', expected one of paragraph, list, table"),
        (changed(["blocks", 0], {"script": "x"}), "document.blocks[0]: found {'script': 'x'}, expected one of"),
        (changed(["blocks", 0], {"paragraph": "x", "list": []}), "document.blocks[0]: found {'paragraph': 'x'"),
        (changed(["blocks", 0, "paragraph"], ["x"]), "document.blocks[0].paragraph: found ['x'], expected text"),
        (changed(["blocks", 1, "table", "rows", 0], ["x"]), "table.rows[0]: found 1 cells, expected 2"),
        (changed(["blocks", 1, "table", "rows", 0, 1], 1.5), "document.blocks[1].table.rows[0][1]: found 1.5"),
        (changed(["sections", 0], []), "document.sections[0]: found [], expected heading, blocks"),
        (changed(["sections", 1, "blocks", 0, "table", "header"], [["c"]]), "header[0]: found ['c'], expected text"),
        (changed(["title"], ["x" * 99]), "document.title: found ['xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., expected"),
    ],
)
def test_every_field_is_checked(value, says):
    with pytest.raises(InputError) as caught:
        Document.from_json(value)
    assert says in str(caught.value)


# ---- the manifest ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a table, a figure and a timeline."""
    config = OmegaConf.create({"a": 1})
    with folder(str(tmp_path_factory.mktemp("out")), "compare", config, ["a=1", "b=[x, y]"]) as made:
        pd.DataFrame({"policy": ["p"], "batch": [1]}).to_parquet(made.place / "results.parquet", index=False)
        (made.place / "p.png").touch()
        (made.place / "p.timeline.json.gz").touch()
        made.document = EVERYTHING
        assert not made.final.exists()
    return made.final


def test_a_folder_describes_itself(written):
    manifest = Manifest.read(written / "manifest.json")
    assert manifest.verb == "compare"
    assert manifest.command == "dali compare a=1 'b=[x, y]'"
    assert manifest.document == EVERYTHING
    assert manifest.tables == {"results.parquet": ["policy", "batch"]}
    assert (manifest.figures, manifest.timelines) == (["p.png"], ["p.timeline.json.gz"])
    assert manifest.stamp.startswith(f"dali-moe {manifest.release}, numpy ")
    assert (written / "summary.md").read_text() == EVERYTHING.markdown(manifest.stamp)
    assert (written / "config.yaml").read_text() == "a: 1\n"


@given(DOCUMENTS, st.none() | WORDS)
def test_a_manifest_survives_its_file(written, document, command):
    said = replace(Manifest.read(written / "manifest.json"), document=document, command=command)
    file = written.parent / "copy.json"
    file.write_text(said.to_text(), encoding="utf-8")
    assert Manifest.read(file) == said


def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path):
    def interrupted():
        with folder(str(tmp_path), "gap", OmegaConf.create({}), []) as made:
            (made.place / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "gap").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found.update(format="x"), "found format 'x', expected dali-results"),
        (lambda found: found.pop("format"), "found no format, expected format, version"),
        (lambda found: found.update(version=2), "found version 2, expected 1: another dali-moe wrote it"),
        (lambda found: found.update(version=True), "found version True, expected 1"),
        (lambda found: found.update(version="1"), "found version '1', expected 1"),
        (lambda found: found.pop("stamp"), "manifest: found no stamp, expected verb, release, stamp"),
        (lambda found: found.update(verb=["compare"]), "verb: found ['compare'], expected text"),
        (lambda found: found.update(command=0), "command: found 0, expected text"),
        (lambda found: found.update(document=None), "document: found None, expected title"),
        (lambda found: found.update(tables=["results.parquet"]), "tables: found ['results.parquet'], expected a map"),
        (lambda found: found["tables"].update(more=[1]), "tables.more[0]: found 1, expected text"),
        (lambda found: found.update(figures={"p.png": 1}), "figures: found {'p.png': 1}, expected a list"),
        (lambda found: found.update(timelines=[None]), "timelines[0]: found None, expected text"),
    ],
)
def test_a_manifest_is_checked_field_by_field(change, says, written, tmp_path):
    found = json.loads((written / "manifest.json").read_text())
    change(found)
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(InputError) as caught:
        Manifest.read(tmp_path / "manifest.json")
    assert str(caught.value).startswith(f"{tmp_path / 'manifest.json'}: ")
    assert says in str(caught.value)


def test_a_manifest_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json: no such file"):
        Manifest.read(tmp_path / "manifest.json")
    for content, says in (
        ("{", "not a whole JSON file"),
        ("[]", "expected format, version"),
        ("[" * 70 + "]" * 70, "deep"),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=says):
            Manifest.read(tmp_path / "manifest.json")
