"""See what reaches the experts of a model, at the point that transformers publishes for it, and its routers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dali.runtime.model.moe_layers import MoeLayer

Seen = Callable[[nn.Module, Tensor, Tensor], None]
Read = Callable[[int, Tensor], None]


@contextmanager
def watching(seen: Seen) -> Iterator[None]:
    """Call seen(experts module, ids [N, K], weights [N, K]) each time experts are about to run in this process.

    Every experts implementation, "eager" included, is registered anew under its own name as one that reports
    and then calls the original.  The model's configuration keeps its names, so that what depends on them does
    not change: on a GPU `generate` decodes with another implementation than it reads the prompt with.
    """
    originals = {name: ALL_EXPERTS_FUNCTIONS.get(name) for name in ["eager", *ALL_EXPERTS_FUNCTIONS]}
    try:
        for name, original in originals.items():
            ALL_EXPERTS_FUNCTIONS[name] = _reporting(seen, original)
        yield
    finally:
        for name, original in originals.items():
            _restore(name, original)


@contextmanager
def reading(layers: Sequence[MoeLayer], read: Read) -> Iterator[None]:
    """Call read(number of the MoE layer, what its router gets as [N, hidden]) each time a router is about to run.

    The tensor is the model's own: copy what is to outlive the call.
    """

    def hook(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: read(number, inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.router.register_forward_pre_hook(hook(number)).remove)
        yield


def _reporting(seen: Seen, original: Callable | None) -> Callable:
    def forward(
        module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        seen(module, top_k_index, top_k_weights)
        # "eager" has no entry of its own: it is the forward that the experts class was written with.
        run = inspect.unwrap(type(module).forward) if original is None else original
        return run(module, hidden_states, top_k_index, top_k_weights, *args, **kwargs)

    return forward


def _restore(name: str, original: Callable | None) -> None:
    """The entry as it was: the library's own, or what somebody had put in its place."""
    if ALL_EXPERTS_FUNCTIONS.get(name) is original:
        return
    del ALL_EXPERTS_FUNCTIONS[name]
    if ALL_EXPERTS_FUNCTIONS.get(name) is not original:
        ALL_EXPERTS_FUNCTIONS[name] = original
