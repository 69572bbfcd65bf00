"""The sentences on the results of gap, sweep, run, validate and predict, from tables small enough to count by hand."""

import pandas as pd
import pytest

from dali.experiments.verbs.gap import sentences as analysis_gap
from dali.experiments.verbs.predict import sentences as analysis_predict
from dali.experiments.verbs.run import sentences as analysis_measured
from dali.experiments.verbs.sweep import sentences as analysis_sweep
from dali.experiments.verbs.sweep.points import Experiment
from dali.experiments.verbs.validate.sentences import errors, validate

# ---- the bound and the waterfall -----------------------------------------------------------------


def fall(*cases) -> pd.DataFrame:
    stages = ["dali", "exact", "belady", "bound", "frontier"]
    return pd.DataFrame(
        [(case, stage, ms) for case, times in cases for stage, ms in zip(stages, times, strict=True)],
        columns=["batch", "stage", "ms_per_token"],
    )


def test_the_largest_step_of_a_waterfall():
    # Batch 1: 10 -> 9 -> 5 -> 4 saves 10, 40 and 10 %.  Batch 2: 20 -> 22 -> 20 -> 10 saves -10, 10 and 50 %.
    assert analysis_gap.waterfall(fall((1, [10, 9, 5, 4, 6]), (2, [20, 22, 20, 10, 12]))) == [
        "dali takes 2.00 to 2.50 times as long as the bound, 2.25 times in the median of 2 cases. On average, of its "
        "time, these save: belady 25% and exact 0% (it costs time in 1), and what belady leaves to the bound is 30%. "
        "The largest part is belady in 1 and what is left to the bound in 1 of 2 cases."
    ]


def test_a_waterfall_without_a_bound_or_of_one_case():
    (said,) = analysis_gap.waterfall(fall((1, [8, 8, 2, 1, 1])).drop(columns="batch"))
    assert said.startswith("dali takes 8.00 times as long as the bound, 8.00 times in the median of 1 case.")
    assert said.endswith("The largest part is belady in 1 of 1 case.")
    assert analysis_gap.waterfall(fall((1, [8, 8, 2, 1, 1])).query("stage != 'bound'")) == []


def test_policies_against_the_bound():
    speeds = {"dali": (10, 20), "frontier": (20, 22), "hybrimoe": (15, 30), "oracle": (24, 36), "bound": (25, 40)}
    rows = [
        {"scene": "m", "cache_share": 0.25, "batch": batch, "phase": "decode", "name": name, "tokens_per_s": values[i]}
        | {"kind": "bound" if name == "bound" else "policy"}
        for name, values in speeds.items()
        for i, batch in enumerate((1, 16))
    ]
    # 20/25 and 30/40 of the bound; frontier over dali 2 and 1.1, sqrt(2.2) = 1.483; the oracle 24/25 and 36/40.
    assert analysis_gap.policies(pd.DataFrame(rows)) == [
        "Decode: the fastest policy of 2 cases is frontier in 1 and hybrimoe in 1, with 75% to 80% of the speed of the "
        "bound (78% in the median), which no policy can beat and perhaps none can reach; farthest from it with m, 25% "
        "of the experts cached, batch 16. oracle, which knows the future, has 90% to 96% of it.",
        "frontier is 1.48 times as fast as dali in the geometric mean of 2 cases, 1.10 to 2.00 times.",
    ]


def test_gaps_of_assignments():
    rows = [("greedy", 1, 0.1, 0.5), ("greedy", 2, 0.3, 0.7), ("near", 1, 0.0, 0.0), ("near", 2, 0.0004, 0.012)]
    rows += [("exact", 1, 0.0, 0.0), ("exact", 2, 0.0, 0.0)]
    gaps = pd.DataFrame(rows, columns=["assignment", "batch", "gap_mean", "gap_max"])
    assert analysis_gap.assignments(gaps.assign(scene="m", cache_share=0.25, phase="decode")) == [
        "Longer than the exact makespan of a layer step, mean of 2 cases: greedy 20% (at worst 70%) and near 0.02% "
        "(at worst 1.2%)."
    ]


# ---- sweeps --------------------------------------------------------------------------------------


