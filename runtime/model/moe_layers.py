"""The MoE layers of a transformers model: each with its experts and the router beside them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dali.policies.types import InputError

# What transformers' `use_experts_implementation` gives every experts module it decorates.
_MARKS = ("config", "num_experts", "has_bias", "is_transposed")
# All architectures of transformers 5 call it by one of these.
_ROUTER_NAMES = ("gate", "router")


@dataclass(frozen=True)
class MoeLayer:
    """One MoE layer of a model.

    name     dotted name of its experts in the model
    experts  the experts, `count` of them
    router   the module beside them that scores them
    block    the module that holds both, and calls one after the other
    """

    name: str
    experts: nn.Module
    count: int
    router: nn.Module
    block: nn.Module

    @property
    def unit_bytes(self) -> int:
        """Bytes of one expert as it lies in memory: its share of every tensor with one row an expert."""
        held = [p for p in self.experts.parameters() if p.ndim > 0 and p.shape[0] == self.count]
        return sum(p.numel() * p.element_size() for p in held) // self.count

    @property
    def router_weight(self) -> Tensor:
        """[E, H], the router's matrix; InputError for a router that is no single matrix, or one that was offloaded."""
        found = _matrices(self.router, self.count)
        if len(found) != 1:
            raise InputError(f"router of {self.name}: found {len(found)} matrices of {self.count} rows, expected one")
        if found[0].is_meta:
            raise InputError(f"router of {self.name}: found its matrix offloaded, expected it in memory")
        return found[0]

    @property
    def hidden(self) -> int:
        """Width of what the router reads; errors of `router_weight`."""
        return int(self.router_weight.shape[1])


def moe_layers(model: nn.Module) -> list[MoeLayer]:
    """MoE layers in the order of the model's modules.

    Raises InputError for a model without experts behind transformers' experts interface, for experts that
    have no router beside them, and for layers that differ in their number of experts.
    """
    modules = dict(model.named_modules())
    named = [(name, module) for name, module in modules.items() if all(hasattr(module, mark) for mark in _MARKS)]
    if not named:
        raise InputError(
            f"{type(model).__name__}: found no experts behind transformers' experts interface, expected an MoE model"
        )
    layers = [_layer(name, module, modules[name.rpartition(".")[0]]) for name, module in named]
    counts = sorted({layer.count for layer in layers})
    if len(counts) > 1:
        raise InputError(f"{type(model).__name__}: found layers of {counts} experts, expected one number in all layers")
    return layers


def _layer(name: str, experts: nn.Module, parent: nn.Module) -> MoeLayer:
    count = int(experts.num_experts)
    children = dict(parent.named_children())
    for router in _ROUTER_NAMES:
        if router in children and _matrices(children[router], count):
            return MoeLayer(name, experts, count, children[router], parent)
    raise InputError(
        f"router of {name}: found none among {', '.join(children)}, expected {' or '.join(_ROUTER_NAMES)} "
        f"with a matrix of {count} rows"
    )


def _matrices(module: nn.Module, rows: int) -> list[Tensor]:
    return [p for p in module.parameters() if p.ndim == 2 and p.shape[0] == rows]
