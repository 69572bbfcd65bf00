"""`dali report` on what every verb leaves behind: each figure an SVG with its table, sentences, and a readable page."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from omegaconf import OmegaConf

from dali import experiments
from dali.experiments.cli import main
from dali.experiments.output.document import Document
from dali.experiments.output.folder import described
from dali.experiments.page import svg
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.report import contents
from dali.experiments.verbs.sweep import figures
from dali.experiments.verbs.sweep.points import Experiment
from dali.experiments.verbs.sweep.shown import EXPERIMENTS

HOSTILE = '"><script>boom()</script>'
RESULTS = Path(experiments.__file__).parent / "results"
# By verb: figures drawn from data, pictures whose data the folder does not hold, words of a sentence and of the tables.
EXPECTED = {
    "gap": (3, [], "times as long as the bound", "frontier of bound"),
    "predict": (4, [], "foresees the largest share of a token's experts", "top-4 of a token"),
    "throttled_cpu": (4, ["timeline.png"], "a simulated step is off by", "error of the simulated time"),
    "sweep": (3, [], "Decode speed by CPU cores and memory channels, batch 16: ", "ours/paper"),
    "run": (2, [], "With frontier the link is the busiest machine", "tokens_per_s"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Results of each verb: what is committed, a part of the large sweep, and a run's table."""
    place = tmp_path_factory.mktemp("verbs")
    found = {name: place / name for name in EXPECTED}
    for name in ("gap", "predict", "throttled_cpu"):
        shutil.copytree(RESULTS / name, found[name])
    found["sweep"].mkdir()
    results = pd.read_parquet(RESULTS / "paper" / "results.parquet")
    kept = ["cpu", "winner"]
    results[results["experiment"].isin(kept)].to_parquet(found["sweep"] / "results.parquet")
    figure = {"what": "one over another", "paper": 2.0, "ours": 1.0, "least": 1.0, "most": 1.0, "ratio": 0.5}
    summary = {"experiments": [{"name": name, "paper": [figure]} for name in kept]}
    (found["sweep"] / "summary.json").write_text(json.dumps(summary))
    found["run"].mkdir()
    run().to_parquet(found["run"] / "results.parquet")
    (found["run"] / "run.json").write_text('{"device": "cpu", "machine": {"cpu": "a CPU of ours"}}')
    for verb in ("sweep", "run"):
        describe(found[verb], verb)
    return found


def describe(place: Path, verb: str) -> None:
    """The words and the manifest of a folder that the verb wrote."""
    for name, content in described(place, verb, f"dali {verb}", Document(verb)).items():
        (place / name).write_text(content)


