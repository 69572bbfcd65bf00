"""The metrics of a phase, from the columns that simulator and executor report."""

from __future__ import annotations

from dali.policies.columns import DECODE, KINDS, METRICS, PREFILL
from dali.sim.engine import Simulation


def summarise(simulation: Simulation, phase: str) -> dict[str, float]:
    """The metrics of one phase; seconds, bytes and shares between 0 and 1."""
    columns = simulation.columns
    rows = columns["phase"] == phase
    total = {metric: simulation.total(metric, phase) for metric in METRICS}
    steps = int(rows.sum())
    seconds = float((columns["end"] - columns["start"])[rows].sum())
    tokens = int(columns["tokens"][rows].sum())
    sequences = int(columns["sequences"][rows].max())
    absent = total["lookups"] - total["hits"] - total["late"]
    wanted = total["staged"] + absent
    layer_steps = steps * simulation.layers
    return {
        "slices": simulation.slices,
        "steps": steps,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_per_sequence": tokens / seconds / sequences,
        "time_to_first_token": seconds if phase == PREFILL else float("nan"),
        "time_per_output_token": seconds / steps if phase == DECODE else float("nan"),
        "moe_time": total["moe_time"],
        "gpu_busy": total["gpu_busy"] / seconds,
        "cpu_busy": total["cpu_busy"] / seconds,
        **{f"link_{kind}": total[f"link_{kind}"] / seconds for kind in KINDS},
        **{f"bytes_{kind}": total[f"bytes_{kind}"] for kind in KINDS},
        **{f"copies_{kind}": total[f"copies_{kind}"] for kind in KINDS},
        "hit_rate": total["hits"] / total["lookups"],
        # Of the units that were not cached, those that a prefetch had brought, or was bringing, in time.
        "prefetch_recall": total["staged"] / wanted if wanted else float("nan"),
        "gpu_share": total["gpu_units"] / total["lookups"],
        "imbalance": total["imbalance"] / layer_steps,
        "planning": simulation.planning * layer_steps / seconds,
    }
