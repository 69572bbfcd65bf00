"""`dali compare`: all chosen policies on one trace, model, machine and GPU memory, in simulated time."""

from __future__ import annotations

from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.drawing import timeline
from dali.experiments.drawing.figure import save_all
from dali.experiments.output.folder import finished, folder, stamp
from dali.experiments.output.summary import summarise
from dali.experiments.output.text import number, share, table
from dali.experiments.output.wording import HEADING, phases
from dali.experiments.scene import Scene
from dali.experiments.settings import read
from dali.experiments.simulation import recorded_steps, simulate
from dali.experiments.verbs.compare import figures, what_if
from dali.experiments.verbs.compare.comparison import Comparison
from dali.experiments.verbs.compare.sentences import sentences, winner
from dali.policies.columns import KINDS, PHASES
from dali.policies.core.planner import Policy
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import Platform
from dali.policies.types import InputError
from dali.traces.workload import Workload

DRAWN_LAYERS = 3


def run(config: DictConfig, overrides: list[str]) -> None:
    """Simulate, write the results folder, print the tables."""
    comparison = Comparison.read(config, overrides)
    scene, believed, workloads = comparison.scene, comparison.believed, comparison.workloads
    shown = read.whole_or_none(config, "timeline.batch") or max(workloads)
    if shown not in workloads:
        raise InputError(f"timeline.batch: found {shown}, expected one of {list(workloads)}")
    recorded = recorded_steps(workloads[shown], config)
    notes, baseline = comparison.notes(), comparison.baseline

    with folder(read.text(config, "output"), "compare", config) as place:
        changed = what_if.changes(scene, believed)
        largest = max(workloads)
        total = comparison.count + workloads[largest].n_steps * len(changed)
        with tqdm(total=total, unit="step", desc="simulating") as bar:
            comparison.run(recorded, shown, bar)
            results = comparison.results()
            helped = what_helps(changed, results, comparison.policies, workloads[largest], bar)
        spans = {
            name: simulation.spans for (name, batch), simulation in comparison.simulations.items() if batch == shown
        }
        for name, each in spans.items():
            each.save(place / f"{_file_name(name)}.timeline.json.gz", name)
        results.to_parquet(place / "results.parquet", index=False)
        helped.to_parquet(place / "what_if.parquet", index=False)
        comparison.steps().to_parquet(place / "steps.parquet", index=False)
        title = f"{scene.model.name} on {scene.platform.name}, {_memory(scene)}"
        drawings = figures.drawings(results, baseline, title)
        if recorded:
            about = f"{title}, batch {shown}"
            drawings.append(timeline.drawing(spans, recorded[-1], DRAWN_LAYERS, about))
        drawn = save_all(drawings, place)
        overview = "\n\n".join(
            f"{phase.capitalize()}, tokens/s (times {baseline})\n\n{_overview(results, phase)}"
            for phase in PHASES
            if phase in set(results["phase"])
        )
        lines, said = _inputs(scene, workloads), sentences(results, helped)
        summary = _summary(title, [*lines, *notes], said, overview, drawn, results)
        (place / "summary.md").write_text(summary, encoding="utf-8")
        final = finished(place)
    print("\n".join([title, *lines, *(f"Note: {note}" for note in notes), "", overview, "", f"Results: {final}"]))
    print(f"Figures there: {', '.join(drawn)}; timelines, for ui.perfetto.dev: *.timeline.json.gz")
    print("\n".join(["", f"{HEADING}:", *(f"- {sentence}" for sentence in said)]))


