"""Cost models from data sheets: a job takes the longer of its memory traffic and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dali.policies.costs.model import CostModel, Overheads
from dali.policies.types import Floats, InputError


def _require_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"{owner}.{name}: found {value!r}, expected a positive number")


@dataclass(frozen=True)
class ModelShape:
    """A mixture-of-experts transformer, as far as time and memory depend on it (`conf/model`).

    layers            MoE layers L
    experts, top_k    routed experts a layer, and how many a token uses
    hidden            width of the residual stream
    expert_width      inner width of one routed expert
    expert_bits       bits a routed-expert weight takes, scales included
    dense_bits        bits of every other weight
    gated             True: gate, up and down projections; False: up and down
    shared_width      inner width of all shared experts of a layer together (0 = none)
    attention_params  weights of one layer's attention
    attention_width   heads x (query-key + value dimension) / 2; arithmetic per token and position = 4 x this
    kv_bytes          bytes one token adds to one layer's KV cache
    dense_layers      layers without experts, dense_width their inner width
    vocabulary        rows of the output head
    predictor_recall  published recall of the true top-k, one layer ahead, by predictor source
    """

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    expert_width: int
    expert_bits: float
    dense_bits: float
    gated: bool
    shared_width: int
    attention_params: int
    attention_width: int
    kv_bytes: int
    dense_layers: int
    dense_width: int
    vocabulary: int
    predictor_recall: dict[str, float]

    def __post_init__(self) -> None:
        _require_positive(
            "model",
            layers=self.layers,
            experts=self.experts,
            top_k=self.top_k,
            hidden=self.hidden,
            expert_width=self.expert_width,
            expert_bits=self.expert_bits,
            dense_bits=self.dense_bits,
            attention_params=self.attention_params,
            vocabulary=self.vocabulary,
        )
        if self.top_k > self.experts:
            raise InputError(f"model.top_k: found {self.top_k}, expected at most the {self.experts} experts")
        for source, recall in self.predictor_recall.items():
            if not 0 <= recall <= 1:
                raise InputError(f"model.predictor_recall.{source}: found {recall}, expected a share between 0 and 1")

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert."""
        return (3 if self.gated else 2) * self.hidden * self.expert_width

    def unit_bytes(self, slices: int = 1) -> int:
        """Bytes of one unit."""
        if slices < 1 or self.expert_width % slices:
            raise InputError(f"slices: found {slices}, expected a divisor of expert_width {self.expert_width}")
        return int(self.expert_params * self.expert_bits / 8) // slices


@dataclass(frozen=True)
class Processor:
    """A GPU or a CPU.

    bandwidth_gbs, tflops           data sheet: memory GB/s, and TFLOP/s in the dtype the experts compute in
    bandwidth_share, compute_share  the share of each that real kernels reach
    job_overhead_us                 launching (GPU) or dispatching (CPU) one unit
    isa                             class of a CPU's vector units (avx2, avx512_bf16, amx, ...); "" = not said
    """

    bandwidth_gbs: float
    tflops: float
    bandwidth_share: float
    compute_share: float
    job_overhead_us: float
    isa: str = ""

    def __post_init__(self) -> None:
        _require_positive(
            "processor",
            bandwidth_gbs=self.bandwidth_gbs,
            tflops=self.tflops,
            bandwidth_share=self.bandwidth_share,
            compute_share=self.compute_share,
        )
        if self.bandwidth_share > 1 or self.compute_share > 1 or self.job_overhead_us < 0:
            raise InputError(
                f"processor: found bandwidth_share {self.bandwidth_share}, compute_share {self.compute_share}, "
                f"job_overhead_us {self.job_overhead_us}, expected shares of at most 1 and an overhead of at least 0"
            )

    @property
    def bandwidth(self) -> float:
        """Bytes a second that kernels reach."""
        return self.bandwidth_gbs * 1e9 * self.bandwidth_share

    def seconds(self, bytes_moved: Floats | float, operations: Floats | float) -> Floats:
        """Roofline time of one job without its overhead."""
        return np.maximum(
            np.asarray(bytes_moved, np.float64) / self.bandwidth,
            np.asarray(operations, np.float64) / (self.tflops * 1e12 * self.compute_share),
        )


