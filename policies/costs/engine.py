"""`ServingEngine`: what an implementation costs besides its machine and its policy (`conf/engine`).

The same experts on the same machine take several times as long in one program as in another: kernels reach other
shares of the memory's bandwidth for other formats, every launch costs host time, copies leave from pinned or from
pageable memory and may or may not overlap with kernels.  All of that is *charged*.  A policy *believes* in an engine,
too, by default in the one that is charged; which one is an argument of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from dali.policies.costs.model_shape import require_positive
from dali.policies.types import InputError

DEFAULT = "default"
# Operations a cycle and core in BF16, 128 with AVX-512 and 1024 with tiles, and the shares of them that
# `experiments.parts.machine` takes kernels to reach, 0.5 and 0.29.
AVX512_OF_AMX = 128 * 0.5 / (1024 * 0.29)


def _require_shares(owner: str, shares: Mapping[str, float]) -> None:
    if DEFAULT not in shares:
        raise InputError(f"{owner}: found {', '.join(shares) or 'nothing'}, expected {DEFAULT} among the formats")
    require_positive(owner, **shares)


@dataclass(frozen=True)
class Kernels:
    """What an engine's kernels reach of a processor, as multiples of what the platform says that it reaches.

    bandwidth  {format: multiple} of the memory's bandwidth while weights of the format are read
    compute    {format: multiple} of the arithmetic; above 1 where the format computes in narrower integers
    amx        formats computed with a CPU's matrix tiles (AMX), ("all",) = every one; others count by AVX-512
    token_block  tokens that an expert computes together: the last ones take as long as a full block
    overlap    True: a job takes the longer of its memory traffic and its arithmetic; False: their sum, as of kernels
               that are bound by neither alone at a few tokens
    formats that are not named are those of "default"
    """

    bandwidth: Mapping[str, float] = field(default_factory=lambda: {DEFAULT: 1.0})
    compute: Mapping[str, float] = field(default_factory=lambda: {DEFAULT: 1.0})
    amx: tuple[str, ...] = ("all",)
    token_block: int = 1
    overlap: bool = True

    def __post_init__(self) -> None:
        _require_shares("kernels.bandwidth", self.bandwidth)
        _require_shares("kernels.compute", self.compute)
        object.__setattr__(self, "amx", tuple(self.amx))  # configurations have lists
        if self.token_block < 1:
            raise InputError(f"kernels.token_block: found {self.token_block}, expected at least 1")

    def reach(self, weight_format: str, isa: str = "") -> tuple[float, float]:
        """Multiples of (bandwidth, arithmetic) for weights of a format; isa: the processor's."""
        bandwidth, compute = (shares.get(weight_format, shares[DEFAULT]) for shares in (self.bandwidth, self.compute))
        if isa == "amx" and not {"all", weight_format} & set(self.amx):
            compute *= AVX512_OF_AMX
        return bandwidth, compute


