"""Routing as a configuration asks for it: long enough where it is synthetic, and said of where it is made up."""

import numpy as np
import pytest

import dali
from dali.experiments.cli import main
from dali.experiments.scene import read_scene
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.routing import about_routing, lengthened, make_routing
from dali.experiments.verbs.compare.comparison import Comparison
from dali.policies.types import InputError
from dali.traces.metadata import Metadata
from dali.traces.trace import Trace

SHORT = ["trace.sequences=2", "trace.prompt=4", "trace.length=6"]
SMALL = ["model=mixtral_8x7b", "trace=mixtral_8x7b", *SHORT]
RESIZED = ["trace=resized", *SHORT, "model.layers=4", "model.experts=12", "model.top_k=3"]
SAID = "is fitted to nothing"


def node(*overrides):
    return configuration("compare", [*overrides]).trace


# ---- length ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [SMALL, RESIZED])
def test_a_synthetic_trace_is_as_long_as_it_is_asked_for(overrides):
    short, long = make_routing(node(*overrides)), make_routing(node(*overrides), 25)
    assert isinstance(short, Trace)
    assert isinstance(long, Trace)
    assert np.diff(short.starts).tolist() == [10, 10]
    assert np.diff(long.starts).tolist() == [25, 25]
    assert long.prompt_length.tolist() == [4, 4]
    for sequence in range(2):  # what was there stays as it is
        first, longer = short.starts[sequence], long.starts[sequence]
        np.testing.assert_array_equal(short.experts[first : first + 10], long.experts[longer : longer + 10])


def test_a_trace_that_is_long_enough_stays_as_it_is():
    given = node(*SMALL)
    assert lengthened(given, 10) is given


def test_a_recorded_trace_stays_as_long_as_it_is():
    given = node("trace=tiny_moe")
    assert lengthened(given, 10**6) is given
    with pytest.raises(InputError, match=r"sequences of 300 tokens.*the longest has 256: expected .*dali record"):
        dali.simulate("naive", trace="tiny_moe", workload={"prompt": 290, "generate": 10})


def test_verbs_ask_for_what_they_need(tmp_path, capsys):
    steps = dali.simulate("naive", *SMALL, workload={"prompt": 20, "generate": 5})
    assert steps["tokens"].tolist() == [20, 1, 1, 1, 1, 1]
    assert main(["replay", "trace=mixtral_8x7b", *SHORT, "batch=2", "prompt=20", "generate=5"]) == 0
    # 32 layers of 8 experts: two of them for each token, of two sequences, one at least in common at times.
    assert "decode" in capsys.readouterr().out
    scene = f"scenes=['{' '.join(SMALL)}']"
    small = ["cache_shares=[0.5]", "batch=[1]", "decode={prompt:8,steps:5}", "prefill={sequences:1,tokens:12}"]
    assert main(["gap", scene, *small, f"output={tmp_path}"]) == 0
    grid = ["experiment.grid.model=[mixtral_8x7b]", "experiment.grid.batch=[2]", "experiment.grid.cache_share=[0.5]"]
    more = [
        "trace=mixtral_8x7b",
        *SHORT,
        "workload.prompt=20",
        "workload.generate=5",
        "policies=[naive]",
        f"output={tmp_path}",
    ]
    assert main(["sweep", "experiment=winner", *grid, *more]) == 0


# ---- what is said of it ------------------------------------------------------------------------------------


def test_only_resized_routing_is_made_up():
    made = make_routing(node(*RESIZED)).metadata
    assert about_routing(made) == [
        "Routing is made up: qwen3_30b_a3b resized to 4 layers x 12 experts, top-3, is fitted to nothing."
    ]
    for other in ("mixtral_8x7b", "tiny_moe"):
        sized = SHORT if other != "tiny_moe" else []
        assert about_routing(make_routing(node(f"trace={other}", *sized)).metadata) == []
    # A recording of a model of that name is one.
    assert about_routing(Metadata(model="mine resized", layers=3, experts=12, top_k=3, recorder="another")) == []


def test_a_comparison_says_so():
    overrides = [*RESIZED, "workload.batch=[1]", "workload.prompt=4", "workload.generate=2", "cache_share=0"]
    notes = Comparison.read(configuration("compare", overrides), overrides).notes()
    assert sum(SAID in note for note in notes) == 1
    assert SAID in "".join(read_scene(configuration("compare", overrides)).notes)


def test_other_verbs_say_so(tmp_path, capsys):
    def said(*arguments: str) -> bool:
        assert main(list(arguments)) == 0
        return SAID in capsys.readouterr().out

    file = tmp_path / "made.safetensors"
    made = make_routing(node(*RESIZED, "trace.sequences=20"))
    assert isinstance(made, Trace)
    made.save(file)
    assert said("import", "format=trace", f"input={file}")
    assert said("replay", f"trace={file}")
    assert said("predict", f"trace={file}", "batch=[1]", "resamples=20", f"output={tmp_path}")
    assert SAID in next((tmp_path / "predict").iterdir()).joinpath("summary.md").read_text()
    small = [
        "cache_shares=[0]",
        "batch=[1]",
        "decode={prompt:2,steps:2}",
        "prefill={sequences:1,tokens:4}",
        "ilp_every=3",
    ]
    assert said("gap", f"scenes=['model=qwen3_30b_a3b trace={file}']", *small, f"output={tmp_path}")
    assert SAID in next((tmp_path / "gap").iterdir()).joinpath("summary.md").read_text()
    grid = ["experiment.grid.model=[qwen3_30b_a3b]", "experiment.grid.batch=[1]", "experiment.grid.cache_share=[0]"]
    more = ["workload.prompt=4", "workload.generate=2", "policies=[naive]", f"output={tmp_path}"]
    main(["sweep", "experiment=winner", f"trace={file}", *grid, *more])
    assert SAID in (tmp_path / "sweep" / "winner" / "summary.md").read_text()