@dataclass(frozen=True)
class Platform:
    """A machine (`conf/platform`): GPU, CPU, the link between them and the fixed costs, in microseconds.

    gpu             one of `gpus` equal cards; layers are split among them, so that their memory adds up
                    (gpu_memory_gb is all of it) and one works at a time
    cpu, cpu_cores  all `sockets` together
    host_memory_gb  host memory; None = not said
    """

    name: str
    gpu: Processor
    cpu: Processor
    gpu_memory_gb: float
    cpu_cores: int
    link_gbs: float
    copy_latency_us: float
    issue_gap_us: float
    readback_us: float
    planning_us: float
    merge_us: float
    gpus: int = 1
    sockets: int = 1
    host_memory_gb: float | None = None

    def __post_init__(self) -> None:
        _require_positive(
            "platform",
            gpu_memory_gb=self.gpu_memory_gb,
            cpu_cores=self.cpu_cores,
            link_gbs=self.link_gbs,
            gpus=self.gpus,
            sockets=self.sockets,
            **({} if self.host_memory_gb is None else {"host_memory_gb": self.host_memory_gb}),
        )
        for name in ("copy_latency_us", "issue_gap_us", "readback_us", "planning_us", "merge_us"):
            if getattr(self, name) < 0:
                raise InputError(f"platform.{name}: found {getattr(self, name)}, expected at least 0")


def shared_bandwidth(total: float, link: float) -> tuple[float, float]:
    """Host memory bandwidth left to (CPU, link) while both draw on it: max-min fair shares, bytes/s.

    The link gets what it asks for up to half of the memory's bandwidth; the CPU gets the rest.
    """
    to_link = min(link, total / 2)
    return total - to_link, to_link


def roofline(
    model: ModelShape, platform: Platform, max_tokens: int, slices: int = 1, attention_on: str = "gpu"
) -> CostModel:
    """Cost model of `model` on `platform` for workloads of up to `max_tokens` tokens a unit.

    attention_on  "cpu": decode attention reads the KV cache from host memory and runs on the CPU, its
                  projections stay on the GPU (MoE-Lightning, arXiv 2411.11217); steps with several
                  tokens a sequence (prefill) keep it on the GPU
    """
    if attention_on not in ("gpu", "cpu"):
        raise InputError(f"attention_on: found {attention_on!r}, expected gpu or cpu")
    if max_tokens < 1:
        raise InputError(f"max_tokens: found {max_tokens}, expected at least 1")
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    unit_bytes = model.unit_bytes(slices)
    activation_bytes = 2.0 * model.hidden
    moved = unit_bytes + 2 * tokens * activation_bytes
    operations = 2.0 * tokens * model.expert_params / slices

    def table(processor: Processor, slowdown: float = 1.0) -> Floats:
        memory = processor.seconds(moved, 0.0) * slowdown
        times = np.maximum(memory, processor.seconds(0.0, operations)) + processor.job_overhead_us * 1e-6
        times[0] = 0.0
        return times

    link = platform.link_gbs * 1e9
    cpu_left, link_left = shared_bandwidth(platform.cpu.bandwidth, link)
    latency = platform.copy_latency_us * 1e-6
    layer_params = model.attention_params + 3 * model.hidden * model.shared_width + model.hidden * model.experts
    outside_params = (
        model.dense_layers * (model.attention_params + 3 * model.hidden * model.dense_width)
        + model.vocabulary * model.hidden
    )

    def on_gpu(params: int, layers: int, tokens: int, sequences: int, context: float) -> float:
        attended = sequences * context
        read = params * model.dense_bits / 8
        work = 2.0 * tokens * params
        cache = layers * attended * model.kv_bytes
        products = layers * 4.0 * model.attention_width * tokens * context
        if attention_on == "cpu" and tokens == sequences:
            crossing = layers * (2 * latency + 2 * tokens * activation_bytes / link)
            attention = float(platform.cpu.seconds(cache, products)) + platform.cpu.job_overhead_us * 1e-6 + crossing
        else:
            read, work, attention = read + cache, work + products, 0.0
        return float(platform.gpu.seconds(read, work)) + platform.gpu.job_overhead_us * 1e-6 + attention

    def dense(tokens: int, sequences: int, context: float) -> float:
        return on_gpu(layer_params, 1, tokens, sequences, context)

    def per_step(tokens: int, sequences: int, context: float) -> float:
        return on_gpu(outside_params, model.dense_layers, tokens, sequences, context)

    return CostModel(
        cpu=table(platform.cpu),
        cpu_contended=table(platform.cpu, slowdown=platform.cpu.bandwidth / cpu_left),
        gpu=table(platform.gpu),
        copy=np.full(model.layers, unit_bytes / link + latency),
        copy_contended=np.full(model.layers, unit_bytes / link_left + latency),
        overheads=Overheads(
            readback=platform.readback_us * 1e-6,
            planning=platform.planning_us * 1e-6,
            issue_gap=platform.issue_gap_us * 1e-6,
            transfer_latency=latency,
            transfer_per_token=activation_bytes / link,
            merge=platform.merge_us * 1e-6,
        ),
        dense=dense,
        per_step=per_step,
    )
