"""Runs a model under one policy after the other, and as others run it, on the same prompts and the same clock."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.experiments.models.sizes import Sizes, top_k
from dali.experiments.profiles import load
from dali.experiments.scene import expert_popularity
from dali.experiments.settings import read
from dali.experiments.settings.gpu_memory import slots_of, units_that_stay
from dali.experiments.verbs.run import log, model
from dali.experiments.verbs.run.once import Clock, Show, Shown, Timing, memory_suffices, settings
from dali.experiments.verbs.run.others import all_gpu, check_baselines, with_accelerate
from dali.experiments.verbs.run.plan import RunPlan
from dali.policies.costs.measured import Geometry, Profile
from dali.policies.costs.model import CostModel
from dali.policies.planner import Policy
from dali.policies.types import Floats
from dali.runtime.calibrate.calibration import geometry_of
from dali.runtime.device.bandwidth import copy_bandwidth, read_bandwidth
from dali.runtime.device.choose import arena_for
from dali.runtime.device.machine import check_same_machine, describe
from dali.runtime.execute.layer_steps import ForcedRouting
from dali.runtime.execute.offload import MAX_TOKENS, Offload, offload
from dali.runtime.model.layout import unit_layout
from dali.runtime.model.moe_layers import moe_layers
from dali.runtime.predict.predictors import GatePredictor, Predictor, Predictors
from dali.runtime.predict.routing import Routing
from dali.sim.timeline import Spans
from dali.traces.workload import popularity

__all__ = ["PolicyRun", "Progress", "Session", "Shown", "empty_caches"]

Columns = dict[str, NDArray[Any]]


@dataclass
class PolicyRun:
    """What running one policy or baseline gave.

    timings   of the runs that count
    columns   of their steps, as `Account.columns`; empty for baselines
    layers, slices, slots, unit_bytes  of a policy: units and the GPU slots for them, staging included
    knows_future  whether the policy was told what will be routed
    tokens    int [batch, prompt + generated] of the last run
    """

    name: str
    timings: list[Timing]
    tokens: Tensor
    columns: Columns = field(default_factory=dict)
    layers: int = 0
    slices: int = 1
    slots: int = 0
    unit_bytes: int = 0
    knows_future: bool = False


class Session:
    """A model and its prompts, loaded; `policies` and `baselines` run them.

    arena   the device; decode  tokens to text, None where weights are random
    offloads  the model under each policy, checked and not attached yet

    All that can be checked without moving anything has been, for all policies, once it is made.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        link = None if plan.config.link_gbs is None else plan.config.link_gbs * 1e9
        self.arena = arena_for(plan.config.device, link, plan.config.device_threads)
        self.model, encode, self.decode = model.load(plan)
        self.layers = moe_layers(self.model)
        self._dtype = next(self.layers[0].experts.parameters()).dtype
        routed = top_k(self.model) if plan.trace is None else plan.trace.top_k
        self.sizes = Sizes(len(self.layers), self.layers[0].count, routed)
        self.policies = dict(plan.policies_for(self.sizes))
        self.ids = model.prompts(plan, self.model, encode)
        self.routing = self._forced(plan)
        self._popularity = self._known(plan)
        self._predictors = self._load_predictors(plan)
        check_baselines(plan.baselines, self.model, self.arena)
        # Of all units, what has a GPU slot; None until the first policy has been given what is free.
        self._share: float | None = plan.config.cache_share
        if plan.config.gpu_memory_gb is not None:
            self._share = plan.config.gpu_memory_gb * 1e9 / self.total_bytes
        self._profile = None if plan.config.profile is None else self._load_profile(plan)
        # What jobs cost, by slices: of the profile, or timed for the first policy; believed by all.
        self._costs: dict[int, CostModel] = {}
        self._recorded = {entry: _Recorded() for entry in self.policies}
        self.offloads = {entry: self._offload(entry, policy) for entry, policy in self.policies.items()}

    @property
    def total_bytes(self) -> int:
        """Of all units."""
        return sum(layer.unit_bytes * layer.count for layer in self.layers)

    # ---- the machine

    def machine(self) -> dict[str, Any]:
        """What results say of it: see `runtime.device.machine.describe`."""
        return describe(self.arena, self.plan.config.cpu_threads, self._dtype)

    def bandwidths(self) -> tuple[float, float]:
        """Bytes a second of copies to the device, and of reading host memory, as far as the machine goes."""
        return copy_bandwidth(self.arena), read_bandwidth(torch.device("cpu"))

    # ---- running

    def run_policy(self, entry: str, place: Path, progress: Progress) -> PolicyRun:
        """Run a policy, once; its live trace, timeline and, if wanted, its planner's log go to a folder."""
        plan, run, policy = self.plan, self.offloads.pop(entry), self.policies[entry]
        starts, timings = [], []
        with run:
            for number in range(plan.warmup + plan.repeats):
                starts.append(len(run.columns()["step"]))
                if number == plan.warmup + plan.repeats - 1:
                    self._recorded[entry].steps = self._shown(0 if self.routing is not None else starts[-1])
                timing, tokens = self._generate(progress.show if number == 0 else None)
                timings.append(timing)
                progress.ran(entry)
            columns = {name: values[starts[plan.warmup] :] for name, values in run.columns().items()}
            time, what = run.spans()
        name = file_name(entry)
        run.trace(text=self._text_source(), seed=plan.seed).save(place / f"{name}.trace.safetensors")
        # From 0 on, as the simulator's: so that both lie beside each other.
        Spans(time - time[:1, :1], what).save(place / f"{name}.timeline.json.gz", entry)
        if plan.log:
            sizes = self.sizes
            origin = log.LogOrigin(entry, sizes.layers, sizes.experts, sizes.top_k, plan.slices, plan.seed)
            log.save(place / f"{name}.planner.npz", origin, run.planner)
        return PolicyRun(
            entry,
            timings[plan.warmup :],
            tokens,
            columns,
            run.shape.layers,
            run.slices,
            run.planner.slots,
            int(run.shape.unit_bytes.max()),
            policy.prefetch.source == "oracle" or policy.cache.needs_next_use,
        )

    def run_baseline(self, name: str, progress: Progress) -> PolicyRun:
        """Run the model as transformers or accelerate does; the latter with the GPU memory of the policies."""
        plan = self.plan
        if name == "accelerate":
            assert self._share is not None, "policies run before baselines"
            rest = sum(p.numel() * p.element_size() for p in self.model.parameters()) - self.total_bytes
            limit = rest + int(self._share * self.total_bytes)
            placed = with_accelerate(self.model, self.arena.device, limit, self.routing)
        else:
            placed = all_gpu(self.model, self.arena, self.routing)
        with placed:
            timings = []
            for _ in range(plan.warmup + plan.baseline_repeats):
                timing, tokens = self._generate(None)
                timings.append(timing)
                progress.ran(name)
        return PolicyRun(name, timings[plan.warmup :], tokens)

    def _generate(self, show: Show | None) -> tuple[Timing, Tensor]:
        plan, device = self.plan, self.arena.device
        chosen = settings(plan, fixed=not plan.streams or self.decode is None or plan.lengths.batch > 1)
        ids = self.ids.to(device)
        torch.manual_seed(plan.seed)
        self.arena.synchronize()
        clock = Clock(show)
        with memory_suffices(plan.lengths.batch):
            tokens = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=chosen, streamer=clock
            )
        return clock.timing(), tokens.cpu()

    def _shown(self, first: int) -> range:
        """Numbers of the steps that the timeline shows; prefill is one step here."""
        config = self.plan.config
        prefill = read.whole(config, "timeline.prefill_steps", 0)
        return range(first + (prefill == 0), first + 1 + read.whole(config, "timeline.decode_steps", 0))

    def _text_source(self) -> str:
        plan = self.plan
        if plan.trace is not None:
            return f"forced routing of {plan.trace.metadata.model}"
        if self.decode is None:
            return "random tokens"
        return "prompts of the command" if plan.config.prompt else plan.config.prompts or "built-in prompts"

    # ---- what policies are given

    def _offload(self, entry: str, policy: Policy) -> Offload:
        slices = self.plan.slices_of(policy)
        made = offload(
            self.model,
            policy,
            capacity=None if self._share is None else self._capacity(entry, policy, slices),
            device=self.arena,
            slices=slices,
            believed=self._costs.get(slices) or self._calibrated(slices),
            predictors=self._predictors,
            popularity=self._popularity,
            routing=self.routing,
            seed=self.plan.seed,
            log=self.plan.log,
            record=self._recorded[entry],
            cpu_threads=self.plan.config.cpu_threads,
        )
        self._costs[slices] = made.planner.view.cost
        if self._share is None:
            self._share = made.planner.slots / (made.shape.layers * made.shape.units)
        return made

    def _load_profile(self, plan: RunPlan) -> Profile:
        """What `dali calibrate` wrote; InputError if it was for another machine or for other experts."""
        profile = load(read.text(plan.config, "profile"))
        plan.notes += check_same_machine(profile.name, profile.machine, self.machine())
        return profile

    def _calibrated(self, slices: int) -> CostModel | None:
        if self._profile is None:
            return None
        layouts = [unit_layout(layer, slices) for layer in self.layers]
        most = MAX_TOKENS if self.routing is None else max(MAX_TOKENS, self.routing.workload(1).max_tokens)
        return self._profile.costs(Geometry(**geometry_of(layouts[0])), [each.unit_bytes for each in layouts], most)

    def _capacity(self, entry: str, policy: Policy, slices: int) -> int:
        """Units that stay: every policy gets the same GPU memory, its staging slots included."""
        assert self._share is not None
        every = self.sizes.layers * self.sizes.experts * slices
        settings = "cache_share, gpu_memory_gb, policy.staging"
        slots = slots_of(self._share, every, settings)
        stay = units_that_stay(entry, policy.staging, slots, every, settings)
        # A share is of the units, with staging on top of all of them; memory holds what it holds.
        return stay if self.plan.config.cache_share is not None else min(stay, slots - policy.staging)

    def _forced(self, plan: RunPlan) -> ForcedRouting | None:
        if plan.trace is None:
            return None
        plan.trace.check_model(self.sizes.layers, self.sizes.experts, type(self.model).__name__)
        lengths = plan.lengths
        return ForcedRouting(
            plan.trace,
            batch=lengths.batch,
            prompt=self.ids.shape[1],
            generate=lengths.generate - 1,
            seed=plan.seed,
        )

    def _known(self, plan: RunPlan) -> Floats | None:
        """Shares of tokens by expert: of the trace given for that, or of what the routing does not use."""
        if plan.popularity is not None:
            trace = plan.popularity
            trace.check_model(self.sizes.layers, self.sizes.experts, type(self.model).__name__)
            return popularity(trace, range(trace.sequences))
        if self.routing is None or plan.trace is None:
            return None
        return expert_popularity(plan.trace, self.routing.workload(1))[0]

    def _load_predictors(self, plan: RunPlan) -> dict[str, Predictor]:
        if plan.trace is not None:
            return {}
        if plan.predictors is not None:
            found: dict[str, Predictor] = dict(Predictors.load(plan.predictors, self.layers))
        else:
            ahead = max(1, *(policy.prefetch.ahead for policy in self.policies.values()))
            asked = {policy.prefetch.source for policy in self.policies.values()}
            found = {"gate": GatePredictor(Routing(self.layers), ahead)} if "gate" in asked else {}
        for predictor in found.values():
            predictor.place(self.arena.device, next(self.model.parameters()).dtype)
        return found


class Progress:
    """What a session tells of: each token of the first sequence as it comes, and each run as it ends."""

    def __init__(self, show: Show | None, ran: Callable[[str], None]) -> None:
        self.show, self.ran = show, ran


def file_name(entry: str) -> str:
    """An entry of `policies` as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in entry)


def empty_caches() -> None:
    """Return what the last model placement held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Recorded:
    """Steps whose spans are kept: none until there is a range of them."""

    steps: range = range(0)

    def __contains__(self, step: object) -> bool:
        return step in self.steps
