"""State on its way into kernels: each field arrives under its name, as what it is, and nothing else is let in."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Annotated, NamedTuple

import numpy as np
import pytest

from dali.policies.assign.fixed import AllGPU
from dali.policies.cache.classic import LRU
from dali.policies.core.jit import kernel
from dali.policies.core.packing import Packed, pack, unpacker
from dali.policies.core.records import Record
from dali.policies.planner import Planner, Policy
from dali.policies.prefetch.simple import NoPrefetch
from dali.policies.types import Bools, Bytes, Capacity, Floats, Ints, Shape
from dali.testing.worlds import cost_model


class Tallies(Record):
    begun: int
    ended: int


class Durations(Record):
    idle: float
    each: Annotated[Floats, 3]
    last: float


class Fields(NamedTuple):
    here: Bytes
    width: int
    tallies: Tallies
    ids: Ints
    flags: Bools
    durations: Durations
    table: Floats
    places: Ints


unpack_fields = unpacker(Fields)


@kernel
def change(packed: Packed) -> int:
    f = unpack_fields(packed)
    f.here[1] = f.width
    f.ids[0] += 70_000
    f.places[2] = f.ids.size
    f.flags[f.flags.size - 1] = f.table[3] == 8.0
    f.table[4] = f.durations.last + f.durations.each[1]
    f.tallies.begun += 2
    f.tallies.ended = f.tallies.begun * f.places.size
    f.durations.idle = f.durations.each[2] = 0.5
    f.durations.each[0] -= 1
    return f.width


def fields() -> Fields:
    tallies, durations = Tallies(), Durations()
    tallies.begun = 5
    durations.last = 0.25
    durations.each[:] = 1.0, 2.0, 3.0
    return Fields(
        here=np.zeros(2, np.int8),
        width=9,
        tallies=tallies,
        ids=np.arange(4, dtype=np.int32),
        flags=np.zeros(3, np.bool_),
        durations=durations,
        table=np.arange(5.0, 11.0).reshape(2, 3),  # flat in kernels: table[3] is row 1, column 0
        places=np.zeros(3, np.int32),
    )


def test_kernels_read_and_write_every_field_under_its_name() -> None:
    f = fields()
    assert change(pack(f)) == 9
    assert f.here.tolist() == [0, 9]
    assert f.ids.tolist() == [70_000, 1, 2, 3]
    assert f.places.tolist() == [0, 0, 4]
    assert f.flags.tolist() == [False, False, True]
    assert f.table.tolist() == [[5, 6, 7], [8, 2.25, 10]]
    assert (f.tallies.begun, f.tallies.ended) == (7, 21)
    assert (f.durations.idle, f.durations.each.tolist(), f.durations.last) == (0.5, [0, 2, 0.5], 0.25)


def test_numbers_of_a_record_are_in_the_order_of_its_names() -> None:
    record = Durations()
    record.last, record.idle = 4, 1
    record.each[1:] = 2, 3
    assert record.numbers.tolist() == [1, 0, 2, 3, 4]
    record.numbers[:] = 5, 6, 7, 8, 9
    assert (record.idle, record.each.tolist(), record.last) == (5, [6, 7, 8], 9)
    assert Tallies.of(SimpleNamespace(ended=4, between=3, begun=2)).numbers.tolist() == [2, 4]
    with pytest.raises(AttributeError, match="ended"):
        Tallies.of(SimpleNamespace(begun=2))


def test_a_record_holds_numbers_of_one_type() -> None:
    with pytest.raises(TypeError, match="Mixed: expected names that are all int or all float"):

        class Mixed(Record):
            count: int
            seconds: float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ids": np.arange(4)},
            "Fields.ids: found an array of int64 with strides (8,), expected a contiguous array",
        ),
        ({"ids": np.arange(8, dtype=np.int32)[::2]}, "Fields.ids: found an array of int32 with strides (8,)"),
        ({"ids": [0, 1]}, "Fields.ids: found list, expected a contiguous array of int32"),
        ({"here": np.zeros(2, np.uint8)}, "Fields.here: found an array of uint8"),
        ({"flags": np.zeros(3, np.int8)}, "Fields.flags: found an array of int8 with strides (1,), expected a contig"),
        ({"table": np.zeros((2, 3)).T}, "Fields.table: found an array of float64 with strides (8, 24)"),
        ({"table": np.zeros(6, ">f8")}, "Fields.table: found an array of >f8"),
        ({"width": 9.0}, "Fields.width: found float, expected an int"),
        ({"tallies": Durations()}, "Fields.tallies: found Durations, expected a Tallies"),
        ({"tallies": np.zeros(2, np.int64)}, "Fields.tallies: found an array of int64"),
    ],
)
def test_another_type_is_refused_before_a_kernel_sees_it(change: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        pack(fields()._replace(**change))


def test_memory_of_another_type_is_refused_by_the_planner() -> None:
    memory = Capacity(np.zeros(2, np.int64), *(np.ones(n, np.int64) for n in (2, 1, 1)))
    policy = Policy("test", AllGPU(), NoPrefetch(), LRU("global", "empty"))
    with pytest.raises(TypeError, match=r"^State\.group_of: found an array of int64"):
        Planner(policy, Shape(2, 2, np.ones(2, np.int64)), memory, cost_model(2))
