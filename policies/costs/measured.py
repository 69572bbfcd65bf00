"""Costs that were measured on a machine (`dali calibrate`): points, monotone, linear between them.

A profile is a file of conf/platform.  It holds for the expert geometry it was measured with and refuses another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dali.policies.columns import DECODE, PHASES, PREFILL
from dali.policies.costs.model import Contention, CostModel, Overheads
from dali.policies.costs.roofline import ModelShape
from dali.policies.types import Floats, InputError

VERSION = 2


def monotone(values: Floats) -> Floats:
    """The never falling sequence that is closest to `values` in squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in np.asarray(values, np.float64).tolist():
        mean, count = value, 1
        while blocks and blocks[-1][0] >= mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])


class Curve:
    """Seconds against a size: monotone, linear between the points measured.

    at       rising sizes above 0 (tokens, bytes); seconds of each
    spread   of each point: interquartile range over median; outliers: samples left out of all points together

    Below the first point its seconds hold; beyond the last one the last segment goes on.
    """

    def __init__(
        self, at: Sequence[float], seconds: Sequence[float], spread: Sequence[float] = (), outliers: int = 0
    ) -> None:
        sizes, times = np.asarray(at, np.float64), np.asarray(seconds, np.float64)
        if sizes.ndim != 1 or sizes.size < 1 or sizes.shape != times.shape:
            raise InputError(
                f"measured curve: found {sizes.size} sizes and {times.size} times, expected as many, 1 or more"
            )
        if np.any(sizes <= 0) or np.any(np.diff(sizes) <= 0):
            raise InputError(f"measured curve: found sizes {list(at)}, expected rising numbers above 0")
        if not np.all(np.isfinite(times)) or np.any(times <= 0):
            raise InputError("measured curve: expected seconds above 0")
        self.at, self.measured, self.seconds = sizes, times, monotone(times)
        self.spread = np.asarray(spread if len(spread) else np.zeros(sizes.size), np.float64)
        self.outliers = outliers

    def __call__(self, sizes: Floats | float) -> Floats:
        """Seconds of one or more sizes."""
        x = np.asarray(sizes, np.float64)
        found: Floats = np.interp(x, self.at, self.seconds)
        if self.at.size > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.at[-1] - self.at[-2])
        else:
            slope = self.seconds[0] / self.at[0]
        beyond: Floats = slope * np.maximum(x - self.at[-1], 0.0)
        return found + beyond

    def table(self, most: int) -> Floats:
        """float64 [most + 1], 0 for nothing."""
        found = self(np.arange(most + 1, dtype=np.float64))
        found[0] = 0.0
        return found

    def left_out(self) -> Floats:
        """Of each inner point, the relative error of the line between its neighbours.

        That line is twice as long as those in use: on a smooth curve it errs about four times as much.
        """
        between = [
            np.interp(x, (a, b), (low, high)) / y - 1
            for a, x, b, low, y, high in zip(
                self.at, self.at[1:], self.at[2:], self.measured, self.measured[1:], self.measured[2:], strict=False
            )
        ]
        return np.array(between)

    def to_config(self) -> dict[str, Any]:
        """Arguments of the constructor, as plain numbers."""
        return {
            "at": [int(x) for x in self.at],
            "seconds": rounded(self.measured),
            "spread": [round(float(x), 4) for x in self.spread],
            "outliers": int(self.outliers),
        }


class Surface:
    """Seconds against tokens and context: linear in context at each number of tokens, linear between these.

    rows  [tokens, sequences, context, seconds, spread] of each point
    """

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        table = np.asarray(rows, np.float64)
        if table.ndim != 2 or table.shape[1] != 5 or np.any(table[:, :4] <= 0):
            raise InputError(
                "measured surface: expected rows of [tokens, sequences, context, seconds, spread], above 0"
            )
        self.rows = table
        self.tokens = np.unique(table[:, 0])
        lines = [self._line(table[table[:, 0] == tokens]) for tokens in self.tokens]
        self.context, self.base, self.slope = (np.array(values) for values in zip(*lines, strict=True))

    @staticmethod
    def _line(rows: Floats) -> tuple[float, float, float]:
        """Mean context, seconds there, and seconds more with each position; attention does not get cheaper with it."""
        context, seconds = rows[:, 2], rows[:, 3]
        centred = context - context.mean()
        spread = float(centred @ centred)
        slope = max(float(centred @ seconds) / spread, 0.0) if spread > 0 else 0.0
        return float(context.mean()), float(seconds.mean()), slope

    def __call__(self, tokens: int, context: float) -> float:
        """Seconds; fewer tokens than were measured cost what the fewest do, more cost in proportion to the most."""
        least = 0.5 * self.base
        seconds = np.maximum.accumulate(np.maximum(self.base + self.slope * (context - self.context), least))
        if tokens > self.tokens[-1]:
            return float(seconds[-1] * tokens / self.tokens[-1])
        return float(np.interp(tokens, self.tokens, seconds))

    def to_config(self) -> list[list[float]]:
        """The rows, as plain numbers."""
        return [
            [int(tokens), int(sequences), round(context, 1), *rounded([seconds]), round(spread, 4)]
            for tokens, sequences, context, seconds, spread in self.rows.tolist()
        ]


