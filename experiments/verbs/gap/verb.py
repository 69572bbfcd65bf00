"""`dali gap`: how far every policy is from the optimum, and what each remaining idea could buy."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from dali.experiments.drawing.figure import save_all
from dali.experiments.output.document import markdown
from dali.experiments.output.folder import folder
from dali.experiments.scene import read_scene, with_predictors
from dali.experiments.settings import read
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.gpu_memory import slots_of
from dali.experiments.settings.objects import make_policy
from dali.experiments.settings.routing import make_routing
from dali.experiments.simulation import slots_that_stay
from dali.experiments.verbs.gap import figures
from dali.experiments.verbs.gap.runs import EXACT, Case, gap_table, probe_assignments, whole_policies
from dali.experiments.verbs.gap.text import document, sections, summary, waterfall
from dali.policies.columns import DECODE, PREFILL
from dali.policies.types import InputError
from dali.traces.workload import Workload


def run(config: DictConfig, overrides: list[str]) -> None:
    """Compare assignments, run whole policies, bound them; write the results folder, print the tables."""
    names = [read.text(config, "base"), read.text(config, "against"), *read.texts(config, "others")]
    assignments = read.texts(config, "assignments")
    if EXACT not in assignments:
        raise InputError(f"assignments: found {assignments}, expected exact among them")
    if len(set(names)) < len(names):
        raise InputError(f"base, against, others: found {names}, expected each name once")
    if not isinstance(config.cache_shares, ListConfig) or not config.cache_shares:
        raise InputError(f"cache_shares: found {config.cache_shares!r}, expected one or more numbers")
    scenes = [_GapScene(config, overrides, entry, names) for entry in read.texts(config, "scenes")]
    cases = {scene.name: scene.cases(config) for scene in scenes}
    every = read.whole(config, "ilp_every")
    with folder(read.text(config, "output"), "gap", config, overrides) as made:
        place = made.place
        probed, runs = [], []
        with tqdm(total=sum(map(len, cases.values())), unit="case", desc="gap") as bar:
            for scene in scenes:
                for case in cases[scene.name]:
                    bar.set_postfix_str(f"{case.name}, {case.share:.0%}, batch {case.batch}, {case.phase}")
                    probed.append(probe_assignments(case, scene.policies[names[0]], assignments, every))
                    runs += whole_policies(case, scene.policies, names)
                    bar.update()
        calls, results = pd.concat(probed, ignore_index=True), pd.DataFrame(runs)
        gaps = gap_table(calls)
        gaps.to_parquet(place / "assignments.parquet", index=False)
        results.to_parquet(place / "results.parquet", index=False)
        fall = waterfall(results, names[0], names[1])
        fall.to_parquet(place / "waterfall.parquet", index=False)
        found = summary(gaps, results, names[0], names[1])
        (place / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        drawn = save_all(figures.drawings(gaps, fall), place)
        notes = list(dict.fromkeys(note for scene in scenes for note in scene.notes))
        tables = sections(gaps, results, found, names)
        made.document = document(notes, tables, drawn)
    print("\n".join([*(f"Note: {note}" for note in notes), "", markdown(tables), "", f"Results: {made.final}"]))


class _GapScene:
    """A model with its routing, and the policies as they are configured for it."""

    def __init__(self, config: DictConfig, overrides: list[str], entry: str, names: list[str]) -> None:
        own = [*overrides, *entry.split(), "+cache_share=1", "+expert_memory_gb=null"]
        whole = configuration("gap", own)
        tokens = read.whole(whole, "decode.prompt", 0) + read.whole(whole, "decode.steps")
        tokens = max(tokens, read.whole(whole, "prefill.tokens"))
        self.scene = read_scene(whole, make_routing(whole.trace, tokens))
        self.policies = dict(make_policy("gap", own, name, self.scene.model) for name in names)
        self.scene = with_predictors(self.scene, self.policies.values(), whole)
        self.name = self.scene.trace.metadata.model
        self.notes = [f"{self.name}: {note}" for note in self.scene.notes if "what-if" not in note]

    def cases(self, config: DictConfig) -> list[Case]:
        """Every cache share with every workload."""
        prefill = read.whole(config, "prefill.sequences"), read.whole(config, "prefill.tokens")
        decode = read.whole(config, "decode.prompt", 0), read.whole(config, "decode.steps")
        made = [(batch, DECODE, self._workload(batch, *decode)) for batch in read.wholes(config, "batch")]
        made.append((prefill[0], PREFILL, self._workload(*prefill, 0)))
        cases = []
        for part in config.cache_shares:
            if not isinstance(part, int | float) or not 0 <= part <= 1:
                raise InputError(f"cache_shares: found {part!r}, expected numbers from 0 to 1")
            scene = replace(self.scene, slots=slots_of(part, self.scene.all_units, "cache_shares"))
            for name, policy in self.policies.items():
                slots_that_stay(name, policy, scene)
            cases += [Case(self.name, part, scene, workload, batch, phase) for batch, phase, workload in made]
        return cases

    def _workload(self, batch: int, prompt: int, generate: int) -> Workload:
        if isinstance(self.scene.trace, Workload):
            raise InputError(f"scenes: {self.name} holds counts only, expected a trace of tokens")
        return Workload.from_trace(
            self.scene.trace, batch, prompt, generate, slices=self.scene.slices, seed=self.scene.seed
        )
