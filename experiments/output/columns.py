"""Columns of results that several verbs write, draw or speak of; those of a single step: `policies.columns`."""

from __future__ import annotations

from dali.policies.columns import KINDS

KEYS = ["policy", "batch", "phase"]
"""One row of a comparison."""

LINK = tuple(f"link_{kind}" for kind in KINDS)
"""Shares of the time in which the link copies, by what it copies for."""
BUSY = ["gpu_busy", "cpu_busy", *LINK]
"""Shares of the time in which each machine works."""
BYTES = tuple(f"bytes_{kind}" for kind in KINDS)
COPIES = tuple(f"copies_{kind}" for kind in KINDS)

SHARES = {
    "hit_rate",
    "prefetch_recall",
    "prefetch_used",
    "predictor_recall",
    "planning",
    "imbalance",
    "gpu_share",
    "cache_share",
    "gpu_busy",
    "cpu_busy",
}
"""Metrics between 0 and 1 that are shown in per cent."""
