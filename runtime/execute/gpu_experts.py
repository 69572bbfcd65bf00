"""GPU units of a layer step: resident ones in one product, late ones as they land."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dali.policies.planner import Planner
from dali.policies.types import LayerPlan
from dali.runtime.device.arena import Arena
from dali.runtime.execute.account import Account
from dali.runtime.execute.layer_steps import Routed
from dali.runtime.execute.link import Link
from dali.runtime.execute.slots import Slots
from dali.runtime.execute.unit_math import Group, can_group, run_units, windows
from dali.runtime.model.layout import UnitLayout


@dataclass
class Batch:
    """A layer step on the device: input [N, inputs], ids and weights [N, K], and float sums [rows, outputs]."""

    layer: int
    hidden: Tensor
    ids: Tensor
    weights: Tensor
    total: Tensor

    @property
    def top_k(self) -> int:
        """K."""
        return self.ids.shape[-1]


@dataclass
class _Choices:
    """The choices of all GPU units on the device, unit after unit in the order they are computed.

    bounds  where each unit's begin, on the host
    x       [n, inputs], the input of each; y [n, outputs], to be filled
    choice  int32 [n], token * K + place of each
    ends    resident units that one grouped product takes, and their `Group.ends`; empty where products are single
    rows    int32 [n of resident units], slot of each; None where there are no biases
    """

    units: Sequence[int]
    bounds: list[int]
    x: Tensor
    y: Tensor
    choice: Tensor
    ends: list[tuple[slice, Tensor]]
    rows: Tensor | None


class GpuExperts:
    """Queues them on the device and adds their results to the batch's sums.

    planner   says which slot a unit is in
    modules   experts of each layer, for their gate, activation and norm
    link      brings the late units, and is told what has been launched
    """

    def __init__(
        self,
        planner: Planner,
        layouts: Sequence[UnitLayout],
        modules: Sequence[nn.Module],
        arena: Arena,
        slots: Slots,
        link: Link,
        account: Account,
    ) -> None:
        self._planner, self._layouts, self._modules = planner, layouts, modules
        self._arena, self._slots, self._link, self._account = arena, slots, link, account
        self._grouped = [can_group(layout, arena.device) for layout in layouts]

    def run(self, batch: Batch, routing: Routed, plan: LayerPlan, resident: int) -> Any:
        """Compute the plan's GPU units into the batch's sums; a mark at their end."""
        choices = self._send(batch, routing, plan.gpu.tolist(), resident)
        hits = plan.gpu.size - plan.to_copy
        done = self._run_resident(batch, choices, resident) if resident else None
        first = resident
        while first < len(choices.units):
            first, done = self._run_late(batch, choices, first, hits)
        self._add_up(batch, choices)
        return done

    def _send(self, batch: Batch, routing: Routed, units: list[int], resident: int) -> _Choices:
        """Bring the choices of the GPU units to the device, and gather their inputs."""
        layout = self._layouts[batch.layer]
        places = [self._slot(batch.layer, unit) for unit in units[:resident]]
        order = sorted(range(resident), key=places.__getitem__)
        units = [units[i] for i in order] + units[resident:]
        places = [places[i] for i in order]
        choices, sizes = routing.of_units(units, layout.slices)
        groups = list(windows(places, sizes[:resident])) if self._grouped[batch.layer] and resident else []
        biased = bool(groups) and self._slots.weights(batch.layer).up_bias is not None
        rows = np.repeat(np.asarray(places, np.int32), sizes[:resident]) if biased else np.zeros(0, np.int32)
        sent = self._arena.send(np.concatenate([choices.astype(np.int32), rows, *(ends for _, ends in groups)]))
        cuts = [len(choices), len(rows), *(len(ends) for _, ends in groups)]
        choice, row, *ends = sent.split(cuts)
        x = batch.hidden.index_select(0, choice // batch.top_k)
        return _Choices(
            units=units,
            bounds=np.concatenate(([0], np.cumsum(sizes))).tolist(),
            x=x,
            y=torch.empty((len(choices), layout.outputs), dtype=layout.dtype, device=x.device),
            choice=choice,
            ends=[(which, end) for (which, _), end in zip(groups, ends, strict=True)],
            rows=row if biased else None,
        )

    def _run_resident(self, batch: Batch, choices: _Choices, count: int) -> Any:
        """The first `count` units, in as few products as the device has for them."""
        layer, bounds = batch.layer, choices.bounds
        places = [self._slot(layer, unit) for unit in choices.units[:count]]
        start = self._arena.mark()
        groups = [(which.start, which.stop, Group(places[which], (), end)) for which, end in choices.ends] or [
            (0, count, Group(places, bounds))
        ]
        for first, stop, group in groups:
            low, high = bounds[first], bounds[stop]
            if choices.rows is not None:
                group = Group(group.places, group.bounds, group.ends, choices.rows[low:high])
            self._compute(batch, choices, low, high, group)
        end = self._arena.mark()
        self._account.computed(start, end, layer, choices.units[0], bounds[count], True)
        self._launched(layer, choices.units[:count], places)
        return end

    def _run_late(self, batch: Batch, choices: _Choices, first: int, hits: int) -> tuple[int, Any]:
        """Unit number `first` once its copy is on the link, and with it those after it that have landed meanwhile.

        The device waits for the copy if it can, else we do.  The first `hits` units were on their way at `begin`.
        Returns the number of the next unit, and a mark.
        """
        layer = batch.layer
        transfer = self._link.issued(layer, choices.units[first])
        if transfer is not None and not transfer.before_kernels():
            self._link.wait_landed(layer, choices.units[first])
        most = hits if first < hits else len(choices.units)
        last = first + 1 + self._link.landed(layer, choices.units[first + 1 : most])
        units, bounds = choices.units[first:last], choices.bounds[first : last + 1]
        places = [self._slot(layer, unit) for unit in units]
        start = self._arena.mark()
        group = Group(places, [bound - bounds[0] for bound in bounds])
        self._compute(batch, choices, bounds[0], bounds[-1], group)
        end = self._arena.mark()
        self._account.computed(start, end, layer, units[0], bounds[-1] - bounds[0], first < hits)
        self._launched(layer, units, places)
        return last, end

    def _compute(self, batch: Batch, choices: _Choices, low: int, high: int, group: Group) -> None:
        layer = batch.layer
        weights = self._slots.weights(layer)
        out = run_units(self._modules[layer], self._layouts[layer], weights, choices.x[low:high], group)
        choices.y[low:high] = out

    def _launched(self, layer: int, units: Sequence[int], places: Sequence[int]) -> None:
        self._slots.read(places)
        with self._link.changed:
            self._link.launched(layer, units)
            self._link.ask()

    def _add_up(self, batch: Batch, choices: _Choices) -> None:
        y = choices.y.to(batch.total.dtype)
        if self._layouts[batch.layer].normed:
            batch.total.index_add_(0, choices.choice, y)
            return
        weights = batch.weights.reshape(-1).index_select(0, choices.choice).to(batch.total.dtype)
        batch.total.index_add_(0, choices.choice // batch.top_k, y.mul_(weights[:, None]))

    def _slot(self, layer: int, unit: int) -> int:
        return self._planner.state.slot.item(layer * self._planner.shape.units + unit)
