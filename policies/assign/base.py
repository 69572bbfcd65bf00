"""Which active units of a layer step run on the GPU.

In every rule, if not told otherwise, a landing unit counts as resident: its copy is paid for.  A mask is a
buffer of its policy, valid until the next `assign`; what it says of inactive units means nothing.
"""

from __future__ import annotations

import numpy as np

from dali.policies.core.jit import kernel
from dali.policies.types import Bools, Capacity, Floats, Ints, Shape, Status

ABSENT = int(Status.ABSENT)
LANDING = int(Status.LANDING)
RESIDENT = int(Status.RESIDENT)


@kernel
def sort_descending(ids: Ints, keys: Floats) -> None:
    """Sort both arrays in place: larger key first, equal keys by lower id.  Keys must not be NaN.

    Each entry's place is the number of entries that go before it.  That is n * n comparisons, but without
    branches: up to some hundred units it takes half the time of a sort that jumps about.
    """
    unsorted_ids = ids.copy()
    unsorted_keys = keys.copy()
    for i in range(ids.size):
        key, unit = unsorted_keys[i], unsorted_ids[i]
        place = 0
        for j in range(ids.size):
            place += (unsorted_keys[j] > key) | ((unsorted_keys[j] == key) & (unsorted_ids[j] < unit))
        ids[place], keys[place] = unit, key


class Assignment:
    """Keeps the mask that `assign` fills."""

    overlap: bool = True

    def reset(self, shape: Shape, capacity: Capacity, rng: np.random.Generator) -> None:
        """Start afresh for a model of this shape."""
        self._on_gpu: Bools = np.zeros(shape.units, np.bool_)
