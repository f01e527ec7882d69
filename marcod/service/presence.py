"""Presence of a process that scores and ends: the heartbeats of its row among the workers."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from marcod import telemetry
from marcod.database import workers
from marcod.database.engine import Database
from marcod.errors import StoreError
from marcod.service.periodic import HEARTBEAT_S

log = telemetry.logger(__name__)


@contextmanager
def present(db: Database, worker: str, roles: str) -> Iterator[None]:
    """Keep a row of this worker within the context. A database that refuses for a while ends nothing."""
    over = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(over, db, worker, roles), name="presence", daemon=True)
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


def _beat_until(over: threading.Event, db: Database, worker: str, roles: str) -> None:
    while True:
        try:
            db.write(workers.beat, worker, db.host, os.getpid(), roles, db.now())
        except StoreError as error:
            log.warning("no heartbeat", error=str(error))
        if over.wait(HEARTBEAT_S):
            return
