"""The same comparison on a machine with one part improved: what would help is simulated, not guessed."""

from __future__ import annotations

from dataclasses import replace

from dali.experiments.scene import Scene
from dali.policies.costs.measured import Profile
from dali.policies.costs.roofline import Platform, Processor

Machine = Platform | Profile

CORES = "twice the CPU cores on the same memory"
HOST = "host memory twice as fast"
LINK = "a link twice as fast"
GPU = "a GPU twice as fast"
MEMORY = "twice the GPU memory for experts"
ALL_ON_GPU = "GPU memory for all experts"


def changes(scene: Scene, believed: Machine) -> dict[str, tuple[Scene, Machine]]:
    """By name of the change: the changed scene, and the platform that policies believe in it.

    Policies that believe the platform they run on believe the changed one; others keep what they believe.
    Everything that a change does not name stays, so that each is the gain of that part alone.  A measured machine
    has no parts to change but its memory.
    """
    now = scene.platform
    improved = _improved(now) if isinstance(now, Platform) else {}
    changed: dict[str, tuple[Scene, Machine]] = {
        name: (replace(scene, platform=platform), platform if believed == now else believed)
        for name, platform in improved.items()
    }
    if 0 < scene.slots < scene.all_units:
        slots = min(2 * scene.slots, scene.all_units)
        changed[ALL_ON_GPU if slots == scene.all_units else MEMORY] = (replace(scene, slots=slots), believed)
    return changed


def _improved(now: Platform) -> dict[str, Platform]:
    return {
        LINK: replace(now, link_gbs=2 * now.link_gbs),
        CORES: replace(now, cpu=_faster(now.cpu, arithmetic=2), cpu_cores=2 * now.cpu_cores),
        HOST: replace(now, cpu=_faster(now.cpu, memory=2)),
        GPU: replace(now, gpu=_faster(now.gpu, memory=2, arithmetic=2)),
    }


def _faster(processor: Processor, memory: float = 1, arithmetic: float = 1) -> Processor:
    return replace(processor, bandwidth_gbs=memory * processor.bandwidth_gbs, tflops=arithmetic * processor.tflops)
