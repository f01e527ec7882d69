"""Presence of a process that scores and ends: the heartbeats of its row among the workers."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from marcod import telemetry
from marcod.database import workers
from marcod.database.engine import Database
from marcod.errors import StoreError
from marcod.service.periodic import HEARTBEAT_S

log = telemetry.logger(__name__)


@contextmanager
def present(
    db: Database, worker: str, roles: str, left_to_others: Callable[[], Mapping[str, str]] = dict
) -> Iterator[None]:
    """Keep a row of this worker within the context; ``left_to_others`` returns why sources are left to other hosts.

    Raises StoreError where the first heartbeat is refused. Later ones that are end nothing.
    """
    over = threading.Event()

    def beat() -> None:
        db.write(workers.beat, worker, db.host, os.getpid(), roles, db.now(), left_to_others())

    beat()
    thread = threading.Thread(target=_beat_until, args=(over, beat), name="presence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        try:
            db.write(workers.leave, worker)
        except StoreError as error:
            log.warning("worker not taken off the list", error=str(error))


def _beat_until(over: threading.Event, beat: Callable[[], None]) -> None:
    while not over.wait(HEARTBEAT_S):
        try:
            beat()
        except StoreError as error:
            log.warning("no heartbeat", error=str(error))
