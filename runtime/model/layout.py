"""How the weights of one unit lie in memory, for every way in which transformers stores experts.

A module of experts holds one tensor a projection with one row an expert.  A unit's block holds its piece of
each of them one after the other, so that one copy moves it, and blocks of all units of a layer form one array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dali.policies.types import InputError
from dali.runtime.model.moe_layers import MoeLayer

# Matrix products want addresses and strides that are multiples of 16 bytes; 64 is a cache line.
_PART_ALIGNMENT = 64
_BLOCK_ALIGNMENT = 256
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Weights(NamedTuple):
    """Views of P blocks: matrices [P, in, out], however the module stores them, and biases [P, out] or None."""

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True)
class WeightPart:
    """One parameter's piece of a unit.

    name    of the module's parameter
    shape   of one unit's piece; offset where it begins in the block, in bytes
    grid, order   view(grid).permute(order) of the parameter is [E, slices, ...], whose rest is `shape` unflattened
    whole   True: not sliced.  Slice 0 has it, the others have zeros, so that it is added once
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    grid: tuple[int, ...]
    order: tuple[int, ...]
    whole: bool = False

    @property
    def count(self) -> int:
        """Numbers in one unit's piece."""
        return torch.Size(self.shape).numel()

    def of(self, memory: Tensor, dtype: torch.dtype) -> Tensor:
        """[P, *shape], this part of P blocks uint8 [P, block]."""
        return memory[:, self.offset : self.offset + self.count * dtype.itemsize].view(dtype).unflatten(1, self.shape)

    def by_slice(self, parameter: Tensor) -> Tensor:
        """[E, slices, ...], the parameter cut into pieces; a view where its memory allows one."""
        return parameter.reshape(self.grid).permute(self.order)


@dataclass(frozen=True)
class UnitLayout:
    """Layout of the units of one layer.

    experts, slices  E and equal parts of each along its inner width; U = E * slices
    inputs, outputs  widths of what goes into an expert and of what comes out
    dtype            of all its numbers
    gated, transposed, normed   flags of the experts interface: has_gate, is_transposed, has_post_expert_norm
    unit_bytes       bytes of the weights of a unit; block_bytes the same with the gaps that align them
    """

    experts: int
    slices: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    gated: bool
    transposed: bool
    normed: bool
    parts: tuple[WeightPart, ...]
    unit_bytes: int
    block_bytes: int

    @property
    def units(self) -> int:
        """U."""
        return self.experts * self.slices

    def weights(self, memory: Tensor) -> Weights:
        """Views of the weights in P blocks uint8 [P, at least block_bytes]."""
        up, *biases, down = (part.of(memory, self.dtype) for part in self.parts if not part.whole)
        last = [part.of(memory, self.dtype) for part in self.parts if part.whole]
        if not self.transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        return Weights(up, biases[0] if biases else None, down, last[0] if last else None)

    def pack(self, experts: nn.Module, memory: Tensor) -> None:
        """Copy the module's parameters into blocks uint8 [U, block_bytes]."""
        for part in self.parts:
            pieces, place = part.by_slice(getattr(experts, part.name).data), part.of(memory, self.dtype)
            place = place.unflatten(0, (self.experts, self.slices))
            if part.whole:
                place[:, :1].copy_(pieces)
                place[:, 1:].zero_()
            else:
                place.view(pieces.shape).copy_(pieces)

    def unpack(self, part: WeightPart, memory: Tensor, parameter: Tensor) -> None:
        """Copy one part of all blocks back into a contiguous tensor of the parameter's shape."""
        place = part.of(memory, self.dtype).unflatten(0, (self.experts, self.slices))
        pieces = part.by_slice(parameter)
        pieces.copy_(place[:, :1] if part.whole else place.view(pieces.shape))


