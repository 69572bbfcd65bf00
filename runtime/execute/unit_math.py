"""The arithmetic of units: the same for CPU and GPU, with the model's own gate and activation.

Tokens are sorted by unit, so that a projection of many units is one grouped product where the device has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dali.policies.types import Ints
from dali.runtime.model.layout import UnitLayout, Weights

# torch 2.10 names it in public.
_GROUPED = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
# What a grouped product on a GPU takes at most, less one.
_WINDOW = 1000
_STRIDE = 16


@dataclass(frozen=True)
class Group:
    """Units computed together.

    places  where each lies among the blocks, rising if the products are grouped
    bounds  rows bounds[i] to bounds[i + 1] of the input belong to unit i
    ends    int32 on the device: where the rows of each block of the window end, from places[0] to places[-1];
            None = a product for each unit
    rows    int32 on the device, block of each row; None where there are no biases
    """

    places: Sequence[int]
    bounds: Sequence[int]
    ends: Tensor | None = None
    rows: Tensor | None = None


def can_group(layout: UnitLayout, device: torch.device) -> bool:
    """Whether the device has a grouped product that runs these units without a host synchronisation."""
    if _GROUPED is None:
        return False
    shapes = [part.shape for part in layout.parts if len(part.shape) == 2]
    if any(columns * layout.dtype.itemsize % _STRIDE for shape in shapes for columns in shape):
        return False
    if device.type == "cuda":
        return layout.dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0)
    return layout.dtype in (torch.bfloat16, torch.float32)


def windows(places: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[slice, Ints]]:
    """Cut rising places into groups that one grouped product takes: which of them, and their `Group.ends`."""
    first = 0
    while first < len(places):
        last = first
        while last + 1 < len(places) and places[last + 1] - places[first] < _WINDOW:
            last += 1
        counts = np.zeros(places[last] - places[first] + 1, np.int32)
        counts[np.asarray(places[first : last + 1]) - places[first]] = sizes[first : last + 1]
        yield slice(first, last + 1), np.cumsum(counts, dtype=np.int32)
        first = last + 1


def run_units(module: nn.Module, layout: UnitLayout, weights: Weights, x: Tensor, group: Group) -> Tensor:
    """[n, outputs] of rows x [n, inputs], each through the unit of its group that it belongs to.

    module  gives gate and activation; those of transformers work on any part of the inner width
    """
    inner = _product(x.to(layout.dtype), weights.up, weights.up_bias, group)
    inner = module._apply_gate(inner) if layout.gated else module.act_fn(inner)
    return _product(inner.to(layout.dtype), weights.down, weights.down_bias, group)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    if group.ends is not None and _GROUPED is not None:
        first = group.places[0]
        out = _GROUPED(x, weight[first : group.places[-1] + 1], offs=group.ends)
        return out if bias is None else out.add_(bias.index_select(0, group.rows))
    out = x.new_empty((x.shape[0], weight.shape[2]))
    for place, low, high in zip(group.places, group.bounds, group.bounds[1:], strict=False):
        if bias is None:
            torch.mm(x[low:high], weight[place], out=out[low:high])
        else:
            torch.addmm(bias[place], x[low:high], weight[place], out=out[low:high])
    return out
