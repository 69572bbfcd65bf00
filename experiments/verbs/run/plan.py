"""What a run is to do, checked as far as it can be before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dali.experiments.extras import runtime_modules
from dali.experiments.models.fewer_layers import scaled_to_layers
from dali.experiments.models.prompts import read_prompts
from dali.experiments.models.sizes import Sizes
from dali.experiments.scene import Scene, as_routed, with_predictors
from dali.experiments.settings import folders, read
from dali.experiments.settings.compose import SHIPPED, configuration
from dali.experiments.settings.objects import make, policy_of
from dali.experiments.settings.routing import about_routing, make_routing
from dali.policies.costs.roofline import ModelShape
from dali.policies.planner import Policy
from dali.policies.types import InputError
from dali.traces import tensor_file
from dali.traces.trace import Trace
from dali.traces.workload import Workload, load_any

BASELINES = ("accelerate", "all_gpu")


@dataclass(frozen=True)
class Lengths:
    """Tokens: `prompt` of each of `batch` sequences (None = as many as the text has), and `generate` after them."""

    batch: int
    prompt: int | None
    generate: int


class RunPlan:
    """The settings of a run.

    name        hub id or folder of the model, or None where `shape` is one of conf/model to fill with random numbers
    policies    (entry, objects) in the order to run them; rebuilt by `policies_for` once the model's sizes are known
    baselines   of `BASELINES`
    trace       recorded routing to force, cut to the model's layers, or None
    streams     whether one policy runs once, so that its text is shown while it comes
    notes       what a reader of the results has to know
    """

    def __init__(self, config: DictConfig, overrides: list[str]) -> None:
        self.config, self.overrides = config, overrides
        self.notes: list[str] = []
        self.name = None if config.checkpoint is None else _known(read.text(config, "checkpoint"))
        self.entries = read.texts(config, "policies")
        self.baselines = _baselines(config)
        self.seed = read.whole(config, "seed", 0)
        self.slices = read.whole(config, "slices")
        self.lengths = Lengths(
            read.whole(config, "batch"), read.whole_or_none(config, "prompt_tokens"), read.whole(config, "generate")
        )
        self.top_p = read.positive(config, "top_p", most=1)
        self.temperature = 0.0 if config.temperature == 0 else read.positive(config, "temperature")
        self.repeats = read.whole(config, "repeats")
        self.streams = len(self.entries) == 1 and self.repeats == 1 and not self.baselines
        self.baseline_repeats = read.whole_or_none(config, "baseline_repeats") or self.repeats
        given = read.whole_or_none(config, "warmup", 0)
        self.warmup = int(self.repeats > 1) if given is None else given
        self.trusted = flag_or(config, "trust_remote_code", False)
        self.log = flag_or(config, "log", self.streams)
        self.texts = _texts(config)
        self._check_memory()
        policies = [self._policy(entry) for entry in self.entries]
        self.shape = self._shape()
        self.trace = self._routing(policies)
        self.popularity = self._popularity()
        self.predictors = self._predictors()
        self._check_sources(policies)
        if self.trace is not None and self.lengths.prompt is None and self.name is None:
            self.lengths = replace(self.lengths, prompt=64)
        if self.trace is not None and self.lengths.prompt is not None:
            self.workload(self.lengths.prompt)

    def policies_for(self, sizes: Sizes) -> list[tuple[str, Policy]]:
        """Name and objects of each policy for a model of these sizes."""
        return [(entry, self._policy(entry, sizes)) for entry in self.entries]

    def _policy(self, entry: str, sizes: Sizes | None = None) -> Policy:
        return policy_of(entry, self.config, sizes)

    def slices_of(self, policy: Policy) -> int:
        """Units an expert is cut into under a policy: its number, else the run's ("auto" needs a data sheet)."""
        return policy.slices if isinstance(policy.slices, int) else self.slices

    def workload(self, prompt: int) -> Workload:
        """The part of the routing that a run follows: its last token is drawn and not run."""
        assert self.trace is not None
        lengths = self.lengths
        return Workload.from_trace(self.trace, lengths.batch, prompt, lengths.generate - 1, seed=self.seed)

    def _check_memory(self) -> None:
        config = self.config
        if config.cache_share is not None and config.gpu_memory_gb is not None:
            raise InputError("cache_share, gpu_memory_gb: found both, expected at most one of them")
        if config.cache_share is not None:
            read.fraction(config, "cache_share")
        if config.gpu_memory_gb is not None:
            read.positive(config, "gpu_memory_gb")
        if config.link_gbs is not None:
            read.positive(config, "link_gbs")
        for name in ("cpu_threads", "device_threads"):
            read.whole_or_none(config, name)

    def _shape(self) -> ModelShape | None:
        layers = read.whole_or_none(self.config, "layers")
        if self.name is not None:
            if layers is not None:
                raise InputError(
                    f"layers: found {layers} with a checkpoint, expected it with a file of conf/model only"
                )
            return None
        shape: ModelShape = make(self.config.model, "model")
        if shape.expert_bits != 16:
            self.notes.append(
                f"Weights are bfloat16, where {shape.name}'s own take {shape.expert_bits:g} bits: copies are longer."
            )
        if layers is not None and layers != shape.layers and self.config.routing is None:
            self.notes.append(
                f"{layers} of the {shape.layers} layers of {shape.name}, and as large a part of its head."
            )
            shape = scaled_to_layers(shape, layers)
        return shape

    def _routing(self, policies: Sequence[Policy]) -> Trace | None:
        """The trace to force, with a predictor for each policy; the shape becomes as it was routed."""
        if self.config.routing is None:
            return None
        tokens = (self.lengths.prompt or 0) + self.lengths.generate
        trace = _named_trace(self.overrides, read.text(self.config, "routing"), "routing", tokens)
        self.notes += about_routing(trace.metadata)
        layers = read.whole_or_none(self.config, "layers")
        if layers is not None:
            trace = trace.first_layers(layers)
        if self.shape is not None:
            found, own = trace.metadata, self.shape
            if (found.layers, found.experts, found.top_k) != (own.layers, own.experts, own.top_k):
                self.shape, note = as_routed(self.shape, found)
                self.notes.append(note)
            # Only its model, trace and seed are looked at.
            scene = Scene(self.shape, None, trace, 1, 0, self.seed, self.notes)  # type: ignore[arg-type]
            scene = with_predictors(scene, policies, self.config)
            assert isinstance(scene.trace, Trace)
            trace, self.notes = scene.trace, scene.notes
        else:
            self.notes.append(
                f"Routing is {trace.metadata.model}'s, in place of the model's own: its text means nothing."
            )
        return trace

    def _popularity(self) -> Trace | None:
        if self.config.popularity is None:
            return None
        return _named_trace(self.overrides, read.text(self.config, "popularity"), "popularity")

    def _predictors(self) -> Path | None:
        if self.config.predictors is not None:
            return Path(read.text(self.config, "predictors"))
        shipped = SHIPPED / "tiny_moe"
        if self.name is None or Path(self.name).resolve() != shipped.resolve():
            return None
        return shipped.with_suffix(".predictors.safetensors")

    def _check_sources(self, policies: Sequence[Policy]) -> None:
        """InputError if a policy asks for what neither the routing nor a predictor will tell."""
        if self.predictors is not None:
            tensor_file.read_header(self.predictors)
        for entry, policy in zip(self.entries, policies, strict=True):
            source, ahead = policy.prefetch.source, policy.prefetch.ahead
            if self.trace is not None:
                found = self.trace.sources.get(source or "", 0)
                if source not in (None, "oracle") and found < ahead:
                    raise InputError(
                        f"policy {entry}: asks for predictor {source} {ahead} layers ahead, the routing has {found}"
                    )
            elif source == "oracle" or policy.cache.needs_next_use:
                raise InputError(
                    f"policy {entry}: it knows the future, which a live model does not tell; expected routing=TRACE"
                )
            elif source not in (None, "gate") and self.predictors is None:
                raise InputError(
                    f"policy {entry}: asks for predictor {source}, expected predictors=FILE (dali record writes one) "
                    f'or "{entry} prefetch.source=gate"'
                )


