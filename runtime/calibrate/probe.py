"""Layer steps of a chosen make-up, run through the executor itself: so many CPU units, GPU units and copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dali.policies.cache.fixed import Static
from dali.policies.columns import LANE_CPU, LANE_GPU, LANE_LINK
from dali.policies.costs.model import CostModel, Overheads
from dali.policies.planner import Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Bools, Capacity, Floats, InputError, Ints, Shape
from dali.policies.view import LayerView
from dali.runtime.device.arena import Arena
from dali.runtime.execute.offload import Offload
from dali.runtime.model.layout import unit_layout
from dali.runtime.model.moe_layers import moe_layers

CPU, GPU, COPY = "cpu", "gpu", "copy"
POLICY = "probe"


class Every:
    """All steps: what `Offload` is told to keep the spans of."""

    def __contains__(self, step: object) -> bool:
        return True


class _Chosen:
    """An assignment that is told from outside."""

    overlap = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Everything on the CPU."""
        self.on_gpu: Bools = np.zeros(shape.units, np.bool_)

    def assign(self, view: LayerView) -> Bools:
        """Bool [U], what was chosen."""
        return self.on_gpu


class _FirstExperts(Static):
    """The first `count` units of each layer are resident for good."""

    def __init__(self, count: int) -> None:
        super().__init__("layer", "empty")
        self._count = count

    def initial(self) -> Ints:
        """Keys of them."""
        layers = np.arange(self.shape.layers, dtype=np.int32) * np.int32(self.shape.units)
        keys: Ints = (layers[:, None] + np.arange(self._count)).ravel().astype(np.int32)
        return keys


@dataclass(frozen=True)
class Part:
    """Some experts of a layer step: where they run (`COPY`: on the GPU once copied), how many, tokens of each."""

    where: str
    experts: int
    tokens: int


Shot = tuple[Part, ...]


@dataclass(frozen=True)
class Taken:
    """What a layer step took, the mean over the layers of one pass, in seconds.

    total    router done to join; planner: inside the planner's calls
    cpu      the CPU's job; gpu: kernels of resident units
    copy     one copy; link: from the first one's start to the last one's end
    dispatch router done to the start of the CPU's job; launch: to that of the kernels of resident units
    glue     join to the next layer's experts being called: the planner's `end`, and threads told
    """

    total: float
    planner: float
    cpu: float
    gpu: float
    copy: float
    link: float
    dispatch: float
    launch: float
    glue: float

    @property
    def cycle(self) -> float:
        """Router done to the next layer's experts being called."""
        return self.total + self.glue


