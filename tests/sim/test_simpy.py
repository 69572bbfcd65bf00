"""The compiled engine against the same machine written as SimPy processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.core.state import NONE
from dali.policies.planner import Planner, replay_log
from dali.policies.types import CopyKind
from dali.sim.engine import Engine
from oracles.simpy_twin import simulate

SEEDS = st.integers(0, 2**32 - 1)


def decisions(planner: Planner) -> list[Any]:
    """What the planner was told and answered up to its last `end`, without the times at which it had no copy to give.

    The engine asks once more than the model where the dense part follows what lies outside the MoE layers.
    """
    assert planner.log is not None
    return [
        (entry[0], entry[1].step, entry[1].layer, *entry[2:]) if entry[0] == "begin" else entry
        for entry in planner.log
        if entry[:2] != ("next_copy", NONE)
    ]


@settings(max_examples=300)
@given(seed=SEEDS)
def test_engine_equals_simpy(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene = random_scene(seed)
    ours, theirs = scene.planner(log=True), scene.planner(log=True)
    engine = Engine(ours, scene.charged).run(scene.workload)
    model = simulate(scene.workload, theirs, scene.charged)

    np.testing.assert_allclose(engine.columns["end"], model.ends, rtol=1e-9)
    for kind in CopyKind:
        assert engine.total(f"copies_{kind.name.lower()}") == model.copies[kind]
        assert engine.total(f"bytes_{kind.name.lower()}") == model.bytes[kind]
    link = sum(engine.total(f"link_{kind.name.lower()}") for kind in CopyKind)
    busy = {"gpu": engine.total("gpu_busy"), "cpu": engine.total("cpu_busy"), "link": link}
    assert busy == pytest.approx(model.busy, rel=1e-9)
    assert engine.total("moe_time") == pytest.approx(model.moe_time, rel=1e-9)
    assert decisions(ours) == decisions(theirs)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_logs_of_both_drivers_replay(seed: int, random_scene: Callable[[int], Any]) -> None:
    scene = random_scene(seed)
    ours, theirs = scene.planner(log=True), scene.planner(log=True)
    Engine(ours, scene.charged).run(scene.workload)
    simulate(scene.workload, theirs, scene.charged)
    assert replay_log(ours.log, scene.planner(log=True)) is None
    assert replay_log(theirs.log, scene.planner(log=True)) is None


def test_scenes_cover_the_model(random_scene: Callable[[int], Any]) -> None:
    """The comparison means something only if the scenes copy for every reason and use both machines."""
    runs = [Engine(scene.planner(), scene.charged).run(scene.workload) for scene in map(random_scene, range(100))]
    for metric in (
        "copies_demand",
        "copies_prefetch",
        "copies_swap",
        "late",
        "staged",
        "hits",
        "gpu_units",
        "cpu_units",
    ):
        assert sum(run.total(metric) > 0 for run in runs) >= 5, metric
