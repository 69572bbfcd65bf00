"""`dali validate`: what the executor does and takes, against what the simulator says it does and takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from scipy.stats import kendalltau
from tqdm import tqdm

from experiments import build, figures_validate
from experiments.calibrate_model import arena, cpu_threads, subject
from experiments.calibrate_profile import load
from experiments.results import finished, folder, number, stamp, table
from experiments.validate_runs import (
    TERMS,
    Agreement,
    Cut,
    Machine,
    Outcome,
    Setting,
    Side,
    agreement,
    assess,
    capacity_units,
    execute,
    has_early_copies,
    speed,
)
from policies.planner import Policy
from policies.types import InputError, Shape
from runtime.calibrate_machine import check_idle, check_same_machine
from runtime.calibrate_machine import machine as describe
from runtime.layout import unit_layout
from runtime.moe_layers import moe_layers
from runtime.offloading import Offload
from traces.trace import Trace
from traces.workload import Workload

PHASES = ("prefill", "decode")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Run, simulate, compare; write the results folder and print the tables."""
    plan = _Plan.read(config)
    machine, title, notes = _machine(config)
    cut = _cut(config, machine, plan)
    makers = {entry: _maker(config, overrides, entry, cut.trace) for entry in plan.policies}
    cut = _with_predictors(cut, config, makers, notes)
    _check_room(machine, plan, makers)
    outcomes: list[Outcome] = []
    with folder(build.text(config, "output"), "validate", config) as place:
        moved = [speed(machine)]
        total = len(plan.settings) * len(makers) * plan.repeats
        with tqdm(total=total, unit="run", desc="validating", disable=None) as bar:
            for setting in plan.settings:
                ran: dict[str, list[Offload]] = {name: [] for name in makers}
                # Policy after policy and then again: a slow minute is no policy's.
                for _, (name, make) in itertools.product(range(plan.repeats), makers.items()):
                    bar.set_postfix_str(f"{setting}, {name}")
                    ran[name].append(execute(machine, cut, setting, make()))
                    bar.update()
                outcomes += [assess(machine, cut, setting, name, makers[name], runs) for name, runs in ran.items()]
        moved.append(speed(machine))
        notes += [_moved(when, ratios) for when, ratios in zip(("Before", "After"), moved, strict=True)]
        report = Report(outcomes)
        report.steps().to_parquet(place / "steps.parquet", index=False)
        report.table().to_parquet(place / "results.parquet", index=False)
        about: dict[str, Any] = {"speed": dict(zip(("before", "after"), moved, strict=True))}
        about |= {"profile": machine.profile.name, "model": title, "machine": machine.profile.machine, "notes": notes}
        (place / "validation.json").write_text(json.dumps(about | report.summary(), indent=1) + "\n", encoding="utf-8")
        figures_validate.save(report.table(), report.shown(), place)
        lines = "\n".join(f"- {note}" for note in notes)
        head = f"# {machine.profile.name}: measured against simulated, {title}"
        text = "\n\n".join(part for part in (head, lines, *report.text(), stamp()) if part)
        (place / "summary.md").write_text(text + "\n", encoding="utf-8")
        final = finished(place)
    print(text)
    print(f"Results: {final}")


def _moved(when: str, ratios: dict[str, float]) -> str:
    sides = " and ".join(f"{ratio:.2f} times on the {side.upper()}" for side, ratio in ratios.items())
    return f"{when} the runs a unit of one token took {sides} what the profile says."


# ---- what is asked for -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    policies: list[str]
    settings: list[Setting]
    repeats: int

    @classmethod
    def read(cls, config: DictConfig) -> _Plan:
        policies = build.texts(config, "policies")
        shares = _shares(config, "cache_share")
        batches = build.wholes(config, "batch")
        for name, values in (("policies", policies), ("cache_share", shares), ("batch", batches)):
            tuned = set(config.tuned_on[name]) & set(values)
            if tuned:
                raise InputError(
                    f"tuned_on.{name}: found {sorted(tuned)} among what is reported, expected others: errors are for "
                    "settings that nothing was fitted to"
                )
        settings = [Setting(batch, share) for share in shares for batch in batches]
        return cls(policies, settings, build.whole(config, "repeats"))


