"""Scoring a whole archive again: queued in parts, so that nobody waits for the queueing of millions of images.

Each part is one short transaction and may be repeated, so an interruption leaves the rest to the next call.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import image, inspection, job, plate
from marcod.store import locks, queue, versions

PART: Final = 100
"""Inspections that one transaction looks at: ten thousand images and more, a fraction of a second."""


@dataclass(frozen=True, slots=True)
class Archive:
    """Which images of all are meant: those first seen since then, those of one source, or with None all."""

    since: datetime | None = None
    source_id: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one call of :func:`enqueue` did; the next one goes on after the inspection ``last``."""

    inspections: int
    queued: int
    last: int


def enqueue(
    connection: Connection, version_id: int, archive: Archive, after: int, now: datetime, limit: int = PART
) -> Part | None:
    """Queue what this version has not scored of the next ``limit`` inspections after this id; None at the end.

    As :func:`queue.enqueue_rescore` does it; begin with 0. Raises NotFoundError when the version was removed.
    """
    # As whoever records and whoever promotes, who queue as well.
    versions.champion(connection, lock=True)
    versions.lock_version(connection, version_id)
    following = _inspections(archive).where(inspection.c.id > after).order_by(inspection.c.id).limit(limit)
    ids = [int(row[0]) for row in connection.execute(following)]
    if not ids:
        return None
    of_these = sa.select(inspection.c.plate_id).where(inspection.c.id.in_(ids))
    locks.hold(connection, plates=connection.execute(of_these).scalars())
    queued = queue.enqueue_rescore(connection, version_id, now, inspection_ids=ids, since=archive.since)
    return Part(len(ids), queued, ids[-1])


def inspections(connection: Connection, archive: Archive) -> int:
    """How many inspections :func:`enqueue` will look at."""
    return connection.execute(sa.select(sa.func.count()).select_from(_inspections(archive).subquery())).scalar_one()


def has_images(connection: Connection, archive: Archive | None, plate_ids: Collection[int]) -> bool:
    """Tell if there is any image of an archive, or where that is None, of these plates."""
    found = sa.select(image.c.id).join(inspection, inspection.c.id == image.c.inspection_id)
    if archive is None:
        found = found.where(inspection.c.plate_id.in_(list(plate_ids)))
    elif archive.source_id is not None:
        found = found.where(image.c.source_id == archive.source_id)
    if archive is not None and archive.since is not None:
        found = found.where(image.c.seen_at >= archive.since)
    return connection.execute(found.limit(1)).first() is not None


def unfinished(connection: Connection, version_id: int) -> int:
    """How many images wait behind new ones for this version; quarantined ones do not count.

    A million of them are counted through one index, in some 0.3 s on SQLite and 0.1 s on PostgreSQL.
    """
    waiting = sa.and_(job.c.model_version_id == version_id, job.c.priority == queue.RESCORE, job.c.failed_at.is_(None))
    return connection.execute(sa.select(sa.func.count()).select_from(job).where(waiting)).scalar_one()


def _inspections(archive: Archive) -> sa.Select[Any]:
    chosen = sa.select(inspection.c.id)
    if archive.source_id is None:
        return chosen
    return chosen.join(plate, plate.c.id == inspection.c.plate_id).where(plate.c.source_id == archive.source_id)
