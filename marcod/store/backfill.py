"""Filling in what the present schema keeps and an older one did not: drops over time, and labels in summaries.

Works in small transactions, so it can be stopped and begun again, and the daemon need not stand still for it.
Promises that a second run finds nothing to do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import Database
from marcod.database.schema import (
    drop,
    drop_summary,
    image,
    inspection_summary,
    label,
    model_version,
    score,
)
from marcod.store import derived, drops, versions, votes
from marcod.store.selects import OF_PRESENT_BYTES
from marcod.store.versions import Version

CHUNK: Final = 500
"""Drops, or inspections, a transaction."""

Report = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Filled:
    """Rows of drops that were made, and inspections that were counted anew."""

    drops: int
    inspections: int


def run(db: Database, now: datetime, report: Report, *, chunk: int = CHUNK) -> Filled:
    """Fill in what is missing, for every version that is or was champion, because each of them may speak."""
    before = db.read(_count, drop_summary)
    for version in db.read(_champions):
        _fill_drops(db, version, now, report, chunk)
    made = db.read(_count, drop_summary) - before
    return Filled(made, _count_labels(db, now, report, chunk))


def unfinished(connection: Connection) -> bool:
    """Whether a drop that a champion has scored is not worked out; looks no further than the first."""
    return any(connection.execute(_left(version).limit(1)).first() for version in _champions(connection))


def _left(version: Version) -> sa.Select[tuple[int]]:
    made = sa.exists().where(drop_summary.c.drop_id == drop.c.id, drop_summary.c.model_version_id == version.id)
    scored = sa.exists().where(
        image.c.drop_id == drop.c.id,
        image.c.modality == version.modality,
        OF_PRESENT_BYTES,
        score.c.model_version_id == version.id,
        score.c.p_crystals.is_not(None),
    )
    return sa.select(drop.c.id).where(~made, scored)


def _fill_drops(db: Database, version: Version, now: datetime, report: Report, chunk: int) -> None:
    total, done = db.read(_count, drop), 0
    last: int | None = 0
    while last is not None:
        step = partial(drops.refresh_missing, version=version, now=now, after=last, limit=chunk)
        last = db.write(step)
        done = min(done + chunk, total)
        report(f"drops of {version}", done, total)


def _count_labels(db: Database, now: datetime, report: Report, chunk: int) -> int:
    """Count the inspections anew of whose labels the summaries do not know."""
    wanted = db.read(_uncounted)
    for start in range(0, len(wanted), chunk):
        ids = wanted[start : start + chunk]
        db.write(partial(derived.refresh, drop_ids=(), inspection_ids=ids, now=now))
        report("labelled inspections", start + len(ids), len(wanted))
    return len(wanted)


def _uncounted(connection: Connection) -> list[int]:
    summary = inspection_summary.c
    candidates = (
        sa.select(label.c.inspection_id)
        .join(inspection_summary, summary.inspection_id == label.c.inspection_id)
        .where(summary.labelled == 0)
        .distinct()
        .order_by(label.c.inspection_id)
    )
    return [int(i) for i in connection.execute(candidates).scalars() if votes.of_inspection(connection, int(i))]


def _count(connection: Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _champions(connection: Connection) -> list[Version]:
    """Everyone who was ever champion, in that order, so that the first to see a hit is the first to record it."""
    promoted = model_version.c.promoted_at
    ids = sa.select(model_version.c.id).where(promoted.is_not(None)).order_by(promoted, model_version.c.id)
    return [versions.get(connection, int(version_id)) for version_id in connection.execute(ids).scalars()]