def _shares(config: DictConfig, name: str) -> list[float]:
    found = config[name]
    values = [found] if isinstance(found, int | float) else list(found)
    if (
        not values
        or len(set(values)) < len(values)
        or not all(isinstance(value, int | float) and 0 < value <= 1 for value in values)
    ):
        raise InputError(f"{name}: found {values}, expected shares above 0 and at most 1, each once")
    return [float(value) for value in values]


def _machine(config: DictConfig) -> tuple[Machine, str, list[str]]:
    """The model on its device with the profile; InputError for a profile of another machine or geometry."""
    profile = load(build.text(config, "profile"))
    device = arena(config)
    check_idle(device.device)
    model, title = subject(config)
    machine = Machine(model, device, profile, build.whole(config, "slices"), cpu_threads(config))
    profile.check(machine.geometry)
    layout = unit_layout(moe_layers(model)[0], machine.slices)
    notes = check_same_machine(profile.name, profile.machine, describe(device, machine.cpu_threads, layout.dtype))
    if profile.model != title:
        notes.append(f"The dense part was measured on {profile.model}.")
    return machine, title, notes


def _cut(config: DictConfig, machine: Machine, plan: _Plan) -> Cut:
    trace = build.make(config.trace, "trace")
    if isinstance(trace, Workload):
        raise InputError("trace: found counts only, expected the routing of each token")
    layers = moe_layers(machine.model)
    if trace.layers > len(layers):
        trace = first_layers(trace, len(layers))
    trace.check_model(len(layers), layers[0].count, type(machine.model).__name__)
    cut = Cut(
        trace,
        build.whole(config, "prompt", 0),
        build.whole(config, "generate", 0),
        build.whole_or_none(config, "chunk"),
        build.whole(config, "seed", 0),
    )
    for setting in plan.settings:
        cut.routing(setting.batch)
    return cut


def first_layers(trace: Trace, layers: int) -> Trace:
    """The routing of the first layers only."""
    parts: dict[str, Any] = {
        "experts": trace.experts[:, :layers],
        "weights": None if trace.weights is None else trace.weights[:, :layers],
        "predicted": {name: ids[:, :layers] for name, ids in trace.predicted.items()},
        "cosine": {},
        "router_input": None,
        "router_weight": None,
    }
    sizes = None if trace.metadata.unit_bytes is None else trace.metadata.unit_bytes[:layers]
    return replace(trace, metadata=replace(trace.metadata, layers=layers, unit_bytes=sizes), **parts)


def _maker(config: DictConfig, overrides: list[str], entry: str, trace: Trace) -> Any:
    """Function that makes the policy anew; what depends on the model's shape sees the routing's."""
    shape = replace(
        build.make(config.model, "model"),
        layers=trace.layers,
        experts=trace.experts_count,
        top_k=trace.top_k,
    )

    def make() -> Policy:
        made = build.policy("validate", overrides, entry, shape)[1]
        if made.slices not in (None, "auto", config.slices):
            raise InputError(
                f"policy {entry}: found slices={made.slices}, expected {config.slices} as the run, auto or null: "
                "a profile is for one number"
            )
        return made

    return make


def _with_predictors(cut: Cut, config: DictConfig, makers: dict[str, Any], notes: list[str]) -> Cut:
    """The trace with every predictor that a policy asks for, emulated where it was not recorded."""
    shape = build.make(config.model, "model")
    scene = build.Scene(shape, build.make(config.platform, "platform"), cut.trace, 1, 0, cut.seed, [])
    found = build.with_predictors(scene, [make() for make in makers.values()], config)
    notes.extend(found.notes)
    assert isinstance(found.trace, Trace)
    return replace(cut, trace=found.trace)


def _check_room(machine: Machine, plan: _Plan, makers: dict[str, Any]) -> None:
    """InputError before anything runs if a policy's staging area does not fit a setting."""
    layers = moe_layers(machine.model)
    layout = unit_layout(layers[0], machine.slices)
    shape = Shape(len(layers), layout.units, np.full(len(layers), layout.unit_bytes, np.int64))
    for make, setting in itertools.product(makers.values(), plan.settings):
        capacity_units(machine, setting, make(), shape)


# ---- what was found --------------------------------------------------------------------------------


