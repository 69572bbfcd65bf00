"""From samples of layer steps to what the simulator charges: unit times, launches and overheads.

A layer step of one kind, from its router to when the next layer's dense part may begin, is what a machine worked for
it, which its span says, and a rest.  Rest and span are taken apart within each sample, as a busy memory stretches
the second and not the first.  The span of n units is a launch and n times a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dali.policies.types import Floats
from dali.runtime.calibrate.probe import COPY, CPU, GPU

# A sample is an outlier beyond so many robust standard deviations above the median.
OUTLIER = 6.0
# In front of a point's name: measured while copies run.
BESIDE = "beside "
# What is within a launch's noise still takes some time: at least this share of the span.
_LEAST = 0.02

Levels = Mapping[str, Sequence[int]]
ByTokens = Mapping[str, Mapping[int, int]]
Curves = Mapping[str, Mapping[str, Any]]


@dataclass
class Samples:
    """Samples of each point by name."""

    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        """One more."""
        self.values.setdefault(name, []).append(value)

    def of(self, name: str, what: str = "") -> Floats:
        """All of a name, or a field of each."""
        return np.array([getattr(value, what) if what else value for value in self.values[name]], np.float64)

    def median(self, name: str, what: str = "") -> float:
        """Of these."""
        return float(np.median(self.of(name, what)))


@dataclass(frozen=True)
class Solved:
    """Curves as arguments of `measured.Curve`, fields of `Overheads` and `Contention`, and their parts."""

    cpu: dict[str, Any]
    cpu_contended: dict[str, Any]
    gpu: dict[str, Any]
    overheads: dict[str, float]
    contention: dict[str, float]
    parts: dict[str, float]


class Solver:
    """One calibration's samples.

    levels     numbers of experts of one token that were measured, by kind
    by_tokens  {CPU or GPU: {tokens: experts}}
    slices     units an expert
    both       experts on either side of the layer step with both
    """

    def __init__(self, samples: Samples, levels: Levels, by_tokens: ByTokens, slices: int, both: int) -> None:
        self._samples, self._levels, self._by_tokens = samples, levels, by_tokens
        self._slices, self._both = slices, both

    def solve(self) -> Solved:
        """Everything.  What all layer steps wait for is the simulator's read-back and planning, whenever it comes."""
        samples = self._samples
        rest = {where: self._rest(where, where) for where in (GPU, CPU)}
        base = min(rest.values())
        launch = {where: self._launch(where) for where in (GPU, CPU)}
        curves = {where: self._curve(where, launch[where]) for where in (GPU, CPU)}
        beyond = rest[CPU] - base
        merge = min(samples.median("merge"), beyond)
        planning = min(samples.median(self._one(GPU), "planner"), base)
        late = self._rest(COPY, "link")
        gpu_launch = launch[GPU] + rest[GPU] - base
        waited = samples.median(f"{GPU} {self._both} x 1", "launch")
        overheads = {
            "readback": base - planning,
            "planning": planning,
            "issue_gap": self._gap(),
            "transfer_latency": (beyond - merge) / 2,
            "transfer_per_token": samples.median("per_token"),
            "merge": merge,
            "dispatch": max(samples.median("both", "launch") - waited, 0.0),
            "cpu_launch": launch[CPU],
            "gpu_launch": gpu_launch,
            "late_notice": max(late - base - gpu_launch - curves[GPU]["seconds"][0], 0.0),
        }
        slower = {tokens: self._slower(CPU, tokens) for tokens in self._by_tokens[CPU]}
        ratios = {
            "gpu_beside_copy": self._slower(GPU, 1),
            "gpu_beside_cpu": self._paired("both", f"{GPU} {self._both} x 1", GPU),
            "cpu_beside_gpu": self._paired("both", f"{CPU} {self._both} x 1", CPU),
            "dense_beside_copy": self._dense_beside_copy(),
        }
        contention = {name: max(ratio, 1.0) for name, ratio in ratios.items()}
        return Solved(
            cpu=curves[CPU],
            cpu_contended=_scaled(curves[CPU], [max(ratio, 1.0) for ratio in slower.values()]),
            gpu=curves[GPU],
            overheads=overheads,
            contention=contention,
            parts={
                **{name: samples.median(name) for name in ("readback", "launch", "merge")},
                "dispatch": samples.median(self._one(CPU), "dispatch"),
                "glue": samples.median(self._one(GPU), "glue"),
                "rest_gpu": rest[GPU],
                "rest_cpu": rest[CPU],
                "rest_copy": late,
                "both_beyond_model": samples.median("both", "cycle")
                - self._expected_both(overheads, contention, curves),
                "cpu_contended_ratio": float(np.median(list(slower.values()))),
                **{f"{name}_ratio": ratio for name, ratio in ratios.items()},
            },
        )

    def _name(self, where: str, experts: int, tokens: int = 1) -> str:
        return f"{where} {experts} x {tokens}"

    def _one(self, where: str) -> str:
        return self._name(where, self._by_tokens[where][1])

    def _rest(self, where: str, span: str) -> float:
        """Seconds of a layer step outside of the machine's span."""
        names, of = [self._name(where, n) for n in self._levels[where]], self._samples.of
        return max(float(np.median(np.concatenate([of(name, "cycle") - of(name, span) for name in names]))), 0.0)

    def _launch(self, where: str) -> float:
        """Seconds of a span that do not depend on the number of units."""
        levels = self._levels[where]
        spans = [self._samples.median(self._name(where, n), where) for n in levels]
        return line([n * self._slices for n in levels], spans)[0]

    def _curve(self, where: str, launch: float) -> dict[str, Any]:
        at, seconds, spread, outliers = [], [], [], 0
        for tokens, experts in self._by_tokens[where].items():
            spans = self._samples.of(self._name(where, experts, tokens), where)
            middle = float(np.median(spans))
            at.append(tokens)
            seconds.append(max(middle - launch, _LEAST * middle) / (experts * self._slices))
            spread.append(spread_of(spans))
            outliers += outliers_of(spans)
        return {"at": at, "seconds": seconds, "spread": spread, "outliers": outliers}

    def _gap(self) -> float:
        """Seconds between two copies of a layer step."""
        found = []
        for n in self._levels[COPY]:
            copies = n * self._slices
            if copies > 1:
                link, copy = (self._samples.of(self._name(COPY, n), what) for what in ("link", "copy"))
                found.append((link - copies * copy) / (copies - 1))
        return max(float(np.median(np.concatenate(found))), 0.0) if found else 0.0

    def _slower(self, where: str, tokens: int) -> float:
        """How many times as long units take while copies run; 1 where no copies could be made beside them."""
        contended = f"{where} contended {tokens}"
        if contended not in self._samples.values:
            return 1.0
        return self._paired(contended, self._name(where, self._by_tokens[where][tokens], tokens), where)

    def _dense_beside_copy(self) -> float:
        beside = [name for name in self._samples.values if name.startswith(BESIDE)]
        return float(np.median([self._paired(name, name.removeprefix(BESIDE), "layer") for name in beside]))

    def _paired(self, name: str, other: str, what: str) -> float:
        """Ratio of two points, round by round: what slows a minute down slows both."""
        return float(np.median(self._samples.of(name, what) / self._samples.of(other, what)))

    def _expected_both(self, over: Mapping[str, float], beside: Mapping[str, float], curves: Curves) -> float:
        """What the simulator says of the layer step with both sides, each slowed by the other throughout."""
        cpu, gpu = (self._both * self._slices * curves[where]["seconds"][0] for where in (CPU, GPU))
        cpu_side = 2 * over["transfer_latency"] + over["cpu_launch"] + cpu * beside["cpu_beside_gpu"]
        gpu_side = over["dispatch"] + over["gpu_launch"] + gpu * beside["gpu_beside_cpu"]
        return float(over["readback"] + over["planning"] + max(cpu_side, gpu_side) + over["merge"])


def _scaled(curve: Mapping[str, Any], factors: Sequence[float]) -> dict[str, Any]:
    return {**curve, "seconds": [s * f for s, f in zip(curve["seconds"], factors, strict=True)]}


def line(at: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Value at 0 and slope of the line of least relative squares, neither below 0."""
    x, y = np.asarray(at, np.float64), np.asarray(seconds, np.float64)
    if x.size == 1:
        return 0.0, float(y[0] / x[0])
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    if slope <= 0:
        return float(np.median(y)), 0.0
    if start < 0:
        return 0.0, float(np.median(y / x))
    return float(start), float(slope)


def spread_of(samples: Floats) -> float:
    """Interquartile range over median."""
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return float((high - low) / middle) if middle > 0 else 0.0


def outliers_of(samples: Floats) -> int:
    """Samples far above the median: something else ran."""
    middle = np.median(samples)
    deviation = 1.4826 * np.median(np.abs(samples - middle))
    return int(np.count_nonzero(samples > middle + OUTLIER * max(deviation, 0.01 * middle)))