def experiment(**more) -> Experiment:
    show = [{"metric": "tokens_per_s", "phase": "decode", "x": "batch", "panel": "model"}]
    grid = {"model": ["m", "n"], "batch": [1, 2]}
    policies = {"a": "dali", "b": "frontier", "ideal": "dali cache=belady"}
    return Experiment(
        **({"name": "e", "title": "Title", "source": "", "show": show, "grid": grid, "policies": policies} | more)
    )


def rows(speeds) -> pd.DataFrame:
    """{(model, batch): speeds of a, b and the policy that knows the future}"""
    made = [
        {
            "experiment": "e",
            "model": model,
            "batch": batch,
            "policy": name,
            "entry": entry,
            "phase": "decode",
            "seed": 0,
        }
        | {"tokens_per_s": speed}
        for (model, batch), values in speeds.items()
        for (name, entry), speed in zip(experiment().policies.items(), values, strict=True)
    ]
    return pd.DataFrame(made)


NOTHING = analysis_sweep.beside(None)
MIXED = {("m", 1): (10, 12, 99), ("m", 2): (10, 15, 99), ("n", 1): (11, 10, 99), ("n", 2): (10, 10.05, 99)}


def test_who_wins_where():
    assert analysis_sweep.sentences([(experiment(), rows(MIXED))], NOTHING) == [
        "Title: b is the fastest at 2 of 4 points, 20% to 50% ahead of the next; a at 1 (n; batch 1); at 1 the best "
        "two are level (within 1%; in front b)."
    ]


def test_level_everywhere_is_no_win():
    level = dict.fromkeys(MIXED, (10, 10.05, 99))
    assert analysis_sweep.sentences([(experiment(), rows(level))], NOTHING) == [
        "Title: At all 4 points the best two policies are level (within 1%)."
    ]


def test_less_is_better_of_times():
    shown = [{"metric": "moe_time", "phase": "decode", "x": "batch", "panel": "model"}]
    results = rows(MIXED).rename(columns={"tokens_per_s": "moe_time"})
    (said,) = analysis_sweep.sentences([(experiment(show=shown), results)], NOTHING)
    assert said.startswith(
        "Title: a takes the least MoE time at 2 of 4 points, 20% to 50% ahead of the next; b at 1 (n;"
    )


def test_views_that_are_not_about_policies_have_no_winner():
    shown = [{"metric": "tokens_per_s", "phase": "decode", "x": "batch", "line": "model"}]
    assert analysis_sweep.sentences([(experiment(show=shown), rows(MIXED))], NOTHING) == []


def test_beside_the_paper():
    def figure(what, paper, ours):
        return {"what": what, "paper": paper, "ours": ours, "least": ours, "most": ours, "ratio": ours / paper}

    figures = [figure("a over b", 2.0, 0.9), figure("a over c", 2.0, 2.1), figure("share", 0.5, 0.1)]
    missing = figure("nothing", 1.0, 1.0) | {"ours": None, "least": None, "most": None, "ratio": None}
    summary = {"experiments": [{"name": "e", "paper": [*figures, missing]}, {"name": "f", "paper": [figures[1]]}]}
    beside = analysis_sweep.beside(summary)
    # Of e: 0.45, 1.05 and 0.2; one within 10 %; "share" is no factor of one over another.
    together, own = analysis_sweep.sentences(
        [(experiment(show=[{"metric": "x", "phase": "decode", "x": "batch"}]), rows(MIXED))], beside
    )
    assert own == (
        "Title: Ours are 0.450 times the paper's 3 figures in the median (0.200 to 1.05; 1 within 10%); the other way "
        "round than there: a over b (2.00 there, 0.900 here)."
    )
    assert together == (
        "All experiments: Ours are 0.750 times the paper's 4 figures in the median (0.200 to 1.05; 2 within 10%); 1 of "
        "3 factors of one system over another are the other way round."
    )
    assert (
        "| a over b |  2.00 | 0.900 |      0.450 |     0.900 |          e |"
        in analysis_sweep.headline(beside)[0].markdown()
    )