class Report:
    """Tables of a list of outcomes.  All errors are (simulated - measured) / measured."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = list(outcomes)
        self._agreements = [agreement(each.ran[0], each.simulated) for each in self._outcomes]

    def steps(self) -> pd.DataFrame:
        """A row a step: seconds measured (median of the repeats) and simulated."""
        parts = []
        for each in self._outcomes:
            for phase in PHASES:
                measured = np.median([side.seconds(phase) for side in each.ran], axis=0)
                simulated = each.simulated.seconds(phase)
                about: dict[str, Any] = {
                    "policy": each.policy,
                    "batch": each.setting.batch,
                    "cache_share": each.setting.cache_share,
                }
                parts.append(pd.DataFrame({"measured": measured, "simulated": simulated}).assign(phase=phase, **about))
        return pd.concat(parts, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """A row a policy, setting and phase."""
        rows = []
        for each, agreed in zip(self._outcomes, self._agreements, strict=True):
            for phase in PHASES:
                if len(each.simulated.seconds(phase)):
                    rows.append(_row(each, phase, agreed))
        return pd.DataFrame(rows)

    def taus(self, phase: str) -> dict[str, float]:
        """Kendall's tau of the policies' measured and simulated times in each setting."""
        found = {}
        part = self.table()
        for setting, group in part[part["phase"] == phase].groupby("setting", sort=False):
            found[str(setting)] = _tau(group["measured"].to_numpy(), group["simulated"].to_numpy())
        return found

    def summary(self) -> dict[str, Any]:
        """What validation.json holds."""
        found = self.table()

        def by_policy(phase: str, column: str) -> dict[str, dict[str, Any]]:
            part = found[found["phase"] == phase]
            return {
                str(policy): dict(zip(group["setting"], group[column].tolist(), strict=True))
                for policy, group in part.groupby("policy", sort=False)
            }

        decisions = {
            f"{each.policy}, {each.setting}": {
                "layer_steps": agreed.layer_steps,
                "differing": agreed.differing,
                "first_difference": agreed.first,
                "counts": agreed.counts,
                "depends_on_times": has_early_copies([each.simulated, *each.ran]),
                "replays": each.drift is None,
                "repeats_differing": _between(each.ran),
            }
            for each, agreed in zip(self._outcomes, self._agreements, strict=True)
        }
        return {
            "decode_mape": by_policy("decode", "mape"),
            "prefill_mape": by_policy("prefill", "mape"),
            "decode_error": by_policy("decode", "error"),
            "prefill_error": by_policy("prefill", "error"),
            "layer_step_mape": by_policy("decode", "layer_mape"),
            "kendall_tau": {phase: self.taus(phase) for phase in PHASES},
            "largest_term": {phase: by_policy(phase, "largest") for phase in PHASES},
            "decisions": decisions,
        }

    def shown(self) -> tuple[str, Side, Side]:
        """The run whose step is drawn: of the policy that copies most kinds, the first such."""
        best = max(
            self._outcomes,
            key=lambda each: sum(each.simulated.counts[f"copies_{k}"] > 0 for k in ("demand", "prefetch", "swap")),
        )
        return f"{best.policy}, {best.setting}", best.ran[0], best.simulated

    def text(self) -> list[str]:
        """Tables for people."""
        found = self.table()
        return [
            "## What must be equal\n\n" + self._equality(),
            *(
                f"## {phase.capitalize()}: milliseconds a step\n\n{_times(found[found['phase'] == phase])}"
                for phase in PHASES
                if phase in set(found["phase"])
            ),
            "## Ranking of the policies\n\n" + self._ranking(),
            "## Where the time error comes from\n\nMilliseconds a step, simulated minus measured, by machine.\n\n"
            + _terms(found),
        ]

    def _equality(self) -> str:
        rows = []
        for each, agreed in zip(self._outcomes, self._agreements, strict=True):
            timed = has_early_copies([each.simulated, *each.ran])
            rows.append(
                [
                    each.policy,
                    str(each.setting),
                    "yes" if each.drift is None else f"no, at call {each.drift}",
                    "yes" if each.routing else "no",
                    "yes" if agreed.equal else "no",
                    f"{agreed.differing} of {agreed.layer_steps}",
                    "yes" if timed else "no",
                    str(_between(each.ran)),
                    agreed.first or ", ".join(f"{k} {a} / {b}" for k, (a, b) in agreed.counts.items()) or "–",
                ]
            )
        head = [
            "policy",
            "setting",
            "log replays",
            "routing",
            "all equal",
            "layer steps that differ",
            "copies early",
            "differ between repeats",
            "first difference",
        ]
        return (
            "Log replays: a fresh planner, told what the executor reported, decides the same, so that whatever differs "
            "from the simulation does so because copies landed at other times. Where nothing is copied early, all must "
            "be equal.\n\n" + table(head, rows)
        )

    def _ranking(self) -> str:
        rows = []
        found = self.table()
        for phase in PHASES:
            for setting, tau in self.taus(phase).items():
                part = found[(found["phase"] == phase) & (found["setting"] == setting)]
                order = [" < ".join(part.sort_values(c)["policy"]) for c in ("measured", "simulated")]
                rows.append([setting, phase, "–" if tau != tau else f"{tau:.2f}", *order])
        return table(["setting", "phase", "Kendall tau", "measured, fastest first", "simulated"], rows)


def _tau(measured: np.ndarray, simulated: np.ndarray) -> float:
    return float(kendalltau(measured, simulated).statistic) if len(measured) > 1 else float("nan")


def _between(ran: Sequence[Side]) -> int:
    """Layer steps in which some repeat decided otherwise than the first."""
    return sum(
        any(other != first for other in others) for first, *others in zip(*(s.decisions for s in ran), strict=True)
    )


def _row(each: Outcome, phase: str, agreed: Agreement) -> dict[str, Any]:
    measured = np.median([side.seconds(phase) for side in each.ran], axis=0)
    simulated = each.simulated.seconds(phase)
    layers = np.median([side.layer_seconds(phase) for side in each.ran], axis=0)
    layer_error = each.simulated.layer_seconds(phase) / layers - 1
    terms = {name: float(np.median([side.terms(phase)[name] for side in each.ran])) for name in TERMS}
    errors = {name: value - terms[name] for name, value in each.simulated.terms(phase).items()}
    return {
        "policy": each.policy,
        "setting": str(each.setting),
        "batch": each.setting.batch,
        "cache_share": each.setting.cache_share,
        "phase": phase,
        "measured": float(measured.mean()),
        "simulated": float(simulated.mean()),
        "error": float(simulated.sum() / measured.sum() - 1),
        "mape": float(np.abs(simulated / measured - 1).mean()),
        # A model of one layer has no join between two of them.
        "layer_error": float(layer_error.mean()) if layer_error.size else float("nan"),
        "layer_mape": float(np.abs(layer_error).mean()) if layer_error.size else float("nan"),
        "spread": float(np.ptp([side.seconds(phase).sum() for side in each.ran]) / measured.sum()),
        "differing": agreed.differing,
        "planning": each.planning,
        "forced": each.forced,
        **{f"measured {name}": value for name, value in terms.items()},
        **{f"error {name}": value for name, value in errors.items()},
        "largest": max(errors, key=lambda name: abs(errors[name])),
    }


def _times(found: pd.DataFrame) -> str:
    head = [
        "policy",
        "setting",
        "measured",
        "spread of repeats",
        "simulated",
        "error",
        "MAPE",
        "layer-step error",
        "layer-step MAPE",
    ]
    rows = [
        [
            row["policy"],
            row["setting"],
            number(1e3 * row["measured"]),
            f"{row['spread']:.1%}",
            number(1e3 * row["simulated"]),
            f"{row['error']:+.1%}",
            f"{row['mape']:.1%}",
            f"{row['layer_error']:+.1%}",
            f"{row['layer_mape']:.1%}",
        ]
        for _, row in found.iterrows()
    ]
    return table(head, rows)


def _terms(found: pd.DataFrame) -> str:
    rows = [
        [
            row["policy"],
            row["setting"],
            row["phase"],
            *(f"{1e3 * row[f'error {name}']:+.2f} ({1e3 * row[f'measured {name}']:.2f})" for name in TERMS),
            row["largest"],
        ]
        for _, row in found.iterrows()
    ]
    return table(["policy", "setting", "phase", *(f"{name} (measured)" for name in TERMS), "largest"], rows)
