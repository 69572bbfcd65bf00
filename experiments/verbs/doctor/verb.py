"""`dali doctor`: one page on this machine: what it has, what it reaches, what would hold a model back, what to mend."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig

from dali.experiments.output.folder import stamp
from dali.experiments.output.text import number, table
from dali.experiments.scene import read_model
from dali.experiments.settings import read
from dali.policies.costs.roofline import ModelShape
from dali.policies.types import InputError

if TYPE_CHECKING:
    from dali.experiments.verbs.doctor.measure import Facts


# GB/s of one lane and direction by PCI Express generation: transfers a second, and the share of bits that carry data
# (8b/10b, then 128b/130b, then 242 of 256 bytes of a flit; PCI Express base specifications 1.0 to 6.0).
LANE_GBS = {
    generation: rate / 8 * share
    for generation, rate, share in (
        (1, 2.5, 8 / 10),
        (2, 5.0, 8 / 10),
        (3, 8.0, 128 / 130),
        (4, 16.0, 128 / 130),
        (5, 32.0, 128 / 130),
        (6, 64.0, 242 / 256),
    )
}
# Pinned copies reach this share of the wire or more on machines without a fault.
LINK_SHARE = 0.7
RESERVE = 2e9
BUSY_PERCENT = 10


class Advice(NamedTuple):
    """Something that should be so; remedy: what to do where it is not."""

    what: str
    good: bool
    found: str
    remedy: str


def run(config: DictConfig, overrides: list[str]) -> None:
    """Print the page."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("torch: found it not installed, expected the runtime extra: pip install 'dali-moe[runtime]'")
    from dali.experiments.verbs.doctor.measure import facts
    from dali.runtime.device.choose import arena_for

    model, _ = read_model(config)
    batch = read.whole(config, "batch")
    arena = arena_for(config.device)
    print(page(facts(arena, read.positive(config, "seconds")), model, batch))


def page(machine: Facts, model: ModelShape, batch: int) -> str:
    """The page as text."""
    failed = [check for check in checks(machine, model) if not check.good]
    passed = [check for check in checks(machine, model) if check.good]
    parts = [
        table(["this machine", ""], _rows(machine)),
        bottleneck(machine, model, batch),
        "Checks that failed:\n" + "\n".join(f"- {c.what}: found {c.found}. {c.remedy}" for c in failed)
        if failed
        else "All checks passed.",
        "Passed: " + "; ".join(f"{c.what} ({c.found})" for c in passed) if passed else "",
        stamp(),
    ]
    return "\n\n".join(part for part in parts if part)


def _rows(machine: Facts) -> list[list[str]]:
    details = machine.gpu_details
    rows = [["GPU", machine.gpu or "none that torch sees"]]
    if machine.gpu is not None:
        assert machine.link is not None
        assert machine.device is not None
        rows += [
            ["GPU memory free", f"{machine.gpu_free / 1e9:.1f} GB"],
            ["GPU memory read", f"{machine.device / 1e9:.0f} GB/s reached"],
            ["link", f"{_link_name(details)}, {machine.link / 1e9:.1f} GB/s reached"],
            ["driver, CUDA", f"{details.get('driver_version', 'unknown')}, {details.get('cuda', 'unknown')}"],
        ]
    locked = "no limit" if machine.locked is None else f"{machine.locked / 1e9:.2f} GB"
    rows += [
        ["CPU", f"{machine.cpu}, {machine.cores} cores usable, {machine.threads} threads in torch"],
        ["CPU kernels", kernels(machine)],
        ["host memory free", f"{machine.host_free / 1e9:.1f} GB"],
        ["host memory read", f"{machine.host / 1e9:.1f} GB/s reached"],
        ["memory that may be pinned", locked],
        ["libraries", ", ".join(f"{name} {version}" for name, version in machine.versions.items())],
    ]
    return rows


def kernels(machine: Facts) -> str:
    """AMX, AVX-512 or none of both, and what torch says it dispatches to."""
    best = "AMX" if machine.amx else "AVX-512" if "AVX512" in machine.isa else "none of AMX and AVX-512"
    return f"{best} (torch uses {machine.isa})"


def _link_name(details: dict[str, str]) -> str:
    if "pcie.link.gen.current" not in details:
        return "generation unknown (no nvidia-smi)"
    generation, width = details["pcie.link.gen.current"], details["pcie.link.width.current"]
    return f"PCIe {generation}.0 x{width} (of generation {details['pcie.link.gen.max']})"


