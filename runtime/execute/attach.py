"""What a model of transformers has changed while its experts are elsewhere, and how it is changed back.

Its experts' calls go to an executor, through transformers' experts interface; hooks tell the executor of forward passes
and of what routers read; parameters and buffers return to the devices they were on.
"""

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

NAME = "dali"
"""Of the experts implementation that an attached model's configuration names."""

# By the id of an experts module, what runs it; by that of a configuration, the implementation it named before.
_running: dict[int, Callable[..., Tensor]] = {}
_before: dict[int, str | None] = {}


# ---- devices


def placement(model: nn.Module) -> dict[str, torch.device]:
    """Device of each parameter and buffer by name."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.device for name, tensor in tensors}


def put_back(model: nn.Module, placed: dict[str, torch.device]) -> None:
    """Move parameters and buffers to where `placement` found them."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.device != placed[name]:
            parameter.data = parameter.data.to(placed[name])
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        if name in placed and buffer.device != placed[name]:
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, buffer.to(placed[name]))


# ---- the experts' calls


def take_over(model: PreTrainedModel, modules: Sequence[nn.Module], executor: Executor, stack: ExitStack) -> None:
    """Hand the calls of the experts of each layer to the executor until the stack is closed."""
    ALL_EXPERTS_FUNCTIONS[NAME] = _experts_forward
    configs = {id(module.config): module.config for module in modules}
    before = {key: config._experts_implementation for key, config in configs.items()}
    stack.callback(_name_again, configs, before)
    _before.update(before)
    model.set_experts_implementation(NAME)
    for config in configs.values():
        # Configurations of parts of a model that the call above does not reach.
        if config._experts_implementation != NAME:
            config._experts_implementation = NAME
    for layer, module in enumerate(modules):
        stack.callback(_running.pop, id(module))
        _running[id(module)] = _call(executor, layer)


def _name_again(configs: dict[int, Any], before: dict[int, str | None]) -> None:
    for key, config in configs.items():
        config._experts_implementation = before[key]
        _before.pop(key, None)


@torch.compiler.disable
def _experts_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What transformers calls for all experts of a configuration that names us."""
    run = _running.get(id(module))
    if run is not None:
        return run(*args, **kwargs)
    # Another model that shares the configuration object.
    original = ALL_EXPERTS_FUNCTIONS.get(_before.get(id(module.config)), inspect.unwrap(type(module).forward))
    return original(module, *args, **kwargs)


def _call(executor: Executor, layer: int) -> Callable[..., Tensor]:
    """The executor's call for a layer, with the names that the experts interface gives its arguments."""

    def run(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return executor.run(layer, hidden_states, top_k_index, top_k_weights)

    return run


# ---- forward passes and routers


def watch(model: nn.Module, routers: Sequence[nn.Module], executor: Executor, stack: ExitStack) -> None:
    """Tell the executor, until the stack is closed, where forward passes begin and end, and what these routers read.

    routers  of each layer where predictors need it, else none
    """
    begin = model.register_forward_pre_hook(
        lambda _, args, kwargs: executor.begin_forward(*_about(args, kwargs)), with_kwargs=True
    )
    stack.callback(begin.remove)
    stack.callback(model.register_forward_hook(lambda *_: executor.end_forward()).remove)
    for layer, router in enumerate(routers):
        stack.callback(router.register_forward_pre_hook(_reading(executor, layer)).remove)


def _reading(executor: Executor, layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _, args: executor.router_input(layer, args[0])


def _about(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, bool]:
    """Sequences of a forward pass, and whether it continues no earlier one."""
    inputs = next((a for a in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if a is not None), None)
    cache = kwargs.get("past_key_values")
    return (inputs.shape[0] if isinstance(inputs, Tensor) else 1), cache is None or cache.get_seq_length() == 0
