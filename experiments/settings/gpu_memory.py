"""GPU memory for experts: the slots that settings ask for, and how many of them a policy has for what stays.

Every policy gets the same slots, its staging area included.  At the two ends none of them is taken for it.  Without
slots no expert stays (llama.cpp's `--cpu-moe`): its staging slots are all that a policy has, and one that copies
nothing never uses them.  With slots for all experts nothing is ever copied.
"""

from __future__ import annotations

from omegaconf import DictConfig

from dali.experiments.settings.read import fraction, weight
from dali.policies.types import InputError

SETTINGS = "cache_share, expert_memory_gb, policy.staging"


def read_slots(
    config: DictConfig, units: int, unit_bytes: int, gpu_memory_gb: float, platform: str
) -> tuple[int, list[str]]:
    """Slots by `cache_share` or `expert_memory_gb`, and what a reader has to know about them.

    units  of the whole model; unit_bytes of each; gpu_memory_gb  of the platform of that name
    """
    if config.expert_memory_gb is None:
        slots = slots_of(fraction(config, "cache_share"), units, "cache_share")
    else:
        asked = weight(config, "expert_memory_gb")
        if asked > gpu_memory_gb:
            raise InputError(
                f"expert_memory_gb: found {asked:g}, expected at most the {gpu_memory_gb:g} GB of {platform} "
                "(cache_share has no such limit)"
            )
        slots = int(asked * 1e9 / unit_bytes)
        if asked > 0 and slots == 0:
            room = f"room for a unit ({unit_bytes / 1e9:g} GB)"
            raise InputError(f"expert_memory_gb: found {asked:g}, expected 0, or {room}")
        if slots > units:
            note = f"All experts take {units * unit_bytes / 1e9:.1f} GB: of {asked:g} GB for them the rest stays empty."
            return units, [note]
    needed = slots * unit_bytes / 1e9
    if slots == 0:
        return 0, ["No expert stays on the GPU: a policy that copies has its staging slots alone."]
    if needed > gpu_memory_gb:
        return slots, [
            f"The experts' share of GPU memory, {needed:.1f} GB, is more than the {gpu_memory_gb:g} GB of "
            f"{platform}: a what-if."
        ]
    return slots, []


def slots_of(share: float, units: int, name: str) -> int:
    """Slots for a share of all units; InputError for a share that is less than one of them."""
    slots = round(share * units)
    if share > 0 and slots == 0:
        raise InputError(f"{name}: found {share:g}, expected 0, or a share of the {units} units that makes one")
    return slots


def units_that_stay(policy: str, staging: int, slots: int, units: int, settings: str = SETTINGS) -> int:
    """Slots for what stays, of the `slots` that the policy of this name and its `staging` slots get.

    units     of the whole model: if all of them fit, all stay
    settings  the names to change, for the message

    InputError if the staging area leaves no slot.
    """
    if slots == 0 or slots >= units:
        return min(slots, units)
    if slots <= staging:
        raise InputError(
            f"policy {policy}: found GPU memory for {slots} units, expected more than its staging area of {staging}, "
            f"or none ({settings})"
        )
    return slots - staging
