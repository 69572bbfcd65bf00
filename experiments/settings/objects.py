"""From configuration to objects: the only place that calls hydra's `instantiate`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dali.experiments.settings.aliases import with_current_targets
from dali.experiments.settings.compose import configuration, sentences
from dali.policies.core.planner import Policy
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import ModelShape, Platform
from dali.policies.types import InputError

PARTS = ("assignment", "prefetch", "cache")


def make(node: Any, field: str) -> Any:
    """Instantiate a configuration node; what its constructor says of its arguments becomes one line."""
    try:
        return instantiate(with_current_targets(_plain(node)))
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError | OSError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise InputError(f"{field}: {sentences(error.__cause__ or error)}") from error


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def make_policy(verb: str, overrides: list[str], entry: str, model: ModelShape | None = None) -> tuple[str, Policy]:
    """Name and objects of one entry of `policies`, see `policy_settings`.

    Settings that depend on the model's shape see that of `model`, such as the configured one cut to a trace.
    """
    return entry, make(policy_settings(entry, configuration(verb, overrides), model), f"policy {entry}")


def policy_settings(entry: str, config: DictConfig, model: ModelShape | None = None) -> DictConfig:
    """The resolved settings of one entry of `policies`, which may refer to those of `config`.

    An entry is a file of conf/policy, then overrides of it after spaces: `dali cache.w_size=8`.  One of a part by
    its name takes another file of conf in that part's place: `dali cache=lru cache.fill=random`.
    """
    settings = cast(dict, OmegaConf.to_container(config)) | {"policy": _unresolved_policy(entry)}
    if model is not None:
        settings["model"] |= {size: getattr(model, size) for size in ("layers", "experts", "top_k")}
    whole = OmegaConf.create(settings)
    try:
        OmegaConf.resolve(whole)
    except OmegaConfBaseException as error:
        raise InputError(f"policy {entry}: {sentences(error)}") from error
    node: DictConfig = whole.policy
    return node


@lru_cache
def _unresolved_policy(entry: str) -> dict[str, Any]:
    """Composing takes a tenth of a second, so each entry is composed once; what it gets is not to be changed."""
    name, *changes = entry.split()
    swapped = {}
    overrides = [f"+policy={name}"]
    for change in changes:
        key, _, value = change.partition("=")
        part, _, rest = key.partition(".")
        if key in PARTS:
            swapped[key] = value
            overrides.append(f"+{key}@swapped.{key}={value}")
        else:
            overrides.append(f"{'swapped' if part in swapped and rest else 'policy'}.{change}")
    config = configuration("config", overrides, resolve=False)
    settings = cast(dict, OmegaConf.to_container(config.policy))
    for key in swapped:
        settings[key] = OmegaConf.to_container(config.swapped[key])
    return settings


def make_part(group: str, name: str, *changes: str) -> Any:
    """The object of a file of conf/assignment, conf/prefetch or conf/cache; changes are overrides of its values."""
    chosen = [f"+{group}@policy.{group}={name}", *(f"policy.{group}.{change}" for change in changes)]
    return make(configuration("config", chosen).policy[group], f"{group} {name}")


def believed_platform(verb: str, overrides: list[str], entry: str) -> Platform | Profile:
    """A file of conf/platform, and overrides of it after spaces."""
    made: Platform | Profile = make(believed_settings(verb, overrides, entry), f"believed {entry}")
    return made


def believed_settings(verb: str, overrides: list[str], entry: str) -> DictConfig:
    """The resolved settings of `believed_platform`."""
    name, *changes = entry.split()
    kept = [override for override in overrides if not override.startswith("platform")]
    config = configuration(verb, [*kept, f"platform={name}", *(f"platform.{change}" for change in changes)])
    node: DictConfig = config.platform
    return node
