"""`dali report`: the page from a results folder, and how it behaves in a browser."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import TOY

from dali.experiments.cli import main
from dali.experiments.output.document import Document, Items, Paragraph, Section, Table
from dali.experiments.output.manifest import Manifest
from dali.experiments.page import grid, svg
from dali.experiments.page.contents import Contents
from dali.experiments.page.page import render
from dali.experiments.page.reading import Folder
from dali.experiments.page.timeline import Timeline
from dali.experiments.verbs.gap.figures import waterfall
from dali.policies.columns import DENSE, LANES
from dali.sim.timeline import Spans

HOSTILE = "<script>boom()</script> & \"dali\" 'x' $\\q$ </title>"
# Qwen3-30B-A3B's expert, which the toy model's units have the shape of: 3 matrices of 2048 x 768 in two bytes.
UNIT_BYTES = 3 * 2048 * 768 * 2


class Elements(HTMLParser):
    """Every element's name and attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        self.text += "" if self._silent else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


# ---- the file ------------------------------------------------------------------------------------


def test_everything_is_in_the_one_file(report, compared, capsys):
    text = report.read_text()
    elements = Elements(text)
    assert not re.search(r"\b(src|href)=\"(?!data:image/png;base64,|#)", text)
    assert not re.search(r"url\((?!#)|@import|<link", text)
    # Four figures of the comparison, all drawn anew, each with a description and a table; and the timeline.
    assert [each.get("role") for each in elements.all("svg")] == ["img"] * 4 + ["application"]
    assert all(each.get("aria-label") for each in elements.all("svg"))
    assert not elements.all("img")
    assert text.count("Data of this figure") == 4
    for heading in ("In short", "Results", "Figures", "One step, machine by machine: step 3 (decode)"):
        assert f"<h2>{heading}</h2>" in text
    assert "dali-moe 0." in elements.text
    assert "cache_share: 0.75" in elements.text
    assert "rtx3090_epyc7532" in elements.text


def test_ids_are_unique_and_references_resolve(report):
    elements = Elements(report.read_text())
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {attributes["xlink:href"] for _, attributes in elements.found if "xlink:href" in attributes}
    assert used <= {f"#{name}" for name in ids}
    assert used


def test_compare_and_report_end_with_the_same_sentences(compared, report, capsys):
    before = report.read_bytes()
    assert main(["report", f"results={compared}"]) == 0
    said = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    # The same folder gives the same page.
    assert report.read_bytes() == before
    summary, text = (compared / "summary.md").read_text(), Elements(report.read_text()).text
    assert len(said) == 3
    assert said[-1].startswith("What would help")
    for sentence in said:
        assert f"- {sentence}\n" in summary
        assert text.count(sentence) == 1


def test_what_helps_is_what_a_comparison_on_that_machine_finds(compared, toy, tmp_path):
    """A link twice as fast, simulated as a what-if and as a machine of its own: the same tokens/s."""
    helped = pd.read_parquet(compared / "what_if.parquet").set_index("change").loc["a link twice as fast"]
    policies = f"policies=[llama_cpp,{helped['policy']}]"
    settings = [*TOY, "workload.batch=3", "platform.link_gbs=50", policies]
    assert main(["compare", f"trace={toy}", f"output={tmp_path}", *settings]) == 0
    (place,) = (tmp_path / "compare").iterdir()
    speeds = pd.read_parquet(place / "results.parquet").set_index(["policy", "phase"])["tokens_per_s"]
    assert helped["tokens_per_s"] == pytest.approx(speeds.loc[helped["policy"], "decode"], rel=1e-12)
    before = pd.read_parquet(compared / "results.parquet").set_index(["policy", "batch", "phase"])["tokens_per_s"]
    assert helped["gain"] == pytest.approx(helped["tokens_per_s"] / before.loc[helped["policy"], 3, "decode"])


