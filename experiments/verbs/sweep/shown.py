"""What `dali report` shows of a sweep."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from dali import conf
from dali.experiments.page.contents import Contents
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.sweep.figures import drawings
from dali.experiments.verbs.sweep.points import Experiment
from dali.experiments.verbs.sweep.sentences import beside, has, headline, sentences
from dali.policies.types import InputError

EXPERIMENTS = Path(conf.__file__).parent / "experiment"


def contents(folder: Folder) -> Contents:
    """Figures and sentences of results.parquet, experiment by experiment; the paper's figures of summary.json."""
    figures = beside(folder.values.get("summary"))
    if "results" in folder.tables and folder.tables["results"].empty:
        return Contents(tables=headline(figures))  # all points failed
    results = folder.table("results", ("experiment", "policy", "entry", "phase"), ("seed", "tokens_per_s"))
    known = [(_experiment(str(name), folder), rows) for name, rows in results.groupby("experiment", sort=False)]
    experiments = [(each, rows) for each, rows in known if each is not None and has(each, rows)]
    return Contents(
        [drawing for each, rows in experiments for drawing in drawings(each, rows)],
        sentences(experiments, figures),
        headline(figures),
    )


def _experiment(name: str, folder: Folder) -> Experiment | None:
    """Of the folder's configuration, or of this version; None for one that neither knows.

    Nothing is instantiated by name: a folder may come from anybody.
    """
    node = None if folder.config is None else folder.config.get("experiment")
    if not (isinstance(node, dict) and node.get("name") == name and "show" in node):
        own = {path.stem: path for path in EXPERIMENTS.glob("*.yaml")}
        if name not in own:
            return None
        node = OmegaConf.to_container(OmegaConf.load(own[name]))
    assert isinstance(node, dict)
    try:
        made = Experiment(**{str(key): value for key, value in node.items() if key != "_target_"})
        _ = made.views, made.points()  # what makes no sense is found here
    except (TypeError, AttributeError, InputError):
        return None  # a configuration of another version
    return made
