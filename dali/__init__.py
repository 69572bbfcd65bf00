"""Offloading of mixture-of-experts models: simulate policies, and run them on a real model.

    dali.compare(trace="tiny_moe", policies=["llama_cpp", "dali", "frontier"])     a table, in simulated time
    dali.simulate("dali cache.w_size=8", batch=8)                                 one policy, step by step
    dali.policy("dali", "cache.w_size=8")                                         its objects
    with dali.offload(model, policy="frontier", capacity=0.25): ...               a model of transformers, on a GPU
    with dali.record(model, "mine.safetensors") as recorder: ...                  its routing, as a `dali.Trace`

Everything is imported on first use: `import dali` takes no torch, and no time.
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "InputError",
    "Policy",
    "Trace",
    "__version__",
    "compare",
    "offload",
    "policy",
    "record",
    "simulate",
]

if TYPE_CHECKING:
    from dali.by_name import policy as policy
    from dali.live import offload as offload
    from dali.live import record as record
    from dali.policies.planner import Policy as Policy
    from dali.policies.types import InputError as InputError
    from dali.simulated import compare as compare
    from dali.simulated import simulate as simulate
    from dali.traces.trace import Trace as Trace

    __version__: str
else:
    # Under names that no checker follows: what a module imports decides the version of a sweep's code.
    _PLACES = {
        "InputError": "dali.policies.types",
        "Policy": "dali.policies.planner",
        "Trace": "dali.traces.trace",
        "compare": "dali.simulated",
        "offload": "dali.live",
        "policy": "dali.by_name",
        "record": "dali.live",
        "simulate": "dali.simulated",
    }

    def __getattr__(name: str) -> Any:
        """A name of `__all__`, imported on first use."""
        if name == "__version__":
            from importlib.metadata import version

            found = version("dali-moe")
        elif name in _PLACES:
            from importlib import import_module

            found = getattr(import_module(_PLACES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
