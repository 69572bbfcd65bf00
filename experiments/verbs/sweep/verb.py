"""`dali sweep`: a named experiment, each of its points simulated once, on one machine or a cluster."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from dali.experiments.settings import outside, read
from dali.experiments.settings.compose import configuration
from dali.experiments.settings.objects import make
from dali.experiments.settings.shorthand import is_launcher
from dali.experiments.verbs.sweep.job import RunFolder
from dali.experiments.verbs.sweep.launch import Launcher
from dali.experiments.verbs.sweep.points import Collection, Experiment, Point
from dali.experiments.verbs.sweep.request import Request, request
from dali.experiments.verbs.sweep.results import gather, write
from dali.policies.types import InputError

# Settings of the sweep itself; all others are the points'.
_OWN = ("experiment", "seeds", "resume", "jobs", "output")
_POLL_SECONDS = 0.5


@dataclass
class Planned:
    """A point with its request, or with the error that it does not compose."""

    point: Point
    request: Request | None
    error: str = ""


def run(config: DictConfig, overrides: list[str]) -> int:
    """Simulate what is missing, write the results; the exit status, 1 if a point failed."""
    chosen = experiments(config)
    seeds, jobs = read.wholes(config, "seeds", 0), read.whole_or_none(config, "jobs")
    launcher = Launcher([each for each in overrides if is_launcher(each)], jobs)
    settings = [each for each in overrides if not is_launcher(each) and not _own(each)]
    points = [point for experiment in chosen for point in experiment.points(settings)]
    place = Path(read.text(config, "output")) / "sweep"
    store = place / "points"
    store.mkdir(parents=True, exist_ok=True)

    planned = [_plan(point, seeds) for point in tqdm(points, unit="point", desc="composing")]
    missing = _missing(planned, store, bool(config.resume))
    print(f"{len(planned)} points, {len(missing)} to simulate, launcher {launcher.name}")
    errors = _simulate(missing, launcher, place, store, not config.resume)
    for each in planned:
        if each.request is not None and each.request.key in errors:
            each.error = errors[each.request.key]["error"]
    results = gather([(each.point, each.request.key) for each in planned if each.request and not each.error], store)
    failures = [
        {"experiment": each.point.experiment, **each.point.axes, "error": each.error} for each in planned if each.error
    ]
    target = place / config.experiment.name
    command = shlex.join(["dali", "sweep", *overrides])
    print(write(target, chosen, results, failures, command, OmegaConf.to_yaml(config)))
    return 1 if failures else 0


def experiments(config: DictConfig) -> list[Experiment]:
    """The experiment of a configuration, or those of a collection."""
    made = make(OmegaConf.to_container(config.experiment), "experiment")
    if isinstance(made, Experiment):
        return [made]
    assert isinstance(made, Collection)
    return [
        make(OmegaConf.to_container(configuration("config", [f"+experiment={name}"]).experiment), name)
        for name in made.experiments
    ]


def _own(override: str) -> bool:
    return override.lstrip("+~").partition("=")[0].partition(".")[0] in _OWN


def _plan(point: Point, seeds: Sequence[int]) -> Planned:
    try:
        return Planned(point, request(point, seeds))
    except InputError as error:
        return Planned(point, None, " ".join(str(error).split()))


def _missing(planned: list[Planned], store: Path, resume: bool) -> list[Request]:
    """Requests to run, each once, those that share a trace beside each other."""
    wanted = {each.request.key: each.request for each in planned if each.request}
    left = [each for key, each in wanted.items() if not (resume and (store / f"{key}.parquet").exists())]
    return sorted(left, key=lambda each: json.dumps(each.config["trace"], sort_keys=True))


def _simulate(
    missing: list[Request], launcher: Launcher, place: Path, store: Path, again: bool
) -> dict[str, dict[str, str]]:
    """Run the requests; the errors by key."""
    if not missing:
        return {}
    typed = outside.names([each.nodes for each in missing])
    with _run_folder(place, store, typed, keep=launcher.name == "submitit_slurm") as folder:
        for index, each in enumerate(missing):
            folder.ask(index, each, again)
        try:
            with _progress(folder, len(missing)):
                launcher.run(folder, range(len(missing)))
        except KeyboardInterrupt:
            done = sum(map(folder.ended, range(len(missing))))
            more = "; jobs that Slurm has go on" if launcher.name == "submitit_slurm" else ""
            raise KeyboardInterrupt(
                f"interrupted with {done} of {len(missing)} points done{more}; the same command goes on from there"
            ) from None
        found = {each.key: folder.error(index) for index, each in enumerate(missing)}
    return {key: error for key, error in found.items() if error is not None}


@contextmanager
def _run_folder(place: Path, store: Path, typed: set[str], keep: bool) -> Iterator[RunFolder]:
    """A folder for one run and its jobs, gone afterwards; kept on an interrupt if jobs may still need it."""
    path = Path(tempfile.mkdtemp(prefix=".run-", dir=place)).absolute()
    kept = False
    try:
        yield RunFolder(path, store.absolute(), typed)
    except KeyboardInterrupt:
        kept = keep
        raise
    finally:
        if not kept:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _progress(folder: RunFolder, total: int) -> Iterator[None]:
    """A bar with the remaining time, by what jobs leave in the folder, wherever they run."""
    stop = Event()

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            show()

    def show() -> None:
        bar.update(sum(folder.ended(index) for index in range(total)) - bar.n)

    with tqdm(total=total, unit="point", desc="simulating", smoothing=0) as bar:
        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            show()
