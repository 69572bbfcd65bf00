"""How others run a model: unchanged on the GPU, and with accelerate's CPU offload; on forced routing where given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from dali.policies.planner import Annotations
from dali.policies.types import InputError
from dali.runtime.device.arena import Arena
from dali.runtime.execute.layer_steps import ForcedRouting, ForcedSteps
from dali.runtime.model.moe_layers import moe_layers

_NOTHING: Annotations = {"source": None, "ahead": 1, "next_use": False, "router_scores": False, "order": False}


def check_baselines(names: Collection[str], model: Any, arena: Arena) -> None:
    """InputError for a baseline that the device cannot run."""
    if "accelerate" in names and arena.device.type != "cuda":
        raise InputError(f"baselines: found accelerate with device {arena.device}, expected it with a CUDA device")
    if "accelerate" in names and find_spec("accelerate") is None:
        raise InputError("baselines: accelerate is not installed: pip install 'dali-moe[runtime]'")
    if "all_gpu" in names and arena.device.type == "cuda":
        needed, free = sum(p.numel() * p.element_size() for p in model.parameters()), arena.free_bytes()
        if needed > free:
            raise InputError(
                f"baselines: found {free / 1e9:.1f} GB of GPU memory free, expected {needed / 1e9:.1f} GB for all_gpu"
            )


@contextmanager
def all_gpu(model: Any, arena: Arena, routing: ForcedRouting | None) -> Iterator[None]:
    """The whole model on the device, run by transformers' own experts."""
    try:
        model.to(arena.device)
        with arena.working(), forcing(model, routing, arena.device):
            yield
    finally:
        model.to("cpu")


@contextmanager
def with_accelerate(model: Any, device: torch.device, limit: int, routing: ForcedRouting | None) -> Iterator[None]:
    """The model on a CUDA device as `device_map` with a memory limit in bytes places it, the rest in host memory.

    accelerate keeps room in that limit for the largest layer that it brings to the GPU.  The model is not to be used
    after it.
    """
    from accelerate import dispatch_model

    index = torch.cuda.current_device() if device.index is None else device.index
    dispatch_model(model, device_map=accelerate_map(model, index, limit), main_device=index)
    with forcing(model, routing, device):
        yield


def accelerate_map(model: Any, index: int, limit: int) -> dict[str, Any]:
    """Device of each part of the model: that of `index` as far as the limit goes, then "cpu"."""
    from accelerate import infer_auto_device_map

    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    placed: dict[str, Any] = infer_auto_device_map(
        model,
        max_memory={index: limit, "cpu": 2 * whole},
        no_split_module_classes=list(model._no_split_modules or []),
        dtype=next(model.parameters()).dtype,
    )
    return placed


@contextmanager
def forcing(model: nn.Module, routing: ForcedRouting | None, device: torch.device) -> Iterator[None]:
    """Experts get recorded routing in place of the router's, as an offloaded model's do; None changes nothing."""
    if routing is None:
        yield
        return
    steps = ForcedSteps(routing, _NOTHING, 1, device)
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(_beginning(steps), with_kwargs=True).remove)
        for number, layer in enumerate(moe_layers(model)):
            hook = layer.experts.register_forward_pre_hook(_replacing(steps, number), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _beginning(steps: ForcedSteps) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        cache = kwargs.get("past_key_values")
        steps.begin(ids.numel(), cache is None or cache.get_seq_length() == 0)

    return hook


def _replacing(steps: ForcedSteps, number: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
        ids, weights = steps.choices(number)
        named["top_k_index"], named["top_k_weights"] = usable(ids, weights, named["top_k_weights"])
        return (named.pop("hidden_states"), named.pop("top_k_index"), named.pop("top_k_weights")), named

    return hook


def usable(ids: Tensor, weights: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """A choice of no expert becomes one of expert 0 with no weight."""
    none = ids < 0
    return ids.masked_fill(none, 0).long(), weights.masked_fill(none, 0).to(like.dtype)
