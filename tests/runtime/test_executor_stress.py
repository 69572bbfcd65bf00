"""Many passes with random delays, and faults: no wrong output, no deadlock, flat memory; the model is restored."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from offloading_cases import (
    VOCABULARY,
    SlowArena,
    assert_restored,
    generate,
    offloaded,
    prompts,
    relative,
    state,
    tiny,
)

import dali.runtime.execute.cpu_experts as cpu_experts
from dali.runtime.device.host import HostArena
from dali.runtime.model.moe_layers import moe_layers

DEADLOCK = 300


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slow_cpu(monkeypatch, seed: int, most: float) -> None:
    rng, original = np.random.default_rng(seed), cpu_experts.run_units

    def run(*args):
        time.sleep(float(rng.random()) * most)
        return original(*args)

    monkeypatch.setattr(cpu_experts, "run_units", run)


def within(seconds: float, work) -> None:
    """Run `work` in a thread that must end: a deadlock is a failure and not a test run that hangs."""
    failures = []

    def run():
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "deadlock"
    if failures:
        raise failures[0]


def stress(monkeypatch, name: str, passes: int, most: float) -> None:
    """Random prompts of random shapes; capacity of one unit and the policy's least staging."""
    model, rng = tiny("mixtral", num_hidden_layers=2), np.random.default_rng(3)
    reference = tiny("mixtral", num_hidden_layers=2)
    slow_cpu(monkeypatch, 4, most)
    memory = []

    def work():
        arena = SlowArena(np.random.default_rng(5), most)
        with offloaded(model, f"{name} staging=2", 1, device=arena, log=False), torch.no_grad():
            for i in range(passes):
                shape = int(rng.integers(1, 5)), int(rng.integers(1, 7))
                ids = torch.from_numpy(rng.integers(3, VOCABULARY, shape))
                assert relative(model(ids).logits, reference(ids).logits) < 1e-5, i
                memory.append(resident_bytes())

    within(DEADLOCK, work)
    assert len(memory) == passes
    # What is kept of a step, its metrics and routing, is some 5 kB.
    assert max(memory[passes // 2 :]) - max(memory[: passes // 2]) < (8 << 20) + 5000 * passes


@pytest.mark.parametrize("name", ["on_demand", "hybrimoe", "dali"])
def test_many_passes(name, monkeypatch):
    stress(monkeypatch, name, 100, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["on_demand", "hybrimoe", "dali"])
def test_a_thousand_passes(name, monkeypatch):
    stress(monkeypatch, name, 1000, 1e-3)


def test_prefetches_that_come_late():
    """Copies slower than layers: hints are under way or unwanted when their layer begins."""
    model, ids = tiny("qwen3_moe"), prompts(3, 5)
    expected, tokens = generate(model, ids, 8)

    def work():
        with offloaded(model, "dali", 6, device=SlowArena(np.random.default_rng(1), 3e-3)) as run:
            found, chosen = generate(model, ids, 8)
        assert relative(found, expected) < 1e-5
        assert torch.equal(chosen, tokens)
        assert run.columns()["late"].sum() > 0

    within(DEADLOCK, work)


# ---- faults ----------------------------------------------------------------------------------------


class FailingArena(HostArena):
    """The copy number `at` raises."""

    def __init__(self, at: int, error: BaseException):
        super().__init__()
        self._left, self._error = at, error

    def copy_bytes(self, to, what):
        self._left -= 1
        if self._left == 0:
            raise self._error
        super().copy_bytes(to, what)


def run_through(model, ids, run) -> None:
    with run:
        generate(model, ids, 6)


def assert_usable(model, before, ids, expected) -> None:
    assert_restored(model, before)
    assert torch.equal(generate(model, ids, 3)[0], expected)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("dali-")]


# 6 copies fill the cache before the first step.
@pytest.mark.parametrize("at", [3, 7, 8, 15])
def test_a_copy_that_fails(at):
    model, ids = tiny("mixtral"), prompts(2, 5)
    before, (expected, _) = state(model), generate(model, ids, 3)
    run = offloaded(model, "on_demand", 6, device=FailingArena(at, OSError("the link is down")))
    with pytest.raises(OSError, match="the link is down"):
        within_main(run_through, model, ids, run)
    assert_usable(model, before, ids, expected)


def within_main(work, *args) -> None:
    """In this thread, where signals arrive; a deadlock ends in an alarm."""

    def late(*_):
        raise AssertionError("deadlock")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLOCK)
    try:
        work(*args)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("at", [1, 5])
def test_a_cpu_worker_that_raises(at, monkeypatch):
    model, ids = tiny("mixtral"), prompts(2, 5)
    before, (expected, _) = state(model), generate(model, ids, 3)
    original, calls = cpu_experts.run_units, []

    def run_units(*args):
        assert threading.current_thread().name == "dali-cpu"
        calls.append(None)
        if len(calls) == at:
            raise ZeroDivisionError("a worker's")
        return original(*args)

    monkeypatch.setattr(cpu_experts, "run_units", run_units)
    with pytest.raises(ZeroDivisionError, match="a worker's"):
        within_main(run_through, model, ids, offloaded(model, "naive"))
    monkeypatch.undo()
    assert_usable(model, before, ids, expected)


def test_interrupt_between_layers():
    """Ctrl-C in attention: the run can even go on."""
    model, ids = tiny("mixtral"), prompts(2, 5)
    before, (expected, _) = state(model), generate(model, ids, 3)
    calls = []

    def stop(*_):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = moe_layers(model)[1].router.register_forward_pre_hook(stop)
    with offloaded(model, "dali", 6) as run:
        with pytest.raises(KeyboardInterrupt):
            generate(model, ids, 6)
        handle.remove()
        assert relative(generate(model, ids, 3)[0], expected) < 1e-5
    assert run.columns()["tokens"].tolist() == [10, 2, 2, 2, 10, 2, 2]
    assert_usable(model, before, ids, expected)


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where the suite was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_while_a_copy_is_waited_for():
    """A real signal while the main thread waits for the link's: that layer step is lost, and the run over."""
    model, ids = tiny("mixtral"), prompts(2, 5)
    before, (expected, _) = state(model), generate(model, ids, 3)
    main = threading.main_thread()

    class Interrupting(HostArena):
        left = 9

        def copy_bytes(self, to, what):
            self.left -= 1
            if self.left == 0:
                signal.pthread_kill(main.ident, signal.SIGINT)
                time.sleep(0.2)
            super().copy_bytes(to, what)

    def work():
        with offloaded(model, "on_demand", 6, device=Interrupting()):
            with pytest.raises(KeyboardInterrupt):
                generate(model, ids, 6)
            with pytest.raises(RuntimeError, match="an earlier forward pass failed"):
                generate(model, ids, 2)

    within_main(work)
    assert_usable(model, before, ids, expected)


def test_attaching_that_fails_restores_the_model(monkeypatch):
    """The third layer finds no memory: the first two come back."""
    model, ids = tiny("mixtral"), prompts(2, 5)
    before, (expected, _) = state(model), generate(model, ids, 3)

    class Full(HostArena):
        left = 3

        def host_memory(self, blocks, size):
            self.left -= 1
            if self.left == 0:
                raise MemoryError
            return super().host_memory(blocks, size)

    with pytest.raises(MemoryError):
        offloaded(model, "naive", device=Full()).attach()
    assert_usable(model, before, ids, expected)
