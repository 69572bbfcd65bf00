"""The routing of a configuration: a trace as long as it is asked for, and what has to be said of it."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from dali.experiments.settings.aliases import with_current_targets
from dali.experiments.settings.objects import make
from dali.traces.metadata import Metadata
from dali.traces.synthetic import generate_profile, generate_resized, is_resized
from dali.traces.trace import Trace
from dali.traces.workload import Workload

_GENERATED = {f"{made.__module__}.{made.__qualname__}" for made in (generate_profile, generate_resized)}


def make_routing(node: DictConfig, tokens: int = 0) -> Trace | Workload:
    """The trace or workload of a node of `conf/trace`, see `lengthened`."""
    found: Trace | Workload = make(lengthened(node, tokens), "trace")
    return found


def lengthened(node: DictConfig, tokens: int) -> DictConfig:
    """A node whose sequences have at least `tokens` tokens, if it is a synthetic one; others are as long as they are.

    The tokens that were there before stay as they are: a synthetic token does not depend on how many follow it.
    """
    settings = with_current_targets(OmegaConf.to_container(node, resolve=True))
    if not isinstance(settings, dict) or settings.get("_target_") not in _GENERATED:
        return node
    prompt, length = settings["prompt"], settings["length"]
    if not (isinstance(prompt, int) and isinstance(length, int)) or prompt + length >= tokens:
        return node
    return OmegaConf.create({**settings, "length": tokens - prompt})


def about_routing(metadata: Metadata) -> list[str]:
    """What a reader has to know about where the routing comes from."""
    if not is_resized(metadata):
        return []
    return [
        f"Routing is made up: {metadata.model} to {metadata.layers} layers x {metadata.experts} experts, "
        f"top-{metadata.top_k}, is fitted to nothing."
    ]
