"""Carries out the planner's plans on a real model, one layer step at a time.

    read back | begin | resident units in one product, CPU units meanwhile | late units as they land | join | end

The main thread waits for the device once a layer step, for the router's ids, weights and predicted workloads in
one copy.  After that it only queues work and waits for other threads: the link, which copies, and the CPU's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dali.policies.core.planner import Planner
from dali.policies.types import Ints, LayerPlan, LayerStep, Status
from dali.runtime.device.arena import Arena, Ready
from dali.runtime.execute.account import Account
from dali.runtime.execute.cpu_experts import CpuExperts, CpuJob
from dali.runtime.execute.layer_steps import Chooser, ForcedSteps, LiveSteps, Routed, routed
from dali.runtime.execute.link import Link
from dali.runtime.execute.live_trace import LiveTrace
from dali.runtime.execute.slots import Slots
from dali.runtime.execute.unit_math import Group, can_group, run_units, windows
from dali.runtime.model.layout import UnitLayout


class _WithoutGradient(torch.autograd.Function):
    """Passes the experts' output on; a backward pass that would leave them out fails instead."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, out: Tensor) -> Tensor:
        """Out itself, as if it followed from hidden."""
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """Raises RuntimeError."""
        raise RuntimeError("offloading: found a backward pass, expected forward passes only; detach to train")


@dataclass
class _Batch:
    """A layer step on the device: input [N, inputs], ids and weights [N, K], and float sums [rows, outputs]."""

    layer: int
    hidden: Tensor
    ids: Tensor
    weights: Tensor
    total: Tensor

    @property
    def top_k(self) -> int:
        return self.ids.shape[-1]


@dataclass
class _Choices:
    """The choices of all GPU units on the device, unit after unit in the order they are computed.

    bounds  where each unit's begin, on the host
    x       [n, inputs], the input of each; y [n, outputs], to be filled
    """

    units: Sequence[int]
    bounds: list[int]
    x: Tensor
    y: Tensor
    choice: Tensor
    ends: list[tuple[slice, Tensor]]
    rows: Tensor | None


