"""What is the same for all policies of a comparison: model, machine, routing, GPU memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from omegaconf import DictConfig, OmegaConf

from dali.experiments.settings.gpu_memory import read_slots
from dali.experiments.settings.objects import make
from dali.experiments.settings.read import positive, text_or_none, whole, whole_or_none, wholes
from dali.experiments.settings.routing import about_routing, make_routing
from dali.policies.costs.engine import IDEAL, ServingEngine
from dali.policies.costs.formats import find_quantisation, kv_bits, quantised
from dali.policies.costs.measured import Geometry, Profile
from dali.policies.costs.model import CostModel
from dali.policies.costs.roofline import ModelShape, Platform, roofline
from dali.policies.planner import Policy
from dali.policies.prefetch.frontier import LEFT_OF_COPY
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.slicing import choose_slices
from dali.policies.types import Floats, InputError, Shape
from dali.traces.metadata import Metadata
from dali.traces.profiles import KEPT_PER_LAYER
from dali.traces.trace import Trace
from dali.traces.workload import Workload, popularity


@dataclass(frozen=True)
class Scene:
    """What is the same for all policies of a comparison.

    trace     the routing, recorded or synthetic; or counts, which are a workload already
    slots     GPU slots for experts, in units, staging included (`settings.gpu_memory`): every policy's
    notes     what a reader of the results has to know about the inputs
    engine    whose kernels, launches and copies are charged
    """

    model: ModelShape
    platform: Platform | Profile
    trace: Trace | Workload
    slices: int
    slots: int
    seed: int
    notes: list[str]
    engine: ServingEngine = IDEAL

    @property
    def machine(self) -> str:
        """Name of the platform, and of the engine if it is one."""
        return self.platform.name + ("" if self.engine == IDEAL else f" in {self.engine.name}")

    @property
    def units(self) -> int:
        """Units a layer."""
        return self.model.experts * self.slices

    @property
    def all_units(self) -> int:
        """Units of the whole model."""
        return self.model.layers * self.units


def read_scene(
    config: DictConfig, trace: Trace | Workload | None = None, platform: Platform | Profile | None = None
) -> Scene:
    """Model, platform, trace and GPU memory of a configuration, checked against each other.

    `trace` and `platform` take the place of what the configuration makes, for callers that have them already.
    """
    model, notes = read_model(config)
    platform = make(config.platform, "platform") if platform is None else platform
    engine: ServingEngine = make(config.engine, "engine")
    slices, seed = whole(config, "slices"), whole(config, "seed", 0)
    unit_bytes = model.unit_bytes(slices)
    trace = make_routing(config.trace, tokens_asked(config)) if trace is None else trace
    notes += about_routing(trace.metadata)
    if (trace.metadata.layers, trace.metadata.experts) != (model.layers, model.experts):
        model, note = as_routed(model, trace.metadata)
        notes.append(note)
    if isinstance(platform, Profile):
        platform.check(Geometry.of(model, slices))
        notes.append(f"Costs were measured ({platform.model}): attention is on the GPU, also where a policy moves it.")
    units = model.layers * model.experts * slices
    slots, about_slots = read_slots(config, units, unit_bytes, platform.gpu_memory_gb, platform.name)
    if isinstance(trace, Workload) and slices != 1:
        raise InputError(f"slices: found {slices}, a workload of counts has whole experts only, expected 1")
    if trace.metadata.top_k != model.top_k:
        notes.append(
            f"The trace has {trace.metadata.top_k} experts a token, the model {model.top_k}: times are for the trace's."
        )
    return Scene(model, platform, trace, slices, slots, seed, notes + about_slots, engine)


def read_model(config: DictConfig) -> tuple[ModelShape, list[str]]:
    """The model of a configuration in the formats of `quant` and `kv`, and the notes that say what these are."""
    model: ModelShape = make(config.model, "model")
    quant, kv = text_or_none(config, "quant"), text_or_none(config, "kv")
    if quant is None:
        if kv is None:
            return model, []
        return replace(model, kv_bits=kv_bits(kv)), [f"A value of the KV cache takes {kv_bits(kv):g} bits ({kv})."]
    stored, found = quantised(model, quant, kv), find_quantisation(quant)
    estimate = " (an estimate: Unsloth's formats differ by model)" if found.name.startswith("ud_") else ""
    return stored, [
        f"Weights are in {found.name}{estimate}: experts take {stored.expert_bits:.2f} bits, head and embedding "
        f"{stored.head_bits:.2f}, all others {stored.dense_bits:.2f}; a value of the KV cache {stored.kv_bits:g}."
    ]


def tokens_asked(config: DictConfig) -> int:
    """Tokens that each sequence of the workload has to have; 0 where a configuration has no workload."""
    if "workload" not in config:
        return 0
    return whole(config, "workload.prompt", 0) + whole(config, "workload.generate", 0)


def cost_model(
    model: ModelShape,
    platform: Platform | Profile,
    max_tokens: int,
    slices: int = 1,
    attention_on: str = "gpu",
    engine: ServingEngine = IDEAL,
) -> CostModel:
    """What a machine costs in an engine: by its data sheet or as measured.

    InputError for a profile of another geometry, and for one beside an engine: what was measured has its own.
    """
    if isinstance(platform, Profile):
        if engine != IDEAL:
            raise InputError(f"engine: found {engine.name} beside measured costs, expected ideal")
        return platform.costs(Geometry.of(model, slices), [model.unit_bytes(slices)] * model.layers, max_tokens)
    return roofline(model, platform, max_tokens, slices, attention_on, engine)


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
    return replace(scene, trace=trace, notes=notes)


def make_workload(scene: Scene, config: DictConfig, batch: int) -> Workload:
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


def in_policy_units(scene: Scene, policy: Policy, workload: Workload) -> tuple[Scene, Workload]:
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
        # What an assignment does not count on is there all the same: copies of a policy that copies ahead.
        ahead = 0.0 if isinstance(policy.prefetch, NoPrefetch) else LEFT_OF_COPY
        in_flight = getattr(policy.assignment, "in_flight", ahead)
        slices = choose_slices(
            scene.model, scene.platform, workload.step_sizes, share, known, in_flight=in_flight, engine=scene.engine
        )
    else:
        slices = policy.slices
    scene.model.unit_bytes(slices)  # InputError where it does not divide
    return replace(scene, slices=slices, slots=scene.slots * slices // scene.slices), workload.sliced(slices)


def shape_of(scene: Scene, workload: Workload) -> tuple[Shape, str]:
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
