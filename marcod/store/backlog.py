"""What the queue holds, for people: how many jobs are in which state, and what was given up and why."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.store import queue
from marcod.store.schema import image, job, source


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How the queue stands."""

    waiting: int
    leased: int
    retrying: int
    failed: int
    oldest_enqueued_at: datetime | None


def status(connection: Connection, now: datetime) -> QueueStatus:
    """Counts of jobs by state, and since when the oldest unfinished one waits."""
    alive = job.c.failed_at.is_(None)
    held = sa.and_(alive, job.c.lease.is_not(None), job.c.available_at > now)
    later = sa.and_(alive, job.c.lease.is_(None), job.c.available_at > now)

    def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    row = connection.execute(
        sa.select(
            count(sa.and_(alive, job.c.available_at <= now)),
            count(held),
            count(later),
            count(job.c.failed_at.is_not(None)),
            sa.func.min(sa.case((alive, job.c.enqueued_at), else_=None)),
        )
    ).one()
    return QueueStatus(int(row[0]), int(row[1]), int(row[2]), int(row[3]), row[4])


def new(connection: Connection) -> int:
    """Count the new images that are scored before anything is scored again; quarantined ones are not."""
    waiting = sa.select(sa.func.count()).select_from(job)
    return connection.execute(waiting.where(job.c.priority == queue.NEW, job.c.failed_at.is_(None))).scalar_one()


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One image that could not be scored, and why."""

    image_id: int
    source: str
    path: str
    attempts: int
    error: str
    failed_at: datetime


def quarantined(connection: Connection, limit: int) -> list[Quarantined]:
    """The latest quarantined images."""
    rows = connection.execute(
        sa.select(job.c.image_id, source.c.name, image.c.path, job.c.attempts, job.c.error, job.c.failed_at)
        .join(image, image.c.id == job.c.image_id)
        .join(source, source.c.id == image.c.source_id)
        .where(job.c.failed_at.is_not(None))
        .order_by(job.c.failed_at.desc(), job.c.id)
        .limit(limit)
    )
    return [Quarantined(r[0], r[1], r[2], r[3], r[4] or "", r[5]) for r in rows]
