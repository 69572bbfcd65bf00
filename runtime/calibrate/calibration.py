"""Measure a machine for one model: what `policies.costs.measured.Profile` holds, from the executor's own code.

    shots     passes over the MoE layers through the executor, each layer step of a chosen make-up
    copies    by size, through the arena the executor copies with
    dense     forward passes whose experts only read the routing back
    pieces    read-back, launch, merge

All points, see `runtime.calibrate.plan`, are measured in turn, round after round, so that a slow minute touches each of
them alike; a point is the median of its rounds.  What follows from them: `runtime.calibrate.solve`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from dali.policies.columns import DECODE, PREFILL
from dali.policies.costs.measured import VERSION, Profile
from dali.runtime.calibrate.forward import Dense, NullExperts, merged
from dali.runtime.calibrate.link import LinkProbe, cpu_busy, link_busy, pieces
from dali.runtime.calibrate.plan import MAX_TOKENS, CalibrationPlan, CalibrationSettings
from dali.runtime.calibrate.probe import COPY, CPU, GPU, Part, Probe
from dali.runtime.calibrate.solve import BESIDE, Samples, Solver, outliers_of, spread_of
from dali.runtime.device.arena import Arena
from dali.runtime.device.machine import check_idle, describe, experts_memory_gb, load_per_core
from dali.runtime.model.layout import UnitLayout


class Calibration:
    """One calibration: `warm_up`, then `measure`, then `profile`.

    progress  called with the name of what was just measured
    """

    def __init__(
        self, probe: Probe, settings: CalibrationSettings, progress: Callable[[str], object] = lambda name: None
    ) -> None:
        self.probe, self.settings, self._progress = probe, settings, progress
        self.plan = CalibrationPlan(probe, settings)
        self._samples = Samples()
        self._null = NullExperts(probe.run.model, probe.arena)
        self.left_out: list[str] = []
        self._load: list[float] = []

    # ---- measuring

    def warm_up(self) -> float:
        """Every point once: kernels get compiled, what takes too long is left out; seconds of one round."""
        clock, slow, plan = self.probe.arena.now, dict.fromkeys((CPU, GPU, COPY), False), self.plan
        spent = 0.0
        for name, shot in list(plan.shots.items()):
            where = shot[0].where
            tokens = shot[0].tokens
            if len(shot) == 1 and tokens > 1 and slow[where]:
                del plan.shots[name], plan.by_tokens[where][tokens]
                self.left_out.append(name)
                continue
            passes = []
            for _ in range(2):
                begun = clock()
                self._samples.add(name, self.probe.shoot(shot))
                passes.append(clock() - begun)
            # The better of two: the first also compiles, and a machine may be at something else for a moment.
            slow[where] = len(shot) == 1 and min(passes) > self.settings.longest
            spent += min(passes)
        self._add_contended()
        begun = clock()
        for name in [name for name in plan.shots if name not in self._samples.values]:
            self.probe.shoot(plan.shots[name])
        self._samples.values.clear()
        link = LinkProbe(self.probe.arena, max([*plan.sizes, self.probe.layout.block_bytes]))
        self._dense_round(link)
        self._link_round(link)
        link.release()
        self._samples.values.clear()
        return spent + clock() - begun

    def _add_contended(self) -> None:
        """CPU units and GPU units beside as many copies as last as long."""
        plan, probe = self.plan, self.probe
        most = self.plan.levels[COPY][-1]
        copy = self._samples.median(f"{COPY} {most} x 1", "total") / (most * probe.slices)
        points = [(CPU, *point) for point in plan.by_tokens[CPU].items()] + [(GPU, 1, plan.by_tokens[GPU][1])]
        for where, tokens, experts in points:
            job = self._samples.median(f"{where} {experts} x {tokens}", "total")
            copies = int(np.clip(np.ceil(job / (copy * probe.slices)) + 1, 1, min(most, probe.count - experts)))
            plan.shots[f"{where} contended {tokens}"] = (Part(where, experts, tokens), Part(COPY, copies, 1))

    def measure(self) -> None:
        """All rounds; the first point again at the end."""
        plan = self.plan
        first, *_ = plan.shots.items()
        link = LinkProbe(self.probe.arena, max([*plan.sizes, self.probe.layout.block_bytes]))
        try:
            for _ in range(self.settings.rounds):
                self._samples.add("first", self.probe.shoot(first[1]))
            for number in range(self.settings.rounds):
                self._load.append(load_per_core())
                for name, shot in plan.shots.items():
                    self._samples.add(name, self.probe.shoot(shot))
                self._link_round(link)
                self._dense_round(link)
                self._progress(f"round {number + 1}")
            for name, seconds in pieces(self.probe, max(self.settings.rounds, 5)).items():
                self._samples.add(name, seconds)
            for _ in range(self.settings.rounds):
                self._samples.add("last", self.probe.shoot(first[1]))
        finally:
            link.release()

    def _link_round(self, link: LinkProbe) -> None:
        for size in (*self.plan.sizes, self.probe.layout.block_bytes):
            for outstanding in (1, 2):
                self._samples.add(f"link {size} {outstanding}", link.seconds(size, outstanding, self.settings.copies))
        with cpu_busy(self.probe):
            for size in self.plan.sizes:
                for outstanding in (1, 2):
                    self._samples.add(
                        f"busy link {size} {outstanding}", link.seconds(size, outstanding, self.settings.copies)
                    )

    def _dense_round(self, link: LinkProbe) -> None:
        plan = self.plan
        with self._null.installed():
            for batch, context in plan.decode:
                found = self._null.measure(batch, context, 3)
                self._samples.add(f"decode {batch} {context}", merged(found[1:]))
            with link_busy(link, self.probe.layout.block_bytes):
                for batch, context in plan.beside:
                    found = self._null.measure(batch, context, 3)
                    self._samples.add(f"{BESIDE}decode {batch} {context}", merged(found[1:]))
            for sequences, length in self.plan.prefill:
                self._samples.add(f"prefill {sequences} {length}", self._null.measure(sequences, length, 0)[0])

    # ---- what follows

    def profile(self, name: str, model: str) -> Profile:
        """The profile of what was measured."""
        probe = self.probe
        plan = self.plan
        solved = Solver(self._samples, plan.levels, plan.by_tokens, probe.slices, plan.both).solve()
        unit = probe.layout.block_bytes
        return Profile(
            name=name,
            version=VERSION,
            machine=describe(probe.arena, probe.cpu_threads, probe.layout.dtype),
            model=model,
            geometry=geometry_of(probe.layout),
            gpu_memory_gb=round(experts_memory_gb(probe.arena), 2),
            cpu=solved.cpu,
            cpu_contended=solved.cpu_contended,
            gpu=solved.gpu,
            copy=self._copies("link", 2, {unit: f"{COPY} {self.plan.levels[COPY][-1]} x 1"}),
            copy_contended=self._copies("busy link", 2, {unit: f"{CPU} contended 1"}),
            copy_alone=self._copies("link", 1, {}),
            dense={phase: self._surface(phase, "layer") for phase in (DECODE, PREFILL)},
            outside={phase: self._surface(phase, "outside") for phase in (DECODE, PREFILL)},
            overheads=solved.overheads,
            contention=solved.contention,
            parts=solved.parts,
            quality=self._quality(),
        )

    def _copies(self, kind: str, outstanding: int, shots: dict[int, str]) -> dict[str, Any]:
        """Seconds by size; of a unit, the executor's own copies in place of ours."""
        points = {size: self._samples.of(f"{kind} {size} {outstanding}") for size in self.plan.sizes}
        unit = self.probe.layout.block_bytes
        if not shots:
            points[unit] = self._samples.of(f"{kind} {unit} {outstanding}")
        for size, name in shots.items():
            points[size] = self._samples.of(name, "copy")
        sizes = sorted(points)
        return {
            "at": sizes,
            "seconds": [float(np.median(points[size])) for size in sizes],
            "spread": [spread_of(points[size]) for size in sizes],
            "outliers": sum(outliers_of(points[size]) for size in sizes),
        }

    def _surface(self, phase: str, what: str) -> list[list[float]]:
        rows = []
        for name, values in self._samples.values.items():
            if name.startswith(f"{phase} "):
                one: Dense = values[0]
                seconds = self._samples.of(name, what)
                middle = max(float(np.median(seconds)), 1e-9)
                rows.append([one.tokens, one.sequences, one.context, middle, spread_of(seconds)])
        return sorted(rows)

    def _quality(self) -> dict[str, Any]:
        first, last = (self._samples.median(name, "total") for name in ("first", "last"))
        spreads = [spread_of(self._samples.of(name, "total")) for name in self.plan.shots]
        return {
            "rounds": self.settings.rounds,
            "drift": round(last / first - 1, 4),
            "median_spread": round(float(np.median(spreads)), 4),
            "load_per_core": round(float(np.median(self._load)), 2),
            "left_out": list(self.left_out),
        }


def geometry_of(layout: UnitLayout) -> dict[str, Any]:
    """Fields of `policies.costs.measured.Geometry` of units laid out so."""
    down = next(part for part in layout.parts if part.name == "down_proj")
    return {
        "hidden": layout.inputs,
        "expert_width": down.count // layout.outputs * layout.slices,
        "gated": layout.gated,
        "bits": 8 * layout.dtype.itemsize,
        "slices": layout.slices,
    }


def calibrate(
    model: nn.Module,
    arena: Arena,
    settings: CalibrationSettings,
    *,
    name: str,
    title: str,
    slices: int = 1,
    cpu_threads: int | None = None,
    progress: Callable[[str], object] = lambda what: None,
) -> Profile:
    """The profile of a model's units on this machine.

    InputError for a busy GPU, a machine too small for the model, and what `Offload` refuses.
    """
    check_idle(arena.device)
    with Probe(model, arena, slices, cpu_threads, MAX_TOKENS) as probe:
        calibration = Calibration(probe, settings, progress)
        calibration.warm_up()
        calibration.measure()
        return calibration.profile(name, title)