@dataclass(frozen=True)
class Geometry:
    """What the cost of a unit depends on besides the machine.

    hidden, expert_width  what goes into an expert, and its inner width
    gated, bits           whether it has a gate projection, and bits of a weight
    slices                units it is cut into
    """

    hidden: int
    expert_width: int
    gated: bool
    bits: int
    slices: int

    @classmethod
    def of(cls, model: ModelShape, slices: int) -> Geometry:
        """That of a model of conf/model."""
        return cls(model.hidden, model.expert_width, model.gated, round(model.expert_bits), slices)

    def differences(self, other: Geometry) -> str:
        """Where `other` differs, as "hidden 128, found 2048"; empty if nowhere."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(f"{name} {mine[name]}, found {theirs[name]}" for name in mine if mine[name] != theirs[name])


class Profile:
    """A machine as measured for one expert geometry.  Fields that are not described are those of `dali calibrate`.

    name                 of the file in conf/platform
    machine              what it was measured on: names, versions, threads, link
    geometry, model      what units it holds for; what the dense part is that of
    gpu_memory_gb        GPU memory that experts can have
    cpu, cpu_contended   seconds of a CPU unit against tokens, beyond what a layer step costs anyway; while copies run
    gpu                  the same of a GPU unit
    copy, copy_contended seconds of a copy against bytes, two outstanding; while CPU units run
    copy_alone           one outstanding
    dense                {"decode": rows, "prefill": rows} of `Surface`: one MoE layer without its experts
    outside              the same, of what lies outside the MoE layers, once a step
    overheads            fields of `Overheads`; contention: those of `Contention` (both in `policies.costs.model`)
    parts                seconds of the pieces that `overheads` is made of, and of what it leaves out
    quality              drift, rounds, load
    """

    def __init__(
        self,
        *,
        name: str,
        version: int,
        machine: Mapping[str, Any],
        model: str,
        geometry: Mapping[str, Any],
        gpu_memory_gb: float,
        cpu: Mapping[str, Any],
        cpu_contended: Mapping[str, Any],
        gpu: Mapping[str, Any],
        copy: Mapping[str, Any],
        copy_contended: Mapping[str, Any],
        copy_alone: Mapping[str, Any],
        dense: Mapping[str, Sequence[Sequence[float]]],
        outside: Mapping[str, Sequence[Sequence[float]]],
        overheads: Mapping[str, float],
        contention: Mapping[str, float],
        parts: Mapping[str, float],
        quality: Mapping[str, Any],
    ) -> None:
        if version != VERSION:
            raise InputError(f"profile {name}: found version {version}, expected {VERSION}: calibrate again")
        self.name, self.model, self.gpu_memory_gb = name, model, float(gpu_memory_gb)
        self.machine, self.parts, self.quality = dict(machine), dict(parts), dict(quality)
        self.geometry = Geometry(**geometry)
        self.cpu, self.cpu_contended = Curve(**cpu), Curve(**cpu_contended)
        self.gpu = Curve(**gpu)
        self.copy, self.copy_contended, self.copy_alone = Curve(**copy), Curve(**copy_contended), Curve(**copy_alone)
        self.dense = {phase: Surface(rows) for phase, rows in dense.items()}
        self.outside = {phase: Surface(rows) for phase, rows in outside.items()}
        for what, surfaces in (("dense", self.dense), ("outside", self.outside)):
            if surfaces.keys() != set(PHASES):
                raise InputError(f"profile {name}: {what} has {', '.join(surfaces)}, expected decode and prefill")
        self.overheads, self.contention = Overheads(**overheads), Contention(**contention)

    def check(self, geometry: Geometry) -> None:
        """InputError that names what differs, unless the profile was measured for these units."""
        differences = self.geometry.differences(geometry)
        if differences:
            raise InputError(
                f"profile {self.name}: expected an expert geometry of {differences}; calibrate for this one"
            )

    def costs(
        self, geometry: Geometry, unit_bytes: Sequence[int], max_tokens: int, planning: float | None = None
    ) -> CostModel:
        """Cost model of units of so many bytes in each layer [L], for workloads of up to `max_tokens` tokens.

        planning  seconds of the planner in each layer step, where that of the policy is known; None = the profile's
        """
        self.check(geometry)
        sizes = np.asarray(unit_bytes, np.float64)
        over = asdict(self.overheads)
        if planning is not None:
            over["planning"] = planning
        cpu, copy = self.cpu.table(max_tokens), self.copy(sizes)
        return CostModel(
            cpu=cpu,
            cpu_contended=np.maximum(self.cpu_contended.table(max_tokens), cpu),
            gpu=self.gpu.table(max_tokens),
            copy=copy,
            copy_contended=np.maximum(self.copy_contended(sizes), copy),
            overheads=Overheads(**over),
            dense=lambda tokens, sequences, context: self._at(self.dense, tokens, sequences, context),
            per_step=lambda tokens, sequences, context: self._at(self.outside, tokens, sequences, context),
            contention=self.contention,
        )

    @staticmethod
    def _at(surfaces: Mapping[str, Surface], tokens: int, sequences: int, context: float) -> float:
        return surfaces[PREFILL if tokens > sequences else DECODE](tokens, context)

    def to_config(self) -> dict[str, Any]:
        """Arguments of the constructor, as plain values."""
        return {
            "name": self.name,
            "version": VERSION,
            "machine": self.machine,
            "model": self.model,
            "geometry": asdict(self.geometry),
            "gpu_memory_gb": self.gpu_memory_gb,
            **{
                name: getattr(self, name).to_config()
                for name in ("cpu", "cpu_contended", "gpu", "copy", "copy_contended", "copy_alone")
            },
            **{
                name: {phase: surface.to_config() for phase, surface in getattr(self, name).items()}
                for name in ("dense", "outside")
            },
            "overheads": {name: rounded([value])[0] for name, value in asdict(self.overheads).items()},
            "contention": {name: round(value, 4) for name, value in asdict(self.contention).items()},
            "parts": {name: rounded([value])[0] for name, value in self.parts.items()},
            "quality": self.quality,
        }


def rounded(values: Sequence[float] | Floats) -> list[float]:
    """Five significant digits: more than any clock here is good for."""
    return [float(f"{float(value):.5g}") for value in values]
