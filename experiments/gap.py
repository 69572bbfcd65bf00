"""`dali gap`: how far every policy is from the optimum, and what each remaining idea could buy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from experiments import build, figures_gap
from experiments.compare import check_memory, simulate, summarise
from experiments.figures import save_all
from experiments.results import finished, folder, number, share, stamp, table
from policies.cost import makespan, paper_makespan
from policies.planner import Policy
from policies.types import AssignmentPolicy, Bools, Capacity, InputError, LayerView, Shape
from sim.bounds import lower_bound
from traces.workload import Workload

EXACT, ILP, PARTS = "exact", "ilp", ("assignment", "prefetch", "cache")
# Bars of the waterfall: name, and the parts that are replaced so far.
WATERFALL = (("exact assignment", "assignment"), ("Belady cache", "cache"), ("perfect one-layer prefetch", "prefetch"))
CALL = ("assignment", "seconds", "makespan", "paper", "layer_step")


class Probe:
    """Answers as one assignment policy would, and asks the others about the same views but for the first `skip`.

    rows  entries of `CALL`: seconds of the call, makespan and DALI's objective of the answer
    """

    def __init__(self, leader: str, policies: dict[str, AssignmentPolicy], seldom: str, every: int, skip: int) -> None:
        self.leader, self.policies, self.seldom, self.every, self.skip = leader, policies, seldom, every, skip
        self.overlap = policies[leader].overlap
        self.rows: list[tuple[str, float, float, float, int]] = []
        self._count = 0

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Reset all of them."""
        for policy, own in zip(self.policies.values(), rng.spawn(len(self.policies)), strict=True):
            policy.reset(shape, capacity, own)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U]."""
        counts = self._count >= self.skip
        for name, policy in self.policies.items():
            if name != self.leader and (not counts or (name == self.seldom and self._count % self.every)):
                continue
            began = time.perf_counter()
            on_gpu = policy.assign(view)
            seconds = time.perf_counter() - began
            if counts:
                self.rows.append((name, seconds, makespan(view, on_gpu), paper_makespan(view, on_gpu), self._count))
            if name == self.leader:
                answer = on_gpu.copy()
        self._count += 1
        return answer


@dataclass(frozen=True)
class Case:
    """One cell of the comparison: a scene with its GPU memory, and one workload on it."""

    name: str
    share: float
    scene: build.Scene
    workload: Workload
    batch: int
    phase: str

    @property
    def key(self) -> dict[str, Any]:
        """What rows of this case begin with."""
        return {"scene": self.name, "cache_share": self.share, "batch": self.batch, "phase": self.phase}


def run(config: DictConfig, overrides: list[str]) -> None:
    """Compare assignments, run whole policies, bound them; write the results folder, print the tables."""
    names = [build.text(config, "base"), build.text(config, "against"), *build.texts(config, "others")]
    assignments = build.texts(config, "assignments")
    if EXACT not in assignments:
        raise InputError(f"assignments: found {assignments}, expected exact among them")
    if len(set(names)) < len(names):
        raise InputError(f"base, against, others: found {names}, expected each name once")
    if not isinstance(config.cache_shares, ListConfig) or not config.cache_shares:
        raise InputError(f"cache_shares: found {config.cache_shares!r}, expected one or more numbers")
    scenes = [_Scene(config, overrides, entry, names) for entry in build.texts(config, "scenes")]
    cases = {scene.name: scene.cases(config) for scene in scenes}
    every = build.whole(config, "ilp_every")
    with folder(build.text(config, "output"), "gap", config) as place:
        probed, runs = [], []
        with tqdm(total=sum(map(len, cases.values())), unit="case", desc="gap") as bar:
            for scene in scenes:
                for case in cases[scene.name]:
                    bar.set_postfix_str(f"{case.name}, {case.share:.0%}, batch {case.batch}, {case.phase}")
                    probed.append(_assignments(case, scene.policies[names[0]], assignments, every))
                    runs += _runs(case, scene.policies, names)
                    bar.update()
        calls, results = pd.concat(probed, ignore_index=True), pd.DataFrame(runs)
        gaps = gap_table(calls)
        gaps.to_parquet(place / "assignments.parquet", index=False)
        results.to_parquet(place / "results.parquet", index=False)
        fall = waterfall(results, names[0], names[1])
        fall.to_parquet(place / "waterfall.parquet", index=False)
        found = summary(gaps, results, names[0], names[1])
        (place / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        drawn = save_all(figures_gap.drawings(gaps, fall), place)
        notes = [note for scene in scenes for note in scene.notes]
        text = _report(gaps, results, found, names)
        pictures = "\n\n".join(f"![{name}]({name})" for name in drawn)
        lines = "\n".join(f"- {note}" for note in dict.fromkeys(notes))
        whole = f"# Gaps to the optimum\n\n{lines}\n\n{text}\n\n{pictures}\n\n{stamp()}\n"
        (place / "summary.md").write_text(whole, encoding="utf-8")
        final = finished(place)
    print("\n".join([*(f"Note: {note}" for note in dict.fromkeys(notes)), "", text, "", f"Results: {final}"]))


class _Scene:
    """A model with its routing, and the policies as they are configured for it."""

    def __init__(self, config: DictConfig, overrides: list[str], entry: str, names: list[str]) -> None:
        own = [*overrides, *entry.split(), "+cache_share=1", "+expert_memory_gb=null"]
        whole = build.configuration("gap", own)
        self.scene = build.scene(whole)
        self.policies = dict(build.policy("gap", own, name, self.scene.model) for name in names)
        self.scene = build.with_predictors(self.scene, self.policies.values(), whole)
        self.name = self.scene.trace.metadata.model
        self.notes = [f"{self.name}: {note}" for note in self.scene.notes if "what-if" not in note]

    def cases(self, config: DictConfig) -> list[Case]:
        """Every cache share with every workload."""
        prefill = build.whole(config, "prefill.sequences"), build.whole(config, "prefill.tokens")
        decode = build.whole(config, "decode.prompt", 0), build.whole(config, "decode.steps")
        made = [(batch, "decode", self._workload(batch, *decode)) for batch in build.wholes(config, "batch")]
        made.append((prefill[0], "prefill", self._workload(*prefill, 0)))
        units = self.scene.model.layers * self.scene.units
        cases = []
        for part in config.cache_shares:
            if not isinstance(part, int | float) or not 0 < part <= 1:
                raise InputError(f"cache_shares: found {part!r}, expected numbers above 0 and at most 1")
            scene = replace(self.scene, slots=round(part * units))
            for name, policy in self.policies.items():
                check_memory(name, policy, scene)
            cases += [Case(self.name, part, scene, workload, batch, phase) for batch, phase, workload in made]
        return cases

    def _workload(self, batch: int, prompt: int, generate: int) -> Workload:
        if isinstance(self.scene.trace, Workload):
            raise InputError(f"scenes: {self.name} holds counts only, expected a trace of tokens")
        return Workload.from_trace(
            self.scene.trace, batch, prompt, generate, slices=self.scene.slices, seed=self.scene.seed
        )


# ---- assignments -----------------------------------------------------------------------------------


def _assignments(case: Case, policy: Policy, names: list[str], every: int) -> pd.DataFrame:
    """Every call of every assignment policy on the layer steps of one run of `policy`."""
    parts = {name: build.part("assignment", name) for name in names}
    before = sum(step.phase != case.phase for step in case.workload.steps()) * case.workload.layers
    probe = Probe(EXACT, parts, ILP, every, before)
    simulate(case.scene, case.scene.platform, replace(policy, assignment=probe), case.workload, ())
    calls = pd.DataFrame(probe.rows, columns=list(CALL))
    best = calls[calls["assignment"] == EXACT].set_index("layer_step")["makespan"]
    calls["exact"] = best.loc[calls["layer_step"]].to_numpy()
    return calls.assign(**case.key)


def gap_table(calls: pd.DataFrame) -> pd.DataFrame:
    """By case and assignment: gap of the makespan over exact's (mean, 99th percentile, worst), seconds of a call.

    moe_ratio is the sum of exact's makespans over the sum of the policy's: "per cent of the optimum".
    """
    rows = []
    keys = ["scene", "cache_share", "batch", "phase", "assignment"]
    for key, part in calls.groupby(keys, sort=False):
        gap = part["makespan"].to_numpy() / part["exact"].to_numpy() - 1
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "layer_steps": len(part),
                "gap_mean": gap.mean(),
                "gap_p99": np.quantile(gap, 0.99),
                "gap_max": gap.max(),
                "moe_ratio": part["exact"].sum() / part["makespan"].sum(),
                "seconds_mean": part["makespan"].mean(),
                "call_median": part["seconds"].median(),
                "call_p99": part["seconds"].quantile(0.99),
            }
        )
    return pd.DataFrame(rows)


# ---- whole policies --------------------------------------------------------------------------------


def _runs(case: Case, policies: dict[str, Policy], names: list[str]) -> list[dict[str, Any]]:
    """One row for every policy, every ablation and every bar of the waterfall."""
    chosen, against = policies[names[0]], policies[names[1]]
    wanted = [(name, "policy", policies[name]) for name in names]
    for part in PARTS:
        mixed = replace(against, **{part: getattr(chosen, part)})
        wanted.append((f"{names[1]} with {names[0]}'s {part}", "without", mixed))
    wanted.append((f"{names[1]} with whole experts", "without", replace(against, slices=1)))
    for part in PARTS:
        mixed = replace(chosen, **{part: getattr(against, part)})
        wanted.append((f"{names[0]} with {names[1]}'s {part}", "with", mixed))
    ideal = {"assignment": build.part("assignment", EXACT)}
    # As many hints as the chosen policy gives, so that what they are worth is a matter of prediction alone.
    size = [f"size={chosen.prefetch.size}"] if hasattr(chosen.prefetch, "size") else []
    # From the same first residents, for the same reason.
    fill = [f"fill={chosen.cache.fill}"] if hasattr(chosen.cache, "fill") else []
    ideal |= {"cache": build.part("cache", "belady", *fill), "prefetch": build.part("prefetch", "oracle", *size)}
    step = chosen
    for name, part in WATERFALL:
        step = replace(step, **{part: ideal[part]})
        wanted.append((name, "waterfall", step))
    rows = []
    for name, kind, policy in wanted:
        found = summarise(simulate(case.scene, case.scene.platform, policy, case.workload, ()), case.phase)
        rows.append({**case.key, "name": name, "kind": kind, **found})
    return [*rows, {**case.key, "name": "bound", "kind": "bound", **_bound(case, policies.values())}]


def _bound(case: Case, policies: Iterable[Policy]) -> dict[str, float]:
    """Of all policies: the least over the slices that they use."""
    seconds = np.inf
    for scene, workload in {
        scene.slices: (scene, workload)
        for scene, workload in (build.sliced(case.scene, policy, case.workload) for policy in policies)
    }.values():
        cost = build.costs(scene.model, scene.platform, workload.max_tokens, scene.slices)
        seconds = min(seconds, lower_bound(workload, scene.slots, cost).phases[case.phase])
    steps = [step for step in case.workload.steps() if step.phase == case.phase]
    tokens = sum(step.tokens for step in steps)
    return {"steps": len(steps), "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}


# ---- what is said ----------------------------------------------------------------------------------


def summary(gaps: pd.DataFrame, results: pd.DataFrame, chosen: str, against: str) -> dict[str, Any]:
    """Fractions, over all cases and by scene, batch and cache share."""
    cells = [
        {**dict(zip(("scene", "batch", "phase", "cache_share"), key, strict=True)), **_figures(parts, chosen, against)}
        for key, parts in _cells(gaps, results)
    ]
    return {**_figures((gaps, results), chosen, against), "cases": cells}


def _cells(gaps: pd.DataFrame, results: pd.DataFrame) -> Any:
    keys = ["scene", "batch", "phase", "cache_share"]
    groups = [dict(list(frame.groupby(keys, sort=False))) for frame in (gaps, results)]
    return ((key, (groups[0][key], groups[1][key])) for key in groups[0])


def _figures(parts: tuple[pd.DataFrame, pd.DataFrame], chosen: str, against: str) -> dict[str, Any]:
    gaps, results = parts
    found: dict[str, Any] = {}
    for name in gaps["assignment"].unique():
        part = gaps[gaps["assignment"] == name]
        # Every case counts alike, however many layer steps it has.
        found[f"{name}_gap_mean"] = float(part["gap_mean"].mean())
        found[f"{name}_gap_max"] = float(part["gap_max"].max())
    speedup = _speedup(results, against, chosen)
    found[f"{against}_speedup_geomean"] = float(np.exp(np.log(speedup).mean()))
    found[f"{against}_speedup_min"] = float(speedup.min())
    return found


def _speedup(results: pd.DataFrame, name: str, over: str) -> pd.Series:
    keys = ["scene", "cache_share", "batch", "phase"]
    speeds = results[results["name"].isin([name, over])].pivot(index=keys, columns="name", values="tokens_per_s")
    return speeds[name] / speeds[over]


def waterfall(results: pd.DataFrame, chosen: str, against: str) -> pd.DataFrame:
    """Milliseconds of a decode step by case and stage, from the chosen policy to the bound; `dali report` draws it."""
    stages = [chosen, *(name for name, _ in WATERFALL), "bound", against]
    rows = results[(results["phase"] == "decode") & results["name"].isin(stages)]
    found = rows.assign(stage=rows["name"], ms_per_token=1e3 * rows["seconds"] / rows["steps"])
    found["order"] = found["stage"].map(stages.index)
    keys = ["scene", "cache_share", "batch"]
    return found.sort_values([*keys, "order"])[[*keys, "stage", "ms_per_token"]].reset_index(drop=True)


def _report(gaps: pd.DataFrame, results: pd.DataFrame, found: dict[str, Any], names: list[str]) -> str:
    chosen, against = names[:2]
    return "\n\n".join(
        [
            "## Assignment: makespan over exact's\n\n" + _gap_lines(gaps),
            "DALI's Table 4 (arXiv 2602.03495) puts greedy at 85 to 92 % of the optimum (MoE time, exact over greedy).",
            f"## {against} over {chosen}, simulated tokens/s\n\n" + speed_lines(results, names),
            f"Geometric mean {found[f'{against}_speedup_geomean']:.2f}x, least {found[f'{against}_speedup_min']:.2f}x.",
            "## What each part is worth: tokens/s over the whole policy's, geometric mean\n\n"
            + _ablation_lines(results, chosen, against),
            f"## From {chosen} to the bound, ms a token\n\n" + _waterfall_lines(results, names),
            "## Scheduling: microseconds a call beside the makespan it finds\n\n" + _call_lines(gaps),
        ]
    )


def _gap_lines(gaps: pd.DataFrame) -> str:
    header = ["model, cache, batch", *(str(name) for name in gaps["assignment"].unique())]
    rows = []
    for label, part in _labelled(gaps):
        cells = [
            f"{row.gap_mean:.2%} / {row.gap_p99:.1%} / {row.gap_max:.1%} ({row.moe_ratio:.0%})"
            for row in part.itertuples()
        ]
        rows.append([label, *cells])
    return "Mean / 99th percentile / worst gap (sum of exact's makespans over the sum of the policy's).\n\n" + table(
        header, rows
    )


def speed_lines(results: pd.DataFrame, names: list[str]) -> str:
    """Tokens/s of the named policies, over the first one's, and the second's share of the bound; a row a case."""
    rows = []
    for label, part in _labelled(results):
        speeds = part.set_index("name")["tokens_per_s"]
        cells = [f"{number(speeds[name])} ({speeds[name] / speeds[names[0]]:.2f}x)" for name in names]
        rows.append([label, *cells, share(speeds[names[1]] / speeds["bound"])])
    return table(["model, cache, batch", *names, f"{names[1]} of bound"], rows)


def _ablation_lines(results: pd.DataFrame, chosen: str, against: str) -> str:
    rows = []
    for kind, whole in (("without", against), ("with", chosen)):
        for name in results[results["kind"] == kind]["name"].unique():
            ratio = _speedup(results, name, whole)
            rows.append([f"{name}, over {whole}", f"{np.exp(np.log(ratio).mean()):.3f}x", f"{ratio.min():.2f}x"])
            rows[-1].append(f"{ratio.max():.2f}x")
    return table(["", "mean", "least", "most"], rows)


def _waterfall_lines(results: pd.DataFrame, names: list[str]) -> str:
    bars = [names[0], *(f"+ {name}" for name, _ in WATERFALL), "bound", names[1]]
    rows = []
    for label, part in _labelled(results):
        each = part.set_index("name")
        times = 1e3 * each["seconds"] / (each["tokens"] if part["phase"].iloc[0] == "prefill" else each["steps"])
        rows.append([label, *(number(float(times[bar.removeprefix("+ ")])) for bar in bars)])
    return table(["model, cache, batch", *bars], rows)


def _call_lines(gaps: pd.DataFrame) -> str:
    rows = []
    for label, part in _labelled(gaps):
        times = zip(part["call_median"].to_numpy(), part["seconds_mean"].to_numpy(), strict=True)
        cells = [f"{1e6 * call:.0f} us, {1e3 * seconds:.2f} ms" for call, seconds in times]
        rows.append([label, *cells])
    return table(["model, cache, batch", *(str(name) for name in gaps["assignment"].unique())], rows)


def _labelled(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    keys = ["scene", "cache_share", "batch", "phase"]
    return [
        (f"{scene}, {part:.0%}, {'prefill' if phase == 'prefill' else batch}", rows)
        for (scene, part, batch, phase), rows in frame.groupby(keys, sort=False)
    ]