def what_helps(
    changed: dict[str, tuple[Scene, Platform | Profile]],
    results: pd.DataFrame,
    policies: dict[str, Policy],
    workload: Workload,
    bar: Any = None,
) -> pd.DataFrame:
    """Tokens/s of the policy that is fastest on the (largest) workload with one part of the machine changed at a time.

    A row a change; columns policy, batch, phase, change, tokens_per_s, gain (times the speed without the change).
    """
    phase, batch, name = phases(results)[0], results["batch"].max(), winner(results)
    before = results.set_index(["policy", "batch", "phase"])["tokens_per_s"].loc[name, batch, phase]
    rows = []
    for change, (scene, believed) in changed.items():
        if bar is not None:
            bar.set_postfix_str(f"batch {batch}, {name} with {change}")
        speed = summarise(simulate(scene, believed, policies[name], workload, (), bar), phase)["tokens_per_s"]
        row = {"policy": name, "batch": batch, "phase": phase, "change": change}
        rows.append({**row, "tokens_per_s": speed, "gain": speed / before})
    return pd.DataFrame(rows)


def _memory(scene: Scene) -> str:
    share = scene.slots / (scene.model.layers * scene.units)
    size = scene.slots * scene.model.unit_bytes(scene.slices) / 1e9
    return f"GPU memory for {scene.slots} units ({share:.0%} of them, {size:.1f} GB) for every policy"


def _inputs(scene: Scene, workloads: dict[int, Workload]) -> list[str]:
    metadata = scene.trace.metadata
    return [
        f"Routing: {metadata.model} ({metadata.recorder}, text: {metadata.text})",
        f"Times: {scene.model.name} on {scene.platform.name}, "
        + ("measured costs" if isinstance(scene.platform, Profile) else "roofline costs"),
        *(f"Workload: {workload.description}" for workload in workloads.values()),
    ]


def _overview(results: pd.DataFrame, phase: str) -> str:
    part = results[results["phase"] == phase]
    batches = sorted(part["batch"].unique())
    widest = part[part["batch"] == batches[-1]].set_index("policy")
    header = ["policy", *(f"batch {batch}" for batch in batches), "hits", "GPU busy", "CPU busy", "link busy"]
    rows = []
    for name in widest.index:
        mine = part[part["policy"] == name].set_index("batch")
        last = widest.loc[name]
        speeds = [f"{number(mine.at[b, 'tokens_per_s'])} ({mine.at[b, 'speedup']:.2f}x)" for b in batches]
        link = sum(last[f"link_{kind}"] for kind in KINDS)
        rows.append(
            [name, *speeds, *(share(value) for value in (last["hit_rate"], last["gpu_busy"], last["cpu_busy"], link))]
        )
    return table(header, rows)


def _details(results: pd.DataFrame, phase: str) -> str:
    header = ["policy", "batch", "tokens/s", "speed-up", "ms/step", "hits", "prefetch recall", "on GPU", "imbalance"]
    header += [f"GB {kind}" for kind in KINDS]
    rows = [
        [
            row["policy"],
            str(row["batch"]),
            number(row["tokens_per_s"]),
            f"{row['speedup']:.2f}",
            number(row["seconds"] / row["steps"] * 1e3),
            *(share(row[name]) for name in ("hit_rate", "prefetch_recall", "gpu_share", "imbalance")),
            *(number(row[f"bytes_{kind}"] / 1e9) for kind in KINDS),
        ]
        for _, row in results[results["phase"] == phase].sort_values("batch", kind="stable").iterrows()
    ]
    return table(header, rows)


def _summary(
    title: str, inputs: list[str], said: list[str], overview: str, drawn: list[str], results: pd.DataFrame
) -> str:
    phases = [phase for phase in PHASES if phase in set(results["phase"])]
    parts = [
        f"# {title}",
        "\n".join(f"- {line}" for line in inputs),
        "Busy shares and hits of the overview are those of the largest batch.",
        overview,
        "\n\n".join(f"![{name}]({name})" for name in drawn),
        f"## {HEADING}\n\n" + "\n".join(f"- {sentence}" for sentence in said),
        *(f"## {phase.capitalize()} in full\n\n{_details(results, phase)}" for phase in phases),
        stamp(),
    ]
    return "\n\n".join(parts) + "\n"


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
