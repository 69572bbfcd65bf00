"""What a model's own routers choose for inputs that they did not get: no router is written a second time here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dali.policies.types import InputError
from dali.runtime.model.moe_layers import MoeLayer

Way = Callable[[Tensor], tuple[Tensor, Tensor]]

_PROBE = 5
# What model code raises when it misses an argument that only a whole forward pass has.
_REFUSALS = (TypeError, ValueError, AttributeError, RuntimeError, IndexError)


class Routing:
    """The routers of a model's MoE layers, callable on any input.

    layers  the model's MoE layers, as `moe_layers` gives them

    Softmax or sigmoid, bias, correction terms and groups are the model's: its code runs.  Where a router says
    itself what it chose and needs nothing but its input, it is called alone; else the block that holds it runs
    up to its experts.  Hooks of others on a router called alone do not run.

    Raises InputError naming the first layer whose router cannot be called either way.
    """

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._layers = list(layers)
        self._ways: list[Way] = [_way(layer) for layer in self._layers]

    def __len__(self) -> int:
        return len(self._layers)

    def choose(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [N, K] and weights [N, K] that the router of MoE layer `layer` chooses for x [N, hidden]."""
        with torch.no_grad():
            return self._ways[layer](x)

    def check(self, layer: int, x: Tensor, ids: Tensor) -> None:
        """Raise InputError unless the true input x [N, hidden] leads to the ids [N, K] that the model used.

        One token in a hundred may differ: the same numbers in another shape may round differently.
        """
        found, tokens = self.choose(layer, x)[0], x.shape[0]
        if found.shape == ids.shape:
            wrong = int((found.sort(dim=-1).values != ids.to(found).sort(dim=-1).values).any(dim=-1).sum())
        else:
            wrong = tokens
        if wrong * 100 > tokens:
            raise InputError(
                f"router of {self._layers[layer].name}: called by itself it chose otherwise than the model did for "
                f"{wrong} of {tokens} tokens, so that its choice cannot be predicted"
            )


def _way(layer: MoeLayer) -> Way:
    """The first way that gives ids and weights for a probe."""
    probe = torch.zeros(_PROBE, layer.hidden, dtype=layer.router_weight.dtype, device=layer.router_weight.device)
    reasons = []
    for way in (_by_router, _by_block):
        try:
            with torch.no_grad():
                way(layer)(probe)
            return way(layer)
        except _REFUSALS as error:
            reasons.append(next(iter(str(error).splitlines()), type(error).__name__))
    raise InputError(f"router of {layer.name}: cannot be called by itself ({reasons[0]}), nor its block ({reasons[1]})")


def _by_router(layer: MoeLayer) -> Way:
    """The router alone; `forward` and not the call, so that the hooks of a recording do not see it."""
    forward = layer.router.forward
    parameters = inspect.signature(forward).parameters.values()
    if sum(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) != 1:
        # What the block passes besides, required or not, decides too.
        return _refusing("it takes more than its input")

    def choose(x: Tensor) -> tuple[Tensor, Tensor]:
        return _chosen(forward(x), x.shape[0])

    return choose


def _refusing(reason: str) -> Way:
    def refuse(x: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError(reason)

    return refuse


def _chosen(out: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """The one tensor of ids, and the one of as many weights, in what a router returned."""
    tensors = [t for t in out if isinstance(t, Tensor)] if isinstance(out, tuple) else []
    ids = [t for t in tensors if t.ndim > 1 and not t.is_floating_point() and t.dtype != torch.bool]
    if len(ids) != 1:
        raise ValueError(f"it returns {len(ids)} tensors of ids")
    weights = [t for t in tensors if t.is_floating_point() and t.shape == ids[0].shape]
    if len(weights) != 1:
        raise ValueError(f"it returns {len(weights)} tensors of weights")
    return ids[0].reshape(tokens, -1), weights[0].reshape(tokens, -1)


class _Stopped(Exception):
    """Ends a block's forward where its experts would begin; carries what they would have got."""

    def __init__(self, ids: Tensor, weights: Tensor) -> None:
        super().__init__("cut short before the experts")
        self.ids, self.weights = ids, weights


def _by_block(layer: MoeLayer) -> Way:
    """The block's own forward, with the router's input put in its place, ended before the experts."""

    def choose(x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            with _cutting(layer, x):
                layer.block.forward(x[None])
        except _Stopped as cut:
            return cut.ids.reshape(x.shape[0], -1), cut.weights.reshape(x.shape[0], -1)
        raise ValueError("it ran without its experts")

    return choose


@contextmanager
def _cutting(layer: MoeLayer, x: Tensor) -> Iterator[None]:
    def give(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (x.view_as(inputs[0]), *inputs[1:]), named

    def cut(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        _end(*inputs, **named)

    hooks = [
        layer.router.register_forward_pre_hook(give, prepend=True, with_kwargs=True),
        layer.experts.register_forward_pre_hook(cut, prepend=True, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _end(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, *_: Any, **__: Any) -> None:
    """Takes its arguments by the names that the experts interface gives them."""
    raise _Stopped(top_k_index, top_k_weights)