class Executor:
    """Runs the experts of a model.

    planner   decides; its calls are made under `link.changed`
    modules   experts of each layer, for their gate, activation and norm
    trace     collects the routing
    predictor what the prefetch policy's source is, or None
    forced    routing in place of the model's, or None
    """

    def __init__(
        self,
        planner: Planner,
        layouts: Sequence[UnitLayout],
        modules: Sequence[nn.Module],
        arena: Arena,
        slots: Slots,
        link: Link,
        cpu: CpuExperts,
        account: Account,
        trace: LiveTrace,
        predictor: Chooser | None,
        forced: ForcedSteps | None,
    ) -> None:
        self._planner, self._layouts, self._modules = planner, layouts, modules
        self._arena, self._slots, self._link, self._cpu = arena, slots, link, cpu
        self._account, self._trace, self._predictor, self._forced = account, trace, predictor, forced
        self._live = LiveSteps(planner.annotations, layouts[0].experts, layouts[0].slices)
        self._grouped = [can_group(layout, arena.device) for layout in layouts]
        self._router_inputs: dict[int, Tensor] = {}
        self._failure: BaseException | None = None
        self._step = -1
        self._layer = len(layouts)
        self._coming: tuple[int, bool] | None = None

    # ---- hooks of the model

    def begin_forward(self, sequences: int, fresh: bool) -> None:
        """The model is about to run so many sequences; fresh: they continue nothing."""
        self._coming = sequences, fresh
        self._layer = len(self._layouts)
        self._arena.start_epoch()
        self._forward_start = self._arena.mark()

    def end_forward(self) -> None:
        """The model has run."""
        self._account.end_step()
        self._trace.end_step()
        self._coming = None
        self._layer = len(self._layouts)

    def router_input(self, layer: int, x: Tensor) -> None:
        """What the router of a layer is about to read."""
        self._router_inputs[layer] = x

    # ---- one layer step

    def run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The experts' output for hidden [..., inputs], ids and weights [N, K], shaped like hidden."""
        if self._failure is not None:
            raise RuntimeError("offloading: an earlier forward pass failed, attach again") from self._failure
        with torch.no_grad():
            flat = hidden.reshape(-1, hidden.shape[-1])
            self._planner.check_tokens(flat.shape[0])
            start = self._arena.mark()
            self._begin_layer(layer, flat.shape[0], start)
            try:
                out = self._run(layer, flat, ids.reshape(flat.shape[0], -1), weights, start)
            except BaseException as error:
                # Planner and slots are in the middle of a layer step: nothing can go on from here.
                self._failure = error
                raise
            out = out.reshape(*hidden.shape[:-1], out.shape[-1])
        return _WithoutGradient.apply(hidden, out) if hidden.requires_grad and torch.is_grad_enabled() else out

    def _begin_layer(self, layer: int, tokens: int, start: Any) -> None:
        if layer <= self._layer:
            sequences, fresh = self._coming or (tokens, True)
            begin = self._forward_start if self._coming else start
            self._step = self._step + 1 if self._forced is None else self._forced.begin(tokens, fresh)
            self._account.begin_step(self._step, tokens, sequences, begin)
            self._trace.begin_step(sequences, fresh)
        self._layer = layer
        self._account.dense(layer, tokens, start)

    def _run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor, start: Any) -> Tensor:
        if self._forced is not None:
            ids, weights = self._forced.choices(layer)
        weights = weights.reshape(ids.shape)
        routing, predicted, on_host = self._read_back(layer, hidden, ids, weights)
        plan, resident = self._begin(self._layer_step(layer, routing, predicted))
        sums = ids.numel() if self._layouts[layer].normed else hidden.shape[0]
        kind = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((sums, self._layouts[layer].outputs), dtype=kind, device=hidden.device)
        batch = _Batch(layer, hidden, ids, weights, total)
        job = self._cpu_job(batch, routing, plan, on_host)
        if job is not None and plan.overlap:
            self._cpu.submit(job)
        gpu_end = self._run_gpu(batch, routing, plan, resident) if plan.gpu.size else None
        if job is not None and not plan.overlap:
            self._arena.synchronize()
            self._cpu.submit(job)
        out = self._join(batch, job)
        cpu = None if job is None else (*job.span, job.units[0], len(job.choices))
        self._account.joined(layer, start, gpu_end, cpu)
        self._end()
        return out

    # ---- before

    def _read_back(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> tuple[Routed, Ints | None, Ready]:
        """Routing and predicted workloads int32 [H, E] on the host: the one synchronisation of a layer step."""
        experts = self._layouts[layer].experts
        parts = [ids.to(torch.int32).reshape(-1), weights.to(torch.float32).reshape(-1).view(torch.int32)]
        rows = self._planner.policy.prefetch.ahead if self._predictor is not None else 0
        if rows:
            parts.append(self._predict(layer, rows, experts).reshape(-1))
        arriving, on_host = self._arena.to_host(torch.cat(parts), hidden.contiguous())
        numbers = arriving().numpy()
        if layer == 0:
            self._account.resolve()
        count = ids.numel()
        found = numbers[:count].reshape(ids.shape)
        # Copies: the buffer is the next layer step's too.
        routing = routed(found, numbers[count : 2 * count].view(np.float32).reshape(ids.shape).copy(), experts)
        self._trace.add(routing.ids, routing.weights)
        predicted = numbers[2 * count :].reshape(rows, experts).copy() if rows else None
        return routing, predicted, on_host

    def _predict(self, layer: int, rows: int, experts: int) -> Tensor:
        """int32 [H, E], tokens predicted for each expert of the next layers; zero beyond the last."""
        assert self._predictor is not None
        x = self._router_inputs.pop(layer)
        x = x.detach().reshape(-1, x.shape[-1])
        counts = torch.zeros((rows, experts), dtype=torch.int32, device=x.device)
        for h in range(1, min(rows, len(self._layouts) - 1 - layer) + 1):
            chosen = self._predictor.choose(layer, h, x).reshape(-1).long()
            counts[h - 1].scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        return counts

    def _layer_step(self, layer: int, routing: Routed, predicted: Ints | None) -> LayerStep:
        if self._forced is not None:
            return self._forced.layer_step(layer)
        return self._live.layer_step(self._step, layer, routing, predicted)

    def _begin(self, step: LayerStep) -> tuple[LayerPlan, int]:
        """The plan, and how many of its GPU units are resident."""
        planner, link = self._planner, self._link
        with link.changed:
            link.check()
            start = time.perf_counter()
            plan = planner.begin(step)
            self._account.planned(time.perf_counter() - start)
            n = planner.n
            self._account.counted(
                lookups=n.active,
                hits=n.hits,
                late=n.late,
                staged=n.in_staging,
                gpu_units=plan.gpu.size,
                cpu_units=plan.cpu.size,
            )
            # Resident units come first, and stay resident until `end`.
            resident = int(np.count_nonzero(planner.view.here[plan.gpu] == Status.RESIDENT))
            link.ask()
        return plan, resident

    # ---- CPU

    def _cpu_job(self, batch: _Batch, routing: Routed, plan: LayerPlan, hidden: Ready) -> CpuJob | None:
        if not plan.cpu.size:
            return None
        layout = self._layouts[batch.layer]
        units = np.sort(plan.cpu).tolist()
        choices, sizes = self._choices_of(batch.layer, units, routing)
        weights = None if layout.normed else routing.weights.reshape(-1)[choices]
        return CpuJob(batch.layer, units, sizes, choices, weights, batch.total.shape[0], batch.top_k, hidden)

    def _choices_of(self, layer: int, units: Sequence[int], routing: Routed) -> tuple[NDArray[np.int64], list[int]]:
        """Choices of the units one after the other, and how many each has."""
        slices, starts = self._layouts[layer].slices, routing.starts.tolist()
        spans = [(starts[unit // slices], starts[unit // slices + 1]) for unit in units]
        return np.concatenate([routing.order[low:high] for low, high in spans]), [high - low for low, high in spans]

    # ---- GPU

    def _run_gpu(self, batch: _Batch, routing: Routed, plan: LayerPlan, resident: int) -> Any:
        """Compute the plan's GPU units into the batch's sums; a mark at their end."""
        choices = self._send(batch, routing, plan.gpu.tolist(), resident)
        hits = plan.gpu.size - plan.to_copy
        done = self._run_resident(batch, choices, resident) if resident else None
        first = resident
        while first < len(choices.units):
            first, done = self._run_late(batch, choices, first, hits)
        self._add_up(batch, choices)
        return done

    def _send(self, batch: _Batch, routing: Routed, units: list[int], resident: int) -> _Choices:
        """Bring the choices of the GPU units to the device, and gather their inputs."""
        layout = self._layouts[batch.layer]
        places = [self._slot(batch.layer, unit) for unit in units[:resident]]
        order = sorted(range(resident), key=places.__getitem__)
        units = [units[i] for i in order] + units[resident:]
        places = [places[i] for i in order]
        choices, sizes = self._choices_of(batch.layer, units, routing)
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

    def _run_resident(self, batch: _Batch, choices: _Choices, count: int) -> Any:
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

    def _run_late(self, batch: _Batch, choices: _Choices, first: int, hits: int) -> tuple[int, Any]:
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

    def _compute(self, batch: _Batch, choices: _Choices, low: int, high: int, group: Group) -> None:
        layer = batch.layer
        weights = self._slots.weights(layer)
        out = run_units(self._modules[layer], self._layouts[layer], weights, choices.x[low:high], group)
        choices.y[low:high] = out

    def _launched(self, layer: int, units: Sequence[int], places: Sequence[int]) -> None:
        self._slots.read(places)
        with self._link.changed:
            self._link.launched(layer, units)
            self._link.ask()

    def _add_up(self, batch: _Batch, choices: _Choices) -> None:
        y = choices.y.to(batch.total.dtype)
        if self._layouts[batch.layer].normed:
            batch.total.index_add_(0, choices.choice, y)
            return
        weights = batch.weights.reshape(-1).index_select(0, choices.choice).to(batch.total.dtype)
        batch.total.index_add_(0, choices.choice // batch.top_k, y.mul_(weights[:, None]))

    def _slot(self, layer: int, unit: int) -> int:
        return self._planner.state.slot.item(layer * self._planner.shape.units + unit)

    # ---- after

    def _join(self, batch: _Batch, job: CpuJob | None) -> Tensor:
        """The experts' output in the input's type, both sides added."""
        total = batch.total
        if job is not None:
            total += self._arena.bring(job.wait()).to(total.dtype)
        if not self._layouts[batch.layer].normed:
            return total.to(batch.hidden.dtype)
        # A norm after the expert is no sum over its inner width: the slices must be together first.
        normed = self._modules[batch.layer].post_expert_norm(total.to(batch.hidden.dtype))
        experts = self._layouts[batch.layer].experts
        weights = batch.weights.masked_fill((batch.ids < 0) | (batch.ids >= experts), 0)
        weighted = normed * weights.reshape(-1, 1)
        return weighted.view(-1, batch.top_k, weighted.shape[-1]).sum(dim=1).to(batch.hidden.dtype)

    def _end(self) -> None:
        self._link.wait_computed()
        with self._link.changed:
            start = time.perf_counter()
            self._planner.end()
            self._account.planned(time.perf_counter() - start)
            self._link.ask()
