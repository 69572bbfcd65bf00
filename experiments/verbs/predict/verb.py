"""`dali predict`: how well each predictor of a trace foresees the routing, and three that need ids alone."""

from __future__ import annotations

import json

from omegaconf import DictConfig

from dali.experiments.drawing.figure import save_all
from dali.experiments.output.folder import folder
from dali.experiments.settings import read
from dali.experiments.settings.objects import make
from dali.experiments.verbs.predict import figures, text
from dali.experiments.verbs.predict.evaluation import Evaluation, EvaluationSettings
from dali.policies.types import InputError
from dali.traces.workload import Workload


def run(config: DictConfig, overrides: list[str]) -> None:
    """Evaluate, write the results folder, print the table."""
    settings = EvaluationSettings.read(config)
    trace = make(config.trace, "trace")
    if isinstance(trace, Workload):
        raise InputError("trace: found a workload of counts, expected a trace with the experts of every token")
    evaluation = Evaluation(trace, settings)
    with folder(read.text(config, "output"), "predict", config, overrides) as made:
        results = evaluation.results()
        results.to_parquet(made.place / "results.parquet", index=False)
        title = f"{trace.metadata.model}, {settings.phase}"
        drawn = save_all(figures.drawings(results, title), made.place)
        made.document = text.document(title, drawn, results, evaluation)
        as_json = text.as_json(results, evaluation)
        (made.place / "summary.json").write_text(json.dumps(as_json, indent=1) + "\n", encoding="utf-8")
    lines = [made.document.title, *text.about(evaluation)]
    lines += [f"Note: {note}" for note in text.notes(evaluation)]
    print("\n".join([*lines, "", text.overview(results, evaluation).markdown(), "", f"Results: {made.final}"]))
    print(f"Figures there: {', '.join(drawn)}")
