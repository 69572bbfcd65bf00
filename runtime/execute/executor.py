"""Carries out the planner's plans on a real model, one layer step at a time.

    read back | begin | resident units in one product, CPU units meanwhile | late units as they land | join | end

The main thread waits for the device once a layer step, for the router's ids, weights and predicted workloads in
one copy.  After that it only queues work and waits for other threads: the link, which copies, and the CPU's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dali.policies.planner import Planner
from dali.policies.types import Ints, LayerPlan, LayerStep, Status
from dali.runtime.device.arena import Arena, Ready
from dali.runtime.execute.account import Account
from dali.runtime.execute.cpu_experts import CpuExperts, CpuJob
from dali.runtime.execute.gpu_experts import Batch, GpuExperts
from dali.runtime.execute.layer_steps import Chooser, ForcedSteps, LiveSteps, Routed, routed
from dali.runtime.execute.link import Link
from dali.runtime.execute.live_trace import LiveTrace
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


class Executor:
    """Runs the experts of a model.

    planner   decides; its calls are made under `link.changed`
    modules   experts of each layer, for their norm
    cpu, gpu  compute the units of either side
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
        link: Link,
        cpu: CpuExperts,
        gpu: GpuExperts,
        account: Account,
        trace: LiveTrace,
        predictor: Chooser | None,
        forced: ForcedSteps | None,
    ) -> None:
        self._planner, self._layouts, self._modules = planner, layouts, modules
        self._arena, self._link, self._cpu, self._gpu = arena, link, cpu, gpu
        self._account, self._trace, self._predictor, self._forced = account, trace, predictor, forced
        self._live = LiveSteps(planner.annotations, layouts[0].experts, layouts[0].slices)
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
        batch = Batch(layer, hidden, ids, weights, total)
        job = self._cpu_job(batch, routing, plan, on_host)
        if job is not None and plan.overlap:
            self._cpu.submit(job)
        gpu_end = self._gpu.run(batch, routing, plan, resident) if plan.gpu.size else None
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

    def _cpu_job(self, batch: Batch, routing: Routed, plan: LayerPlan, hidden: Ready) -> CpuJob | None:
        if not plan.cpu.size:
            return None
        layout = self._layouts[batch.layer]
        units = np.sort(plan.cpu).tolist()
        choices, sizes = routing.of_units(units, layout.slices)
        weights = None if layout.normed else routing.weights.reshape(-1)[choices]
        return CpuJob(batch.layer, units, sizes, choices, weights, batch.total.shape[0], batch.top_k, hidden)

    # ---- after

    def _join(self, batch: Batch, job: CpuJob | None) -> Tensor:
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