class Probe:
    """A model attached with `resident` experts of each layer on the device, and a policy that obeys.

    Every shot is a pass over all MoE layers, each with the same make-up, so that weights come from memory as in a
    forward pass.  Use it in a `with` statement.
    """

    def __init__(self, model: nn.Module, arena: Arena, slices: int, cpu_threads: int | None, max_tokens: int) -> None:
        self.arena, self.slices, self.cpu_threads = arena, slices, cpu_threads or arena.cpu_threads()
        self.layers = moe_layers(model)
        self.count = self.layers[0].count
        self.top_k = _top_k(model)
        if self.count < 4:
            raise InputError(
                f"{type(model).__name__}: found {self.count} experts a layer, expected 4 or more to measure"
            )
        self.resident = min(self.count // 2, max(4 * self.top_k, 4))
        self._assignment = _Chosen()
        absent = (self.count - self.resident) * slices
        policy = Policy(
            POLICY,
            self._assignment,
            NoPrefetch(),
            _FirstExperts(self.resident * slices),
            staging=max(2, min(6, absent // 2)),
        )
        self.run = Offload(
            model,
            policy,
            capacity=self.resident * slices * len(self.layers),
            device=arena,
            slices=slices,
            believed=_any_costs(len(self.layers), max_tokens),
            record=Every(),
            cpu_threads=cpu_threads,
        )
        self.layout = unit_layout(self.layers[0], slices)
        self._next_absent = self._shots = 0
        self._inputs: dict[int, Tensor] = {}

    def __enter__(self) -> Probe:
        self.run.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.run.detach()

    @property
    def most_copies(self) -> int:
        """Absent experts that one shot may copy, so that none of them is still staged from the shot before."""
        return max(1, self.count - self.resident - -(-self.run.planner.policy.staging // self.slices))

    @property
    def top(self) -> int:
        """Experts that tokens of shots choose: the model's number where the resident ones are enough."""
        return min(self.top_k, max(1, self.resident // 2))

    # ---- shots

    def shoot(self, shot: Shot) -> Taken:
        """One pass."""
        self._shots += 1
        groups = self._experts_of(shot)
        ids = torch.from_numpy(np.concatenate([_choices(which, part.tokens, self.top) for which, part in groups]))
        self._assignment.on_gpu[:] = False
        for which, part in groups:
            if part.where != CPU:
                self._assignment.on_gpu[self._units(which)] = True
        x = self._input(len(ids))
        ids = ids.to(self.arena.device)
        weights = torch.full(ids.shape, 1 / self.top, device=self.arena.device)
        self.arena.start_epoch()
        with torch.no_grad():
            for layer in self.layers:
                layer.experts(x, ids, weights)
        self.run.account.end_step()
        self.arena.synchronize()
        return self._taken(shot)

    def _taken(self, shot: Shot) -> Taken:
        account, layers = self.run.account, len(self.layers)
        columns = account.columns()
        row = {name: values[-1] for name, values in columns.items()}
        copies = sum(part.experts for part in shot if part.where == COPY) * self.slices * layers
        if row["copies_demand"] != copies:
            raise RuntimeError(f"probe: found {row['copies_demand']:.0f} copies in {shot}, expected {copies}")
        time, what = account.spans()
        # Hundreds of passes: what an account keeps for good would be sorted again after each.
        account.forget()
        cpu, link = time[what[:, 0] == LANE_CPU], time[what[:, 0] == LANE_LINK]
        resident = time[(what[:, 0] == LANE_GPU) & (what[:, 3] >= 0) & (what[:, 5] == 1)]
        dense = time[what[:, 3] == -1]
        return Taken(
            total=row["moe_time"] / layers,
            planner=row["planner"] / layers,
            cpu=_length(cpu) / layers,
            gpu=_length(resident) / layers,
            copy=_length(link) / max(len(link), 1),
            link=_extent(link, what[what[:, 0] == LANE_LINK, 2]) / layers,
            dispatch=_delay(dense, cpu),
            launch=_delay(dense, resident),
            glue=_length(dense[1:]) / max(len(dense) - 1, 1),
        )

    def _experts_of(self, shot: Shot) -> list[tuple[Ints, Part]]:
        """Experts of each part: resident ones, absent ones in turn, and for the CPU any that are left."""
        taken: set[int] = set()
        groups = []
        for part in sorted(shot, key=lambda part: (COPY, GPU, CPU).index(part.where)):
            if part.where == COPY:
                absent = self.count - self.resident
                which = self.resident + (self._next_absent + np.arange(part.experts)) % absent
                self._next_absent = (self._next_absent + part.experts) % absent
            else:
                most = self.resident if part.where == GPU else self.count
                free = np.array([expert for expert in range(most) if expert not in taken])
                # Others in each shot: in a forward pass weights come from memory, too.
                which = free[(np.arange(part.experts) * len(free) // part.experts + self._shots) % len(free)]
            if len(set(which.tolist())) < part.experts:
                raise RuntimeError(f"probe: {part} takes more experts than there are")
            taken.update(which.tolist())
            groups.append((np.sort(which).astype(np.int32), part))
        return groups

    def _units(self, experts: Ints) -> Ints:
        first = np.repeat(experts * np.int32(self.slices), self.slices)
        return first + np.tile(np.arange(self.slices, dtype=np.int32), experts.size)

    def _input(self, tokens: int) -> Tensor:
        if tokens not in self._inputs:
            if sum(len(x) for x in self._inputs.values()) > 1 << 15:
                self._inputs.clear()
            source = torch.Generator().manual_seed(tokens)
            x = torch.randn((tokens, self.layout.inputs), generator=source)
            self._inputs[tokens] = x.to(self.layout.dtype).to(self.arena.device)
        return self._inputs[tokens]


def rows(experts: int, tokens: int, top: int) -> int:
    """Tokens of a layer step in which so many choose each expert: each chooses `top`, or one if that leaves a rest."""
    return experts * tokens // (top if experts % top == 0 else 1)


def _choices(experts: Ints, tokens: int, top: int) -> Ints:
    """int32 [N, top], the choices of such a layer step's tokens; -1 = none."""
    width = experts.size * tokens // rows(experts.size, tokens, top)
    blocks = np.full((experts.size // width * tokens, top), -1, np.int32)
    blocks[:, :width] = np.repeat(experts.reshape(-1, width), tokens, axis=0)
    return blocks


def _length(spans: Floats) -> float:
    return float((spans[:, 1] - spans[:, 0]).sum())


def _extent(copies: Floats, layers: Ints) -> float:
    """Seconds from the first copy's start to the last one's end, summed over the layers."""
    each = [copies[layers == layer] for layer in np.unique(layers)]
    return float(sum(found[:, 1].max() - found[:, 0].min() for found in each))


def _delay(dense: Floats, jobs: Floats) -> float:
    """Seconds from the router's end to the start of a job, the mean over the layers; nan unless each has one."""
    return float((jobs[:, 0] - dense[:, 1]).mean()) if len(jobs) == len(dense) else float("nan")


def _top_k(model: nn.Module) -> int:
    config = model.config.get_text_config()
    names = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts")
    found = next((getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)), None)
    if found is None:
        raise InputError(f"{type(model).__name__}: found no number of experts a token in its configuration")
    return int(found)


def _any_costs(layers: int, tokens: int) -> CostModel:
    """Costs that nobody reads: the probe's policy is told what to do."""
    table = np.arange(tokens + 1, dtype=np.float64)
    copies = np.ones(layers)
    return CostModel(table, table, table, copies, copies, Overheads(), _nothing, _nothing)


def _nothing(tokens: int, sequences: int, context: float) -> float:
    return 0.0
