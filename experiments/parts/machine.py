"""A machine composed of parts, in the terms of the roofline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dali.experiments.parts import catalogue, links, memory
from dali.experiments.parts.catalogue import Cpu, Gpu
from dali.experiments.parts.links import HostLink
from dali.experiments.parts.memory import Ram
from dali.policies.costs.roofline import Platform, Processor
from dali.policies.types import InputError

# What the kernels of a CPU reach of its arithmetic; `conf/platform` says where from.
_COMPUTE_SHARE = {"avx2": 0.43, "amx": 0.29}  # fits to DALI and KTransformers, see rtx3090_epyc7532 and h100_16c
_OTHER_COMPUTE_SHARE = 0.5  # estimate: products of a few tokens reuse each weight too rarely to fill the FMA units
# Estimates, as in conf/platform/rtx4090_ddr5.yaml.
_GPU_BANDWIDTH_SHARE, _GPU_COMPUTE_SHARE = 0.8, 0.6
_LAUNCH_US, _DISPATCH_US = 15.0, 10.0
_FIXED = {"copy_latency_us": 10.0, "issue_gap_us": 3.0, "readback_us": 20.0, "planning_us": 15.0, "merge_us": 8.0}


def compose(
    gpu: Gpu,
    cpu: Cpu,
    ram: Ram | None = None,
    link: HostLink | None = None,
    gpus: int = 1,
    sockets: int = 1,
    host_gbs: float | None = None,
    cores: int | None = None,
) -> Platform:
    """The machine of these parts.

    ram, link  None = the CPU's official memory, and the slower of both PCIe connectors
    gpus       equal cards that layers are split among: their memory adds up, one works at a time
    sockets    CPUs, each with its own memory
    host_gbs   bandwidth of host memory as measured on the whole machine, in place of data sheet and share
    cores      of the whole machine, where fewer are used than there are

    Raises InputError for memory that is not known, and for a number that does not fit.
    """
    _check_counts(cpu, gpus, sockets)
    ram = memory.official(cpu) if ram is None else ram
    link = links.slower(gpu, cpu, gpus) if link is None else link
    assert link is not None  # both connectors are known
    measured = ram.measured_gbs if host_gbs is None else host_gbs
    _check_bandwidth(ram, measured)
    all_cores = cpu.all_cores * sockets
    used = all_cores if cores is None else min(cores, all_cores)
    return Platform(
        name=_name(gpu, cpu, ram, link, gpus, sockets),
        gpu=Processor(gpu.bandwidth_gbs, gpu.tflops, _GPU_BANDWIDTH_SHARE, _GPU_COMPUTE_SHARE, _LAUNCH_US),
        cpu=Processor(
            bandwidth_gbs=(ram.gbs or 0.0) * sockets if measured is None else measured,
            tflops=cpu.tflops * sockets * used / all_cores,
            bandwidth_share=memory.share(ram, cpu) if measured is None else 1.0,
            compute_share=_COMPUTE_SHARE.get(cpu.isa, _OTHER_COMPUTE_SHARE),
            job_overhead_us=_DISPATCH_US,
            isa=cpu.isa,
        ),
        gpu_memory_gb=gpu.memory_gb * gpus,
        cpu_cores=used,
        link_gbs=link.gbs,
        gpus=gpus,
        sockets=sockets,
        host_memory_gb=ram.gb,
        **_FIXED,
    )


def by_name(
    gpu: str,
    cpu: str,
    ram: str | None = None,
    link: str | None = None,
    gpus: int = 1,
    sockets: int = 1,
    host_gbs: float | None = None,
) -> Platform:
    """`compose` of parts by their names: `conf/platform/parts.yaml`."""
    card, processor = catalogue.gpu(str(gpu)), catalogue.cpu(str(cpu))  # hydra reads 4090 as a number
    return compose(
        card,
        processor,
        None if ram is None else memory.ram(str(ram), processor),
        None if link is None else links.link(str(link)),
        gpus,
        sockets,
        host_gbs,
    )


def as_settings(platform: Platform) -> dict[str, Any]:
    """What a file of conf/platform would say of it: figures in place of names."""
    plain = asdict(platform)
    for part in ("gpu", "cpu"):
        plain[part] = {"_target_": _target(Processor), **plain[part]}
    return {"_target_": _target(Platform), **plain}


def _target(kind: type | Callable[..., Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


BY_NAME = _target(by_name)
"""How a configuration names `by_name`."""


def _check_counts(cpu: Cpu, gpus: int, sockets: int) -> None:
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 1:
        raise InputError(f"gpus: found {gpus!r}, expected a whole number of at least 1")
    if not isinstance(sockets, int) or isinstance(sockets, bool) or not 1 <= sockets <= cpu.sockets:
        raise InputError(
            f"sockets: found {sockets!r}, expected a whole number from 1 to the {cpu.sockets} of {cpu.title}"
        )


def _check_bandwidth(ram: Ram, measured: float | None) -> None:
    if measured is None and ram.gbs is None:
        raise InputError(f"ram: found no bandwidth of {ram}, expected type, MT/s and channels, or a measured one")
    if measured is not None and (not isinstance(measured, int | float) or not 0 < measured < float("inf")):
        raise InputError(f"host_gbs: found {measured!r}, expected a positive number")


def _name(gpu: Gpu, cpu: Cpu, ram: Ram, link: HostLink, gpus: int, sockets: int) -> str:
    several = [f"{count}x " if count > 1 else "" for count in (gpus, sockets)]
    return f"{several[0]}{gpu.name} {several[1]}{cpu.name} {ram.name} {link.name}"
