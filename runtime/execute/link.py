"""The link: a thread that asks the planner for copies, has them made and reports each as it ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from dali.policies.core.state import RESIDENT
from dali.policies.planner import Planner
from dali.policies.types import Copy
from dali.runtime.device.arena import Transfer
from dali.runtime.execute.account import Account
from dali.runtime.execute.host_store import HostStore
from dali.runtime.execute.slots import Slots

# Two: while one is on its way, the next is there to follow it without a gap.
OUTSTANDING = 2


class Link:
    """Keeps up to two copies under way for as long as the planner has some.

    The planner is not made for several threads: whoever calls it holds `changed`, whose waiters wake at every
    landing.  An exception of the thread is kept in `failure`, and raised in every thread that waits.
    """

    def __init__(self, planner: Planner, store: HostStore, slots: Slots, account: Account) -> None:
        self._planner, self._store, self._slots, self._account = planner, store, slots, account
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self._under_way: deque[tuple[Copy, Transfer]] = deque()
        self._transfers: dict[int, Transfer] = {}
        self._launched: set[int] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dali-link", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Return when the copies under way have ended; no other is made."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    # ---- for holders of `changed`

    def ask(self) -> None:
        """Take copies from the planner while the link has room.  Call after every report to the planner."""
        while len(self._under_way) < OUTSTANDING and not self._stopping and self.failure is None:
            start = time.perf_counter()
            copy = self._planner.next_copy()
            self._account.planned(time.perf_counter() - start)
            if copy is None:
                return
            transfer = self._slots.fill(copy, self._store.unit(copy.layer, copy.unit))
            self._transfers[self._key(copy.layer, copy.unit)] = transfer
            self._under_way.append((copy, transfer))
            self._account.asked(copy)
            self.changed.notify_all()

    def launched(self, layer: int, units: Sequence[int]) -> None:
        """Kernels of these units have been launched: `computed`, now or as soon as each has landed.

        Launched is enough where the device orders the copy that takes the slot after them.
        """
        here = [unit for unit in units if self._resident(layer, unit)]
        self._launched.update(set(units).difference(here))
        self._computed(here)

    # ---- for the main thread, without `changed`

    def issued(self, layer: int, unit: int) -> Transfer | None:
        """The unit's copy, once it has been handed to the link; None if it has landed already."""
        with self.changed:
            while True:
                self.check()
                if self._resident(layer, unit):
                    return None
                transfer = self._transfers.get(self._key(layer, unit))
                if transfer is not None:
                    return transfer
                self.changed.wait()

    def wait_landed(self, layer: int, unit: int) -> None:
        """Return when the unit is resident."""
        with self.changed:
            while not self._resident(layer, unit):
                self.check()
                self.changed.wait()
            self.check()

    def landed(self, layer: int, units: Sequence[int]) -> int:
        """How many of the units, from the first on, are resident."""
        with self.changed:
            here = [self._resident(layer, unit) for unit in units]
        return next((i for i, resident in enumerate(here) if not resident), len(here))

    def wait_computed(self) -> None:
        """Return when every launched unit has been reported as computed."""
        with self.changed:
            while self._launched:
                self.check()
                self.changed.wait()
            self.check()

    def check(self) -> None:
        """Raise what stopped the thread, if anything has."""
        if self.failure is not None:
            raise self.failure

    # ---- the thread

    def _run(self) -> None:
        try:
            while (under_way := self._oldest()) is not None:
                copy, transfer = under_way
                transfer.wait()
                self._report(copy, transfer)
        except BaseException as error:
            # Whatever it is, it must reach the thread that waits for this one.
            with self.changed:
                self.failure = error
                self.changed.notify_all()

    def _oldest(self) -> tuple[Copy, Transfer] | None:
        with self.changed:
            while not self._under_way and not self._stopping:
                self.changed.wait()
            return self._under_way[0] if self._under_way else None

    def _report(self, copy: Copy, transfer: Transfer) -> None:
        with self.changed:
            self._under_way.popleft()
            del self._transfers[self._key(copy.layer, copy.unit)]
            start = time.perf_counter()
            self._planner.landed(copy)
            self._account.planned(time.perf_counter() - start)
            self._account.landed(copy, *transfer.span())
            if copy.layer == self._planner.view.layer and copy.unit in self._launched:
                self._launched.remove(copy.unit)
                self._computed([copy.unit])
            self.ask()
            self.changed.notify_all()

    def _computed(self, units: Sequence[int]) -> None:
        start = time.perf_counter()
        for unit in units:
            self._planner.computed(unit)
        self._account.planned(time.perf_counter() - start)

    def _key(self, layer: int, unit: int) -> int:
        return layer * self._planner.shape.units + unit

    def _resident(self, layer: int, unit: int) -> bool:
        # Called for every unit: numpy's own numbers take ten times as long to compare with an enumeration's.
        return self._planner.view.status.item(layer, unit) == RESIDENT
