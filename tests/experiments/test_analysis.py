"""The sentences say what the numbers say, and nothing that they do not."""

import pandas as pd
import pytest

from dali.experiments.scene import read_scene
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import believed_platform
from dali.experiments.verbs.compare import what_if
from dali.experiments.verbs.compare.sentences import sentences


def table(rows, **more) -> pd.DataFrame:
    """Results from (policy, batch, phase, tokens/s, speed-up)."""
    results = pd.DataFrame(rows, columns=["policy", "batch", "phase", "tokens_per_s", "speedup"])
    shares = {"gpu_busy": 0.25, "cpu_busy": 0.5, "link_demand": 0.5, "link_prefetch": 0.25, "link_swap": 0.125}
    return results.assign(**{**shares, **more})


TWO = [("split", 1, "decode", 10.0, 1.0), ("new", 1, "decode", 15.0, 1.5)]
FOUR = [("split", 4, "decode", 20.0, 1.0), ("new", 4, "decode", 60.0, 3.0)]


def test_winner_lead_and_busiest_machine():
    # new over split: 15/10 and 60/20; the link is busy 0.5 + 0.25 + 0.125.
    assert sentences(table(TWO + FOUR)) == [
        "Decode: new is the fastest at every batch size, 15.0 to 60.0 tokens/s, 1.50 to 3.00 times split, "
        "50% to 200% ahead of split. With new at batch 4 the link is the busiest machine, 88% of the time "
        "(CPU 50%, GPU 25%)."
    ]


def test_winner_may_change_with_the_batch():
    (said,) = sentences(table([*TWO, ("split", 4, "decode", 50.0, 1.0), ("new", 4, "decode", 40.0, 0.8)]))
    assert "new is the fastest at batch 1, 15.0 tokens/s, 1.50 times split, 50% ahead of split;" in said
    # The baseline is not said to be 1.00 times itself.
    assert "; split is the fastest at batch 4, 50.0 tokens/s, 25% ahead of new." in said
    assert "With split at batch 4" in said


@pytest.mark.parametrize(
    ("second", "expected"),
    [(99.5, ", level with b (within 1%)"), (99.0, ", 1% ahead of b"), (50.0, ", 100% ahead of b")],
)
def test_close_speeds_are_called_level(second, expected):
    (said,) = sentences(table([("a", 1, "decode", 100.0, 1.0), ("b", 1, "decode", second, second / 100)]))
    assert f"a is the fastest at batch 1, 100 tokens/s{expected}." in said


def test_a_lead_at_some_batch_sizes_only_is_no_more_than_that():
    (said,) = sentences(table([*TWO, ("split", 4, "decode", 40.0, 1.0), ("new", 4, "decode", 40.1, 40.1 / 40)]))
    assert "at most 50% ahead of split" in said


def test_machines_within_a_point_share_the_place():
    (said,) = sentences(table(TWO, cpu_busy=0.87))
    assert "link and CPU are the busiest machines, 88% and 87% of the time (GPU 25%)" in said


@pytest.mark.parametrize("column", [{"knows_future": [False, False, True]}, {}])
def test_who_knows_the_future_does_not_win(column):
    (said,) = sentences(table([*TWO, ("oracle", 1, "decode", 30.0, 3.0)], **column))
    assert "new is the fastest at batch 1" in said
    assert "oracle, which knows the future and so cannot be run, reaches 2.00 times that" in said


def test_a_policy_of_another_name_may_know_the_future():
    (said,) = sentences(table(TWO, knows_future=[False, True]))
    assert "split is the fastest at batch 1, 10.0 tokens/s; new, which knows the future" in said
    assert "ahead of" not in said


def test_decode_comes_first_and_phases_are_apart():
    rows = [("a", 1, "prefill", 7.0, 1.0), ("b", 1, "prefill", 9.0, 9 / 7), ("a", 1, "decode", 5.0, 1.0)]
    decode, prefill = sentences(table(rows))
    assert decode.startswith("Decode: a is the fastest at batch 1, 5.00 tokens/s. ")
    assert prefill.startswith("Prefill: b is the fastest at batch 1, 9.00 tokens/s, 1.29 times a, 29% ahead of a.")


def test_what_helps_is_said_in_order_and_only_where_it_was_simulated():
    gains = {"more cache": 1.2, "a faster link": 1.004, "more cores": 1.5, "a slower bus": 0.8}
    rows = [{"policy": "new", "batch": 4, "phase": "decode", "change": name, "gain": g} for name, g in gains.items()]
    assert sentences(table(TWO), pd.DataFrame(rows))[-1] == (
        "What would help new most in decode at batch 4, simulated one by one: more cores (1.50x), then more cache "
        "(1.20x); within 1% of no change: a faster link; slower: a slower bus (0.80x)."
    )
    assert sentences(table(TWO), pd.DataFrame(rows[1:2]))[-1].endswith(
        "simulated one by one: none of what was tried; within 1% of no change: a faster link."
    )
    assert not any("help" in said for said in sentences(table(TWO)))


def test_each_change_improves_one_part_and_nothing_else():
    config = configuration("compare", ["trace=mixtral_8x7b", "model=mixtral_8x7b", "trace.sequences=2"])
    scene = read_scene(config)
    now = scene.platform
    changed = what_if.changes(scene, now)
    assert set(changed) == {what_if.LINK, what_if.CORES, what_if.HOST, what_if.GPU, what_if.MEMORY}
    memory, believed = changed.pop(what_if.MEMORY)
    assert (memory.slots, memory.platform, believed) == (2 * scene.slots, now, now)
    for name, (made, believed) in changed.items():
        assert believed == made.platform, name
        assert made.slots == scene.slots
    platforms = {name: made.platform for name, (made, _) in changed.items()}
    assert platforms[what_if.LINK].link_gbs == 2 * now.link_gbs
    assert platforms[what_if.LINK].cpu == now.cpu
    assert platforms[what_if.CORES].cpu.bandwidth_gbs == now.cpu.bandwidth_gbs
    assert platforms[what_if.CORES].cpu.tflops == 2 * now.cpu.tflops
    assert platforms[what_if.HOST].cpu.tflops == now.cpu.tflops
    assert platforms[what_if.HOST].cpu.bandwidth_gbs == 2 * now.cpu.bandwidth_gbs
    assert platforms[what_if.GPU].gpu.tflops == 2 * now.gpu.tflops
    assert platforms[what_if.GPU].cpu == now.cpu


def test_what_policies_believe_of_another_machine_stays():
    overrides = ["trace=mixtral_8x7b", "model=mixtral_8x7b", "trace.sequences=2", "cache_share=0.75"]
    scene = read_scene(configuration("compare", overrides))
    other = believed_platform("compare", overrides, "laptop_8gb")
    changed = what_if.changes(scene, other)
    assert all(believed == other for _, believed in changed.values())
    # Three quarters doubled is all of them, and no more.
    assert what_if.MEMORY not in changed
    assert changed[what_if.ALL_ON_GPU][0].slots == scene.model.layers * scene.units
    everything = read_scene(configuration("compare", [*overrides, "cache_share=1"]))
    assert what_if.ALL_ON_GPU not in what_if.changes(everything, everything.platform)
