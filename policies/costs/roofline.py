"""Cost models from data sheets: a job takes the longer of its memory traffic and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dali.policies.costs.engine import IDEAL, Kernels, ServingEngine
from dali.policies.costs.model import CostModel, Overheads

# Configurations, saved profiles and results name the class here.
from dali.policies.costs.model_shape import ModelShape as ModelShape
from dali.policies.costs.model_shape import require_positive
from dali.policies.types import Floats, InputError


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
        require_positive(
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

    def times(self, number: float) -> Processor:
        """As many of it, or such a share, at every job."""
        return replace(self, bandwidth_gbs=self.bandwidth_gbs * number, tflops=self.tflops * number)

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
        require_positive(
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
    model: ModelShape,
    platform: Platform,
    max_tokens: int,
    slices: int = 1,
    attention_on: str = "gpu",
    engine: ServingEngine = IDEAL,
) -> CostModel:
    """Cost model of `model` on `platform` in `engine` for workloads of up to `max_tokens` tokens a unit.

    attention_on  "cpu": decode attention reads the KV cache from host memory and runs on the CPU, its
                  projections stay on the GPU (MoE-Lightning, arXiv 2411.11217); steps with several
                  tokens a sequence (prefill) keep it on the GPU
    engine        what an implementation reaches of the machine, and its own fixed costs
    """
    if attention_on not in ("gpu", "cpu"):
        raise InputError(f"attention_on: found {attention_on!r}, expected gpu or cpu")
    if max_tokens < 1:
        raise InputError(f"max_tokens: found {max_tokens}, expected at least 1")
    together = platform.gpus if engine.tensor_parallel else 1
    # `platform.cpu` is that of all sockets together.
    sockets = (1 + (platform.sockets - 1) * engine.further_sockets) / platform.sockets
    gpu, cpu = platform.gpu.times(together), platform.cpu.times(sockets)
    unit_bytes = model.unit_bytes(slices)
    activation_bytes = 2.0 * model.hidden
    link = min(platform.link_gbs * engine.link_share, engine.copy_gbs or np.inf) * 1e9 * together
    cpu_left, link_left = shared_bandwidth(cpu.bandwidth, link)
    latency = _or(engine.copy_us, platform.copy_latency_us)
    handover = _or(engine.handover_us, platform.copy_latency_us)
    launched = engine.launches * engine.launch_us * 1e-6
    adding = 2 * engine.allreduce_us * 1e-6 if together > 1 else 0.0
    job = 0.0 if engine.launches else gpu.job_overhead_us * 1e-6

    def table(processor: Processor, kernels: Kernels, own: float | None, slowdown: float = 1.0) -> Floats:
        tokens = np.arange(max_tokens + 1, dtype=np.float64)
        reached, arithmetic = kernels.reach(model.expert_format, processor.isa)
        memory = processor.seconds(unit_bytes + 2 * tokens * activation_bytes, 0.0) * (slowdown / reached)
        computed = np.ceil(tokens / kernels.token_block) * kernels.token_block
        operations = processor.seconds(0.0, 2.0 * computed * model.expert_params / slices) / arithmetic
        times = (np.maximum(memory, operations) if kernels.overlap else memory + operations) + _or(
            own, processor.job_overhead_us
        )
        times[0] = 0.0
        return times

    def on_gpu(weights: float, params: float, layers: int, tokens: int, sequences: int, context: float) -> float:
        reached, arithmetic = engine.dense.reach(model.dense_format)
        read, work = weights / reached, 2.0 * tokens * params / arithmetic
        cache = layers * sequences * model.attention_bytes(context, engine.sparse_attention)
        products = layers * 4.0 * model.attention_width * tokens * model.attended(context, engine.sparse_attention)
        if attention_on == "cpu" and tokens == sequences:
            crossing = layers * (2 * latency + 2 * tokens * activation_bytes / link)
            attention = float(cpu.seconds(cache, products)) + cpu.job_overhead_us * 1e-6 + crossing
        else:
            read, work, attention = read + cache / engine.attention, work + products / engine.attention, 0.0
        return float(gpu.seconds(read, work)) + attention

    def dense(tokens: int, sequences: int, context: float) -> float:
        layer = on_gpu(model.layer_bytes, model.layer_params, 1, tokens, sequences, context)
        return max(layer + job, launched) + adding

    def per_step(tokens: int, sequences: int, context: float) -> float:
        outside = on_gpu(model.outside_bytes, model.outside_params, model.dense_layers, tokens, sequences, context)
        return max(outside + job, launched * model.dense_layers) + adding * model.dense_layers + engine.step_us * 1e-6

    return CostModel(
        cpu=table(cpu, engine.cpu, None if engine.cpu_start_us is None else 0.0),
        cpu_contended=table(cpu, engine.cpu, None if engine.cpu_start_us is None else 0.0, cpu.bandwidth / cpu_left),
        gpu=table(gpu, engine.gpu, engine.unit_us),
        copy=np.full(model.layers, unit_bytes / link + latency),
        copy_contended=np.full(model.layers, unit_bytes / link_left + latency),
        overheads=Overheads(
            readback=_or(engine.readback_us, platform.readback_us),
            planning=_or(engine.planning_us, platform.planning_us),
            issue_gap=platform.issue_gap_us * 1e-6,
            transfer_latency=handover,
            transfer_per_token=activation_bytes / link,
            merge=_or(engine.merge_us, platform.merge_us),
            cpu_launch=_or(engine.cpu_start_us, 0.0),
        ),
        dense=dense,
        per_step=per_step,
        copies_overlap=engine.copies_overlap,
        parallel=engine.parallel,
    )


def _or(own: float | None, other: float) -> float:
    """Microseconds of an engine's own, or of the platform, in seconds."""
    return (other if own is None else own) * 1e-6
