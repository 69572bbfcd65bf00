"""`offload`: run a transformers model with its experts in host memory, as a policy of `policies` decides."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from dali.policies.costs.model import CostModel
from dali.policies.planner import Planner, Policy
from dali.policies.types import Capacity, Copy, CopyKind, Floats, InputError, Ints, Shape, Status
from dali.runtime.device.arena import Arena
from dali.runtime.device.choose import arena_for
from dali.runtime.device.host import HostArena
from dali.runtime.execute.account import Account
from dali.runtime.execute.attach import placement, put_back, take_over, watch
from dali.runtime.execute.cpu_experts import CpuExperts
from dali.runtime.execute.executor import Executor
from dali.runtime.execute.gpu_experts import GpuExperts
from dali.runtime.execute.host_store import HostStore
from dali.runtime.execute.layer_steps import Chooser, ForcedRouting, ForcedSteps
from dali.runtime.execute.link import Link
from dali.runtime.execute.live_trace import LiveTrace
from dali.runtime.execute.quick_costs import quick_costs, without_weights
from dali.runtime.execute.room import Room
from dali.runtime.execute.slots import Slots
from dali.runtime.model.layout import unit_layout
from dali.runtime.model.moe_layers import moe_layers
from dali.traces.trace import Trace

MAX_TOKENS = 8192
_said: set[str] = set()


def offload(model: nn.Module, policy: Policy, **options: Any) -> Offload:
    """`Offload(model, policy, ...)`: use it in a `with` statement, or call `attach` and `detach`."""
    return Offload(model, policy, **options)


class Offload:
    """A model of transformers >= 5.10 whose experts are in host memory while it is attached.

    model      any MoE model behind transformers' experts interface, on the host or on the device
    policy     decides; its objects belong to this run from here on
    capacity   GPU slots for units that stay: a number of units (int), a share of all units (float, 0 to 1), or None
               for as many as the memory limit leaves.  The policy's staging slots come on top
    memory     bytes of GPU memory for all slots, staging included; instead of `capacity`.  None = with no capacity
               given either, what the GPU has free, less `room.RESERVE` for activations
    device     "cuda" (default where there is one), "cuda:1", "cpu", or an `Arena`
    slices     equal parts of each expert along its inner width, each a unit
    believed   what jobs cost as far as the policy knows (a roofline or a calibrated one); None = timed shortly here
    predictors predictors of the next layers by the name of the source that prefetch policies ask for
    popularity float [L, E] or [L, U], share of tokens by expert on other text, for policies that start from it
    routing    recorded routing in place of the model's; policies that know the future need it
    seed       of the policy's random choices
    log        keep the planner's log
    record     steps whose spans are kept for the timeline
    cpu_threads  threads of the CPU's kernels; None = torch's number, less `device_threads`
    link_bytes_per_s  with device="cpu": copies are no faster than this
    device_threads  with device="cpu": threads of the kernels in the GPU's place; None = half of torch's number

    Forward passes and `generate` work as before, without gradients.  With device="cpu" a second piece of host
    memory stands for the GPU's: the same code, real threads and real copies, but nothing about speed.

    Everything is checked before anything is moved: InputError for a dense model, experts of an unknown kind, a
    capacity below the minimum, too little GPU or host memory, a policy that asks for what is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        *,
        capacity: int | float | None = None,
        memory: int | None = None,
        device: str | torch.device | Arena | None = None,
        slices: int = 1,
        believed: CostModel | None = None,
        predictors: Mapping[str, Chooser] | None = None,
        popularity: Floats | None = None,
        routing: ForcedRouting | None = None,
        seed: int = 0,
        log: bool = False,
        record: Container[int] = (),
        cpu_threads: int | None = None,
        link_bytes_per_s: float | None = None,
        device_threads: int | None = None,
    ) -> None:
        _check_types(model, policy, routing)
        _check_numbers(capacity, link_bytes_per_s)
        _check_wholes(memory=memory, slices=slices, cpu_threads=cpu_threads, device_threads=device_threads)
        self.model, self._policy = model, policy
        self._predictors = dict(predictors or {})
        self._layers = moe_layers(model)
        self._layouts = [unit_layout(layer, slices) for layer in self._layers]
        if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
            raise InputError(f"{type(model).__name__}: found it spread over devices (device_map), expected it on one")
        if not isinstance(device, Arena):
            device = arena_for(device, link_bytes_per_s, device_threads)
        self.arena, self._cpu_threads = device, cpu_threads or device.cpu_threads()
        self.slices = slices
        self.shape = self._shape(popularity)
        room = Room(model, self._layers, self._layouts, self.arena, policy.staging)
        units = room.units(capacity, memory)
        self.capacity = Capacity.in_units(units, policy.cache.scope, self.shape.layers)
        room.check(self.capacity.total)
        if believed is None:
            believed = self._timed(routing)
        self.planner = Planner(policy, self.shape, self.capacity, believed, seed, log)
        self._predictor, self._forced = self._annotators(routing)
        self.account = Account(self.arena, self.shape.unit_bytes, record)
        self._live = LiveTrace(len(self._layers))
        self._attached = False
        self._stack = ExitStack()

    # ---- what there is

    @property
    def log(self) -> list[tuple[Any, ...]]:
        """The planner's log, for `policies.planner.replay_log`; empty unless asked for."""
        return self.planner.log or []

    def columns(self) -> dict[str, NDArray[Any]]:
        """One array a column and an entry a finished step: see `Account.columns`."""
        return self.account.columns()

    def spans(self) -> tuple[Floats, Ints]:
        """What ran when in the recorded steps, as arguments of `sim.timeline.Spans`."""
        return self.account.spans()

    def trace(self, **origin: Any) -> Trace:
        """The routing of all finished steps; `origin` are fields of `traces.metadata.Metadata`."""
        known = {
            "model": self.model.config.name_or_path or type(self.model).__name__,
            "experts": self._layouts[0].experts,
            "dtype": str(self._layouts[0].dtype).removeprefix("torch."),
            "unit_bytes": tuple(int(size) * self.slices for size in self.shape.unit_bytes),
            "recorder": "dali-moe offload",
        }
        return self._live.trace(**(known | origin))

    # ---- attaching

    def __enter__(self) -> Offload:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self) -> Offload:
        """Move the experts to host memory and the rest of the model to the device; start the threads."""
        if self._attached:
            raise InputError("offload: found it attached before, expected a new one for each use")
        # Another one may have been attached since this one was made.
        self._layouts = [unit_layout(layer, self.slices) for layer in self._layers]
        self._attached = True
        if isinstance(self.arena, HostArena):
            _say_once("offload: device=cpu is for correctness; its times say nothing of a GPU's")
        # Tensors made in inference mode could not be written to outside of it, as the link's thread does.
        with torch.inference_mode(False), ExitStack() as stack:
            stack.enter_context(self.arena.working())
            store = HostStore(self._layers, self._layouts, self.arena)
            for layer in range(len(self._layers)):
                stack.callback(store.give_back, layer)
                store.take(layer)
            stack.callback(put_back, self.model, placement(self.model))
            self.model.to(self.arena.device)
            self._start(store, stack)
            self._stack = stack.pop_all()
        return self

    def detach(self) -> None:
        """Stop the threads and give the model back its experts, where and as they were."""
        with torch.inference_mode(False):
            self._stack.close()

    def _start(self, store: HostStore, stack: ExitStack) -> None:
        planner, arena = self.planner, self.arena
        slots = Slots(arena, planner.slots, self._layouts)
        self._fill(store, slots)
        modules = [layer.experts for layer in self._layers]
        # On a GPU an activation may have parameters there: the CPU's units need a copy of it.
        hosts = [without_weights(each, torch.device("cpu")) for each in modules]
        link = Link(planner, store, slots, self.account)
        cpu = CpuExperts(arena, store, self._layouts, hosts, self._cpu_threads)
        gpu = GpuExperts(planner, self._layouts, modules, arena, slots, link, self.account)
        executor = Executor(
            planner,
            self._layouts,
            modules,
            arena,
            link,
            cpu,
            gpu,
            self.account,
            self._live,
            self._predictor,
            self._forced,
        )
        stack.callback(arena.synchronize)
        for thread in (link, cpu):
            stack.callback(thread.stop)
            thread.start()
        routers = [] if self._predictor is None else [layer.router for layer in self._layers]
        watch(self.model, routers, executor, stack)
        take_over(self.model, modules, executor, stack)

    def _fill(self, store: HostStore, slots: Slots) -> None:
        """Copy what is resident before the first step."""
        state, units = self.planner.state, self.shape.units
        for key in np.flatnonzero(state.status == Status.RESIDENT).tolist():
            layer, unit = divmod(key, units)
            slots.fill(Copy(layer, unit, int(state.slot[key]), CopyKind.SWAP), store.unit(layer, unit)).wait()

    # ---- checks, before anything is moved

    def _shape(self, popularity: Floats | None) -> Shape:
        units = self._layouts[0].units
        sizes = np.array([layout.unit_bytes for layout in self._layouts], np.int64)
        if popularity is not None and popularity.shape[-1] * self.slices == units:
            popularity = np.repeat(popularity, self.slices, axis=-1) / self.slices
        return Shape(len(self._layouts), units, sizes, popularity)

    def _timed(self, routing: ForcedRouting | None) -> CostModel:
        most = MAX_TOKENS if routing is None else max(MAX_TOKENS, routing.workload(1).max_tokens)
        with self.arena.working():
            return quick_costs(self._layouts, self._layers[0].experts, self.arena, most)

    def _annotators(self, routing: ForcedRouting | None) -> tuple[Chooser | None, ForcedSteps | None]:
        """The predictor, or the routing that the policies' annotations come from."""
        asked = self.planner.annotations
        if routing is not None:
            routing.trace.check_model(len(self._layers), self._layouts[0].experts, type(self.model).__name__)
            forced = ForcedSteps(routing, asked, self.slices, self.arena.device)
            self.planner.check_tokens(forced.max_tokens)
            return None, forced
        source, ahead = asked["source"], asked["ahead"]
        if source == "oracle" or asked["next_use"]:
            raise InputError(
                f"policy {self._policy.name}: it knows the future, which a live model does not tell; expected routing="
            )
        if source is None:
            return None, None
        predictor = self._predictors.get(source)
        if predictor is None or predictor.ahead < ahead:
            found = ", ".join(f"{name} ({each.ahead} layers)" for name, each in self._predictors.items()) or "none"
            raise InputError(
                f"policy {self._policy.name}: found predictors {found}, expected {source} {ahead} layers ahead"
            )
        return predictor, None


def _check_types(model: object, policy: object, routing: object) -> None:
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model: found {type(model).__name__}, expected a PreTrainedModel of transformers")
    if not isinstance(policy, Policy):
        raise InputError(f"policy: found {type(policy).__name__}, expected a dali.policies.planner.Policy")
    if routing is not None and not isinstance(routing, ForcedRouting):
        raise InputError(f"routing: found {type(routing).__name__}, expected a runtime.ForcedRouting")


def _check_numbers(capacity: object, link: object) -> None:
    if capacity is not None and not (isinstance(capacity, int | float) and not isinstance(capacity, bool)):
        raise InputError(f"capacity: found {capacity!r}, expected a number of units or a share")
    if link is not None and not (isinstance(link, int | float) and link > 0):
        raise InputError(f"link_bytes_per_s: found {link!r}, expected a number above 0")


def _check_wholes(**values: object) -> None:
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name}: found {value!r}, expected a whole number of at least 1")


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)
