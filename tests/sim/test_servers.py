"""What the simulator's kernels share with the rest: names of metrics, cost tables of the right type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dali.policies.columns import KINDS, METRICS
from dali.sim.engine import Engine
from dali.sim.servers import Metrics


def test_metrics_are_the_columns_in_their_order() -> None:
    columns = []
    for name in Metrics.dtype.names or ():
        by_kind = Metrics.dtype[name].shape
        columns += [f"{name}_{kind}" for kind in KINDS] if by_kind else [name]
    assert tuple(columns) == METRICS


def test_cost_tables_of_whole_numbers_are_refused(random_scene: Callable[[int], Any]) -> None:
    """Kernels read seconds as float64: the bits of an integer 3 are next to nothing there."""
    scene = random_scene(0)
    whole = replace(scene.charged, copy=np.full(scene.shape.layers, 3))
    with pytest.raises(TypeError, match=r"^Servers\.copy: found an array of int64 .*, expected a contiguous"):
        Engine(scene.planner(), whole)
