"""From configuration to objects: the only place that calls hydra's `instantiate`."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any, Protocol, cast

from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dali.experiments.settings import outside
from dali.experiments.settings.aliases import with_current_targets
from dali.experiments.settings.compose import configuration, one_line
from dali.experiments.settings.folders import own_folder
from dali.experiments.settings.shorthand import is_platform
from dali.policies.costs.engine import ServingEngine
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import Platform
from dali.policies.planner import Policy
from dali.policies.types import InputError

PARTS = ("assignment", "prefetch", "cache")


class Sized(Protocol):
    """A model as far as a policy's settings depend on it."""

    @property
    def layers(self) -> int:
        """MoE layers."""

    @property
    def experts(self) -> int:
        """Experts of each."""

    @property
    def top_k(self) -> int:
        """Experts a token."""


def make(node: Any, field: str, typed: Collection[str] | None = None) -> Any:
    """Instantiate a configuration node; what its constructor says of its arguments becomes one line.

    typed  for a node that comes from a file: the names of code (`outside.names`) that the user typed; it may hold no
           others.  None = all of it was typed
    """
    plain = with_current_targets(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
    if typed is not None:
        outside.check(plain, field, typed)
    if outside.names(plain):
        outside.current_folder_importable()
    try:
        return instantiate(plain)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError | OSError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        first = error.__cause__ or error
        kind = "" if isinstance(first, TypeError | ValueError | HydraException) else f"{type(first).__name__}: "
        raise InputError(f"{field}: {kind}{one_line(first)}") from error


# ---- policies --------------------------------------------------------------------------------------


def make_policy(verb: str, overrides: list[str], entry: str, model: Sized | None = None) -> tuple[str, Policy]:
    """Name and objects of one entry of `policies`, see `policy_settings`.

    Settings that depend on the model's shape see that of `model`, such as the configured one cut to a trace.
    """
    return entry, policy_of(entry, configuration(verb, overrides), model)


def policy_of(
    entry: str, config: DictConfig, model: Sized | None = None, typed: Collection[str] | None = None
) -> Policy:
    """Objects of one entry of `policies`, see `policy_settings`; `typed` as in `make`."""
    return policy_from(policy_settings(entry, config, model), entry, typed)


def policy_from(settings: Any, entry: str, typed: Collection[str] | None = None) -> Policy:
    """Objects of resolved settings of an entry; InputError if they are none of a policy."""
    policy = make(settings, f"policy {entry}", typed)
    if not isinstance(policy, Policy):
        raise InputError(f"policy {entry}: found a {type(policy).__name__}, expected a policy")
    for part in PARTS:
        kind, found = outside.KINDS[part], getattr(policy, part)
        if not isinstance(found, kind):
            raise InputError(
                f"policy {entry}: found {type(found).__name__} as {part}, expected a {kind.__module__}.{kind.__name__}"
            )
    return policy


def policy_settings(entry: str, config: DictConfig, model: Sized | None = None) -> DictConfig:
    """The resolved settings of one entry of `policies`, which may refer to those of `config`.

    An entry is a file of conf/policy, then overrides of it after spaces: `dali cache.w_size=8`.  One of a part by
    its name takes another file of conf in that part's place: `dali cache=lru cache.fill=random`.  In the place of a
    file may stand code, with its arguments: `mypackage:MyPolicy size=3`, `dali cache=mypackage:MyCache cache.size=3`.
    """
    unresolved = _unresolved_policy(entry, _version_of_own_files())
    settings = cast(dict, OmegaConf.to_container(config)) | {"policy": unresolved}
    if model is not None:
        settings["model"] |= {size: getattr(model, size) for size in ("layers", "experts", "top_k")}
    whole = OmegaConf.create(settings)
    try:
        OmegaConf.resolve(whole)
    except OmegaConfBaseException as error:
        raise InputError(f"policy {entry}: {one_line(error)}") from error
    node: DictConfig = whole.policy
    return node


@lru_cache
def _unresolved_policy(entry: str, version: object) -> dict[str, Any]:
    """Composing takes a tenth of a second, so each entry is composed once; what it gets is not to be changed."""
    if not entry.split():
        raise InputError(f"policy: found {entry!r}, expected the name of one")
    name, *changes = entry.split()
    if outside.is_code(name):
        return outside.node("policy", name, changes)
    overrides, swapped = [f"+policy={name}"], []
    code: dict[str, tuple[str, list[str]]] = {}
    for change in changes:
        key, _, value = change.partition("=")
        part, _, rest = key.partition(".")
        if key in PARTS and outside.is_code(value):
            code[key] = value, []
        elif part in code and rest:
            code[part][1].append(change.removeprefix(f"{part}."))
        elif key in PARTS:
            swapped.append(key)
            overrides.append(f"+{key}@swapped.{key}={value}")
        else:
            overrides.append(f"{'swapped' if part in swapped and rest else 'policy'}.{change}")
    config = configuration("config", overrides, resolve=False)
    settings = cast(dict, OmegaConf.to_container(config.policy))
    for key in swapped:
        settings[key] = OmegaConf.to_container(config.swapped[key])
    for key, (value, own) in code.items():
        settings[key] = outside.node(key, value, own)
    return settings


def _version_of_own_files() -> object:
    """Changes whenever the files of the user's own folder do."""
    folder = own_folder()
    return None if folder is None else tuple((str(file), file.stat().st_mtime_ns) for file in folder.rglob("*.yaml"))


# ---- parts and machines ----------------------------------------------------------------------------


def make_part(group: str, name: str, *changes: str) -> Any:
    """The object of a file of conf/assignment, conf/prefetch or conf/cache; changes are overrides of its values."""
    if outside.is_code(name):
        return make(outside.node(group, name, changes), f"{group} {name}")
    chosen = [f"+{group}@policy.{group}={name}", *(f"policy.{group}.{change}" for change in changes)]
    return make(configuration("config", chosen).policy[group], f"{group} {name}")


def believed_platform(verb: str, overrides: list[str], entry: str) -> Platform | Profile:
    """A file of conf/platform, and overrides of it after spaces."""
    made: Platform | Profile = make(believed_settings(verb, overrides, entry), f"believed {entry}")
    return made


def engine_named(name: str) -> ServingEngine:
    """A file of conf/engine."""
    made: ServingEngine = make(configuration("config", [f"engine={name}"]).engine, f"engine {name}")
    return made


def believed_settings(verb: str, overrides: list[str], entry: str) -> DictConfig:
    """The resolved settings of `believed_platform`."""
    name, *changes = entry.split()
    kept = [override for override in overrides if not is_platform(override)]
    config = configuration(verb, [*kept, f"platform={name}", *(f"platform.{change}" for change in changes)])
    node: DictConfig = config.platform
    return node