@pytest.fixture(scope="module")
def hostile(compared, tmp_path_factory) -> Path:
    """The comparison with a policy, a setting, a file, a process and words of a hostile name, and its page."""
    place = tmp_path_factory.mktemp("hostile") / "results"
    shutil.copytree(compared, place)
    for name in ("results", "steps", "what_if"):
        data = pd.read_parquet(place / f"{name}.parquet")
        data["policy"] = data["policy"].replace("dali", HOSTILE)
        data.to_parquet(place / f"{name}.parquet", index=False)
    (place / "summary.json").write_text(json.dumps({HOSTILE: {"<b>": HOSTILE}}))
    blocks = [Paragraph(HOSTILE), Items([HOSTILE]), Table([HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], HOSTILE)]
    document = Document(HOSTILE, [HOSTILE], blocks, [Section(HOSTILE, blocks)])
    said = replace(Manifest.read(place / "manifest.json"), stamp=HOSTILE, command=HOSTILE, document=document)
    (place / "manifest.json").write_text(said.to_text())
    # A class that would make a folder, were it looked up.
    model = {"_target_": "pathlib.Path.mkdir", "self": str(place / "made")}
    (place / "config.yaml").write_text(json.dumps({"model": model, "hostile": HOSTILE, "platform": {"name": HOSTILE}}))
    Timeline.read(place / "dali.timeline.json.gz")[0].spans.save(place / "dali.timeline.json.gz", HOSTILE)
    (place / 'old"<b>.png').write_bytes((compared / "busy.png").read_bytes())
    assert main(["report", f"results={place}"]) == 0
    return place / "report.html"


def test_names_are_data(hostile):
    text = hostile.read_text()
    assert "<script>boom" not in text
    elements = Elements(text)
    assert len(elements.all("script")) == 2  # the data and the timeline
    assert not elements.all("b")
    assert elements.text.count(HOSTILE) > 10
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert HOSTILE in [run["name"] for run in json.loads(data)["runs"]]


def test_nothing_that_a_configuration_names_is_run(hostile):
    assert not (hostile.parent / "made").exists()
    (data,) = re.findall(r'id="data">(.*?)</script>', hostile.read_text(), re.S)
    run = json.loads(data)["runs"][0]
    assert set(run["lanes"][1][7::8]) == {0}  # bytes are not known then


def test_a_folder_without_a_manifest(tmp_path, capsys):
    """Tables of any shape, values, and pictures as they are: what its columns look like says nothing of a verb."""
    table = pd.DataFrame({"model": ["a"] * 301, "share": np.linspace(0, 1, 301), "ids": [[1, 2]] * 301})
    table.to_parquet(tmp_path / "results.parquet")
    stages = ["dali", "exact assignment", "bound"]
    pd.DataFrame({"batch": [1] * 3, "stage": stages, "ms_per_token": [4.0, 3.0, 2.5]}).to_parquet(
        tmp_path / "waterfall.parquet"
    )
    (tmp_path / "summary.json").write_text('{"gap": {"mean": 0.00123456, "by": [1, 2]}, "none": null}')
    (tmp_path / "summary.md").write_text("# Gaps\n\nAll of them.\n")
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    assert main(["report", f"results={tmp_path}"]) == 0
    text = (tmp_path / "report.html").read_text()
    elements = Elements(text)
    said = "There is no manifest.json here, so that the verb is not known: tables, values and pictures as they are."
    assert f"- {said}\n" in capsys.readouterr().out
    assert elements.text.count(said) == 1
    assert f"<title>{tmp_path.parent.name}/{tmp_path.name}</title>" in text
    assert "The first 300 of 301 rows; all are in results.parquet." in elements.text
    assert "exact assignment" in elements.text
    assert re.search(r"gap\.mean</td><td class=\"n\">0\.001235<", text)
    assert re.search(r"gap\.by</td><td class=\"n\">1, 2<", text)
    assert [each["alt"] for each in elements.all("img")] == [
        "p.png, as it is in the folder, which does not hold its data"
    ]
    assert not elements.all("svg")
    assert 'id="chart"' not in text
    assert "The folder holds no config.yaml." in text


