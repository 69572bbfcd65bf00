"""What an experiment (conf/experiment) simulates: its points, each the settings of one `dali compare`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, cast

from dali.experiments.settings.shorthand import is_part, quoted
from dali.policies.columns import PHASES
from dali.policies.types import InputError

Label = str | int | float

VIEW_KINDS = ("lines", "bars", "winner")
_OF_WORKLOAD = ("batch", "prompt", "generate")


@dataclass(frozen=True)
class View:
    """One table and figure of an experiment.

    metric  column of the results; phase "prefill" or "decode"
    x       axis along the columns of the table
    line    axis of the rows; panel one table for each value of this axis, None = one for all
    where   {column: value} of the rows that are shown
    kind    lines over x, bars, or "winner": which policy has the largest metric by line and x
    """

    metric: str
    phase: str
    x: str
    line: str = "policy"
    panel: str | None = None
    where: Mapping[str, Label] = field(default_factory=dict)
    kind: str = "lines"

    def __post_init__(self) -> None:
        if self.phase not in PHASES or self.kind not in VIEW_KINDS:
            raise InputError(
                f"show: found phase {self.phase!r} and kind {self.kind!r}, expected one of "
                f"{', '.join(PHASES)} and of {', '.join(VIEW_KINDS)}"
            )


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, and the rows whose mean stands beside it.

    what   in words; value as published
    of     {column: value} of the rows; with `over`, the mean is over `of` divided by what is `over` at the same point
    where  further columns of both
    metric, phase  of the rows; None = the first view's
    """

    what: str
    value: float
    of: Mapping[str, Label]
    over: Mapping[str, Label] | None = None
    where: Mapping[str, Label] = field(default_factory=dict)
    metric: str | None = None
    phase: str | None = None


@dataclass(frozen=True)
class Point:
    """Simulated at once: all policies and seeds of one combination of settings.

    axes       {axis: label} where the point lies in its experiment
    overrides  of `dali compare`
    labels     {entry of `policies`: name in tables}
    """

    experiment: str
    axes: dict[str, Label]
    overrides: list[str]
    labels: dict[str, str]


@dataclass(frozen=True)
class Experiment:
    """A file of conf/experiment.

    name, title, source  source = where the paper says it
    settings  overrides of `dali compare` for all points.  Routing is the profile of the point's model unless they say
              otherwise
    grid      {axis: values}; every combination is a point.  An axis is a setting (`cache_share: [0.25, 0.5]`; batch,
              prompt and generate are those of `workload`), or a name with overrides for each label
              (`link: {4.0 x16: [platform.link_gbs=25]}`), or a list of values for `{axis}` in entries of `policies`.
              Columns carry the part of its name after the last dot
    policies  {name in tables: entry}, or a list of entries
    parts     {name: {settings, grid, policies}}: grids beside each other; settings and grid add to those above,
              policies replace them
    show      views; paper  the paper's figures; differs  why ours and theirs differ
    own       this project's policy, which stands beside them where they are of one policy over another; None = none
    """

    name: str
    title: str
    source: str
    show: Sequence[Mapping[str, Any]]
    policies: Mapping[str, str] | Sequence[str] = ()
    grid: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[str] = ()
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    paper: Sequence[Mapping[str, Any]] = ()
    differs: str = ""
    own: str | None = None

    def __post_init__(self) -> None:
        if not self.show:
            raise InputError(f"experiment {self.name}: found no view in show, expected one or more")
        for each, kind, name in [(v, View, "show") for v in self.show] + [(f, Figure, "paper") for f in self.paper]:
            _check_keys(f"experiment {self.name}, {name}", each, [f.name for f in fields(kind)])
        for name, part in self.parts.items():
            _check_keys(f"experiment {self.name}, part {name}", part, ["settings", "grid", "policies"])

    @property
    def views(self) -> list[View]:
        """`show`, checked."""
        return [View(**view) for view in self.show]

    @property
    def figures(self) -> list[Figure]:
        """`paper`, with its defaults filled in."""
        first = self.views[0]
        return [Figure(**{"metric": first.metric, "phase": first.phase, **figure}) for figure in self.paper]

    def points(self, overrides: Sequence[str] = ()) -> list[Point]:
        """All points, in order; `overrides` come last in each.  InputError for an override of an axis."""
        return [
            self._point(part, combination, overrides)
            for part in self.parts.values() or [cast(Mapping[str, Any], {})]
            for combination in _combinations(dict(self.grid) | dict(part.get("grid", {})))
        ]

    def _point(self, part: Mapping[str, Any], choices: Sequence[tuple[str, Label, Any]], user: Sequence[str]) -> Point:
        axes = {_column(axis): label for axis, label, _ in choices}
        policies = part.get("policies", self.policies)
        named = dict(policies) if isinstance(policies, Mapping) else {entry: entry for entry in policies}
        filled = {_fill(entry, axes): _fill(name, axes) for name, entry in named.items()}
        used = {axis for axis in axes if any(f"{{{axis}}}" in entry for entry in named.values())}
        chosen = [override for axis, label, changes in choices for override in _changes(axis, label, changes, used)]
        mine = {_key(override) for override in chosen}
        for override in user:
            if _key(override) in mine:
                raise InputError(
                    f"{override}: found a setting that experiment {self.name} varies; change experiment.grid, or "
                    "see `dali compare`"
                )
        entries = ",".join(quoted(entry) for entry in filled)
        # Another file of a group, such as trace=FILE, has no use for the settings of the one it replaces.  Parts of a
        # machine choose such a file.
        groups = tuple(f"{_key(override)}." for override in user if "." not in _key(override))
        groups += ("platform.", "platform=") if any(map(is_part, user)) else ()
        settings = [each for each in [*self.settings, *part.get("settings", [])] if not each.startswith(groups)]
        overrides = ["trace=${model}", *settings, f"policies=[{entries}]", *chosen, *user]
        return Point(self.name, axes, overrides, filled)


@dataclass(frozen=True)
class Collection:
    """A file of conf/experiment that names others."""

    name: str
    title: str
    experiments: Sequence[str]


def _check_keys(what: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in found:
        if key not in known:
            raise InputError(f"{what}: found {key!r}, expected only {', '.join(known)}")


def _combinations(grid: Mapping[str, Any]) -> Iterator[list[tuple[str, Label, Any]]]:
    """(axis, label, overrides or None) of every axis, for every combination; the last axis changes fastest."""
    values = [
        [(axis, label, changes) for label, changes in of.items()]
        if isinstance(of, Mapping)
        else [(axis, value, None) for value in of]
        for axis, of in grid.items()
    ]
    return (list(combination) for combination in product(*values))


def _changes(axis: str, label: Label, changes: Sequence[str] | None, used: set[str]) -> list[str]:
    if changes is not None:
        return list(changes)
    return [] if _column(axis) in used else [f"{'workload.' if axis in _OF_WORKLOAD else ''}{axis}={label}"]


def _column(axis: str) -> str:
    return axis.rpartition(".")[2]


def _fill(text: str, axes: Mapping[str, Label]) -> str:
    for axis, label in axes.items():
        text = text.replace(f"{{{axis}}}", str(label))
    return text


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
