"""Who is alive: every process that works on the queue leaves a heartbeat row, for people and for `rescore`."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import __version__
from marcod.store.engine import insert
from marcod.store.schema import worker

ALIVE_S: Final = 60.0
"""A worker without a heartbeat for this long counts as gone."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process."""

    name: str
    host: str
    pid: int
    roles: str
    marcod_version: str
    started_at: datetime
    seen_at: datetime


def beat(connection: Connection, name: str, host: str, pid: int, roles: str, now: datetime) -> None:
    """Say that this worker is alive; the first call makes its row."""
    values = {"host": host, "pid": pid, "roles": roles, "marcod_version": __version__, "seen_at": now}
    statement = insert(connection, worker).values(name=name, started_at=now, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"seen_at": now}))


def leave(connection: Connection, name: str) -> None:
    """Remove the row of a worker that ends in order."""
    connection.execute(sa.delete(worker).where(worker.c.name == name))


def alive(connection: Connection, now: datetime) -> list[Worker]:
    """Workers with a recent heartbeat."""
    rows = connection.execute(
        sa.select(worker).where(worker.c.seen_at > now - timedelta(seconds=ALIVE_S)).order_by(worker.c.name)
    )
    return [Worker(*row) for row in rows]


def forget_gone(connection: Connection, now: datetime) -> None:
    """Drop the rows of workers that are gone for a day."""
    connection.execute(sa.delete(worker).where(worker.c.seen_at < now - timedelta(days=1)))
