"""How a model of transformers is changed while its experts are elsewhere, and changed back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dali.runtime.execute.executor import Executor
from dali.runtime.model.moe_layers import MoeLayer

NAME = "dali"

_running: dict[int, Callable[..., Tensor]] = {}
_before: dict[int, str | None] = {}


# ---- the model's devices ---------------------------------------------------------------------------


def devices(model: nn.Module) -> dict[str, torch.device]:
    """Where each parameter and buffer is."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.device for name, tensor in tensors}


def move(model: nn.Module, devices: dict[str, torch.device]) -> None:
    """Put each parameter and buffer back where it was."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.device != devices[name]:
            parameter.data = parameter.data.to(devices[name])
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        if name in devices and buffer.device != devices[name]:
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, buffer.to(devices[name]))


# ---- the model's calls -----------------------------------------------------------------------------


@torch.compiler.disable
def _experts_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What transformers calls for all experts of a configuration that names us."""
    run = _running.get(id(module))
    if run is not None:
        return run(*args, **kwargs)
    # Another model that shares the configuration object.
    original = ALL_EXPERTS_FUNCTIONS.get(_before.get(id(module.config)), inspect.unwrap(type(module).forward))
    return original(module, *args, **kwargs)


def register(model: PreTrainedModel, modules: list[nn.Module], executor: Executor, stack: ExitStack) -> None:
    """Hand the experts' calls to the executor, through transformers' experts interface."""
    ALL_EXPERTS_FUNCTIONS[NAME] = _experts_forward
    configs = {id(module.config): module.config for module in modules}
    before = {key: config._experts_implementation for key, config in configs.items()}
    stack.callback(_restore, configs, before)
    _before.update(before)
    model.set_experts_implementation(NAME)
    for config in configs.values():
        if config._experts_implementation != NAME:
            config._experts_implementation = NAME
    for layer, module in enumerate(modules):
        stack.callback(_running.pop, id(module))
        _running[id(module)] = _calling(executor, layer)


def _restore(configs: dict[int, Any], before: dict[int, str | None]) -> None:
    for key, config in configs.items():
        config._experts_implementation = before[key]
        _before.pop(key, None)


def _calling(executor: Executor, layer: int) -> Callable[..., Tensor]:
    def run(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return executor.run(layer, hidden_states, top_k_index, top_k_weights)

    return run


def hook(model: nn.Module, layers: Sequence[MoeLayer], executor: Executor, predicting: bool, stack: ExitStack) -> None:
    """Tell the executor where forward passes begin and end, and what routers read."""
    model_hooks = (
        model.register_forward_pre_hook(
            lambda _, args, kwargs: executor.begin_forward(*_about(args, kwargs)), with_kwargs=True
        ),
        model.register_forward_hook(lambda *_: executor.end_forward()),
    )
    for handle in model_hooks:
        stack.callback(handle.remove)
    for number, layer in enumerate(layers if predicting else ()):
        stack.callback(layer.router.register_forward_pre_hook(_reading(executor, number)).remove)


def _reading(executor: Executor, layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        executor.router_input(layer, args[0])

    return hook


def _about(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, bool]:
    """Sequences of a forward pass, and whether it continues no earlier one."""
    inputs = next((a for a in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if a is not None), None)
    cache = kwargs.get("past_key_values")
    return (inputs.shape[0] if isinstance(inputs, Tensor) else 1), cache is None or cache.get_seq_length() == 0
