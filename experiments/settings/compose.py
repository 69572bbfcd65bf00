"""The configuration of a verb: files of conf and of the user's own folder, put together by hydra with overrides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dali import conf, traces
from dali.experiments.settings.folders import OWN, own_folder
from dali.experiments.settings.shorthand import as_typed, is_launcher, is_part, spelled_out
from dali.experiments.shapes.file import shape_of_file
from dali.policies.costs.model_shape import ModelShape
from dali.policies.types import InputError

# A model is one of few experts up to this many: DALI's settings for Mixtral (8) against DeepSeek and Qwen (64, 128).
FEW_EXPERTS = 16
SHIPPED = Path(traces.__file__).parent / "data"
PLATFORMS = Path(conf.__file__).parent / "platform"

# What files of conf may compute.  Resolvers are the process's: the prefix keeps ours apart from a program's own.
RESOLVERS: dict[str, Callable[..., Any]] = {
    "dali.few_experts": lambda experts, few, many: few if experts <= FEW_EXPERTS else many,
    "dali.shipped": lambda name: str(SHIPPED / name),
    "dali.model_units": lambda experts, slices: experts * slices,
}
for _name, _resolver in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)


# ---- configurations --------------------------------------------------------------------------------


def configuration(
    verb: str, overrides: Iterable[str], resolve: bool = True, replaced: Mapping[str, Any] | None = None
) -> DictConfig:
    """The configuration of a verb, resolved by default; InputError in one line if it does not compose.

    replaced  {name: node}, each in the place of what was composed under the name, before references are resolved
    """
    parts = _parsed(verb, overrides)
    try:
        config = _composed(verb, parts)
        for name, node in (replaced or {}).items():
            config[name] = node
        path = OmegaConf.select(config, "model.path")  # None where it is missing, too
        if path is not None:
            config.model = shape_node(shape_of_file(str(path)))
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            name = as_typed(missing[0])
            raise InputError(f"{name}: found nothing, expected a value: dali {verb} {name}=...")
        if resolve:
            OmegaConf.resolve(config)
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        more = " (others: pip install 'dali-moe[sweep]')" if group == "hydra/launcher" else ""
        raise InputError(f"{group}: found {name!r}, expected one of {', '.join(error.options or [])}{more}") from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"override {one_line(error)}; dali {verb} --help lists what there is") from error
    return config


def shape_node(model: ModelShape) -> dict[str, Any]:
    """The configuration of a model's sizes, which other settings refer to."""
    kind = type(model)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", "_convert_": "all", **asdict(model)}


def listing(verb: str, overrides: list[str]) -> str:
    """What can be set for a verb: its groups with their options, and all values as they stand."""
    parts = _parsed(verb, overrides)
    try:
        with composing() as hydra:
            loader = hydra.config_loader
            groups = {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}
            config = compose(verb, parts)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise InputError(f"override {one_line(error)}") from error
    chosen = "\n".join(f"  {group}: {', '.join(options)}" for group, options in groups.items() if options)
    values = OmegaConf.to_yaml(config).rstrip().replace("\n", "\n  ")
    own = own_folder()
    places = "conf/NAME" if own is None else f"{own}/NAME, then conf/NAME"
    return (
        f"dali {verb} NAME=VALUE ...\n\nFiles to choose from ({places}):\n{chosen}\n\nValues:\n  {values}\n\n"
        f"{OWN}=FOLDER adds a folder of your own: FOLDER/policy/mine.yaml is then policies=[mine]."
    )


def _parsed(verb: str, overrides: Iterable[str]) -> list[str]:
    """The overrides in hydra's words; InputError names the one that is no override."""
    overrides = list(overrides)
    _check_one_machine(overrides)
    parser = OverridesParser.create()
    parts = [part for override in overrides for part in spelled_out(verb, override)]
    for part in parts:
        try:
            name = parser.parse_override(part).key_or_group
        except HydraException as error:
            raise InputError(f"override {part!r}: {one_line(error)}, expected NAME=VALUE") from error
        if not name or (name.startswith("hydra") and not (verb == "sweep" and is_launcher(part))):
            raise InputError(f"override {part!r}: found no setting of ours, expected NAME=VALUE")
    return parts


def _check_one_machine(overrides: list[str]) -> None:
    """InputError for a machine that is named and composed of parts at once."""
    part = next(filter(is_part, overrides), None)
    named = next((each for each in overrides if each.startswith("platform=") and each != "platform=parts"), None)
    if part is not None and named is not None:
        raise InputError(f"{named}: found it beside {part}, expected a platform or its parts")


def _composed(verb: str, parts: list[str]) -> DictConfig:
    """Composing takes a tenth of a second, and a comparison asks for the same settings once a policy."""
    if own_folder() is not None:  # whose files may change at any time
        return _compose(verb, parts)
    return copy.deepcopy(_kept(verb, tuple(parts), PLATFORMS.stat().st_mtime_ns))


@lru_cache(maxsize=32)
def _kept(verb: str, parts: tuple[str, ...], platforms: int) -> DictConfig:
    """By the verb, its overrides, and when `dali calibrate` last wrote a file of conf/platform."""
    return _compose(verb, list(parts))


def _compose(verb: str, parts: list[str]) -> DictConfig:
    with composing():
        return compose(verb, parts)


def value_of(change: str) -> tuple[str, Any]:
    """(dotted name, value) of NAME=VALUE, the value typed as in every override; InputError for anything else."""
    try:
        override = OverridesParser.create().parse_override(change)
    except HydraException as error:
        raise InputError(f"{change!r}: {one_line(error)}, expected NAME=VALUE") from error
    if not override.key_or_group or override.is_add() or override.is_delete() or override.is_sweep_override():
        raise InputError(f"{change!r}: found no single value, expected NAME=VALUE")
    return override.key_or_group, override.value()


def one_line(error: BaseException) -> str:
    """What a library's error says, without its hints and its context, on one line."""
    if isinstance(error, YAMLError):
        return " ".join(str(error).split())  # the place stands on its second line
    own = str(error).splitlines()[0].strip().rstrip(".")
    cause = str(error.__cause__).splitlines()[0].strip() if error.__cause__ else ""
    own = own[0].lower() + own[1:] if own.startswith("Could not") else own
    return f"{own} ({cause})" if cause and cause not in own else own


# ---- hydra -----------------------------------------------------------------------------------------


@contextmanager
def composing(job: str = "dali") -> Iterator[Hydra]:
    """Hydra with our folders to search.

    Hydra holds one application for the whole process.  That of a program which uses both is set aside, and is what it
    was afterwards.
    """
    search = create_config_search_path("pkg://dali.conf")
    own = own_folder()
    if own is not None:
        search.prepend(OWN, f"file://{own}", anchor="main")
    holder, base, runtime = GlobalHydra.instance(), version.VersionBase.instance(), JobRuntime.instance()
    other, its_base, its_job = holder.hydra, base.version_base, runtime.get("name")
    holder.clear()
    try:
        version.setbase("1.3")
        yield Hydra.create_main_hydra2(job, search)
    finally:
        holder.hydra, base.version_base = other, its_base
        runtime.set("name", its_job)
