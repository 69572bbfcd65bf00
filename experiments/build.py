"""From configuration to objects: the only place that calls hydra's `compose` and `instantiate`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import traces
from policies.cost import CostModel
from policies.measured import Geometry, Profile
from policies.planner import Policy
from policies.roofline import ModelShape, Platform, roofline
from policies.slicing import choose_slices
from policies.types import Floats, InputError, Shape
from traces.metadata import Metadata
from traces.profiles import KEPT_PER_LAYER
from traces.trace import Trace
from traces.workload import Workload, popularity

# A model is one of few experts up to this many: DALI's settings for Mixtral (8) against DeepSeek and Qwen (64, 128).
FEW_EXPERTS = 16
SHIPPED = Path(traces.__file__).parent / "data"
PARTS = ("assignment", "prefetch", "cache")

OmegaConf.register_new_resolver("few_experts", lambda experts, few, many: few if experts <= FEW_EXPERTS else many)
OmegaConf.register_new_resolver("shipped", lambda name: str(SHIPPED / name))
OmegaConf.register_new_resolver("model_units", lambda experts, slices: experts * slices)


# ---- configuration ---------------------------------------------------------------------------------


def configuration(verb: str, overrides: Iterable[str], resolve: bool = True) -> DictConfig:
    """The configuration of a verb, resolved by default; InputError in one line if it does not compose."""
    parts = _parsed(verb, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("conf", version_base="1.3"):
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
        raise InputError(f"override {_sentences(error)}; dali {verb} --help lists what there is") from error
    return config


def listing(verb: str, overrides: list[str]) -> str:
    """What can be set for a verb: its groups with their options, and all values as they stand."""
    parts = _parsed(verb, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            groups = {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}
            config = compose(verb, parts)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"override {_sentences(error)}") from error
    chosen = "\n".join(f"  {group}: {', '.join(options)}" for group, options in groups.items() if options)
    values = OmegaConf.to_yaml(config).rstrip().replace("\n", "\n  ")
    return f"dali {verb} NAME=VALUE ...\n\nFiles to choose from (conf/NAME):\n{chosen}\n\nValues:\n  {values}"


def _parsed(verb: str, overrides: Iterable[str]) -> list[str]:
    """The overrides in hydra's words; InputError names the one that is no override."""
    parser = OverridesParser.create()
    parts = [part for override in overrides for part in _spelled_out(verb, override)]
    for part in parts:
        try:
            name = parser.parse_override(part).key_or_group
        except HydraException as error:
            raise InputError(f"override {part!r}: {_sentences(error)}, expected NAME=VALUE") from error
        if not name or (name.startswith("hydra") and not (verb == "sweep" and is_launcher(part))):
            raise InputError(f"override {part!r}: found no setting of ours, expected NAME=VALUE")
    return parts


def is_launcher(override: str) -> bool:
    """Whether an override chooses or sets hydra's launcher, the one part of hydra that `dali sweep` has settings of."""
    return override.lstrip("+~").startswith(("hydra/launcher=", "hydra.launcher."))


def quoted(text: str) -> str:
    """A string as the value of an override, whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _spelled_out(verb: str, override: str) -> list[str]:
    """Short forms that hydra would take for the name of a file in conf.

    `trace=FILE` is the group's option `file` with a path, and so is `platform=FILE`; what has a dot or a slash in it is
    a file.  `model=` of a recording is a checkpoint; of a run it is one too, unless it names a file of conf/model.
    `policy=` of a run is its only one.
    """
    match = re.fullmatch(r"(trace|platform|model|policy)=(['\"]?)(.*)\2", override)
    if match is None:
        return [override]
    name, value = match[1], match[3]
    if name in ("trace", "platform"):
        field = "path" if name == "trace" else "name"
        is_file = re.search(r"[./\\]", value)
        return [f"{name}=file", f"{name}.{field}={quoted(value)}"] if is_file else [override]
    if name == "policy":
        return [f"policies=[{quoted(value)}]"] if verb == "run" else [override]
    if verb == "run" and (files("conf") / "model" / f"{value}.yaml").is_file():
        return [f"model={value}", "checkpoint=null"]
    return [f"checkpoint={quoted(value)}"] if verb in ("record", "run") else [override]


def _sentences(error: BaseException) -> str:
    """What a library's error says, without its hints and its context, on one line."""
    own = str(error).splitlines()[0].strip().rstrip(".")
    cause = str(error.__cause__).splitlines()[0].strip() if error.__cause__ else ""
    own = own[0].lower() + own[1:] if own.startswith("Could not") else own
    return f"{own} ({cause})" if cause and cause not in own else own