@pytest.mark.parametrize("summary", [None, [], {"experiments": 3}, {"experiments": [1, {"paper": [{}]}]}, {"gap": 1}])
def test_other_summaries_have_no_figures_of_a_paper(summary):
    assert analysis_sweep.beside(summary).empty
    assert analysis_sweep.headline(analysis_sweep.beside(summary)) == []


# ---- runs, validation, predictors ----------------------------------------------------------------


def ran(policy, speed, low, high, **more) -> dict:
    shares = {"gpu_busy": 0.5, "cpu_busy": 0.25, "link_demand": 0.5, "link_prefetch": 0.25, "link_swap": 0.0}
    row = {"policy": policy, "phase": "decode", "runs": 3, "tokens_per_s": speed, "tokens_per_s_min": low}
    row |= {"tokens_per_s_max": high, "slots": 9.0, "knows_future": False, "planner_share": 0.0125}
    return row | shares | {"copy_bandwidth_share": 0.9} | more


def test_a_run():
    results = pd.DataFrame(
        [
            ran("slow", 10.0, 9.0, 11.0),
            ran("fast", 12.0, 11.5, 13.0),
            ran("oracle", 20.0, 20.0, 20.0, knows_future=True),
            ran("accelerate", 0.5, 0.5, 0.5, slots=float("nan")),
        ]
    )
    assert analysis_measured.run(results) == [
        "Decode: fast is the fastest, 12.0 tokens/s, 20% ahead of slow; beside it accelerate 0.500 (24.0 times that). "
        "With fast the link is the busiest machine, 75% of the time (GPU 50%, CPU 25%); the planner takes 1.2% of the "
        "time, and the link, while it copies, reaches 90% of its speed."
    ]
    results.loc[0, "tokens_per_s_max"] = 11.6
    assert "20% ahead of slow (single runs of the two overlap);" in analysis_measured.run(results)[0]
    assert "say nothing of a GPU's speed" in analysis_measured.run(results, {"device": "cpu"})[-1]
    assert len(analysis_measured.run(results, {"device": "cuda"})) == 1


def test_a_validation():
    columns = ["policy", "setting", "error", "mape", "spread", "largest"]
    rows = [
        ("a", "1", -0.1, 0.1, 0.02, "link"),
        ("a", "2", -0.2, 0.2, 0.04, "link"),
        ("b", "1", 0.3, 0.3, 0.0, "dense part"),
    ]
    results = pd.DataFrame(rows, columns=columns).assign(phase="decode", measured=1.0, simulated=1.0)
    # Means of 0.1, 0.2 and 0.3; of a 0.15.
    assert validate(results) == [
        "Decode: a simulated step is off by 20.0% (mean absolute error over 3 policies and settings, 10.0% to 30.0%), "
        "too fast in 2 of them. It is closest for a (15.0%), farthest off for b (30.0%). The largest term of the error "
        "is link in 2 and dense part in 1. Repeats of one measurement differ by 2.0% in the median."
    ]
    assert "Repeats" not in validate(results.assign(spread=0.0))[0]
    lines = errors(results)[-1].markdown().splitlines()
    assert lines[-2].split("|")[1:-1] == [" a      ", " -10.0% (10.0%) ", " -20.0% (20.0%) "]
    assert lines[-1].split("|")[1:-1] == [" b      ", " +30.0% (30.0%) ", "              – "]


def test_predictors():
    columns = ["predictor", "ahead", "batch", "value", "low", "high"]
    rows = [
        ("a", 1, 1, 0.5, 0.45, 0.55),
        ("b", 1, 1, 0.6, 0.54, 0.66),
        ("c", 1, 1, 0.1, 0.1, 0.1),
        ("a", 2, 1, 0.4, 0.3, 0.5),
    ]
    results = pd.DataFrame([*rows, ("c", 1, 8, 0.9, 0.9, 0.9)], columns=columns)
    results = results.assign(metric="recall_topk", layer="all", phase="decode", gain=0.0)
    assert analysis_predict.sentences(results) == [
        "One layer ahead b foresees the largest share of a token's experts, 60.0% (95 % interval 54.0% to 66.0%); then "
        "a 50.0% and c 10.0%. The intervals of b and a overlap.",
        "2 layers ahead a foresees the largest share of a token's experts, 40.0% (95 % interval 30.0% to 50.0%).",
    ]
