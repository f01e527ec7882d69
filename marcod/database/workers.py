"""Heartbeats of workers: one row per process that works on the queue.

For people, for `rescore`, and for `db upgrade`, which must know what running workers need of the schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import __version__
from marcod.database import revisions
from marcod.database.engine import insert
from marcod.database.schema import worker

ALIVE_S: Final = 60.0
"""A worker without a heartbeat for this long counts as gone."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process; ``revision`` is the newest step of the schema that it knows, None before anybody kept it.

    ``left_to_others`` has the reasons for which it leaves sources to other hosts, by their names.
    """

    name: str
    host: str
    pid: int
    roles: str
    marcod_version: str
    started_at: datetime
    seen_at: datetime
    revision: str | None = None
    left_to_others: Mapping[str, str] | None = None

    @property
    def task(self) -> str | None:
        """The task of a batch system that the process is; None for others."""
        parts = self.name.split(":")
        return parts[2] if len(parts) == 4 else None


def beat(
    connection: Connection,
    name: str,
    host: str,
    pid: int,
    roles: str,
    now: datetime,
    left_to_others: Mapping[str, str] | None = None,
) -> None:
    """Say that this worker is alive; the first call makes its row."""
    values = {"host": host, "pid": pid, "roles": roles, "marcod_version": __version__}
    values["revision"] = revisions.known().newest
    again = {"seen_at": now, "left_to_others": dict(left_to_others) if left_to_others else None}
    statement = insert(connection, worker).values(name=name, started_at=now, **values, **again)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=again))


def leave(connection: Connection, name: str) -> None:
    """Remove the row of a worker that ends in order."""
    connection.execute(sa.delete(worker).where(worker.c.name == name))


def _lately(now: datetime) -> sa.ColumnElement[bool]:
    """Seen within :data:`ALIVE_S`, and not in a future that a wrong clock wrote."""
    return worker.c.seen_at.between(now - timedelta(seconds=ALIVE_S), now + timedelta(hours=1))


def alive(connection: Connection, now: datetime) -> list[Worker]:
    """Workers with a recent heartbeat."""
    columns = [worker.c[name] for name in Worker.__dataclass_fields__]
    rows = connection.execute(sa.select(*columns).where(_lately(now)).order_by(worker.c.name))
    return [Worker(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Needs:
    """A living worker and the newest step of the schema that it knows, None where nobody kept it."""

    name: str
    host: str
    revision: str | None


def needs(connection: Connection, now: datetime) -> list[Needs]:
    """List the workers with a recent heartbeat, also on a schema of a newer or older step."""
    columns = (worker.c.name, worker.c.host, worker.c.revision)
    rows = connection.execute(sa.select(*columns).where(_lately(now)).order_by(worker.c.name))
    return [Needs(*row) for row in rows]


def forget_all(connection: Connection) -> None:
    """Drop every row, of a copy whose workers never knew it."""
    connection.execute(sa.delete(worker))


def forget_gone(connection: Connection, now: datetime) -> None:
    """Drop the rows of workers that are gone for a day, and those of a time when a clock was far ahead."""
    day = timedelta(days=1)
    connection.execute(sa.delete(worker).where(sa.not_(worker.c.seen_at.between(now - day, now + day))))
