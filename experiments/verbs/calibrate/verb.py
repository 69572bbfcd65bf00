"""`dali calibrate`: measure this machine for one model's units, and write it as a file of conf/platform."""

from __future__ import annotations

import shlex

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from dali.experiments.drawing.figure import save_all
from dali.experiments.drawing.profile import drawings
from dali.experiments.models.subject import arena, cpu_threads, subject
from dali.experiments.output.document import Block, Document, Items, Table, markdown
from dali.experiments.output.folder import folder
from dali.experiments.output.text import number, share, table
from dali.experiments.profiles import profile_path, save
from dali.experiments.settings import read
from dali.policies.costs.measured import Curve, Profile
from dali.policies.types import InputError
from dali.runtime.calibrate.calibration import Calibration
from dali.runtime.calibrate.plan import MAX_TOKENS, CalibrationSettings
from dali.runtime.calibrate.probe import Probe
from dali.runtime.device.machine import check_idle

# A machine that changes by more than this while it is measured has no one figure.
DRIFT = 0.05


def run(config: DictConfig, overrides: list[str]) -> None:
    """Measure, write the profile and a results folder with figures; or only say what would be measured."""
    name = read.text(config, "name")
    path = profile_path(name, config.profile)
    settings = CalibrationSettings(
        **{field: read.wholes(config, field) for field in ("tokens", "batches", "contexts", "prefill")},
        rounds=read.whole(config, "rounds", 2),
        longest=read.positive(config, "longest"),
        copies=read.whole(config, "copies", 2),
    )
    device = arena(config)
    check_idle(device.device)
    model, title = subject(config)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", MAX_TOKENS)
    if max(*settings.prefill, *settings.contexts) + 3 > limit:
        raise InputError(
            f"prefill, contexts: found {max(*settings.prefill, *settings.contexts)}, expected below {limit - 2}: "
            f"{title} has {limit} positions"
        )
    slices = read.whole(config, "slices")
    with Probe(model, device, slices, cpu_threads(config), MAX_TOKENS) as probe:
        bar = tqdm(total=settings.rounds, unit="round", desc="measuring", disable=None)
        calibration = Calibration(probe, settings, lambda what: bar.update())
        seconds = calibration.warm_up()
        # Each round is one of these, and the first point is measured again at both ends.
        total = seconds * (settings.rounds + 1)
        if config.plan:
            bar.close()
            _say_plan(calibration, title, path.name, total)
            return
        with bar:
            calibration.measure()
        profile = calibration.profile(name, title)
    command = " ".join(["dali calibrate", *(shlex.quote(part) for part in overrides)])
    notes, tables = _notes(profile), _tables(profile)
    with folder(read.text(config, "output"), "calibrate", config, overrides) as made:
        save(profile, path, command)
        save(profile, made.place / f"{name}.yaml", command)
        save_all(drawings(profile), made.place)
        made.document = Document(f"{name}: {title}", notes, tables)
    said: list[Block] = [Items(notes), *tables]
    print(f"{made.document.title}\n\n{markdown(said)}")
    print(f"Profile: {path}\nResults: {made.final}")


def _say_plan(calibration: Calibration, title: str, name: str, seconds: float) -> None:
    rows = [[what, points, str(count)] for what, points, count in calibration.plan.describe()]
    print(f"{title}: would measure, {calibration.settings.rounds} rounds, in about {duration(seconds)}, into {name}")
    print(table(["what", "at", "points"], rows))
    if calibration.left_out:
        print(
            f"Left out, as a pass takes longer than {calibration.settings.longest:g} s: "
            + ", ".join(calibration.left_out)
        )


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _notes(profile: Profile) -> list[str]:
    quality, machine = profile.quality, profile.machine
    notes = [
        f"Machine: {machine['gpu']}; {machine['cpu']}, {machine['cpu_threads']} threads; {machine['dtype']}",
        f"Units: {profile.geometry}",
        f"{quality['rounds']} rounds; the first point measured last differs by {quality['drift']:+.1%}"
        + (" (more than the machine should drift: measure again)" if abs(quality["drift"]) > DRIFT else ""),
        f"Spread (interquartile range over median) of a layer step: {share(quality['median_spread'])} in the median; "
        f"processes waiting for each core: {quality['load_per_core']}",
    ]
    if quality["left_out"]:
        notes.append(f"Left out for their length: {', '.join(quality['left_out'])}")
    return notes


def _tables(profile: Profile) -> list[Block]:
    rows = []
    for what, unit in (
        ("cpu", "tokens"),
        ("cpu_contended", "tokens"),
        ("gpu", "tokens"),
        ("copy", "bytes"),
        ("copy_contended", "bytes"),
    ):
        curve: Curve = getattr(profile, what)
        left_out = np.abs(curve.left_out())
        rows.append(
            [
                f"{what} ({unit})",
                str(curve.at.size),
                *(number(1e6 * value) for value in (curve.seconds[0], curve.seconds[-1])),
                share(float(np.median(curve.spread))),
                str(curve.outliers),
                share(float(np.median(left_out)) / 4) if left_out.size else "–",
            ]
        )
    head = ["curve", "points", "first, us", "last, us", "spread", "outliers", "line between points"]
    over = [[name, number(1e6 * value)] for name, value in profile.to_config()["overheads"].items()]
    parts = [
        [
            name,
            f"{value:.2f}"
            if name.endswith("ratio")
            else number(1e6 * value)
            if value >= 0
            else f"-{number(-1e6 * value)}",
        ]
        for name, value in profile.parts.items()
    ]
    return [
        Table(head, rows),
        Table(["overhead of a layer step", "us"], over),
        Table(["piece", "us (ratios as they are)"], parts),
    ]
