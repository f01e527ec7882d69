"""Contents of the queue for people: jobs by state, quarantined images, and images whose files are gone."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import image, job, source
from marcod.store import audit_log, campaigns, queue
from marcod.store.selects import IS_COUNTED, count_where

PORTION: Final = 500
"""Images that one transaction accepts as gone."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Counts of jobs by state, and of the images that rescores of archives have to score yet, which have no jobs."""

    waiting: int
    leased: int
    retrying: int
    failed: int
    oldest_enqueued_at: datetime | None
    rescore_left: int = 0

    @property
    def to_score(self) -> int:
        """Images that can be scored now, at most."""
        return self.waiting + self.rescore_left


def status(connection: Connection, now: datetime) -> QueueStatus:
    """Count jobs by state, and find since when the oldest unfinished one waits."""
    alive = job.c.failed_at.is_(None)
    held = sa.and_(alive, job.c.lease.is_not(None), job.c.available_at > now)
    later = sa.and_(alive, job.c.lease.is_(None), job.c.available_at > now)

    row = connection.execute(
        sa.select(
            count_where(sa.and_(alive, job.c.available_at <= now)),
            count_where(held),
            count_where(later),
            count_where(job.c.failed_at.is_not(None)),
            sa.func.min(sa.case((alive, job.c.enqueued_at), else_=None)),
        )
    ).one()
    return QueueStatus(int(row[0]), int(row[1]), int(row[2]), int(row[3]), row[4], campaigns.unfinished(connection))


def is_left(
    connection: Connection,
    now: datetime,
    *,
    max_attempts: int,
    without: Collection[int] = (),
    leaving: Collection[str] = (),
) -> bool:
    """Tell if a job can be claimed now, or is in the hands of a worker that may die.

    Jobs that wait for another try do not count, nor those of the versions ``without`` and of the sources ``leaving``.
    """
    ours = sa.and_(job.c.model_version_id.not_in(list(without)), queue.not_of(leaving) if leaving else sa.true())
    waits = sa.and_(job.c.available_at <= now, sa.or_(job.c.attempts < max_attempts, job.c.lease.is_(None)))
    held = sa.and_(job.c.lease.is_not(None), job.c.available_at > now)
    return any(
        connection.execute(sa.select(job.c.id).where(job.c.failed_at.is_(None), found, ours).limit(1)).first()
        for found in (
            sa.and_(waits, job.c.priority == queue.NEW),
            sa.and_(waits, job.c.priority == queue.RESCORE),
            held,
        )
    )


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
    """List the latest quarantined images."""
    rows = connection.execute(
        sa.select(job.c.image_id, source.c.name, image.c.path, job.c.attempts, job.c.error, job.c.failed_at)
        .join(image, image.c.id == job.c.image_id)
        .join(source, source.c.id == image.c.source_id)
        .where(job.c.failed_at.is_not(None))
        .order_by(job.c.failed_at.desc(), job.c.id)
        .limit(limit)
    )
    return [Quarantined(r[0], r[1], r[2], r[3], r[4] or "", r[5]) for r in rows]


@dataclass(frozen=True, slots=True)
class Gone:
    """One image whose file is gone for good; ``scored`` says that a champion's score of it goes on counting."""

    image_id: int
    source: str
    path: str
    gone_at: datetime
    scored: bool
    accepted: bool


def unseen() -> sa.ColumnElement[bool]:
    """Choose images that are gone without a champion's score, have no copy, and are not accepted as gone."""
    accepted = sa.func.coalesce(image.c.gone_accepted, sa.false())
    lost = sa.and_(image.c.gone_score_id.is_(None), IS_COUNTED)
    return sa.and_(image.c.gone_at.is_not(None), lost, sa.not_(accepted))


def gone(connection: Connection, limit: int, *, every: bool = False) -> list[Gone]:
    """List the latest images that are gone unscored; with ``every`` also those with a score and the accepted ones."""
    wanted = image.c.gone_at.is_not(None) if every else unseen()
    rows = connection.execute(
        sa.select(
            image.c.id, source.c.name, image.c.path, image.c.gone_at, image.c.gone_score_id, image.c.gone_accepted
        )
        .join(source, source.c.id == image.c.source_id)
        .where(wanted)
        .order_by(image.c.gone_at.desc(), image.c.id)
        .limit(limit)
    )
    return [Gone(r[0], r[1], r[2], r[3], r[4] is not None, bool(r[5])) for r in rows]


def accept_gone(connection: Connection, image_ids: Collection[int] | None, actor: str, now: datetime) -> int:
    """Accept that images are gone unscored, these or all, so that no report counts them.

    At most :data:`PORTION` images, so that the transaction stays short; call it again until it returns 0. Their rows
    stay, and a file that comes back is scored. Returns how many.
    """
    found = sa.select(image.c.id).where(unseen())
    if image_ids is not None:
        found = found.where(image.c.id.in_(sorted(image_ids)))
    ids = sorted(connection.execute(found.limit(PORTION)).scalars())
    if ids:
        connection.execute(sa.update(image).where(image.c.id.in_(ids)).values(gone_accepted=True))
        audit_log.write(connection, actor, "accept gone", f"{len(ids)} images", {"first": ids[:20]}, now)
    return len(ids)