def test_results_without_timelines(compared, tmp_path):
    for name in ("results.parquet", "manifest.json"):
        shutil.copy(compared / name, tmp_path)
    assert main(["report", f"results={tmp_path}"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert len(Elements(text).all("svg")) == 3
    assert "prefetch_recall" in text


def test_words_of_a_document(compared, tmp_path):
    """Its title, notes, first blocks and sections, where a reader looks for them; `names` are code."""
    folder = replace(Folder.read(compared), tables={}, timelines=[], pictures={})
    blocks = [Paragraph("All of *them*, `x<y`:"), Table(["a", "b"], [["one", "2"]], "Pairs")]
    document = Document("Title", ["went in"], blocks, [Section("More", [Items(["of that"])])])
    text = render(replace(folder, manifest=replace(folder.manifest, document=document)), Contents())
    assert "<title>Title</title>" in text
    assert "<p>All of *them*, <code>x&lt;y</code>:</p>" in text
    assert '<tr><td>one</td><td class="n">2</td></tr>' in text
    assert 'aria-label="Pairs"' in text
    headings = re.findall("<h2>(.*?)</h2>|<summary>(More)</summary>|<li>(.*?)</li>", text)
    assert ["".join(each) for each in headings][:5] == ["Results", "Inputs and notes", "went in", "In full", "More"]


# ---- bad input -----------------------------------------------------------------------------------


def spoilt(place: Path, what: str) -> None:
    timeline = place / "dali.timeline.json.gz"
    span = {"ph": "X", "pid": 1, "tid": 0, "ts": 0, "dur": 1, "name": "layer 0 unit 1"}
    args = {"step": 0, "layer": 0, "unit": 1, "tokens": 1, "resident": True}

    manifest = place / "manifest.json"

    def events(*rows: object) -> None:
        timeline.write_bytes(gzip.compress(json.dumps({"traceEvents": rows}).encode()))

    def results(changed: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        changed(pd.read_parquet(place / "results.parquet")).to_parquet(place / "results.parquet", index=False)

    {
        "truncated": lambda: timeline.write_bytes(timeline.read_bytes()[:-100]),
        "no gzip": lambda: timeline.write_bytes(b"{}"),
        "damaged": lambda: timeline.write_bytes(timeline.read_bytes()[:500] + b"\0" * 500),
        "no json": lambda: timeline.write_bytes(gzip.compress(b"{")),
        "a list": lambda: timeline.write_bytes(gzip.compress(b"[1, 2]")),
        "no spans": lambda: events(),
        "no args": lambda: events(span),
        "another lane": lambda: events({**span, "tid": 5, "args": args}),
        "backwards": lambda: events({**span, "dur": -1, "args": args}),
        "not a number": lambda: events({**span, "ts": float("nan"), "args": args}),
        "huge": lambda: events({**span, "args": {**args, "unit": 1 << 40}}),
        "results": lambda: (place / "results.parquet").write_bytes(b"PAR1 no more"),
        "json": lambda: (place / "summary.json").write_text("{"),
        "config": lambda: (place / "config.yaml").write_text("a: [1"),
        "config list": lambda: (place / "config.yaml").write_text("[1, 2]"),
        "encoding": lambda: (place / "config.yaml").write_bytes(b"\xff\xfe\xff"),
        "deep": lambda: (place / "summary.json").write_text("[" * 10**5),
        "deeper than any": lambda: (place / "summary.json").write_text("[" * 99 + "]" * 99),
        "half a letter": lambda: (place / "summary.json").write_text('"\\ud800"'),
        "manifest": lambda: manifest.write_text(manifest.read_text()[:-5]),
        "another format": lambda: manifest.write_text('{"format": "other", "version": 1}'),
        "another version": lambda: manifest.write_text('{"format": "dali-results", "version": 2}'),
        "another verb": lambda: manifest.write_text(manifest.read_text().replace('"compare"', '"os.system"')),
        "no column": lambda: results(lambda data: data.drop(columns="link_swap")),
        "words": lambda: results(lambda data: data.assign(speedup="fast")),
        "numbers": lambda: results(lambda data: data.assign(policy=1.0)),
        "no rows": lambda: results(lambda data: data[:0]),
        "rows twice": lambda: results(lambda data: pd.concat([data, data])),
        "no results": lambda: (place / "results.parquet").unlink(),
    }[what]()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        *((each, "dali.timeline.json.gz: not a whole gzip file") for each in ("truncated", "no gzip", "damaged")),
        ("no json", "dali.timeline.json.gz: not a whole JSON file"),
        ("a list", "dali.timeline.json.gz: not a timeline of ours"),
        ("no spans", "not a timeline of ours (ValueError: no spans)"),
        ("no args", "not a timeline of ours (KeyError: 'args')"),
        ("another lane", "expected lanes 0 to 4"),
        ("backwards", "a span does not end after its start"),
        ("not a number", "a span does not end after its start"),
        ("huge", "not a timeline of ours (OverflowError"),
        ("results", "results.parquet: not a whole parquet file"),
        ("json", "summary.json: not a whole JSON file"),
        ("config", "config.yaml: not a configuration"),
        ("config list", "config.yaml: found list, expected a configuration"),
        ("encoding", "config.yaml: not a UTF-8 text"),
        ("deep", "summary.json: not a whole JSON file"),
        ("deeper than any", "summary.json: found values nested deeper than 64"),
        ("half a letter", "summary.json: not a whole JSON file"),
        ("manifest", "manifest.json: not a whole JSON file"),
        ("another format", "manifest.json: found format 'other', expected dali-results"),
        ("another version", "manifest.json: found version 2, expected 1: another dali-moe wrote it"),
        (
            "another verb",
            "manifest.json: found verb 'os.system', expected one of compare, predict, gap, backtest, run, sweep,",
        ),
        ("no column", "results.parquet: found no column link_swap"),
        ("words", "in column speedup, expected numbers"),
        ("numbers", "results.parquet: found float64 in column policy, expected text"),
        ("no rows", "results.parquet: found no rows"),
        ("rows twice", "results.parquet: found rows with the same policy, batch, phase, expected each once"),
        ("no results", "results.parquet: no such file"),
    ],
)
def test_a_damaged_file_is_one_line_and_no_page(what, says, compared, tmp_path, capsys):
    place = tmp_path / "spoilt"
    shutil.copytree(compared, place, ignore=shutil.ignore_patterns("report.html"))
    spoilt(place, what)
    before = sorted(place.iterdir())
    assert main(["report", f"results={place}"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(place.iterdir()) == before


def test_no_results_folder(compared, tmp_path, capsys):
    for results, says in (
        (tmp_path / "none", "no such folder"),
        (compared / "results.parquet", "found a file, expected a folder"),
        (tmp_path, "found none of manifest.json, results.parquet, summary.json in it\n"),
        (compared.parent, f"; there are 1 in it, such as {compared}\n"),
    ):
        assert main(["report", f"results={results}"]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert main(["report"]) == 2
    assert "results: found nothing, expected a value: dali report results=..." in capsys.readouterr().err
    assert main(["report", f"results={compared}", f"output={tmp_path / 'no' / 'r.html'}"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- pieces --------------------------------------------------------------------------------------


TEXT = st.text(alphabet="<>&\"'|-#*`![]() \nab", max_size=80)


@given(TEXT, TEXT, TEXT)
def test_words_make_only_elements_of_ours(compared, one, two, three):
    blocks = [Paragraph(one), Items([two, three]), Table([one, two], [[two, three]], three)]
    document = Document(three, [one], blocks, [Section(two, blocks)])
    manifest = Manifest("compare", one, two, three, document, {}, [], [])
    elements = Elements(render(Folder(compared, manifest, {}, {}, None, "", [], {}, []), Contents(sentences=[one])))
    assert {name for name, _ in elements.found} <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "main", "section", "h2", "p", "ul", "li",
        "code", "div", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "footer", "script",
    }  # fmt: skip
    assert {key for _, attributes in elements.found for key in attributes} <= {
        "lang", "charset", "name", "content", "http-equiv", "class", "scope", "tabindex", "role", "aria-label", "type",
        "id",
    }  # fmt: skip


@given(st.integers(0, 0xFFFFFF))
def test_every_colour_stands_out_on_the_dark_page(value):
    colour = f"#{value:06x}"
    lighter = svg.lightened(colour)
    assert svg.contrast(lighter, svg.DARK_PAPER) >= svg.CONTRAST
    if svg.contrast(colour, svg.DARK_PAPER) >= svg.CONTRAST:
        assert lighter == colour


def test_contrast_is_that_of_the_guidelines():
    # WCAG 2.2: black on white is 21; #777777 on white is the well-known near miss of 4.5.
    assert svg.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert svg.contrast("#ffffff", "#777777") == pytest.approx(4.48, abs=0.005)


def test_numbers_for_people():
    values = [1.0, 0.1234567, 123456.7, float("nan"), None, np.float32(0.5), 3, "x", 1e300]
    assert [grid.number(value) for value in values] == [
        "1", "0.1235", "123457", "–", "–", "0.5", "3", "x", "1e+300",
    ]  # fmt: skip


def test_a_step_is_packed_by_lane():
    """Step 1 runs from 2 to 5 ms; a prefetch of step 0 still runs at its start, a swap begins after its end."""
    rows = [
        (0.0, 1.0, 0, 0, 0, DENSE, 4, 0),
        (1.5, 2.5, 3, 0, 1, 7, 0, 0),
        (2.0, 2.25, 0, 1, 0, DENSE, 4, 0),
        (2.25, 5.0, 0, 1, 0, 3, 2, 1),
        (2.5, 4.0, 1, 1, 0, 1, 1, 0),
        (5.5, 6.0, 4, 1, 0, 2, 0, 0),
    ]
    spans = Spans(np.array([row[:2] for row in rows]) / 1e3, np.array([row[2:] for row in rows], np.int32))
    timeline = Timeline("x", spans, np.zeros(len(rows), np.int64))
    assert timeline.steps == [0, 1]
    assert timeline.packed(1, 100) == {
        "name": "x",
        "step": 1,
        "length": 30000,  # 3 ms in tenths of a microsecond
        "layers": [(0, 0)],
        "lanes": [
            [0, 2500, 1, 0, DENSE, 4, 0, 0, 2500, 27500, 1, 0, 3, 2, 1, 100],
            [5000, 15000, 1, 0, 1, 1, 0, 100],
            [],
            [-5000, 10000, 0, 1, 7, 0, 0, 100],
            [],
        ],
    }


def test_bytes_that_the_file_says_count_more_than_the_model(tmp_path):
    args = {"step": 0, "layer": 0, "unit": 1, "tokens": 1, "resident": True}
    span = {"ph": "X", "pid": 7, "tid": 0, "ts": 0, "dur": 1, "name": "layer 0 unit 1"}
    events = [{**span, "args": {**args, "bytes": 55}}, {**span, "ts": 2, "args": args}]
    path = tmp_path / "live.timeline.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    (timeline,) = Timeline.read(path)
    assert timeline.name == "live"
    assert timeline.packed(0, 100)["lanes"][0][7::8] == [55, 100]


def test_waterfall_has_a_panel_a_case():
    rows = [(batch, stage, ms) for batch in (1, 16) for stage, ms in (("dali", 4.0), ("exact", 3.0), ("bound", 2.5))]
    with matplotlib.rc_context():
        figure = waterfall(pd.DataFrame(rows, columns=["batch", "stage", "ms_per_token"]))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch 1", "batch 16"]
    widths = sorted({round(bar.get_width(), 6) for bar in figure.axes[0].patches})
    assert widths == [0.5, 1.0, 2.5, 3.0, 4.0]  # the stages, and what each saves


# ---- in a browser --------------------------------------------------------------------------------


def opened(page, report: Path, width: int = 1200, dark: bool = False) -> None:
    page.size(width, 900, dark)
    page.open(report)
    page.ask("document.getElementById('timeline').scrollIntoView()")


def read(page) -> dict[str, str]:
    """What the readout says, by field."""
    return page.ask(
        "Object.fromEntries([...document.querySelectorAll('#readout [data-field]')]"
        ".map(e => [e.dataset.field, e.querySelector('b').textContent]))"
    )


def view(page) -> list[str]:
    """The labels of the time axis."""
    return page.ask("[...document.querySelectorAll('#chart text.middle')].map(e => e.textContent)")


def spot(page, run: dict, lane: int, index: int) -> tuple[list[int], float, float]:
    """A span of the packed run, and the middle of its block on the screen while the whole step is shown."""
    span = run["lanes"][lane][8 * index : 8 * index + 8]
    left, top, width = page.ask("(r => [r.x, r.y, r.width])(document.getElementById('chart').getBoundingClientRect())")
    row = page.ask(f"+document.querySelectorAll('#chart .row')[{lane}].getAttribute('y')")
    return span, left + (span[0] + span[1] / 2) / run["length"] * width, top + row + 12


def widest(run: dict, lane: int) -> int:
    return int(np.argmax(run["lanes"][lane][1::8]))


@pytest.fixture
def runs(report) -> dict[str, dict]:
    """What the page has of each policy."""
    (data,) = re.findall(r'id="data">(.*?)</script>', report.read_text(), re.S)
    return {run["name"]: run for run in json.loads(data)["runs"]}


def choose(page, name: str) -> None:
    page.ask(
        f"(c => {{ c.value = [...c.options].findIndex(o => o.text === {json.dumps(name)}); "
        "c.dispatchEvent(new Event('change')); })(document.getElementById('run'))"
    )


def test_opens_without_errors_and_without_a_network(page, report):
    opened(page, report)
    asked = [
        event["params"]["request"]["url"] for event in page.events if event.get("method") == "Network.requestWillBeSent"
    ]
    assert asked == [report.resolve().as_uri()]
    complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert not [event for event in page.events if event.get("method") in complaints]


@pytest.mark.parametrize("lane", range(len(LANES)))
def test_hover_reads_what_the_timeline_file_says(page, report, compared, runs, lane):
    """Of the widest block of each lane: kind, unit, layer, tokens, bytes and time, as in the Chrome trace."""
    name, run = next((name, run) for name, run in runs.items() if run["lanes"][lane])
    opened(page, report)
    choose(page, name)
    span, x, y = spot(page, run, lane, widest(run, lane))
    page.mouse("mouseMoved", x, y)
    said = read(page)
    with gzip.open(compared / f"{name}.timeline.json.gz", "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X" and event["tid"] == lane]
    (event,) = [
        event
        for event in events
        if (event["args"]["layer"], event["args"]["unit"], event["args"]["step"]) == (span[3], span[4], span[2])
        and abs(event["dur"] * 10 - span[1]) <= 1
    ]
    assert said["layer"] == str(event["args"]["layer"])
    assert said["takes"] == f"{event['dur']:.1f} µs"
    dense = event["args"]["unit"] == DENSE
    kind = "GPU job, unit there or landing" if event["args"]["resident"] else "GPU job, unit copied for it"
    assert said["kind"] == ("dense part" if dense else [kind, "CPU job", "demand copy", "prefetch", "swap"][lane])
    if not dense:
        assert said["unit"] == str(event["args"]["unit"])
        assert said["bytes"] == f"{UNIT_BYTES / 1e6:.2f} MB"
    assert said.get("tokens") == (str(event["args"]["tokens"]) if lane < 2 else None)


def test_zoom_and_pan_by_mouse_and_buttons(page, report, runs):
    opened(page, report)
    choose(page, "dali")
    whole = view(page)
    _, x, y = spot(page, runs["dali"], 1, 0)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-120)
    assert view(page) == whole  # without Ctrl the wheel is the page's, which moves
    _, x, y = spot(page, runs["dali"], 1, 0)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-120, modifiers=2)
    closer = view(page)
    assert closer != whole
    page.mouse("mousePressed", x + 200, y, button="left", clickCount=1)
    page.mouse("mouseMoved", x, y, button="left", buttons=1)
    page.mouse("mouseReleased", x, y, button="left", clickCount=1)
    assert view(page) != closer
    page.ask("document.querySelector('[data-do=all]').click()")
    assert view(page) == whole
    for action in ("in", "right", "left", "out"):
        before = view(page)
        page.ask(f"document.querySelector('[data-do={action}]').click()")
        assert view(page) != before, action
    assert view(page) == whole


def test_keyboard_alone_reads_every_lane(page, report, runs):
    opened(page, report)
    choose(page, "dali")
    page.ask("document.getElementById('chart').focus()")
    page.key("ArrowDown")
    first = read(page)
    assert first["kind"] == "dense part"
    assert first["starts"] == "0.000 ms"
    page.key("ArrowRight")
    second = read(page)
    span = runs["dali"]["lanes"][0][8:16]
    assert (second["unit"], second["tokens"]) == (str(span[4]), str(span[5]))
    page.key("ArrowLeft")
    assert read(page) == first
    page.key("ArrowDown")
    assert read(page)["kind"] == "CPU job"
    whole = view(page)
    page.key("+")
    assert view(page) != whole
    page.key("0")
    page.key("Escape")
    assert read(page) == {}


def test_phone_taps_and_nothing_is_wider_than_the_screen(page, report, runs):
    opened(page, report, width=390)
    assert page.ask("document.documentElement.scrollWidth") == 390
    assert page.ask("[...document.querySelectorAll('button, select')].every(e => e.offsetHeight >= 40)")
    choose(page, "dali")
    span, x, y = spot(page, runs["dali"], 1, widest(runs["dali"], 1))
    page.tap(x, y)
    assert read(page)["unit"] == str(span[4])


def test_dark_and_print(page, report, tmp_path):
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, "
        "getComputedStyle(document.querySelector('figure svg')).fill]"
    )
    opened(page, report)
    assert page.ask(colours) == ["rgb(255, 255, 255)", "rgb(26, 29, 33)", "rgb(26, 29, 33)"]
    light = page.screenshot(tmp_path / "light.png")
    opened(page, report, dark=True)
    assert page.ask(colours) == ["rgb(20, 23, 28)", "rgb(228, 231, 234)", "rgb(228, 231, 234)"]
    assert page.screenshot(tmp_path / "dark.png") != light
    # On paper it is light, whatever the reader prefers on the screen; what is folded away and what is a button is gone.
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert page.ask(colours)[0] == "rgb(255, 255, 255)"
    assert page.ask("getComputedStyle(document.querySelector('.buttons')).display") == "none"
    assert page.ask("document.querySelector('figure details').offsetHeight") == 0
    page.call("Emulation.setEmulatedMedia", media="", features=[])
    assert page.print(tmp_path / "page.pdf").startswith(b"%PDF")
    # The configuration was unfolded for the paper, and is folded again.
    assert page.ask("document.querySelector('details.printed').open") is False


def test_hostile_names_run_nothing(page, hostile):
    opened(page, hostile)
    choose(page, HOSTILE)
    assert page.ask("document.querySelector('#run').selectedOptions[0].text") == HOSTILE
    assert page.ask("document.querySelector('#readout').textContent").startswith(HOSTILE)
    assert not [event for event in page.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
