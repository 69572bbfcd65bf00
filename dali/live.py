"""`dali.offload` and `dali.record`: a model of transformers, run by a policy, and its routing recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dali.by_name import policy as by_name
from dali.experiments.extras import runtime_modules
from dali.policies.planner import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dali.runtime.execute.layer_steps import Chooser
    from dali.runtime.execute.offload import Offload
    from dali.runtime.record.recorder import Recorder


def offload(
    model: PreTrainedModel,
    policy: str | Policy = "frontier",
    capacity: int | float | None = 0.25,
    *,
    predictors: str | PathLike[str] | Mapping[str, Chooser] | None = None,
    **options: Any,
) -> Offload:
    """A model whose experts stay in host memory while a `with` block runs it: `generate` and `forward` as before.

    model       any MoE model of transformers >= 5.10, on the host or on the device
    policy      an entry as in `dali compare`, which takes its settings from the model, or a `dali.Policy`
    capacity    GPU slots for experts: a share of all (float), a number (int), or None for what is free or `memory=`
                allows.  The policy's staging slots come on top
    predictors  of what later layers will route, for policies that copy ahead: the file that `dali record` fitted to
                this model, or predictors by the name of their source.  None = the model's own next gates, in the
                place of what the policy asks for, which is said on standard error
    options     those of `dali.runtime.execute.offload.Offload`: memory, device, slices, routing, seed, ...

    Raises InputError, in one line and before anything is moved, for a model, a policy or a memory that does not fit.
    """
    (module,) = runtime_modules("dali.runtime.execute.offload")
    chosen = by_name(policy, model=model) if isinstance(policy, str) else policy
    if isinstance(chosen, Policy):
        if isinstance(chosen.slices, int):
            options.setdefault("slices", chosen.slices)
        if options.get("routing") is None:
            predictors = _predictors(model, chosen, predictors, options.get("device"))
    made: Offload = module.offload(model, chosen, capacity=capacity, predictors=predictors, **options)
    return made


def _predictors(
    model: Any, policy: Policy, given: str | PathLike[str] | Mapping[str, Chooser] | None, device: Any
) -> Mapping[str, Chooser] | None:
    source = policy.prefetch.source
    if source in (None, "oracle") or isinstance(given, Mapping):
        return given if isinstance(given, Mapping) else None
    layers_of, predicting, routing, torch = runtime_modules(
        "dali.runtime.model.moe_layers", "dali.runtime.predict.predictors", "dali.runtime.predict.routing", "torch"
    )
    layers = layers_of.moe_layers(model)
    if given is not None:
        found: dict[str, Any] = dict(predicting.Predictors.load(Path(given), layers))
        where = getattr(device, "device", device) or ("cuda" if torch.cuda.is_available() else "cpu")
        for predictor in found.values():
            predictor.place(where, next(model.parameters()).dtype)
        return found
    if source != "gate":
        print(f"offload: no predictors given, the model's own next gates stand for {source!r}", file=sys.stderr)
    return {str(source): predicting.GatePredictor(routing.Routing(layers), policy.prefetch.ahead)}


def record(model: PreTrainedModel, output: str | PathLike[str], **options: Any) -> Recorder:
    """Record the routing of every forward pass in a `with` block, whose end writes a trace file (`dali.Trace.load`).

    model    any MoE model of transformers >= 5.10
    output   the .safetensors file
    options  those of `dali.runtime.record.recorder.Recorder`: origin, weights, router_input, predictors, on_step

    Announce each batch by `recorder.batch(sequences, prompt, generate)`, in tokens, then run the model on it.

    Raises InputError for a model that cannot be recorded, OSError where the disk does not take it.
    """
    (module,) = runtime_modules("dali.runtime.record.recorder")
    made: Recorder = module.Recorder(model, Path(output), **options)
    return made
