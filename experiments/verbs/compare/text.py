"""What a comparison says: title, inputs, tables."""

from __future__ import annotations

import pandas as pd

from dali.experiments.output.columns import BYTES, LINK
from dali.experiments.output.document import Document, Items, Paragraph, Picture, Section, Table
from dali.experiments.output.text import number, share
from dali.experiments.output.wording import HEADING
from dali.experiments.scene import Scene
from dali.policies.columns import KINDS, PHASES
from dali.policies.costs.measured import Profile
from dali.traces.workload import Workload


def title(scene: Scene) -> str:
    """Model, machine and GPU memory."""
    part = scene.slots / scene.all_units
    size = scene.slots * scene.model.unit_bytes(scene.slices) / 1e9
    memory = f"GPU memory for {scene.slots} units ({part:.0%} of them, {size:.1f} GB) for every policy"
    return f"{scene.model.name} on {scene.machine}, {memory}"


def inputs(scene: Scene, workloads: dict[int, Workload]) -> list[str]:
    """Routing, costs and workloads, a line each."""
    metadata = scene.trace.metadata
    return [
        f"Routing: {metadata.model} ({metadata.recorder}, text: {metadata.text})",
        f"Times: {scene.model.name} on {scene.machine}, "
        + ("measured costs" if isinstance(scene.platform, Profile) else "roofline costs"),
        *(f"Workload: {workload.description}" for workload in workloads.values()),
    ]


def overview(results: pd.DataFrame, baseline: str) -> list[Table]:
    """Speeds by policy and batch size, a table a phase."""
    return [
        _overview(results[results["phase"] == phase], f"{phase.capitalize()}, tokens/s (times {baseline})")
        for phase in _phases(results)
    ]


def _overview(part: pd.DataFrame, caption: str) -> Table:
    batches = sorted(part["batch"].unique())
    widest = part[part["batch"] == batches[-1]].set_index("policy")
    header = ["policy", *(f"batch {batch}" for batch in batches), "hits", "GPU busy", "CPU busy", "link busy"]
    rows = []
    for name in widest.index:
        mine = part[part["policy"] == name].set_index("batch")
        last = widest.loc[name]
        speeds = [f"{number(mine.at[b, 'tokens_per_s'])} ({mine.at[b, 'speedup']:.2f}x)" for b in batches]
        link = sum(last[column] for column in LINK)
        rows.append(
            [name, *speeds, *(share(value) for value in (last["hit_rate"], last["gpu_busy"], last["cpu_busy"], link))]
        )
    return Table(header, rows, caption)


def _details(results: pd.DataFrame, phase: str) -> Table:
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
            *(number(row[column] / 1e9) for column in BYTES),
        ]
        for _, row in results[results["phase"] == phase].sort_values("batch", kind="stable").iterrows()
    ]
    return Table(header, rows)


def document(
    title: str, notes: list[str], results: pd.DataFrame, baseline: str, said: list[str], drawn: list[str]
) -> Document:
    """All of it; `said` are the sentences, `drawn` the files of the figures."""
    about = Paragraph("Busy shares and hits of the overview are those of the largest batch.")
    in_full = [Section(f"{phase.capitalize()} in full", [_details(results, phase)]) for phase in _phases(results)]
    return Document(
        title,
        notes,
        [about, *overview(results, baseline), *map(Picture, drawn)],
        [Section(HEADING, [Items(said)]), *in_full],
    )


def _phases(results: pd.DataFrame) -> list[str]:
    return [phase for phase in PHASES if phase in set(results["phase"])]
