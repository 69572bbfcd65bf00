"""What each verb leaves in its folder, recognised by its columns, and what a report makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dali import conf
from dali.experiments.drawing import timeline
from dali.experiments.page.contents import Contents
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.calibrate import figures as figures_calibrate
from dali.experiments.verbs.compare import figures as figures_compare
from dali.experiments.verbs.compare.sentences import WHAT_IF, baseline, compares, sentences
from dali.experiments.verbs.compare.verb import DRAWN_LAYERS
from dali.experiments.verbs.gap import figures as figures_gap
from dali.experiments.verbs.gap import sentences as analysis_gap
from dali.experiments.verbs.gap.text import speed_lines
from dali.experiments.verbs.predict import figures as figures_predict
from dali.experiments.verbs.predict import sentences as analysis_predict
from dali.experiments.verbs.run import figures as figures_run
from dali.experiments.verbs.run import sentences as analysis_measured
from dali.experiments.verbs.sweep import figures as figures_sweep
from dali.experiments.verbs.sweep import sentences as analysis_sweep
from dali.experiments.verbs.sweep.points import Experiment
from dali.experiments.verbs.validate import figures as figures_validate
from dali.experiments.verbs.validate.sentences import VALIDATE, errors, validate
from dali.policies.types import InputError

EXPERIMENTS = Path(conf.__file__).parent / "experiment"


def contents(folder: Folder) -> Contents:
    """Of all verbs whose results are in the folder."""
    whole = Contents()
    for reader in READERS:
        found = reader(folder)
        if found is not None:
            whole.drawings += found.drawings
            whole.sentences += found.sentences
            whole.headline = whole.headline or found.headline
    return whole


def _compare(folder: Folder) -> Contents | None:
    results = folder.table("results")
    if not compares(results):
        return None
    what_if = folder.table("what_if", WHAT_IF)
    reference = baseline(results) or "the baseline"
    return Contents(figures_compare.drawings(results, reference), sentences(results, what_if))


def _run(folder: Folder) -> Contents | None:
    results = folder.table("results", analysis_measured.RUN)
    if results.empty:
        return None
    return Contents(figures_run.drawings(results), analysis_measured.run(results, folder.values.get("run")))


def _gap(folder: Folder) -> Contents | None:
    """A whole comparison, or a waterfall of anybody's."""
    fall = folder.table("waterfall", {figures_gap.STAGE, figures_gap.MS})
    gaps, results = folder.table("assignments", analysis_gap.GAPS), folder.table("results", analysis_gap.RESULTS)
    if fall.empty:
        return None
    said = analysis_gap.waterfall(fall)
    if gaps.empty or results.empty:
        return Contents([figures_gap.of_waterfall(fall)], said)
    names = list(dict.fromkeys(results.loc[results["kind"] == "policy", "name"]))
    about = f"Tokens/s, in brackets over {names[0]}'s; and {names[1]}'s share of the bound, which no policy can pass."
    return Contents(
        figures_gap.drawings(gaps, fall),
        [*analysis_gap.policies(results), *said, *analysis_gap.assignments(gaps)],
        f"{about}\n\n{speed_lines(results, names)}",
    )


def _predict(folder: Folder) -> Contents | None:
    results = folder.table("results", analysis_predict.COLUMNS)
    if results.empty:
        return None
    return Contents(figures_predict.drawings(results), analysis_predict.sentences(results))


def _validate(folder: Folder) -> Contents | None:
    results = folder.table("results", VALIDATE)
    if results.empty:
        return None
    return Contents(figures_validate.drawings(results), validate(results), errors(results))


def _calibrate(folder: Folder) -> Contents | None:
    if not folder.profiles:
        return None
    return Contents([drawing for profile in folder.profiles for drawing in figures_calibrate.drawings(profile)])


def _sweep(folder: Folder) -> Contents | None:
    results = folder.table("results", analysis_sweep.COLUMNS)
    if results.empty:
        return None
    figures = analysis_sweep.beside(folder.values.get("summary"))
    known = [(_experiment(str(name), folder), rows) for name, rows in results.groupby("experiment", sort=False)]
    experiments = [(each, rows) for each, rows in known if each is not None and analysis_sweep.has(each, rows)]
    return Contents(
        [drawing for each, rows in experiments for drawing in figures_sweep.drawings(each, rows)],
        analysis_sweep.sentences(experiments, figures),
        analysis_sweep.headline(figures),
    )


def _experiment(name: str, folder: Folder) -> Experiment | None:
    """Of the folder's configuration, or of this version; None for one that neither knows.

    Nothing is instantiated by name: a folder may come from anybody.
    """
    node = None if folder.config is None else folder.config.get("experiment")
    if not (isinstance(node, DictConfig) and node.get("name") == name and "show" in node):
        own = {path.stem: path for path in EXPERIMENTS.glob("*.yaml")}
        if name not in own:
            return None
        node = OmegaConf.load(own[name])
    settings = OmegaConf.to_container(node)
    assert isinstance(settings, dict)
    try:
        return Experiment(**{str(key): value for key, value in settings.items() if key != "_target_"})
    except (TypeError, InputError):
        return None  # a configuration of another version


def _timelines(folder: Folder) -> Contents | None:
    step = folder.shown_step
    if step is None:
        return None
    spans = {each.name: each.spans for each in folder.timelines if step in each.steps}
    return Contents([timeline.drawing(spans, step, DRAWN_LAYERS)])


READERS: tuple[Callable[[Folder], Contents | None], ...] = (
    _compare,
    _run,
    _gap,
    _predict,
    _validate,
    _sweep,
    _timelines,
    _calibrate,
)
