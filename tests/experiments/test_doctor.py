"""The page of `dali doctor`: on this machine, and on made-up ones."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from dali.experiments.cli import main
from dali.experiments.verbs.doctor.measure import Facts
from dali.experiments.verbs.doctor.verb import (
    bottleneck,
    checks,
    page,
    wire,
)
from dali.policies.costs.roofline import ModelShape

# An expert is 3 x 1000 x 1000 numbers of 16 bits: 6 MB; 10 layers of 10 are 600 MB.
MODEL = ModelShape("m", 10, 10, 2, 1000, 1000, 16, 16, True, 0, 1, 1, 1, 0, 0, 100, {})
DETAILS = {"pcie.link.gen.current": "4", "pcie.link.gen.max": "4", "pcie.link.width.current": "16"}
MACHINE = Facts(
    gpu="G",
    gpu_details=DETAILS,
    gpu_free=int(2.3e9),
    gpu_busy=0,
    cpu="C",
    cores=8,
    threads=8,
    load=0.0,
    host_free=int(1e9),
    locked=None,
    link=25e9,
    host=100e9,
    device=1000e9,
    isa="AVX512",
    amx=False,
    versions={"torch": "2"},
)


def failed(machine):
    return {check.what for check in checks(machine, MODEL) if not check.good}


def test_this_machine(capsys):
    assert main(["doctor", "device=cpu", "seconds=0.01", "model=olmoe_1b_7b"]) == 0
    said = capsys.readouterr().out
    for line in (
        "host memory read",
        "memory that may be pinned",
        "CPU kernels",
        "olmoe_1b_7b, decode, batch 1: 8 of 64",
    ):
        assert line in said


def test_a_good_machine_passes():
    assert failed(MACHINE) == set()
    assert "All checks passed." in page(MACHINE, MODEL, 1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"gpu": None, "link": None, "device": None}, "CUDA"),
        ({"host_free": int(5e8)}, "host memory"),
        ({"isa": "AVX2"}, "CPU kernels"),
        ({"threads": 9}, "threads"),
        ({"load": 3.0}, "quiet CPU"),
        ({"locked": 1 << 20}, "pinned memory"),
        ({"link": 12e9}, "link speed"),
        ({"gpu_busy": 80}, "idle GPU"),
    ],
)
def test_each_check_fails_by_itself_and_names_a_remedy(change, what):
    machine = replace(MACHINE, **change)
    assert failed(machine) == {what}
    assert f"- {what}: found" in page(machine, MODEL, 1)


def test_wire():
    """Generation 4: 16 billion transfers a second and lane, 128 of 130 bits data."""
    assert wire(DETAILS) == pytest.approx(16 * 16e9 * 128 / 130 / 8)
    assert wire({}) is None


def test_bottleneck():
    """Room for 0.3 of 0.6 GB.  A token uses 2 x 6 MB x 10 = 120 MB: half of it takes 0.6 ms of host memory."""
    found = bottleneck(MACHINE, MODEL, 1)
    assert "room for 50% of the experts" in found
    assert "take 0.6 ms a step or more, the resident ones 0.1 ms: the bottleneck is host memory" in found
    # All on the CPU 1.2 ms, all copied 4.8 ms, all resident 0.12 ms.
    for number in ("1.20", "4.80", "0.120"):
        assert number in found
    assert "the bottleneck is GPU memory" in bottleneck(replace(MACHINE, gpu_free=int(9e9)), MODEL, 1)
    assert "host memory is the bottleneck" in bottleneck(replace(MACHINE, gpu=None), MODEL, 1)