def wire(details: dict[str, str]) -> float | None:
    """Bytes a second of the link as it is set up; None where that is unknown."""
    try:
        return 1e9 * LANE_GBS[int(details["pcie.link.gen.current"])] * int(details["pcie.link.width.current"])
    except (KeyError, ValueError):
        return None


def checks(machine: Facts, model: ModelShape) -> list[Advice]:
    """What should be so for running a model with its experts in host memory."""
    experts = model.layers * model.experts * model.unit_bytes()
    found = [
        Advice(
            "CUDA",
            machine.gpu is not None,
            machine.gpu or "no device",
            "Without one, device=cpu runs for correctness only; else install a driver and a CUDA build of torch.",
        ),
        Advice(
            "host memory",
            machine.host_free >= experts,
            f"{machine.host_free / 1e9:.0f} GB free of {experts / 1e9:.0f} GB for the experts of {model.name}",
            "Cut layers (layers=N), or choose a smaller model or dtype.",
        ),
        Advice(
            "CPU kernels",
            machine.amx or "AVX512" in machine.isa,
            kernels(machine),
            "CPU units will be slow in bfloat16: policies will prefer copies; dtype=float32 may be faster.",
        ),
        Advice(
            "threads",
            machine.threads <= machine.cores,
            f"{machine.threads} threads on {machine.cores} cores",
            f"Set cpu_threads={machine.cores} or less, or OMP_NUM_THREADS.",
        ),
        Advice(
            "quiet CPU",
            machine.load < 0.5,
            f"{machine.load:.1f} waiting processes a core",
            "Times measured now are those of a busy machine: stop what else runs.",
        ),
    ]
    if machine.gpu is None:
        return found
    assert machine.link is not None
    speed = wire(machine.gpu_details)
    return [
        *found,
        Advice(
            "pinned memory",
            machine.locked is None or machine.locked >= experts,
            "no limit" if machine.locked is None else f"{machine.locked / 1e9:.2f} GB may be pinned",
            "Copies from pageable memory are slow: ulimit -l unlimited, or memlock in /etc/security/limits.conf.",
        ),
        Advice(
            "link speed",
            speed is None or machine.link >= LINK_SHARE * speed,
            f"{machine.link / 1e9:.1f} GB/s" + ("" if speed is None else f" of {speed / 1e9:.1f} on the wire"),
            "Check the slot's width, the generation set in the firmware, and that memory and GPU share a socket.",
        ),
        Advice(
            "idle GPU",
            machine.gpu_busy is None or machine.gpu_busy <= BUSY_PERCENT,
            "unknown" if machine.gpu_busy is None else f"{machine.gpu_busy} % busy",
            "Stop what else uses it before calibrating.",
        ),
    ]


def bottleneck(machine: Facts, model: ModelShape, batch: int) -> str:
    """What the experts of a decode step take by each way, if as many differ as can, and which part is the slowest."""
    active = min(model.experts, batch * model.top_k)
    each = active * model.unit_bytes()
    rows = [("all on the CPU", "host memory", 1e3 * model.layers * each / machine.host)]
    title = f"{model.name}, decode, batch {batch}: {active} of {model.experts} experts in each of {model.layers} layers"
    if machine.gpu is None or machine.link is None or machine.device is None:
        tail = "Without a GPU, host memory is the bottleneck."
    else:
        room = max(machine.gpu_free - RESERVE, 0.0) / (model.layers * model.experts * model.unit_bytes())
        rows.append(("all copied", "link", 1e3 * model.layers * each / machine.link))
        rows.append(("all resident", "GPU memory", 1e3 * model.layers * each / machine.device))
        # CPU units and copies both draw on host memory: together they take no less than reading it once.
        slow = max(1 - room, 0.0) * each * model.layers / machine.host
        fast = min(room, 1.0) * each * model.layers / machine.device
        tail = (
            f"GPU memory has room for {min(room, 1.0):.0%} of the experts. The others, shared between CPU and link as "
            f"well as host memory allows, take {1e3 * slow:.1f} ms a step or more, the resident ones {1e3 * fast:.1f} "
            f"ms: the bottleneck is {'GPU memory' if fast >= slow else 'host memory'}."
        )
    lines = [[way, by, number(ms)] for way, by, ms in rows]
    return f"{title}\n\n{table(['experts', 'limited by', 'ms a step'], lines)}\n\n{tail}"
