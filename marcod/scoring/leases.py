"""Leases that one worker holds: renewed while it works on them, and given back when it cannot.

A thread renews them, so a batch may take longer than its lease, and a worker that died is still noticed: its thread
died with it. What the database does not take back at once is given back later, before any further claim, so that no
image loses an attempt to a full disk.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from marcod import telemetry
from marcod.database.engine import Database
from marcod.errors import StoreError
from marcod.store import queue, ranges
from marcod.store.ranges import RangeLease

log = telemetry.logger(__name__)

TURNS: Final = 4
"""Turns of the renewing thread per lease. So one that fails leaves time for another."""

LONGEST_S: Final = 3600.0
"""A batch in hand for longer hangs; its lease is left to lapse."""


@dataclass(slots=True)
class _Held:
    """Lease with the monotonic times of its claim and last renewal."""

    lease: queue.Lease
    since: float
    renewed: float
    owed: bool = False
    error: str | None = None


class Leases:
    """Held leases. Within the context they are renewed. Thread-safe."""

    def __init__(self, db: Database, lease_s: float, clock: Callable[[], datetime]) -> None:
        self._db, self._lease_s, self._clock = db, lease_s, clock
        self._held: dict[str, _Held] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew_in_turns, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def hold(self, lease: queue.Lease) -> None:
        """Renew this lease from now on."""
        now = time.monotonic()
        with self._lock:
            self._held[lease.token] = _Held(lease, now, now)

    def proceed(self, lease: queue.Lease) -> None:
        """Count a lease as new, because a part of its work was written."""
        with self._lock:
            if held := self._held.get(lease.token):
                held.since = time.monotonic()

    def drop(self, lease: queue.Lease) -> None:
        """Forget the lease of a finished batch."""
        with self._lock:
            self._held.pop(lease.token, None)

    def give_back(self, lease: queue.Lease, error: str | None = None) -> None:
        """Return the claims of a lease as if never claimed, with ``error`` as the cause.

        Raises nothing: where the database does not take them, :meth:`settle` tries again.
        """
        now = time.monotonic()
        with self._lock:
            held = self._held.setdefault(lease.token, _Held(lease, now, now))
            held.owed, held.error = True, error
        try:
            self._release(held)
        except StoreError as failure:
            log.warning("claims not given back yet", error=str(failure))

    def give_back_all(self) -> None:
        """Return the claims of every lease that is held. Raises nothing, as :meth:`give_back`."""
        for held in self._listed():
            self.give_back(held.lease, held.error)

    def settle(self) -> None:
        """Give back what is still owed. Raises StoreError; then nothing more may be claimed."""
        for held in self._listed():
            if held.owed:
                self._release(held)

    def _listed(self) -> list[_Held]:
        with self._lock:
            return list(self._held.values())

    def _release(self, held: _Held) -> None:
        if isinstance(held.lease, RangeLease):
            self._db.write(ranges.release, held.lease, held.error)
        else:
            self._db.write(queue.release, held.lease, self._clock(), held.error)
        self.drop(held.lease)

    def _renew_in_turns(self) -> None:
        while not self._over.wait(self._lease_s / TURNS):
            try:
                self._renew(time.monotonic())
            except Exception as error:  # noqa: BLE001 - a thread that ended would cost every later batch its lease
                log.warning("leases not renewed, trying again", error=str(error))

    def _renew(self, now: float) -> None:
        """Renew leases held for a turn or longer, so that quick batches cost no write."""
        due = [held for held in self._listed() if now - held.renewed >= self._lease_s / TURNS]
        lasting = [held for held in due if now - held.since < LONGEST_S]
        if not lasting:
            return
        at, of_ranges = self._clock(), [held.lease for held in lasting if isinstance(held.lease, RangeLease)]
        of_jobs = [held.lease for held in lasting if not isinstance(held.lease, RangeLease)]
        renewed = self._db.write(queue.renew, of_jobs, now=at, lease_s=self._lease_s) if of_jobs else 0
        if of_ranges:
            renewed += self._db.write(ranges.renew, of_ranges, now=at, lease_s=self._lease_s)
        log.debug("leases renewed", images=renewed)
        for held in lasting:
            held.renewed = now
