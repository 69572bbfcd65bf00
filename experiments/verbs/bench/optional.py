"""Measurements that not every installation can make: the SimPy twin of a checkout, and recording a model's routing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from dali import conf
from dali.experiments.extras import runtime_modules
from dali.experiments.settings.compose import SHIPPED
from dali.policies.types import InputError

# Tests are no part of the package: the twin is there where the sources are.
TWIN = Path(conf.__file__).parents[1] / "tests" / "oracles" / "simpy_twin.py"


def simpy_twin() -> ModuleType | str:
    """The simulator as SimPy processes, or why it is not here."""
    if not TWIN.is_file():
        return "a checkout of the sources with tests/oracles"
    if importlib.util.find_spec("simpy") is None:
        return "simpy: pip install 'dali-moe[test]'"
    spec = importlib.util.spec_from_file_location("oracles.simpy_twin", TWIN)
    assert spec is not None
    assert spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = twin  # dataclasses look their module up there
    spec.loader.exec_module(twin)
    return twin


def recording() -> Callable[[], dict[str, float]] | str:
    """What recording costs on the shipped model, or why it cannot be measured."""
    try:
        (overhead,) = runtime_modules("dali.experiments.verbs.bench.overhead")
    except InputError as error:
        return str(error).removeprefix("needs ")
    ratios: Callable[[], dict[str, float]] = overhead.Overhead(SHIPPED / "tiny_moe").ratios
    return ratios