def unit_layout(layer: MoeLayer, slices: int) -> UnitLayout:
    """Layout of a layer's units.

    Raises InputError for experts that hold other parameters than the experts interface knows (quantised ones),
    for shapes that do not fit each other and for an inner width that `slices` does not divide.
    """
    module, experts = layer.experts, layer.count
    gated, transposed = bool(module.has_gate), bool(module.is_transposed)
    first = "gate_up_proj" if gated else "up_proj"
    names = [first, f"{first}_bias", "down_proj", "down_proj_bias"] if module.has_bias else [first, "down_proj"]
    parameters = _parameters(layer, names)
    up, down = parameters[first], parameters["down_proj"]
    inner, outputs = down.shape[1:] if transposed else (down.shape[2], down.shape[1])
    width = inner * (2 if gated else 1)
    inputs = up.shape[1] if transposed else up.shape[2]
    _check(layer, first, up, (experts, inputs, width) if transposed else (experts, width, inputs))
    if slices < 1 or inner % slices:
        raise InputError(f"slices: found {slices}, expected a divisor of the inner width {inner} of {layer.name}")
    piece = inner // slices
    # Concatenated gate and up: a slice takes its piece of each; interleaved ones lie together already.
    halves = 2 if gated and module.is_concatenated else 1
    columns, piece = width // halves // slices, inner // slices
    if transposed:
        cuts = [
            _PartCut(first, (inputs, halves * columns), (experts, inputs, halves, slices, columns), (0, 3, 1, 2, 4)),
            _PartCut("down_proj", (piece, outputs), (experts, slices, piece, outputs), (0, 1, 2, 3)),
        ]
    else:
        cuts = [
            _PartCut(first, (halves * columns, inputs), (experts, halves, slices, columns, inputs), (0, 2, 1, 3, 4)),
            _PartCut("down_proj", (outputs, piece), (experts, outputs, slices, piece), (0, 2, 1, 3)),
        ]
    if module.has_bias:
        _check(layer, names[1], parameters[names[1]], (experts, width))
        _check(layer, names[3], parameters[names[3]], (experts, outputs))
        cuts.insert(1, _PartCut(names[1], (halves * columns,), (experts, halves, slices, columns), (0, 2, 1, 3)))
        cuts.append(_PartCut(names[3], (outputs,), (experts, 1, outputs), (0, 1, 2), whole=True))
    parts, end = _in_a_row(cuts, up.dtype)
    return UnitLayout(
        experts=experts,
        slices=slices,
        inputs=inputs,
        outputs=outputs,
        dtype=up.dtype,
        gated=gated,
        transposed=transposed,
        # transformers 5.10 has no such experts yet, and no such flag.
        normed=bool(getattr(module, "has_post_expert_norm", False)),
        parts=parts,
        unit_bytes=sum(part.count for part in parts) * up.dtype.itemsize,
        block_bytes=_aligned(end, _BLOCK_ALIGNMENT),
    )


class _PartCut(NamedTuple):
    """Fields of a `WeightPart` that do not depend on the others."""

    name: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    order: tuple[int, ...]
    whole: bool = False


def _in_a_row(cuts: list[_PartCut], dtype: torch.dtype) -> tuple[tuple[WeightPart, ...], int]:
    """The parts of a block one after the other, and the byte after the last."""
    parts: list[WeightPart] = []
    end = 0
    for cut in cuts:
        parts.append(WeightPart(offset=_aligned(end, _PART_ALIGNMENT), **cut._asdict()))
        end = parts[-1].offset + parts[-1].count * dtype.itemsize
    return tuple(parts), end


def _parameters(layer: MoeLayer, names: list[str]) -> dict[str, Tensor]:
    found = dict(layer.experts.named_parameters(recurse=False))
    if sorted(found) != sorted(names):
        raise InputError(f"{layer.name}: found parameters {', '.join(found)}, expected {', '.join(names)}")
    if any(p.ndim == 0 or p.numel() == 0 or p.shape[0] != layer.count for p in found.values()):
        raise InputError(f"{layer.name}: found parameters without a row for each expert; is it offloaded already?")
    kinds = {p.dtype for p in found.values()}
    if len(kinds) > 1 or not kinds <= set(_DTYPES):
        known = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise InputError(f"{layer.name}: found {', '.join(map(str, kinds))}, expected one type of {known}")
    if any(p.is_meta for p in found.values()):
        raise InputError(f"{layer.name}: found parameters without data (meta), expected loaded weights")
    return found


def _check(layer: MoeLayer, name: str, parameter: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(parameter.shape) != shape:
        raise InputError(f"{layer.name}.{name}: found shape {list(parameter.shape)}, expected {list(shape)}")


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to
