"""A cost model for policies to believe where none was calibrated: a short timing of this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dali.policies.costs.model import CostModel, Overheads
from dali.policies.types import Floats
from dali.runtime.device.arena import Arena
from dali.runtime.execute.unit_math import Group, run_units
from dali.runtime.model.layout import UnitLayout

_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_REPEATS = 3
# A point that takes longer than this is the last: longer jobs are in proportion to it.
_LONG = 0.05
# Units timed in turn, so that none is in a cache: as many as this holds, but two at least.
_SCRATCH = 256 << 20


def quick_costs(layouts: list[UnitLayout], experts: nn.Module, arena: Arena, max_tokens: int) -> CostModel:
    """Times of a unit of the first layer on CPU and GPU up to `max_tokens` tokens, and of copies by size.

    experts  those of the first layer, for their gate and activation

    The best of three runs each, alone on the machine: what it takes while the other side is busy, and the dense
    part, are not measured.  `dali calibrate` measures all of it.
    """
    host, device = without_weights(experts, torch.device("cpu")), without_weights(experts, arena.device)
    layout = layouts[0]
    count = max(2, min(8, _SCRATCH // layout.block_bytes))
    on_host = arena.host_memory(count, layout.block_bytes)
    try:
        on_host.zero_()
        on_device = arena.memory(count, layout.block_bytes)
        on_device.zero_()
        cpu = _table(_runner(layout, host, on_host, torch.device("cpu"), lambda: None), max_tokens)
        gpu = _table(_runner(layout, device, on_device, arena.device, arena.synchronize), max_tokens)
        copy = _best(lambda: arena.copy(on_device[0], on_host[0], None).wait())
    finally:
        arena.synchronize()
        arena.release(on_host)
    sizes = np.array([each.unit_bytes for each in layouts], np.float64)
    copies = copy * sizes / sizes[0]
    return CostModel(cpu, cpu, gpu, copies, copies, Overheads(), _nothing, _nothing)


def without_weights(experts: nn.Module, device: torch.device) -> nn.Module:
    """A copy of an experts module on a device, for its gate, activation and norm: its own parameters are left out."""
    bare = copy.copy(experts)
    bare._parameters = {}
    return copy.deepcopy(bare, {id(experts.config): experts.config}).to(device)


def _nothing(tokens: int, sequences: int, context: float) -> float:
    return 0.0


def _runner(
    layout: UnitLayout, module: nn.Module, memory: torch.Tensor, device: torch.device, wait: Callable[[], None]
) -> Callable[[int], Callable[[], None]]:
    """Function of a number of tokens: a run of one unit with so many, each time another unit."""
    weights, turn = layout.weights(memory), iter(range(1 << 62))

    def of(tokens: int) -> Callable[[], None]:
        x = torch.zeros((tokens, layout.inputs), dtype=layout.dtype, device=device)

        def run() -> None:
            place = next(turn) % memory.shape[0]
            with torch.no_grad():
                run_units(module, layout, weights, x, Group([place], [0, tokens]))
            wait()

        return run

    return of


def _table(run: Callable[[int], Callable[[], None]], max_tokens: int) -> Floats:
    """Seconds of 0 to max_tokens tokens: linear between the points, never falling, then in proportion to the last."""
    points, seconds = [0], [0.0]
    for tokens in _TOKENS:
        points.append(tokens)
        seconds.append(max(_best(run(tokens)), seconds[-1]))
        if seconds[-1] > _LONG:
            break
    every = np.arange(max_tokens + 1)
    measured = np.interp(every, points, seconds)
    table: Floats = np.where(every <= points[-1], measured, seconds[-1] * every / points[-1])
    return table


def _best(run: Callable[[], None]) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
