"""Link and slots: two copies under way, reports as they happen, no slot overwritten before it was read."""

import itertools
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from offloading_cases import costs, policy, tiny

from dali.policies.planner import Planner
from dali.policies.types import Capacity, Copy, CopyKind, LayerStep, Shape, Status
from dali.runtime.device.host import HostArena
from dali.runtime.execute.account import Account
from dali.runtime.execute.host_store import HostStore
from dali.runtime.execute.link import Link
from dali.runtime.execute.slots import Slots
from dali.runtime.model.layout import unit_layout
from dali.runtime.model.moe_layers import moe_layers


class Gated(HostArena):
    """Each copy waits for a permit; `begun` counts those that have begun."""

    def __init__(self):
        super().__init__()
        self.permits, self.begun = threading.Semaphore(0), threading.Semaphore(0)

    def copy_bytes(self, to, what):
        self.begun.release()
        assert self.permits.acquire(timeout=30)
        super().copy_bytes(to, what)


class Bench:
    """on_demand on the tiny Mixtral with 6 capacity and 4 staging slots, and a link that the test drives."""

    def __init__(self, arena, capacity: int = 6):
        layers = moe_layers(tiny("mixtral"))
        layouts = [unit_layout(layer, 1) for layer in layers]
        sizes = np.array([layout.unit_bytes for layout in layouts], np.int64)
        own = policy("on_demand cache.fill=empty")
        self.planner = Planner(own, Shape(3, 8, sizes), Capacity.in_units(capacity, "layer", 3), costs(3), log=True)
        self.store = HostStore(layers, layouts, arena)
        for layer in range(3):
            self.store.take(layer)
        self.slots = Slots(arena, self.planner.slots, layouts)
        self.account = Account(arena, sizes, ())
        self.link = Link(self.planner, self.store, self.slots, self.account)

    def __enter__(self):
        self.link.start()
        return self

    def __exit__(self, *_):
        self.link.stop()

    def begin(self, *units: int):
        workload = np.zeros(8, np.int32)
        workload[list(units)] = 1
        with self.link.changed:
            plan = self.planner.begin(LayerStep(0, 0, 8, workload, order=np.array(units, np.int32)))
            self.link.ask()
        return plan.gpu.tolist()

    def calls(self, name: str) -> int:
        return sum(entry[0] == name and entry[1] >= 0 for entry in self.flushed() if entry[0] != "begin")

    def flushed(self):
        with self.link.changed:
            self.planner.flush_log()
            return list(self.planner.log)


def test_two_copies_are_under_way():
    """Three units to copy: two are handed over at once, the third when the first has landed."""
    arena = Gated()
    with Bench(arena) as bench:
        units = bench.begin(1, 4, 6)
        assert bench.calls("next_copy") == 2
        assert arena.begun.acquire(timeout=30)
        assert not arena.begun.acquire(blocking=False)
        arena.permits.release()
        bench.link.wait_landed(0, units[0])
        assert arena.begun.acquire(timeout=30)
        assert (bench.calls("next_copy"), bench.calls("landed")) == (3, 1)
        assert bench.planner.view.status[0, units].tolist() == [Status.RESIDENT, Status.LANDING, Status.LANDING]
        arena.permits.release(2)
        bench.link.wait_landed(0, units[2])
    assert bench.calls("landed") == 3


def test_what_lands_is_the_unit():
    with Bench(HostArena()) as bench:
        units = bench.begin(0, 2, 5)
        for unit in units:
            assert bench.link.issued(0, unit) is None or not bench.link.issued(0, unit).before_kernels()
            bench.link.wait_landed(0, unit)
            slot = int(bench.planner.state.slot[unit])
            assert torch.equal(bench.slots.weights(0).up[slot], bench.store.weights(0).up[unit])


def test_a_unit_is_computed_when_it_was_launched_and_has_landed():
    """Launched before it has landed: reported as computed right after, never before."""
    arena = Gated()
    with Bench(arena) as bench:
        (unit,) = bench.begin(3)
        with bench.link.changed:
            bench.link.launched(0, [unit])
        assert bench.calls("computed") == 0
        arena.permits.release()
        bench.link.wait_computed()
    names = [entry[0] for entry in bench.flushed()]
    assert names.index("landed") + 1 == names.index("computed")


def test_a_failed_copy_reaches_whoever_waits():
    class Broken(HostArena):
        def copy_bytes(self, to, what):
            raise OSError("the link is down")

    with Bench(Broken()) as bench:
        units = bench.begin(1, 2)
        for unit in units:
            with pytest.raises(OSError, match="the link is down"):
                bench.link.wait_landed(0, unit)
        with pytest.raises(OSError, match="the link is down"):
            bench.link.check()
        assert bench.calls("landed") == 0


def test_stop_waits_for_what_is_under_way():
    """Two copies are on the link; the first may have landed in time for a third to be asked for."""
    arena = Gated()
    with Bench(arena) as bench:
        bench.begin(1, 2, 3)
        arena.permits.release(3)
    assert bench.calls("landed") == bench.calls("next_copy")
    assert bench.calls("landed") in (2, 3)


def test_a_slot_waits_for_the_kernels_that_read_it():
    after = []

    class Noting(HostArena):
        def __init__(self):
            super().__init__()
            self.kernels = 0

        def used(self):
            self.kernels += 1
            return self.kernels

        def copy(self, to, what, after_):
            after.append(after_)
            return super().copy(to, what, after_)

    arena = Noting()
    bench = Bench(arena)
    unit = bench.store.unit(0, 0)
    bench.slots.fill(Copy(0, 0, 2, CopyKind.DEMAND), unit)
    bench.slots.read([1, 2])
    bench.slots.read([2, 3])
    for slot in (0, 1, 2, 3):
        bench.slots.fill(Copy(0, 0, slot, CopyKind.DEMAND), unit)
    assert after == [None, None, 1, 2, 2]


def test_a_throttled_link_takes_its_time():
    """10 copies of 12,288 bytes at 4 MB/s, one waiting behind the other: 30.7 ms at least."""
    arena = HostArena(link_bytes_per_s=4e6)
    to, what = arena.memory(1, 12_288), arena.host_memory(1, 12_288)
    what.fill_(3)
    transfers = [arena.copy(to[0], what[0], None) for _ in range(10)]
    for transfer in transfers:
        transfer.wait()
    spans = [transfer.span() for transfer in transfers]
    assert spans[-1][1] - spans[0][0] >= 10 * 12_288 / 4e6
    assert all(after[0] >= before[1] for before, after in itertools.pairwise(spans))
    assert torch.equal(to, what)
