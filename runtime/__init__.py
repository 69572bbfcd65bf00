"""Models of transformers: recording their routing, and running them with their experts in host memory.

`runtime.offload` is the way in to the latter; torch is imported when it is first asked for.
"""

from typing import Any

__all__ = ["ForcedRouting", "offload"]


def __getattr__(name: str) -> Any:
    """`offload` and `ForcedRouting`, imported on first use."""
    if name == "offload":
        from dali.runtime.execute.offload import offload

        return offload
    if name == "ForcedRouting":
        from dali.runtime.execute.layer_steps import ForcedRouting

        return ForcedRouting
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
