"""Policies that only read what they are shown, and answer in the form that is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.policies.core.state import State
from dali.policies.planner import Policy
from dali.policies.view import LayerView

# Where `place` leaves its answer.
_ANSWER = {"demand_to", "victim_first", "victim_count", "victims"}


def watch(policy: Policy, reading: bool) -> None:
    """From now on a call of the policy's objects raises AssertionError where it answers in another form than the
    protocols of `policies.types` say; with `reading` also where it changes what it may only read, which takes longer.
    """
    for part in (policy.assignment, policy.prefetch, policy.cache):
        for name in ("assign", "rank", "observe", "swaps", "place"):
            if hasattr(part, name) and name not in vars(part):
                setattr(part, name, _watched(getattr(part, name), f"{type(part).__name__}.{name}", name, reading))


def _watched(method: Callable[[LayerView], Any], what: str, name: str, reading: bool) -> Callable[[LayerView], Any]:
    may = _ANSWER if name == "place" else set()

    def call(view: LayerView) -> Any:
        before = _seen(view, may) if reading else {}
        answer = method(view)
        after = _seen(view, may) if reading else {}
        for field, value in before.items():
            assert np.array_equal(value, after[field]), f"{what} changed {field}, which it may only read"
        if name == "assign":
            _check_array(what, answer, np.bool_, (view.shape.units,))
        elif name in ("rank", "swaps"):
            _check_array(what, answer, np.int32, (None, 2))
        return answer

    return call


def _check_array(what: str, answer: Any, kind: type, shape: tuple[int | None, ...]) -> None:
    """None in a shape is any length."""
    words = ", ".join("n" if size is None else str(size) for size in shape)
    wanted = f"expected {np.dtype(kind).name} [{words}]"
    assert isinstance(answer, np.ndarray), f"{what}: found {type(answer).__name__}, {wanted}"
    same = answer.ndim == len(shape) and all(
        size in (None, found) for size, found in zip(shape, answer.shape, strict=True)
    )
    assert answer.dtype == kind and same, f"{what}: found {answer.dtype} {list(answer.shape)}, {wanted}"  # noqa: PT018


def arrays(state: State) -> dict[str, NDArray[Any]]:
    """What a planner's state keeps, by name: the arrays themselves, and the single numbers as one."""
    kept = {name: value for name, value in state._asdict().items() if not isinstance(value, int)}
    return kept | {"n": state.n.numbers}


def _seen(view: LayerView, may: set[str]) -> dict[str, Any]:
    seen: dict[str, Any] = {
        name: value.copy() for name, value in arrays(view.state).items() if name not in may | {"log"}
    }
    for name in ("cpu_time", "gpu_time", "workload", "active", "predicted", "router_scores", "next_use"):
        value = getattr(view, name)
        seen["view." + name] = None if value is None else value.copy()
    return seen
