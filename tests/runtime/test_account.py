"""What is counted, and in which step's row."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the runtime extra")

from dali.policies.types import Copy, CopyKind
from dali.runtime.device.host import HostArena
from dali.runtime.execute.account import Account


@pytest.fixture
def account():
    return Account(HostArena(), np.array([100, 200]), record=range(9))


def step(account, number):
    account.begin_step(number, 1, 1, account._arena.mark())


def test_a_copy_between_two_steps_is_the_earlier_ones(account):
    """The link goes on after the last layer: what it is asked for then was still decided by that step."""
    step(account, 0)
    account.end_step()
    account.asked(Copy(1, 3, 0, CopyKind.PREFETCH))
    account.landed(Copy(1, 3, 0, CopyKind.PREFETCH), 1.0, 3.0)
    step(account, 1)
    account.end_step()
    columns = account.columns()
    assert columns["bytes_prefetch"].tolist() == [200, 0]
    assert columns["copies_prefetch"].tolist() == [1, 0]
    assert columns["link_prefetch"].tolist() == [2, 0]


def test_a_step_that_was_cut_off_is_left_out(account):
    step(account, 0)
    account.asked(Copy(0, 3, 0, CopyKind.SWAP))
    step(account, 1)
    account.asked(Copy(1, 3, 0, CopyKind.SWAP))
    account.end_step()
    columns = account.columns()
    assert columns["step"].tolist() == [1]
    assert columns["bytes_swap"].tolist() == [200]


def test_what_is_forgotten(account):
    for number in range(2):
        step(account, number)
        account.landed(Copy(0, 3, 0, CopyKind.SWAP), 1.0, 3.0)
        account.end_step()
    account.forget()
    step(account, 2)
    account.end_step()
    assert account.columns()["step"].tolist() == [2]
    assert len(account.spans()[0]) == 0
