"""What the machine is and reaches: its description in results and profiles, and bandwidths measured for a time."""

import time

import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from dali.policies.types import InputError
from dali.runtime.device import bandwidth, machine
from dali.runtime.device.choose import arena_for
from dali.runtime.device.host import HostArena, HostTransfer

# ---- the description


def test_the_build_of_torch_is_recorded(monkeypatch):
    """The distribution of the package index calls itself 2.13.0 whatever it was built for."""
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert machine.describe(HostArena())["torch"] == "2.13.0+cu130"


def test_a_description_is_plain_values():
    """YAML and JSON write nothing else; torch's own version is a class of its own."""
    found = machine.describe(HostArena(1e8, 1), 3, torch.bfloat16)
    kinds = {type(value) for value in found.values()}
    assert kinds <= {str, int, float, dict, type(None)}
    assert (found["cpu_threads"], found["device_threads"], found["dtype"]) == (3, 1, "bfloat16")
    assert (found["link_bytes_per_s"], found["gpu_details"]) == (1e8, {})


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(machine, "LIBRARIES", ("numpy", "no-such-library"))
    found = machine.versions()
    assert found["no_such_library"] is None
    assert found["numpy"] is not None


def test_another_machine_is_refused():
    here = machine.describe(HostArena(1e30), 1, torch.float32)
    assert machine.check_same_machine("p", here, here) == []
    with pytest.raises(InputError, match=r"profile p: expected link_bytes_per_s 5, found 1e\+30 here"):
        machine.check_same_machine("p", here | {"link_bytes_per_s": 5}, here)
    assert machine.check_same_machine("p", here | {"numpy": "1"}, here) == [
        f"numpy was 1 at calibration and is {here['numpy']} now."
    ]


def test_what_a_profile_does_not_say_has_not_changed():
    here = machine.describe(HostArena(1e30), 1, torch.float32)
    older = {name: value for name, value in here.items() if name not in ("numba", "cpu_capability")}
    assert machine.check_same_machine("p", older, here) == []


def test_a_busy_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "gpu_details", lambda device: {"utilization.gpu": "50"})
    with pytest.raises(InputError, match="GPU: found it 50 % busy"):
        machine.check_idle(torch.device("cpu"))


@pytest.mark.parametrize("device", ["foo", "meta", 5.5, ["cpu"]])
def test_a_device_that_is_none(device):
    with pytest.raises(InputError, match=r"device: found .* expected cuda"):
        arena_for(device)


# ---- bandwidths


@pytest.mark.parametrize("speed", [2.5e6, 2e8])
def test_a_slow_link_is_measured_in_no_more_time_than_a_fast_one(speed):
    start = time.perf_counter()
    assert bandwidth.copy_bandwidth(HostArena(speed)) == pytest.approx(speed, rel=0.1)
    assert time.perf_counter() - start < 2


class Instant(HostArena):
    """Says that copies take some time to start and then go at 25 GB/s, and makes none; `sizes` of those asked for."""

    def __init__(self, start: float = 20e-6):
        super().__init__()
        self.start, self.sizes = start, []

    def transport(self, to, what, asked):
        self.sizes.append(what.numel())
        return 0.0, self.start + what.numel() / 25e9


def test_a_fast_link_is_measured_with_the_largest_blocks():
    """32 MB take 1342 us and 20 to start: 1.5 % too slow.  A first block of 64 kB would take 2.6 us and 20 to start."""
    arena = Instant()
    assert bandwidth.copy_bandwidth(arena, 0.05) == pytest.approx(25e9, rel=0.02)
    assert arena.sizes[0] < arena.sizes[-1] == 32 << 20


def test_a_busy_machine_is_measured_with_the_largest_blocks_too():
    """30 ms until the threads of a copy have all begun, as on a machine with more to do than cores."""
    arena = Instant(30e-3)
    assert bandwidth.copy_bandwidth(arena) == pytest.approx((32 << 20) / (30e-3 + (32 << 20) / 25e9))
    assert arena.sizes[-1] == 32 << 20


def test_one_copy_that_is_held_up_does_not_stop_blocks_from_growing(monkeypatch):
    arena, held = Instant(), iter([1.0])
    span = HostTransfer.span
    monkeypatch.setattr(HostTransfer, "span", lambda self: (0.0, span(self)[1] + next(held, 0.0)))
    assert bandwidth.copy_bandwidth(arena, 0.05) == pytest.approx(25e9, rel=0.02)


def test_memory_is_read_at_some_speed():
    assert 1e7 < bandwidth.read_bandwidth(torch.device("cpu"), 0.01) < 1e13
