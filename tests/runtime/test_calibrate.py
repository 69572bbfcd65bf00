"""Calibration: what shots are made of, what follows from their times, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from offloading_cases import assert_restored, state, tiny

from dali.policies.costs.measured import Geometry
from dali.policies.types import InputError
from dali.runtime.calibrate.calibration import calibrate
from dali.runtime.calibrate.forward import (
    NullExperts,
    passes,
)
from dali.runtime.calibrate.link import (
    LinkProbe,
    sizes_around,
)
from dali.runtime.calibrate.plan import CalibrationPlan, CalibrationSettings
from dali.runtime.calibrate.probe import (
    COPY,
    CPU,
    GPU,
    Part,
    Probe,
    rows,
)
from dali.runtime.calibrate.solve import (
    Samples,
    Solver,
    line,
    outliers_of,
    spread_of,
)
from dali.runtime.device.host import HostArena

SMALL = CalibrationSettings(tokens=(1, 4), batches=(1, 2), contexts=(4, 12), prefill=(4, 16), rounds=2, copies=3)


@pytest.fixture(scope="module")
def probe():
    with Probe(tiny("mixtral"), HostArena(1e8), 1, 1, 8192) as probe:
        yield probe


# ---- shots


def test_a_shot_runs_what_it_says(probe):
    """8 experts, 4 resident, 2 a token: 2 CPU units of 3 tokens, 2 GPU units of 1 and a copy, in each of 3 layers."""
    probe.run._policy.assignment.on_gpu[:] = False
    seen = []
    probe.run.planner._observers.append(lambda view: seen.append(view.workload.copy()))
    taken = probe.shoot((Part(CPU, 2, 3), Part(GPU, 2, 1), Part(COPY, 1, 1)))
    probe.run.planner._observers.pop()
    assert len(seen) == 3
    for workload in seen:
        # The resident units are the first four; a copy is of one of the last four.
        assert sorted(workload[workload > 0].tolist()) == [1, 1, 1, 3, 3]
        assert np.count_nonzero(workload[:4] == 1) == 2
        assert np.count_nonzero(workload[4:] == 1) == 1
    assert taken.total > 0 < taken.cpu
    assert taken.gpu > 0 < taken.copy
    assert taken.cycle >= taken.total


def test_copies_are_never_of_staged_units(probe):
    """`shoot` itself raises if a unit were found on the device; the same shot again and again copies each time."""
    for _ in range(5):
        assert probe.shoot((Part(COPY, probe.most_copies, 1),)).copy > 0


def test_too_many_experts_are_refused(probe):
    with pytest.raises(RuntimeError, match="takes more experts than there are"):
        probe.shoot((Part(GPU, 5, 1),))


def test_a_model_of_few_experts_is_refused():
    with pytest.raises(InputError, match="found 2 experts a layer, expected 4 or more"):
        Probe(tiny("mixtral", num_experts=2, num_local_experts=2), HostArena(), 1, 1, 64)


# ---- forward passes


def test_passes_are_those_of_a_prompt_and_a_token_each(probe):
    assert list(passes(tiny("mixtral"), torch.device("cpu"), 2, 5, 3)) == [5, 6, 7, 8]
    assert list(passes(tiny("mixtral"), torch.device("cpu"), 2, 5, 1, chunk=2)) == [2, 4, 5, 6]
    assert list(passes(tiny("mixtral"), torch.device("cpu"), 2, 0, 2)) == [1, 2]


def test_dense_part_knows_tokens_and_context(probe):
    """A prompt of 6: positions attend to 1 to 6, 3.5 on average; the next token to 7."""
    null = NullExperts(probe.run.model, probe.arena)
    with null.installed():
        prompt, token = null.measure(2, 6, 1)
    assert (prompt.tokens, prompt.sequences, prompt.context) == (12, 2, 3.5)
    assert (token.tokens, token.sequences, token.context) == (2, 2, 7)
    assert prompt.layer > 0 < token.layer
    # The executor is in its place again.
    assert probe.shoot((Part(CPU, 2, 1),)).cpu > 0


# ---- copies


def test_copies_last_as_long_as_the_link_says():
    """20 kB at 2 MB/s: 10 ms each or more, however many are outstanding.

    Of two outstanding, one whose end is noticed late leaves less time to the next: on a busy machine some milliseconds,
    which a dozen of copies share.
    """
    arena = HostArena(2e6)
    link = LinkProbe(arena, 1 << 15)
    assert link.seconds(20_000, 1, 3) >= 0.99e-2
    assert link.seconds(20_000, 2, 13) >= 0.95e-2
    link.release()


def test_sizes_around_a_unit():
    """From a sixteenth to four times, at least 4096 and in whole 256 bytes, the unit itself left out."""
    assert sizes_around(16384, 1 << 30) == [4096, 8192, 32768, 65536]


# ---- what follows


def test_line():
    assert line([1, 2, 4], [3.0, 5.0, 9.0]) == pytest.approx((1.0, 2.0))
    assert line([4], [8.0]) == (0.0, 2.0)
    # Falling times have no slope, and nothing costs less than nothing before it begins.
    assert line([1, 2], [3.0, 1.0]) == (2.0, 0.0)
    assert line([1, 2], [1.0, 4.0]) == (0.0, 1.5)


def test_spread_and_outliers():
    assert spread_of(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 3)
    assert outliers_of(np.array([1.0, 1.01, 0.99, 1.0, 9.0])) == 1


def test_rows_of_a_layer_step():
    """6 experts of 4 tokens: 3 each choose 2 of them, or 8 rows; 5 are no multiple of 3, so that each row has one."""
    assert rows(6, 4, 3) == 8
    assert rows(5, 4, 3) == 20


@pytest.mark.parametrize(
    ("begins", "dispatch", "longest"),
    [
        (70, 20, 36 + 8 + 2 * 30),  # the CPU: there and back, launch, two units beside the GPU
        (270, 220, 220 + 6 + 2 * 10),  # the GPU
    ],
)
def test_overheads_add_up_to_what_shots_took(begins, dispatch, longest):
    """Made-up layer steps, in microseconds.

    GPU: 100 besides its span of 6 + 10 a unit (15 of four tokens).  CPU: 140 besides 8 + 20 a unit (25).  Copies of
    28, 30 apart, and 150 besides them.  Beside copies CPU units take 1.5 times as long, GPU units 1.2 times.  With both
    sides the GPU begins at `begins` in place of 50.
    """
    samples = Samples()
    levels, by_tokens = {GPU: (1, 2, 4), CPU: (1, 2, 4), COPY: (1, 2, 3)}, {GPU: {1: 4, 4: 2}, CPU: {1: 4, 4: 2}}

    def shot(name, rest, **fields):
        known = {
            "planner": 5,
            "dispatch": 60,
            "launch": 50,
            "glue": 7,
            "cpu": 0,
            "gpu": 0,
            "copy": 28,
            "link": 0,
        } | fields
        known["cycle"] = rest + known["cpu"] + known["gpu"] + known["link"]
        samples.add(name, SimpleNamespace(**{key: value * 1e-6 for key, value in known.items()}))

    for where, rest, launch, units in ((GPU, 100, 6, {1: 10, 4: 15}), (CPU, 140, 8, {1: 20, 4: 25})):
        for n in levels[where]:
            shot(f"{where} {n} x 1", rest, **{where: launch + n * units[1]})
        shot(f"{where} 2 x 4", rest, **{where: launch + 2 * units[4]})
    for n in levels[COPY]:
        shot(f"{COPY} {n} x 1", 150, link=n * 28 + (n - 1) * 2)
    shot(f"{CPU} contended 1", 140, cpu=1.5 * 88)
    shot(f"{CPU} contended 4", 140, cpu=1.5 * 58)
    shot(f"{GPU} contended 1", 100, gpu=1.2 * 46)
    shot("both", 90, cpu=72, gpu=13, launch=begins)
    for name, value in (("readback", 1e-6), ("launch", 1e-6), ("merge", 4e-6), ("per_token", 1e-9)):
        samples.add(name, value)
    for batch, alone, beside in ((1, 200, 250), (2, 300, 390), (4, 400, 600)):
        samples.add(f"decode {batch} 4", SimpleNamespace(layer=alone))
        samples.add(f"beside decode {batch} 4", SimpleNamespace(layer=beside))
    solved = Solver(samples, levels, by_tokens, 1, 2).solve()
    over = {name: value * 1e6 for name, value in solved.overheads.items()}
    assert over["planning"] == pytest.approx(5)
    assert over["readback"] == pytest.approx(95)
    assert over["merge"] == pytest.approx(4)
    assert over["transfer_latency"] == pytest.approx((40 - 4) / 2)
    assert over["issue_gap"] == pytest.approx(2)
    assert over["dispatch"] == pytest.approx(dispatch)
    assert (over["gpu_launch"], over["cpu_launch"]) == pytest.approx((6, 8))
    # 150 besides the copies: 100 that every layer step has, 6 + 10 for the unit itself.
    assert over["late_notice"] == pytest.approx(34)
    assert solved.gpu["seconds"] == pytest.approx([10e-6, 15e-6])
    assert solved.cpu["seconds"] == pytest.approx([20e-6, 25e-6])
    assert solved.cpu_contended["seconds"] == pytest.approx([30e-6, 37.5e-6])
    # With both sides CPU units took 72 in place of 48, GPU units less time than alone, which nothing explains: 1.
    assert solved.contention == pytest.approx(
        {"gpu_beside_copy": 1.2, "gpu_beside_cpu": 1, "cpu_beside_gpu": 1.5, "dense_beside_copy": 1.3}
    )
    # 100, the longer side, 4 to merge; it took 72 + 13 + 90.
    assert solved.parts["both_beyond_model"] == pytest.approx((175 - (100 + longest + 4)) * 1e-6)


def test_points_of_a_plan(probe):
    """8 experts, 4 resident, 2 a token; at least one of the absent ones is left staged by the copies before."""
    plan = CalibrationPlan(probe, SMALL)
    assert plan.levels[GPU] == [1, 2, 4]
    assert plan.levels[CPU] == [1, 2, 4, 8]
    assert plan.both == 4
    assert plan.by_tokens == {CPU: {1: 4, 4: 4}, GPU: {1: 4, 4: 4}}


def test_profile_of_a_model():
    """The whole calibration, small; the model is as before it."""
    model = tiny("gpt_oss")
    before = state(model)
    profile = calibrate(model, HostArena(1e8), SMALL, name="p", title="t", slices=2, cpu_threads=1)
    assert_restored(model, before)
    assert profile.geometry == Geometry(32, 32, True, 32, 2)
    assert profile.cpu.at.tolist() == profile.gpu.at.tolist() == [1, 4]
    assert profile.dense["decode"].tokens.tolist() == [1, 2]
    assert profile.dense["prefill"].tokens.tolist() == [4, 16]
    assert profile.machine["link_bytes_per_s"] == 1e8
    cost = profile.costs(profile.geometry, [10_000] * 3, 100)
    # 10 kB at 100 MB/s.
    assert cost.copy[0] >= 0.9e-4
    assert cost.max_tokens == 100


# ---- what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": (2, 4)},
        {"tokens": (1, 9000)},
        {"batches": ()},
        {"contexts": (8,)},
        {"prefill": (8, 4)},
        {"rounds": 1},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        CalibrationSettings(**wrong)
