"""The page: one HTML text in which everything stands, from style to timelines."""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template

from omegaconf import DictConfig, OmegaConf

from dali.experiments.output.folder import stamp
from dali.experiments.output.wording import HEADING
from dali.experiments.page.contents import Contents
from dali.experiments.page.figures import figures
from dali.experiments.page.markup import blocks, details, embedded, escape, flat, frame, sections, table, values
from dali.experiments.page.reading import Folder
from dali.experiments.verbs.compare.sentences import compares, winner
from dali.experiments.verbs.reading import contents
from dali.policies.columns import LANES
from dali.policies.costs.roofline import ModelShape
from dali.policies.types import InputError

STAMP = re.compile(r"^dali-moe \S+, .*$", re.M)


def render(folder: Folder) -> str:
    """The whole page of a results folder."""
    parts = files("dali.experiments.page")
    stamps = STAMP.findall(folder.summary)
    (title, headline), *rest = sections(STAMP.sub("", folder.summary))
    step, found = folder.shown_step, contents(folder)
    content = [
        _short(found.sentences),
        _headline(folder, found, headline),
        _section("Figures", figures(found.drawings, folder.pictures)),
        _timeline(folder, step),
        _inputs(headline),
        _in_full([part for part in rest if part[0] != HEADING]),
        _tables(folder),
        _machine(folder, stamps),
    ]
    return Template(parts.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title or folder.name),
        folder=escape(folder.name),
        style=parts.joinpath("page.css").read_text(encoding="utf-8"),
        content="\n".join(part for part in content if part),
        data=embedded(_packed(folder, step)),
        script=parts.joinpath("timeline.js").read_text(encoding="utf-8"),
        stamp=escape(stamp()),
    )


def _section(heading: str, body: str, name: str = "") -> str:
    anchor = f' id="{name}"' if name else ""
    return f"<section{anchor}>\n<h2>{escape(heading)}</h2>\n{body}\n</section>" if body else ""


def _short(told: list[str]) -> str:
    return _section(HEADING, "".join(f"<p>{escape(sentence)}</p>\n" for sentence in told))


def _headline(folder: Folder, found: Contents, headline: str) -> str:
    """The tables to begin with: the verb's own, or the summary's, or the results themselves where there is neither."""
    body = blocks(found.headline or _split(headline)[1])
    if not body and "results" in folder.tables:
        body = frame(folder.tables["results"], "results.parquet")
    return _section("Results", body)


def _inputs(headline: str) -> str:
    return _section("Inputs and notes", blocks(_split(headline)[0]))


def _split(headline: str) -> tuple[str, str]:
    """The list that says what went in, if the summary begins with one, and what follows it."""
    lines = headline.splitlines()
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("- ")), len(lines))
    return "\n".join(lines[:end]), "\n".join(lines[end:])


def _timeline(folder: Folder, step: int | None) -> str:
    if step is None:
        return ""
    body = files("dali.experiments.page").joinpath("timeline.html").read_text(encoding="utf-8")
    return _section(f"One step, machine by machine: {_step_name(folder, step)}", body, "timeline")


def _step_name(folder: Folder, step: int) -> str:
    steps = folder.table("steps", {"step", "phase"})
    phases = set() if steps.empty else set(steps.loc[steps["step"] == step, "phase"])
    return f"step {step}" + (f" ({phases.pop()})" if len(phases) == 1 else "")


def _packed(folder: Folder, step: int | None) -> dict[str, object]:
    """The timelines, and which of them the page begins with: the fastest policy's, where that is known."""
    if step is None:
        return {"runs": []}
    runs = [each for each in folder.timelines if step in each.steps]
    names = [each.name for each in runs]
    results = folder.table("results")
    best = winner(results) if compares(results) else ""
    size = _unit_bytes(folder.config)
    return {
        "lanes": LANES,
        "first": names.index(best) if best in names else 0,
        "runs": [each.packed(step, size) for each in runs],
    }


def _unit_bytes(config: DictConfig | None) -> int:
    """Bytes of one unit of the configured model; 0 (the page says "not known") where the folder does not say.

    Nothing is instantiated by name: a folder may come from anybody.
    """
    if config is None or not isinstance(config.get("model"), DictConfig):
        return 0
    model = OmegaConf.to_container(config.model)
    assert isinstance(model, dict)
    try:
        shape = ModelShape(**{str(name): value for name, value in model.items() if not str(name).startswith("_")})
        return shape.unit_bytes(config.get("slices", 1))
    except (TypeError, InputError):
        return 0  # a configuration of another version


def _in_full(parts: list[tuple[str, str]]) -> str:
    return _section("In full", "\n".join(details(heading, blocks(text)) for heading, text in parts))


def _tables(folder: Folder) -> str:
    made = [details(f"{name}.json", values(content)) for name, content in folder.values.items()]
    made += [
        details(f"{name}.parquet: {len(data)} rows, {len(data.columns)} columns", frame(data, f"{name}.parquet"))
        for name, data in folder.tables.items()
    ]
    return _section("Data in the folder", "\n".join(made))


def _machine(folder: Folder, stamps: list[str]) -> str:
    """Machine, version and configuration that the results come from."""
    body = "".join(f"<p>Results by {escape(line)}.</p>\n" for line in stamps)
    platform = None if folder.config is None else folder.config.get("platform")
    # What was measured has a machine of its own; the platform of its configuration is then of no account.
    if folder.machine is not None:
        body += table(["machine (measured)", "value"], list(flat(folder.machine)), [False, True])
    elif isinstance(platform, DictConfig):
        rows = [row for row in flat(OmegaConf.to_container(platform)) if "_target_" not in row[0]]
        body += table(["machine (simulated)", "value"], rows, [False, True])
    if folder.config is None:
        body += "<p>The folder holds no config.yaml.</p>"
    else:
        text = OmegaConf.to_yaml(folder.config)
        body += details("Configuration (config.yaml)", f"<pre>{escape(text)}</pre>", printed=True)
    return _section("Machine, version and configuration", body)
