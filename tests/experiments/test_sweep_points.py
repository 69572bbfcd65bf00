"""Experiments, their points, and their figures beside the paper's."""

from pathlib import Path

import pandas as pd
import pytest

from dali import conf
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make_policy
from dali.experiments.verbs.sweep import verb
from dali.experiments.verbs.sweep.points import Experiment, Point, View
from dali.experiments.verbs.sweep.request import request
from dali.experiments.verbs.sweep.results import beside, gather
from dali.experiments.verbs.sweep.views import caption, means, shown, winners
from dali.policies.types import InputError

FILES = sorted((Path(conf.__file__).parent / "experiment").glob("*.yaml"))
SPEED = {"metric": "tokens_per_s", "phase": "decode", "x": "batch"}


def experiment(**fields: object) -> Experiment:
    return Experiment(name="e", title="E", source="-", **{"show": [SPEED], "policies": ["dali"], **fields})


@pytest.fixture(scope="module")
def paper() -> dict[str, Experiment]:
    """All experiments of conf, by name."""
    return {each.name: each for each in verb.experiments(configuration("sweep", ["experiment=paper"]))}


def test_the_paper_is_all_experiments(paper):
    assert {*paper, "paper"} == {file.stem for file in FILES}


@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem != "paper"])
def test_figures_are_about_points_that_exist(paper, name):
    """A misspelt policy or label would only show as a dash beside the paper's figure."""
    each = paper[name]
    points = each.points()
    labels = {label for point in points for label in point.labels.values()}
    axes = {axis: {point.axes.get(axis) for point in points} for point in points for axis in point.axes}
    for figure in each.figures:
        for wanted in (figure.of, figure.over or {}, figure.where):
            for column, value in wanted.items():
                assert value in (labels if column == "policy" else axes[column])
    for view in each.views:
        assert view.x in axes
        assert all(value in axes[column] for column, value in view.where.items())
        assert view.panel is None or view.panel in axes
    assert each.differs
    assert each.own is None or each.own in labels


@pytest.mark.slow
@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem != "paper"])
def test_points_compose(paper, name):
    points = paper[name].points()
    for point in (points[0], points[-1]):
        assert request(point, [0]).key


def test_every_combination_is_a_point():
    points = experiment(grid={"batch": [1, 2], "cache_share": [0.5, 0.25]}, settings=["slices=2"]).points()
    assert [point.axes for point in points] == [
        {"batch": 1, "cache_share": 0.5},
        {"batch": 1, "cache_share": 0.25},
        {"batch": 2, "cache_share": 0.5},
        {"batch": 2, "cache_share": 0.25},
    ]
    assert points[1].overrides == [
        "trace=${model}", "slices=2", "policies=['dali']", "workload.batch=1", "cache_share=0.25",
    ]  # fmt: skip


def test_labels_stand_for_overrides_and_names_for_entries():
    grid = {"link": {"slow": ["platform.link_gbs=6"], "none": []}, "size": [1, 8]}
    points = experiment(grid=grid, policies={"with {size}": "dali prefetch.size={size}"}).points()
    assert [point.axes for point in points][::2] == [{"link": "slow", "size": 1}, {"link": "none", "size": 1}]
    assert points[1].labels == {"dali prefetch.size=8": "with 8"}
    assert points[1].overrides[-2:] == ["policies=['dali prefetch.size=8']", "platform.link_gbs=6"]
    assert points[2].overrides[-1] == "policies=['dali prefetch.size=1']"


def test_parts_stand_beside_each_other():
    parts = {"a": {"grid": {"batch": [1, 2]}}, "b": {"settings": ["slices=2"], "policies": ["naive"]}}
    points = experiment(grid={"batch": [4]}, parts=parts).points()
    assert [(point.axes["batch"], list(point.labels)) for point in points] == [
        (1, ["dali"]),
        (2, ["dali"]),
        (4, ["naive"]),
    ]
    assert "slices=2" in points[2].overrides
    assert "slices=2" not in points[0].overrides


def test_settings_of_the_user_beat_the_experiments():
    each = experiment(grid={"batch": [1]}, settings=["trace.sequences=9", "workload.prompt=4"])
    (point,) = each.points(["workload.prompt=8", "trace=a/b.safetensors"])
    # Another trace has no use for the profile's settings.
    assert "trace.sequences=9" not in point.overrides
    assert point.overrides[-2:] == ["workload.prompt=8", "trace=a/b.safetensors"]
    with pytest.raises(InputError, match=r"workload\.batch=3: found a setting that experiment e varies"):
        each.points(["workload.batch=3"])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"show": []}, "found no view in show"),
        ({"show": [{**SPEED, "phase": "encode"}]}, "found phase 'encode'"),
        ({"show": [{**SPEED, "colour": "red"}]}, "found 'colour'"),
        ({"parts": {"a": {"gird": {}}}}, "found 'gird'"),
        ({"paper": [{"what": "x", "value": 1.0, "off": {}}]}, "found 'off'"),
    ],
)
def test_a_bad_experiment_is_named(fields, named):
    with pytest.raises(InputError, match=named):
        experiment(**fields).views  # noqa: B018


