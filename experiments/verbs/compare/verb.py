"""`dali compare`: all chosen policies on one trace, model, machine and GPU memory, in simulated time."""

from __future__ import annotations

from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.drawing import timeline
from dali.experiments.drawing.figure import save_all
from dali.experiments.output.columns import KEYS
from dali.experiments.output.document import markdown
from dali.experiments.output.folder import folder
from dali.experiments.output.summary import summarise
from dali.experiments.output.wording import HEADING, phases
from dali.experiments.scene import Scene
from dali.experiments.settings import read
from dali.experiments.simulation import recorded_steps, simulate
from dali.experiments.verbs.compare import figures, text, what_if
from dali.experiments.verbs.compare.comparison import Comparison
from dali.experiments.verbs.compare.sentences import sentences, winner
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import Platform
from dali.policies.planner import Policy
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

    with folder(read.text(config, "output"), "compare", config, overrides) as made:
        place = made.place
        changed = what_if.changes(scene, believed)
        largest = max(workloads)
        total = comparison.count + workloads[largest].n_steps * len(changed)
        with tqdm(total=total, unit="step", desc="simulating") as bar:
            comparison.run(recorded, shown, bar)
            results = comparison.results()
            helped = what_helps(
                changed, results, comparison.policies, workloads[largest], bar, comparison.believed_engine
            )
        spans = {
            name: simulation.spans for (name, batch), simulation in comparison.simulations.items() if batch == shown
        }
        for name, each in spans.items():
            each.save(place / f"{_file_name(name)}.timeline.json.gz", name)
        results.to_parquet(place / "results.parquet", index=False)
        helped.to_parquet(place / "what_if.parquet", index=False)
        comparison.steps().to_parquet(place / "steps.parquet", index=False)
        title, inputs = text.title(scene), text.inputs(scene, workloads)
        drawings = figures.drawings(results, baseline, title)
        if recorded:
            about = f"{title}, batch {shown}"
            drawings.append(timeline.drawing(spans, recorded[-1], DRAWN_LAYERS, about))
        drawn, said = save_all(drawings, place), sentences(results, helped)
        made.document = text.document(title, [*inputs, *notes], results, baseline, said, drawn)
    overview = markdown(text.overview(results, baseline))
    warnings = [f"Note: {note}" for note in notes]
    print("\n".join([title, *inputs, *warnings, "", overview, "", f"Results: {made.final}"]))
    print(f"Figures there: {', '.join(drawn)}; timelines, for ui.perfetto.dev: *.timeline.json.gz")
    print("\n".join(["", f"{HEADING}:", *(f"- {sentence}" for sentence in said)]))


def what_helps(
    changed: dict[str, tuple[Scene, Platform | Profile]],
    results: pd.DataFrame,
    policies: dict[str, Policy],
    workload: Workload,
    bar: Any = None,
    believed_engine: ServingEngine | None = None,
) -> pd.DataFrame:
    """Tokens/s of the policy that is fastest on the (largest) workload with one part of the machine changed at a time.

    A row a change; columns policy, batch, phase, change, tokens_per_s, gain (times the speed without the change).
    """
    phase, batch, name = phases(results)[0], results["batch"].max(), winner(results)
    before = results.set_index(KEYS)["tokens_per_s"].loc[name, batch, phase]
    rows = []
    for change, (scene, believed) in changed.items():
        if bar is not None:
            bar.set_postfix_str(f"batch {batch}, {name} with {change}")
        simulation = simulate(scene, believed, policies[name], workload, (), bar, believed_engine)
        speed = summarise(simulation, phase)["tokens_per_s"]
        row = {"policy": name, "batch": batch, "phase": phase, "change": change}
        rows.append({**row, "tokens_per_s": speed, "gain": speed / before})
    return pd.DataFrame(rows)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