def run() -> pd.DataFrame:
    shares = {"gpu_busy": 0.2, "cpu_busy": 0.1, "link_demand": 0.5, "link_prefetch": 0.25, "link_swap": 0.0}
    shares |= {"planner_share": 0.01, "copy_bandwidth_share": 0.9}
    speeds = {("dali", "decode"): 4.0, ("frontier", "decode"): 5.0, ("accelerate", "decode"): 0.5}
    rows = [
        {"policy": policy, "phase": phase, "runs": 2, "tokens_per_s": speed, "tokens_per_s_min": speed}
        | {"tokens_per_s_max": 1.1 * speed, "knows_future": False, "slots": np.nan if policy == "accelerate" else 9.0}
        | (dict.fromkeys(shares, np.nan) if policy == "accelerate" else shares)
        for (policy, phase), speed in speeds.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def pages(folders) -> dict[str, Path]:
    for place in folders.values():
        assert main(["report", f"results={place}"]) == 0
    return {name: place / "report.html" for name, place in folders.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_figure_is_an_svg_with_its_table(name, pages):
    text = pages[name].read_text()
    drawn, pictures, said, shown = EXPECTED[name]
    assert text.count('<svg xmlns="http://www.w3.org/2000/svg"') == drawn
    assert text.count("<summary>Data of this figure</summary>") == drawn
    assert re.findall(r'<img alt="(\S+),', text) == pictures
    plain = html.unescape(text)
    assert said in plain[plain.index("<h2>In short</h2>") : plain.index("<h2>Results</h2>")]
    assert shown in text[text.index("<h2>Results</h2>") : text.index("<h2>Figures</h2>")]
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "NaN" not in text


@pytest.mark.parametrize("name", ["gap", "throttled_cpu", "sweep"])
def test_no_formula_and_nothing_cut_off(name, folders):
    """Figures of a report typeset no formula, such as matplotlib's powers of ten; all of a figure is inside it."""
    for drawing in contents(Folder.read(folders[name])).drawings:
        with svg.style():
            figure = drawing.draw()
            canvas = FigureCanvasAgg(figure)
            figure.draw_without_rendering()
        for text in figure.findobj(Text):
            assert "$" not in text.get_text(), drawing.name
        whole = figure.get_tightbbox(canvas.get_renderer())
        width, height = figure.get_size_inches()
        slack = 0.1  # inches
        assert min(whole.x0, whole.y0, width - whole.x1, height - whole.y1) > -slack, drawing.name


def test_the_bound_of_a_case_is_in_the_headline(pages):
    text = pages["gap"].read_text()
    results = pd.read_parquet(RESULTS / "gap" / "results.parquet")
    case = results[(results["scene"] == "mixtral_8x7b") & (results["cache_share"] == 0.5) & (results["batch"] == 1)]
    speeds = case[case["phase"] == "decode"].set_index("name")["tokens_per_s"]
    (row,) = re.findall(r"<tr><td>mixtral_8x7b, 50%, 1</td>(.*?)</tr>", text)[:1]
    assert row.endswith(f'<td class="n">{speeds["frontier"] / speeds["bound"]:.1%}</td>')
    assert f"({speeds['frontier'] / speeds['dali']:.2f}x)" in row


def test_data_of_a_map_name_winner_and_lead(folders):
    (winner,) = [each for each in contents(Folder.read(folders["sweep"])).drawings if "winner" in each.name]
    assert list(winner.data.columns) == ["model", "cache_share", "batch 1", "batch 4", "batch 16", "batch 64"]
    results = pd.read_parquet(folders["sweep"] / "results.parquet")
    at = (results["experiment"] == "winner") & (results["model"] == "mixtral_8x7b") & (results["phase"] == "decode")
    point = results[at & (results["cache_share"] == 0.9) & (results["batch"] == 64)]
    (name, best), (_, next_best), *_ = point.groupby("policy")["tokens_per_s"].mean().nlargest(2).items()
    row = winner.data[(winner.data["model"] == "mixtral_8x7b") & (winner.data["cache_share"] == 0.9)].iloc[0]
    assert row["batch 64"] == f"{name} {best / next_best:.2f}x"


def test_every_view_of_every_experiment_has_a_drawing_of_its_own():
    results = pd.read_parquet(RESULTS / "paper" / "results.parquet")
    for name, rows in results.groupby("experiment"):
        settings = OmegaConf.to_container(OmegaConf.load(EXPERIMENTS / f"{name}.yaml"))
        experiment = Experiment(**{key: value for key, value in settings.items() if key != "_target_"})
        drawings = figures.drawings(experiment, rows)
        assert len({each.name for each in drawings}) == len(experiment.views), name


def test_an_experiment_of_the_folder_counts_more_than_ours(folders, tmp_path):
    """Its own configuration says what is shown; one that nobody knows is shown as a table."""
    shutil.copytree(folders["sweep"], tmp_path / "other", ignore=shutil.ignore_patterns("report.html"))
    place = tmp_path / "other"
    results = pd.read_parquet(place / "results.parquet")
    shown = [{"metric": "hit_rate", "phase": "decode", "x": "cores", "where": {"model": "mixtral_8x7b"}}]
    own = {"_target_": "os.mkdir", "name": HOSTILE, "title": HOSTILE, "source": "", "show": shown}
    (place / "config.yaml").write_text(json.dumps({"experiment": own}))
    results["experiment"] = results["experiment"].replace({"winner": "../unknown", "cpu": HOSTILE})
    results.to_parquet(place / "results.parquet")
    assert [each.title for each in contents(Folder.read(place)).drawings] == [HOSTILE]
    assert main(["report", f"results={place}"]) == 0
    assert "<script>boom" not in (place / "report.html").read_text()
    assert "boom-" not in (place / "report.html").read_text()


def test_the_machine_that_was_measured(pages):
    assert "a CPU of ours" in pages["run"].read_text()
    text = pages["throttled_cpu"].read_text()
    assert "machine (measured)" in text
    assert "machine (simulated)" not in text


def test_a_folder_with_a_profile_alone(tmp_path, capsys):
    shutil.copy(RESULTS / "throttled_cpu" / "platform.yaml", tmp_path / "slow.yaml")
    assert main(["report", f"results={tmp_path}"]) == 0
    assert (tmp_path / "report.html").read_text().count("<summary>Data of this figure</summary>") == 3
    text = (tmp_path / "slow.yaml").read_text()
    for what, spoilt, says in (
        (
            "a list for a mapping",
            text.replace("geometry: {", "geometry: [{").replace("slices: 1}", "slices: 1}]"),
            "slow",
        ),
        ("a word for a number", text.replace("at: [1,", "at: [one,"), "no measured costs of ours (ValueError"),
    ):
        (tmp_path / "slow.yaml").write_text(spoilt)
        capsys.readouterr()
        assert main(["report", f"results={tmp_path}"]) == 2, what
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def changed(name, column, keep):
    """Keeps the rows of a table in which the column's values are as they should."""

    def change(place: Path) -> None:
        data = pd.read_parquet(place / f"{name}.parquet")
        data[data[column].map(keep)].to_parquet(place / f"{name}.parquet")

    return change


@pytest.mark.parametrize(
    ("verb", "spoil", "says"),
    [
        ("gap", changed("results", "name", lambda name: name != "bound"), "found a case without bound, expected dali"),
        ("gap", changed("results", "kind", lambda kind: kind != "policy"), "found policies [], expected two or more"),
        ("gap", lambda place: (place / "waterfall.parquet").unlink(), "waterfall.parquet: no such file"),
        ("run", changed("results", "policy", lambda name: name == "accelerate"), "found a phase without a policy"),
        ("predict", changed("results", "metric", lambda name: name == "cosine"), "found no row of metric recall_topk"),
        ("throttled_cpu", changed("results", "error", lambda error: error > 9), "results.parquet: found no rows"),
    ],
)
def test_what_a_verb_does_not_write_is_one_line(verb, spoil, says, folders, tmp_path, capsys):
    place = tmp_path / verb
    shutil.copytree(folders[verb], place, ignore=shutil.ignore_patterns("report.html"))
    spoil(place)
    assert main(["report", f"results={place}"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (place / "report.html").exists()


def test_a_calibration_needs_its_profile(tmp_path, capsys):
    describe(tmp_path, "calibrate")
    assert main(["report", f"results={tmp_path}"]) == 2
    assert "found no .yaml file of measured costs, expected one" in capsys.readouterr().err
    shutil.copy(RESULTS / "throttled_cpu" / "platform.yaml", tmp_path / "slow.yaml")
    assert main(["report", f"results={tmp_path}"]) == 0
    assert "machine (measured)" in (tmp_path / "report.html").read_text()


def test_a_sweep_whose_points_all_failed(tmp_path):
    """No rows and no columns: the page says what failed."""
    pd.DataFrame().to_parquet(tmp_path / "results.parquet")
    (tmp_path / "summary.json").write_text('{"experiments": [], "failures": [{"error": "no such model"}]}')
    describe(tmp_path, "sweep")
    assert main(["report", f"results={tmp_path}"]) == 0
    assert "no such model" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "own",
    [
        {"show": 3},
        {"show": [3]},
        {"show": [{"metric": "hit_rate"}]},
        {"show": [{"metric": "notes", "phase": "decode", "x": "cores"}]},
        {"show": [{"metric": "hit_rate", "phase": "decode", "x": "cores"}], "grid": 3},
        {"show": [{"metric": "hit_rate", "phase": "decode", "x": "cores"}], "policies": 3},
    ],
)
def test_an_experiment_that_makes_no_sense_is_not_drawn(own, folders, tmp_path):
    results = pd.read_parquet(folders["sweep"] / "results.parquet")
    results[results["experiment"] == "cpu"].to_parquet(tmp_path / "results.parquet")
    about = {"name": "cpu", "title": "t", "source": "s", **own}
    (tmp_path / "config.yaml").write_text(json.dumps({"experiment": about}))
    describe(tmp_path, "sweep")
    assert contents(Folder.read(tmp_path)).drawings == []


# ---- in a browser --------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_fits_a_phone_and_reads_in_both_schemes(name, dark, page, pages):
    page.size(390, 900, dark)
    page.open(pages[name])
    assert page.ask("document.documentElement.scrollWidth") == 390
    assert not [event for event in page.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    # Letters of the figures have the colour of the text around them.
    colours = page.ask(
        "[...document.querySelectorAll('figure svg')].map(e => [getComputedStyle(e).fill, getComputedStyle(e).color])"
    )
    assert set(map(tuple, colours)) == {("rgb(228, 231, 234)",) * 2 if dark else ("rgb(26, 29, 33)",) * 2}
    # A value of a figure is read from its table.
    page.ask("document.querySelector('figure summary').click()")
    assert page.ask("document.querySelector('figure td').offsetHeight") > 0
    assert page.ask("document.documentElement.scrollWidth") == 390
