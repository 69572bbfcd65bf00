"""Names that simulator, executor and results share: phases, lanes of a timeline, and what is counted in a step."""

from __future__ import annotations

from typing import Literal

from dali.policies.types import CopyKind

Phase = Literal["prefill", "decode"]
PREFILL: Phase = "prefill"
DECODE: Phase = "decode"
PHASES: tuple[Phase, ...] = (PREFILL, DECODE)

KINDS = tuple(kind.name.lower() for kind in CopyKind)
"""Copy kinds as they end column names."""

LANES = ("GPU", "CPU", "demand copies", "prefetches", "swaps")
LANE_GPU, LANE_CPU, LANE_LINK = range(3)  # LANE_LINK + CopyKind is the lane of a copy
DENSE = -1  # unit of a span on the GPU that is a layer's dense part

STEP = ("step", "phase", "tokens", "sequences", "start", "end")
"""Columns that say which step a row is about; start and end in seconds."""

METRICS = (
    "moe_time",  # seconds from router done to join, summed over the layers
    "gpu_busy",  # seconds, dense parts and units
    "cpu_busy",
    *(f"link_{kind}" for kind in KINDS),  # seconds
    *(f"bytes_{kind}" for kind in KINDS),
    *(f"copies_{kind}" for kind in KINDS),
    "lookups",  # active units
    "hits",  # resident at begin
    "late",  # landing at begin
    "staged",  # in a staging slot at begin: there because of a prefetch
    "gpu_units",
    "cpu_units",
    "imbalance",  # |T_cpu - T_gpu| / max, summed over the layers
)
"""Columns of what both drivers count in a step."""

PLANNER = "planner"
"""Seconds inside the planner's calls: measured on hardware only, where the simulator charges a constant."""
