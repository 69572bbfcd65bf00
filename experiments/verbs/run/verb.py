"""`dali run`: a model with its experts in host memory, under the simulator's own policies, timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.output.document import Document, Items, Paragraph, Section
from dali.experiments.output.folder import folder
from dali.experiments.output.text import number
from dali.experiments.verbs.run import report
from dali.experiments.verbs.run.plan import RunPlan, load_torch
from dali.policies.columns import PHASES


def run(config: DictConfig, overrides: list[str]) -> None:
    """Load, run every policy and baseline, write the results folder, print the table."""
    plan = RunPlan(config, overrides)
    live = load_torch()
    session = live.Session(plan)
    with folder(config.output, "run", config, overrides) as made:
        place = made.place
        outcomes = _run_all(plan, live, session, place)
        copying, reading = session.bandwidths()
        prompt = session.ids.numel()
        parts = [report.rows(each, prompt, plan.lengths.batch, copying, reading) for each in outcomes]
        results = pd.concat(parts, ignore_index=True)
        results.to_parquet(place / "results.parquet", index=False)
        steps = [pd.DataFrame(each.columns).assign(policy=each.name) for each in outcomes if each.columns]
        pd.concat(steps).to_parquet(place / "steps.parquet", index=False)
        about = _about(plan, session, outcomes, copying, reading)
        machine = session.machine()
        report.write_json(place / "run.json", {**report.headline(results), **about, "machine": machine})
        title = f"{about['model']} on {machine['cpu' if about['device'] == 'cpu' else 'gpu']}"
        lines, notes = _inputs(about), _notes(plan, session)
        made.document = _document(title, [*lines, *notes], results, machine)
    table = report.overview(results).markdown()
    print("\n".join(["", title, *lines, *(f"Note: {note}" for note in notes), "", table, ""]))
    print(f"Results: {made.final}\nTimelines there, for ui.perfetto.dev: *.timeline.json.gz")


def _run_all(plan: RunPlan, live: Any, session: Any, place: Path) -> list[Any]:
    runs = (plan.warmup + plan.repeats) * len(plan.entries)
    runs += (plan.warmup + plan.baseline_repeats) * len(plan.baselines)
    shown = plan.streams and session.decode is not None
    show = None
    if shown:
        if plan.lengths.batch > 1:
            print(f"The first of {plan.lengths.batch} sequences:")
        text = live.Shown(session.decode, lambda part: print(part, end="", flush=True), session.ids[0].tolist())
        show = text.token
    outcomes = []
    with tqdm(total=runs, unit="run", disable=True if shown else None) as bar:

        def ran(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        progress = live.Progress(show, ran)
        for entry in session.policies:
            outcomes.append(session.run_policy(entry, place, progress))
            live.empty_caches()
        for name in plan.baselines:
            outcomes.append(session.run_baseline(name, progress))
            live.empty_caches()
    if shown:
        print()
    return outcomes


def _about(plan: RunPlan, session: Any, outcomes: list[Any], copying: float, reading: float) -> dict[str, Any]:
    sizes, first, lengths = session.sizes, outcomes[0], plan.lengths
    trace = plan.trace
    return {
        "model": _name(plan),
        "weights": "the checkpoint's" if plan.name else f"random, seed {plan.seed}",
        "dtype": str(next(session.model.parameters()).dtype).removeprefix("torch."),
        "moe_layers": sizes.layers,
        "experts": sizes.experts,
        "top_k": sizes.top_k,
        "routing": None if trace is None else f"{trace.metadata.model} ({trace.metadata.recorder})",
        "device": session.arena.device.type,
        "cache_share": first.slots / (sizes.layers * sizes.experts * first.slices),
        "gpu_memory_for_units_gb": first.slots * first.unit_bytes / 1e9,
        "batch": lengths.batch,
        "prompt_tokens": session.ids.shape[1],
        "generate": lengths.generate,
        "copy_bandwidth_gbs": copying / 1e9,
        "host_read_gbs": reading / 1e9,
    }


def _name(plan: RunPlan) -> str:
    """Of the shape, the hub id, or the name of the folder."""
    if plan.shape is not None:
        return plan.shape.name
    assert plan.name is not None
    return Path(plan.name).resolve().name if Path(plan.name).is_dir() else plan.name


def _inputs(about: dict[str, Any]) -> list[str]:
    routing = about["routing"] or "the model's own"
    return [
        f"Model: {about['model']}, {about['moe_layers']} MoE layers x {about['experts']} experts, {about['dtype']}, "
        f"weights {about['weights']}; routing: {routing}",
        f"GPU memory for units: {number(about['gpu_memory_for_units_gb'])} GB, {about['cache_share']:.0%} of them, "
        "staging included",
        f"Batch {about['batch']}, {about['prompt_tokens']} tokens of prompt, {about['generate']} generated",
        f"Measured: copies to the device {about['copy_bandwidth_gbs']:.1f} GB/s, reading host memory "
        f"{about['host_read_gbs']:.1f} GB/s",
    ]


def _notes(plan: RunPlan, session: Any) -> list[str]:
    notes = list(plan.notes)
    if session.arena.device.type == "cpu":
        notes.append("device=cpu: host memory stands for the GPU's. Its times say nothing of a GPU's speed.")
    if plan.trace is not None and session.routing.workload(1).resampled:
        notes.append("The routing is too short for the batch: its sequences are resampled with replacement.")
    if plan.log and plan.repeats > 1:
        notes.append("The planner's log was kept, which costs time in the planner.")
    for entry, policy in session.policies.items():
        if policy.slices == "auto" and plan.slices == 1:
            notes.append(f"{entry}: experts stay whole; it would choose slices by a data sheet, a run takes slices=N.")
        if policy.attention_on == "cpu":
            notes.append(f"{entry}: attention runs on the GPU here, where the system it models has it on the CPU.")
    return notes


def _document(title: str, lines: list[str], results: pd.DataFrame, machine: dict[str, Any]) -> Document:
    about = Paragraph(
        "Speeds are as a user sees them: prompt to first token, and between tokens, drawing them included; the median "
        "of the runs (lowest–highest). Hits and busy shares are those of decode, of the time inside forward passes; GB "
        "are those of all runs. `link of its bandwidth`: bytes over the time in which the link was busy, over the "
        "speed of large copies."
    )
    phases = [phase for phase in PHASES if phase in set(results["phase"])]
    *before, last = (Section(phase.capitalize(), [report.details(results, phase)]) for phase in phases)
    known = Items([f"{name}: {value}" for name, value in machine.items() if value])
    return Document(
        title, lines, [about, report.overview(results)], [*before, Section(last.heading, [*last.blocks, known])]
    )