def test_an_entry_may_take_another_file_for_a_part():
    _, policy = make_policy("compare", [], "dali cache=lru cache.fill=empty prefetch=none staging=9")
    assert (type(policy.cache).__name__, policy.cache.fill) == ("LRU", "empty")
    assert type(policy.prefetch).__name__ == "NoPrefetch"
    assert policy.staging == 9
    with pytest.raises(InputError, match="cache: found 'nope', expected one of belady"):
        make_policy("compare", [], "dali cache=nope")


# ---- figures ---------------------------------------------------------------------------------------


def rows(**columns: list) -> pd.DataFrame:
    return pd.DataFrame({"experiment": "e", "phase": "decode", "seed": 0, **columns})


def test_ratios_are_of_the_same_point_then_averaged():
    each = experiment(
        grid={"batch": [1, 2]},
        paper=[
            {"what": "a over b", "value": 2.0, "of": {"policy": "a"}, "over": {"policy": "b"}},
            {"what": "a at 2", "value": 4.0, "of": {"policy": "a"}, "where": {"batch": 2}},
            {"what": "c", "value": 1.0, "of": {"policy": "c"}},
        ],
    )
    table = rows(batch=[1, 1, 2, 2], policy=["a", "b", "a", "b"], tokens_per_s=[3.0, 1.0, 6.0, 6.0])
    over, at, nothing = beside(each, table)
    # (3 / 1 + 6 / 6) / 2, between 1 and 3; not (3 + 6) / (1 + 6).
    assert (over.ours, over.least, over.most, over.ratio) == (2.0, 1.0, 3.0, 1.0)
    assert (at.ours, at.ratio) == (6.0, 1.5)
    assert nothing.ours != nothing.ours


def test_our_own_policy_stands_in_the_place_of_the_papers():
    figures = [
        {"what": "a over b", "value": 2.0, "of": {"policy": "a"}, "over": {"policy": "b"}},
        {"what": "a", "value": 4.0, "of": {"policy": "a"}},
    ]
    table = rows(batch=[1, 1, 1, 2, 2, 2], policy=["a", "b", "c"] * 2, tokens_per_s=[3.0, 1.0, 5.0, 6.0, 6.0, 6.0])
    over, alone = beside(experiment(grid={"batch": [1, 2]}, paper=figures, own="c"), table)
    # (5 / 1 + 6 / 6) / 2; a speed by itself has nothing to be compared with.
    assert (over.ours, over.own) == (2.0, 3.0)
    assert alone.own != alone.own
    assert all(each.own != each.own for each in beside(experiment(grid={"batch": [1, 2]}, paper=figures), table))


def test_whole_numbers_stay_whole_beside_an_experiment_without_the_axis(tmp_path):
    found = pd.DataFrame({"entry": ["dali"], "batch": [1], "seed": [0], "phase": ["decode"]})
    for key in ("x", "y"):
        found.to_parquet(tmp_path / f"{key}.parquet")
    points = [Point("e", {"size": 4, "share": 1}, [], {"dali": "d"}), Point("f", {"share": 0.5}, [], {"dali": "d"})]
    table = gather([(point, key) for point, key in zip(points, ("x", "y"), strict=True)], tmp_path)
    assert (table["size"].dtype, table["share"].dtype) == ("Int64", "float64")
    assert table["size"].tolist() == [4, pd.NA]
    assert table["share"].tolist() == [1.0, 0.5]


def test_tables_are_means_in_order_of_appearance():
    table = rows(batch=[4, 4, 1, 1, 1], policy=["b", "a", "b", "a", "a"], tokens_per_s=[1.0, 2.0, 3.0, 4.0, 6.0])
    found = means(View(**SPEED), table)
    assert list(found.index) == ["b", "a"]
    assert list(found.columns) == [4, 1]
    assert found.loc["a"].tolist() == [2.0, 5.0]


def test_a_line_without_values_is_left_out():
    table = rows(batch=[1, 1, 2], policy=["a", "b", "b"], tokens_per_s=[float("nan"), 1.0, 2.0])
    assert list(means(View(**SPEED), table).index) == ["b"]


def test_a_view_may_be_limited_to_some_rows():
    table = rows(batch=[1, 1, 2], policy=["a", "b", "a"], tokens_per_s=[1.0, 2.0, 3.0])
    view = View(**SPEED, where={"batch": 1})
    assert shown(view, table)["tokens_per_s"].tolist() == [1.0, 2.0]
    assert shown(View(**{**SPEED, "phase": "prefill"}), table).empty
    assert caption(view) == "tokens per s, decode, batch 1"


def test_the_winner_and_its_lead_over_the_second():
    table = rows(
        batch=[1, 1, 1, 2, 2], share=[0.5] * 5, policy=["a", "b", "c", "a", "b"], tokens_per_s=[2.0, 3.0, 1.0, 8.0, 4.0]
    )
    who, lead = winners(View(**SPEED, line="share", kind="winner"), table)
    assert who.loc[0.5].tolist() == ["b", "a"]
    assert lead.loc[0.5].tolist() == [1.5, 2.0]
