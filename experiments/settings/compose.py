"""From configuration to objects: the only place that calls hydra's `compose` and `instantiate`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dali import traces
from dali.experiments.settings.shorthand import is_launcher, spelled_out
from dali.policies.types import InputError

# A model is one of few experts up to this many: DALI's settings for Mixtral (8) against DeepSeek and Qwen (64, 128).
FEW_EXPERTS = 16
SHIPPED = Path(traces.__file__).parent / "data"

OmegaConf.register_new_resolver("few_experts", lambda experts, few, many: few if experts <= FEW_EXPERTS else many)
OmegaConf.register_new_resolver("shipped", lambda name: str(SHIPPED / name))
OmegaConf.register_new_resolver("model_units", lambda experts, slices: experts * slices)


# ---- configuration ---------------------------------------------------------------------------------


def configuration(verb: str, overrides: Iterable[str], resolve: bool = True) -> DictConfig:
    """The configuration of a verb, resolved by default; InputError in one line if it does not compose."""
    parts = _parsed(verb, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("dali.conf", version_base="1.3"):
            config = compose(verb, parts)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise InputError(f"{missing[0]}: found nothing, expected a value: dali {verb} {missing[0]}=...")
        if resolve:
            OmegaConf.resolve(config)
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        more = " (others: pip install 'dali-moe[sweep]')" if group == "hydra/launcher" else ""
        raise InputError(f"{group}: found {name!r}, expected one of {', '.join(error.options or [])}{more}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"override {sentences(error)}; dali {verb} --help lists what there is") from error
    return config


def listing(verb: str, overrides: list[str]) -> str:
    """What can be set for a verb: its groups with their options, and all values as they stand."""
    parts = _parsed(verb, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("dali.conf", version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            groups = {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}
            config = compose(verb, parts)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"override {sentences(error)}") from error
    chosen = "\n".join(f"  {group}: {', '.join(options)}" for group, options in groups.items() if options)
    values = OmegaConf.to_yaml(config).rstrip().replace("\n", "\n  ")
    return f"dali {verb} NAME=VALUE ...\n\nFiles to choose from (conf/NAME):\n{chosen}\n\nValues:\n  {values}"


def _parsed(verb: str, overrides: Iterable[str]) -> list[str]:
    """The overrides in hydra's words; InputError names the one that is no override."""
    parser = OverridesParser.create()
    parts = [part for override in overrides for part in spelled_out(verb, override)]
    for part in parts:
        try:
            name = parser.parse_override(part).key_or_group
        except HydraException as error:
            raise InputError(f"override {part!r}: {sentences(error)}, expected NAME=VALUE") from error
        if not name or (name.startswith("hydra") and not (verb == "sweep" and is_launcher(part))):
            raise InputError(f"override {part!r}: found no setting of ours, expected NAME=VALUE")
    return parts


def sentences(error: BaseException) -> str:
    """What a library's error says, without its hints and its context, on one line."""
    own = str(error).splitlines()[0].strip().rstrip(".")
    cause = str(error.__cause__).splitlines()[0].strip() if error.__cause__ else ""
    own = own[0].lower() + own[1:] if own.startswith("Could not") else own
    return f"{own} ({cause})" if cause and cause not in own else own