@dataclass(frozen=True)
class ServingEngine:
    """An implementation (`conf/engine`); times in microseconds.  The defaults are `engine=ideal`: none of its own.

    cpu, gpu, dense  kernels of experts on the CPU, of experts on the GPU, and of everything else on the GPU
    attention        multiple of the GPU's bandwidth and arithmetic that attention over the KV cache reaches
    sparse_attention whether attention reads only the positions that a model chooses, where it does
    launches         kernels launched for a layer, its experts' on the GPU included
    launch_us        host time of one: a layer is not done before its launches are
    graphed_launch_us  the same where a whole step runs on the GPU and is replayed as a graph
    unit_us          added to each unit on the GPU, in place of the platform's job overhead; None = the platform's
    handover_us      activations one way between GPU and CPU, its synchronisation included; None = the platform's copy
                     latency
    cpu_start_us     waking the CPU's threads, once a layer that has CPU units; None = the platform's overhead of a job,
                     for each unit
    readback_us, planning_us, merge_us  None = the platform's
    step_us          once a step: sampling, the next step's inputs
    copy_us          from the call of a copy to its first byte, once each expert; None = the platform's copy latency
    link_share       share of the platform's link bandwidth that copies reach
    copy_gbs         GB/s that copies reach at most, however fast the link is: from pageable memory the driver first
                     moves them to a buffer of its own, with one core; None = as fast as the link
    copies_overlap   False: no copy is under way while the GPU computes
    copy_from        copies of absent experts begin at so many tokens a step; None = never.  copy_from_scaled: this is
                     multiplied by experts / top-k (ik_llama.cpp)
    copies_whole_layer  True: a layer's inactive experts are copied too
    parallel         False: the GPU's units of a layer step run before the CPU's
    tensor_parallel  True: several GPUs share every layer; False: they take turns, by layers
    allreduce_us     adding up what GPUs that share a layer have computed, twice a layer
    further_sockets  what each socket after the first adds, as a share of the first: threads and memory of a machine
                     with two are apart
    caches_by_copy   True: an expert that its cache in GPU memory misses is copied; False: the CPU runs it
    global_cache     True: the cache is one pool; False: every layer has its slots
    streams_from     prefill from so many tokens a step streams whole layers to the GPU ahead of use; None = never
    prefill_chunk    tokens that a long prompt is cut into, where its user says nothing; None = one step
    sources          where each constant comes from
    fitted           {constant: (prior, factor)}: which were fitted to published speeds, from what prior, known to what
                     factor; fitted_on: the series of those speeds
    """

    name: str
    cpu: Kernels = Kernels()
    gpu: Kernels = Kernels()
    dense: Kernels = Kernels()
    attention: float = 1.0
    sparse_attention: bool = True
    launches: int = 0
    launch_us: float = 0.0
    graphed_launch_us: float = 0.0
    unit_us: float | None = None
    handover_us: float | None = None
    cpu_start_us: float | None = None
    readback_us: float | None = None
    planning_us: float | None = None
    merge_us: float | None = None
    step_us: float = 0.0
    copy_us: float | None = None
    link_share: float = 1.0
    copy_gbs: float | None = None
    copies_overlap: bool = True
    copy_from: int | None = None
    copy_from_scaled: bool = False
    copies_whole_layer: bool = False
    parallel: bool = True
    tensor_parallel: bool = False
    allreduce_us: float = 0.0
    further_sockets: float = 1.0
    caches_by_copy: bool = False
    global_cache: bool = False
    streams_from: int | None = None
    prefill_chunk: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    fitted: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    fitted_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))
        self._check_types()
        if not 0 <= self.further_sockets <= 1:
            raise InputError(f"engine.further_sockets: found {self.further_sockets}, expected a share from 0 to 1")
        for name in ("attention", "link_share", "copy_gbs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"engine.{name}: found {value}, expected a positive number")
        for name, value in vars(self).items():
            if name.endswith(("_us", "launches", "_from", "_chunk")) and value is not None and not 0 <= value < 1e9:
                raise InputError(f"engine.{name}: found {value}, expected at least 0")

    def _check_types(self) -> None:
        """Settings come as anything: a switch that is text would count as on."""
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(each.default, Kernels):
                fits, wanted = isinstance(value, Kernels), "kernels"
            elif isinstance(each.default, bool):
                fits, wanted = isinstance(value, bool), "true or false"
            elif each.default is None or isinstance(each.default, int | float):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                fits, wanted = number or (value is None and each.default is None), "a number"
            else:
                continue
            if not fits:
                raise InputError(f"engine.{each.name}: found {value!r}, expected {wanted}")

    def copies_from(self, experts: int, top_k: int) -> int | None:
        """Tokens of a step from which absent experts are copied and run on the GPU; None = never."""
        if self.copy_from is None or not self.copy_from_scaled:
            return self.copy_from
        return self.copy_from * experts // top_k


IDEAL = ServingEngine("ideal")