def load_torch() -> Any:
    """The modules that run a model; InputError where torch or transformers is not installed."""
    return runtime_modules("dali.experiments.verbs.run.session")[0]


def flag_or(config: DictConfig, name: str, otherwise: bool) -> bool:
    """true or false, or `otherwise` for null."""
    value = config[name]
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{name}: found {value!r}, expected true, false or null")
    return otherwise if value is None else value


def _named_trace(overrides: list[str], value: str, field: str, tokens: int = 0) -> Trace:
    """A trace file, or the trace of a file of conf/trace, of `tokens` tokens a sequence or more if it is synthetic."""
    if any(mark in value for mark in "./\\"):
        trace = load_any(value)
    else:
        trace = make_routing(configuration("run", [*overrides, f"+trace={value}"]).trace, tokens)
    if not isinstance(trace, Trace):
        raise InputError(f"{field} {value}: found counts only, expected a trace of tokens")
    return trace


def _known(name: str) -> str:
    if "/" in name or Path(name).is_dir():
        return name
    shapes = folders.names("model")
    near = get_close_matches(name, shapes, 3, 0.3) or shapes[:3]
    raise InputError(
        f"model: found {name!r}, expected a folder, a hub id (owner/name) or one of "
        f"{len(shapes)} such as {', '.join(near)}"
    )


def _baselines(config: DictConfig) -> list[str]:
    if config.baselines is not None and len(config.baselines) == 0:
        return []
    names = read.texts(config, "baselines")
    for name in names:
        if name not in BASELINES:
            raise InputError(f"baselines: found {name!r}, expected {' or '.join(BASELINES)}")
    # accelerate takes the model apart: it comes last.
    return sorted(names, key=lambda name: name == "accelerate")


def _texts(config: DictConfig) -> list[str]:
    if config.prompt is not None and config.prompts is not None:
        raise InputError("prompt, prompts: found both, expected at most one of them")
    if config.prompt is not None:
        return [read.text(config, "prompt")]
    return read_prompts(None if config.prompts is None else read.text(config, "prompts"))