def make(node: Any, field: str) -> Any:
    """Instantiate a configuration node; what its constructor says of its arguments becomes one line."""
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError | OSError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise InputError(f"{field}: {_sentences(error.__cause__ or error)}") from error


def whole(config: DictConfig, name: str, least: int = 1) -> int:
    """A whole number of at least `least` from a dotted name."""
    return _whole(name, OmegaConf.select(config, name), least)


def whole_or_none(config: DictConfig, name: str, least: int = 1) -> int | None:
    """The same, or None where the value is null."""
    return None if OmegaConf.select(config, name) is None else whole(config, name, least)


def wholes(config: DictConfig, name: str, least: int = 1) -> list[int]:
    """One or more whole numbers, each once."""
    value = OmegaConf.select(config, name)
    items = list(value) if isinstance(value, ListConfig) else [value]
    if not items or len(set(items)) < len(items):
        raise InputError(f"{name}: found {items}, expected one or more numbers, each once")
    return [_whole(name, item, least) for item in items]


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: found {value!r}, expected a whole number of at least {least}")
    return value


def positive(config: DictConfig, name: str, most: float = float("inf")) -> float:
    """A number above 0, at most `most`."""
    value = OmegaConf.select(config, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        limit = "" if most == float("inf") else f" and at most {most:g}"
        raise InputError(f"{name}: found {value!r}, expected a number above 0{limit}")
    return float(value)


def weight(config: DictConfig, name: str) -> float:
    """A finite number of at least 0."""
    value = OmegaConf.select(config, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise InputError(f"{name}: found {value!r}, expected a number of at least 0")
    return float(value)


def text(config: DictConfig, name: str) -> str:
    """A string that is not empty."""
    value = OmegaConf.select(config, name)
    if not isinstance(value, str) or not value:
        raise InputError(f"{name}: found {value!r}, expected text")
    return value


def texts(config: DictConfig, name: str) -> list[str]:
    """One or more strings, each once; a single one need not be in a list."""
    value = OmegaConf.select(config, name)
    items = list(value) if isinstance(value, ListConfig) else [value]
    if not items or len(set(items)) < len(items) or not all(isinstance(item, str) and item.strip() for item in items):
        raise InputError(f"{name}: found {items}, expected one or more names, each once")
    return items


# ---- objects ---------------------------------------------------------------------------------------


def runtime_modules(*names: str) -> list[Any]:
    """Modules that run a model, imported; InputError where torch or transformers is not installed."""
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "transformers"):
            raise
        raise InputError("needs the runtime extra: pip install 'dali-moe[runtime]'") from None


@dataclass(frozen=True)
class Scene:
    """What is the same for all policies of a comparison.

    trace     the routing, recorded or synthetic; or counts, which are a workload already
    slots     GPU slots for experts, in units, staging included: every policy's
    notes     what a reader of the results has to know about the inputs
    """

    model: ModelShape
    platform: Platform | Profile
    trace: Trace | Workload
    slices: int
    slots: int
    seed: int
    notes: list[str]

    @property
    def units(self) -> int:
        """Units a layer."""
        return self.model.experts * self.slices


def scene(config: DictConfig, trace: Trace | Workload | None = None) -> Scene:
    """Model, platform, trace and GPU memory of a configuration, checked against each other.

    `trace` is what `config.trace` makes, for callers that have made it already.
    """
    model: ModelShape = make(config.model, "model")
    platform: Platform | Profile = make(config.platform, "platform")
    slices, seed = whole(config, "slices"), whole(config, "seed", 0)
    unit_bytes = model.unit_bytes(slices)
    trace = make(config.trace, "trace") if trace is None else trace
    notes = []
    if (trace.metadata.layers, trace.metadata.experts) != (model.layers, model.experts):
        model, note = as_routed(model, trace.metadata)
        notes.append(note)
    if isinstance(platform, Profile):
        platform.check(Geometry.of(model, slices))
        notes.append(f"Costs were measured ({platform.model}): attention is on the GPU, also where a policy moves it.")
    if config.expert_memory_gb is None:
        slots = round(positive(config, "cache_share", most=1) * model.layers * model.experts * slices)
    else:
        slots = int(positive(config, "expert_memory_gb") * 1e9 / unit_bytes)
    if isinstance(trace, Workload) and slices != 1:
        raise InputError(f"slices: found {slices}, a workload of counts has whole experts only, expected 1")
    if trace.metadata.top_k != model.top_k:
        notes.append(
            f"The trace has {trace.metadata.top_k} experts a token, the model {model.top_k}: times are for the trace's."
        )
    needed = slots * unit_bytes / 1e9
    if needed > platform.gpu_memory_gb:
        notes.append(
            f"The experts' share of GPU memory, {needed:.1f} GB, is more than the {platform.gpu_memory_gb:g} GB of "
            f"{platform.name}: a what-if."
        )
    return Scene(model, platform, trace, slices, slots, seed, notes)


def costs(
    model: ModelShape, platform: Platform | Profile, max_tokens: int, slices: int = 1, attention_on: str = "gpu"
) -> CostModel:
    """What a machine costs: by its data sheet or as measured; InputError for a profile of another geometry."""
    if isinstance(platform, Profile):
        return platform.costs(Geometry.of(model, slices), [model.unit_bytes(slices)] * model.layers, max_tokens)
    return roofline(model, platform, max_tokens, slices, attention_on)


def as_routed(model: ModelShape, routing: Metadata) -> tuple[ModelShape, str]:
    """The model with as many layers and experts as were routed, and the note that says so.

    A layer and a unit cost what they cost in the model; what lies outside its MoE layers shrinks or grows with their
    number.
    """
    part = routing.layers / model.layers
    changed = replace(
        model,
        name=f"{model.name} cut to {routing.layers} layers x {routing.experts} experts",
        layers=routing.layers,
        experts=routing.experts,
        top_k=routing.top_k,
        dense_layers=round(model.dense_layers * part),
        vocabulary=max(1, round(model.vocabulary * part)),
    )
    return changed, (
        f"Routing is {routing.model}'s: {routing.layers} layers x {routing.experts} experts, top-{routing.top_k}. Each "
        f"expert and each layer costs what {model.name}'s does, which has {model.layers} x {model.experts}, "
        f"top-{model.top_k}."
    )


def policy(verb: str, overrides: list[str], entry: str, model: ModelShape | None = None) -> tuple[str, Policy]:
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
        raise InputError(f"policy {entry}: {_sentences(error)}") from error
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


def part(group: str, name: str, *changes: str) -> Any:
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


def with_predictors(scene: Scene, policies: Iterable[Policy], config: DictConfig) -> Scene:
    """The scene with every predictor that a policy asks for; those not recorded are emulated, and noted."""
    if not isinstance(config.predictor_recall, DictConfig):
        raise InputError(f"predictor_recall: found {config.predictor_recall!r}, expected {{source: share}}")
    recalls: dict[str, float] = scene.model.predictor_recall | {str(k): v for k, v in config.predictor_recall.items()}
    asked: dict[str, int] = {}
    for each in policies:
        source = each.prefetch.source
        if source not in (None, "oracle"):
            asked[source] = max(asked.get(source, 0), each.prefetch.ahead)
    if isinstance(scene.trace, Workload):
        if asked:
            raise InputError(
                f"trace: found counts only, without predictor {', '.join(asked)}; expected policies that need none"
            )
        return scene
    trace, notes = scene.trace, list(scene.notes)
    for source, ahead in sorted(asked.items()):
        recorded = trace.sources.get(source, 0)
        if recorded >= ahead:
            continue
        found = f"predictor {source}, {ahead} layers ahead: the trace has {recorded}"
        if not config.emulate_predictors:
            raise InputError(f"{found}, expected a recording (or emulate_predictors=true)")
        if source not in recalls:
            raise InputError(f"{found} and no recall is known for {scene.model.name}: +predictor_recall.{source}=SHARE")
        recall = positive(
            OmegaConf.create({"predictor_recall": {source: recalls[source]}}), f"predictor_recall.{source}", most=1
        )
        falling = [recall * KEPT_PER_LAYER**h for h in range(ahead)]
        trace = trace.with_predictor(source, falling, np.random.default_rng([scene.seed, len(source)]), ahead)
        notes.append(
            f"Predictor '{source}' is not in the trace: emulated with a recall of {recall:.1%} one layer ahead, "
            f"{KEPT_PER_LAYER:.3f} times that with each further layer; wrong guesses are uniform."
        )
    return Scene(scene.model, scene.platform, trace, scene.slices, scene.slots, scene.seed, notes)


def workload(scene: Scene, config: DictConfig, batch: int) -> Workload:
    """The trace batched as `config.workload` says; counts are a workload already."""
    if isinstance(scene.trace, Workload):
        return scene.trace
    sequences = config.workload.sequences
    return Workload.from_trace(
        scene.trace,
        batch,
        whole(config, "workload.prompt", 0),
        whole(config, "workload.generate", 0),
        sequences=None if sequences is None else wholes(config, "workload.sequences", 0),
        chunk=whole_or_none(config, "workload.chunk"),
        slices=scene.slices,
        seed=scene.seed,
    )


def sliced(scene: Scene, policy: Policy, workload: Workload) -> tuple[Scene, Workload]:
    """Scene and workload in the units that the policy asks for; GPU memory stays what it is.

    A profile is measured for one number of slices: "auto" is that one.
    """
    given = policy.slices == "auto" and isinstance(scene.platform, Profile)
    if policy.slices is None or policy.slices == scene.slices or given:
        return scene, workload
    if policy.slices == "auto":
        assert isinstance(scene.platform, Platform)
        known, _ = expert_popularity(scene.trace, workload.sliced(1))
        share = scene.slots / (scene.model.layers * scene.units)
        in_flight = getattr(policy.assignment, "in_flight", 0.0)
        slices = choose_slices(scene.model, scene.platform, workload.step_sizes, share, known, in_flight=in_flight)
    else:
        slices = policy.slices
    scene.model.unit_bytes(slices)  # InputError where it does not divide
    return replace(scene, slices=slices, slots=scene.slots * slices // scene.slices), workload.sliced(slices)


def shape(scene: Scene, workload: Workload) -> tuple[Shape, str]:
    """The model as policies see it, and where the popularity of its units comes from."""
    known, origin = expert_popularity(scene.trace, workload)
    sizes = np.full(scene.model.layers, scene.model.unit_bytes(scene.slices), np.int64)
    return Shape(scene.model.layers, scene.units, sizes, known), origin


def expert_popularity(trace: Trace | Workload, workload: Workload) -> tuple[Floats, str]:
    """Share of tokens by unit on sequences that are not evaluated, or on the evaluated ones if there are no others."""
    if isinstance(trace, Trace):
        if workload.held_out:
            shares = popularity(trace, workload.held_out, workload.slices)
            return shares, f"{len(workload.held_out)} sequences that are not evaluated"
        return popularity(trace, range(trace.sequences), workload.slices), "the evaluated sequences themselves"
    counts = np.zeros((workload.layers, workload.units))
    for step in workload.steps():
        counts += step.workload
    return counts / counts.sum(axis=1, keepdims=True), "the evaluated steps themselves"
