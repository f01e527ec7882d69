"""The version that becomes champion: its rows of all plates are worked out first, while the former one speaks.

A silent version has scores alone (``derived``). Its promotion writes one row; :func:`step` makes its plate summaries,
drops and hits, some plates in a transaction, and notes how far it came in the same one, so that a process that is
killed costs a step. Images and labels that come meanwhile refresh the rows that are there, as a champion's; rows
that are not there yet will be right when they are made. ``serving`` changes the champion at the end, in one
transaction.

Lock order: this row comes after the champion's alias and before plates.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import (
    drop_summary,
    image,
    inspection,
    inspection_summary,
    plate,
    promotion,
    score,
)
from marcod.store import derived, locks, versions
from marcod.store.selects import counted_in, current_score
from marcod.store.versions import Version
from marcod.text import count

PLATES: Final = 50
"""Plates that one step looks at, at most."""

PORTION: Final = 2_000
"""Images of the plates of one step, unless one plate alone has more: about a second."""

FEW: Final = 2_000
"""Of a version with so few scores, as one that was in shadow, the plates are asked for; of others all are looked at."""

_ID: Final = 1


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version on its way to be champion: the rows of ``done`` of ``plates`` are there.

    ``actor`` asked for it at ``begun_at``; ``moved_at`` is when the latest plates were done.
    """

    version: Version
    actor: str
    begun_at: datetime
    moved_at: datetime
    done: int
    plates: int
    ready: bool

    def __str__(self) -> str:
        """Format it such as ``1,204 of 30,000 plates``."""
        return f"{self.done:,} of {count(self.plates, 'plate')}"

    @property
    def sentence(self) -> str:
        """Say what becomes champion, and how far that is."""
        return f"{self.version} becomes champion once its plates are worked out: {self}"


def pending(connection: Connection) -> Promotion | None:
    """Look up the version that becomes champion."""
    row = connection.execute(sa.select(promotion)).one_or_none()
    return None if row is None else _promotion(connection, row)


def _promotion(connection: Connection, row: Any) -> Promotion:
    plates = max(row.plates, row.done)
    ready = row.last_plate_id >= row.end_plate_id
    version = versions.get(connection, row.model_version_id)
    return Promotion(
        version, row.actor, row.begun_at, row.moved_at, plates if ready else min(row.done, plates), plates, ready
    )


def begin(connection: Connection, version: Version, *, actor: str, now: datetime) -> None:
    """Note that a silent version becomes champion. For callers that hold the champion's alias.

    Waits for those who write scores of silent versions now; who comes after them makes its rows. Nothing that they may
    hold is locked after that, so the champion changes in another transaction, also where nothing was scored.
    """
    locks.wait_for_silent_writing(connection)
    end, plates = connection.execute(sa.select(sa.func.max(plate.c.id), sa.func.count()).select_from(plate)).one()
    scored = connection.execute(sa.select(score.c.id).where(_by(version)).limit(1)).first() is not None
    far = {"last_plate_id": 0 if scored else end or 0, "end_plate_id": end or 0, "done": 0, "plates": plates}
    times = {"begun_at": now, "moved_at": now}
    values = {"id": _ID, "model_version_id": version.id, "actor": actor, **times, **far}
    connection.execute(sa.insert(promotion).values(values))


def withdraw(connection: Connection) -> None:
    """Forget the version that was to become champion; its rows stay, and stay right. For callers as of begin."""
    connection.execute(sa.delete(promotion))


def step(connection: Connection, version: Version, now: datetime) -> bool:
    """Make the rows of the next plates. Returns False where nothing is left, or another version becomes champion.

    Several processes may do it at once: they take turns.
    """
    held = sa.select(promotion).where(promotion.c.model_version_id == version.id).with_for_update()
    row = connection.execute(held).one_or_none()
    if row is None or row.last_plate_id >= row.end_plate_id:
        return False
    plate_ids, all_there = _next(connection, version, row.last_plate_id, row.end_plate_id)
    _work_out(connection, version, plate_ids, now)
    last = row.end_plate_id if all_there else plate_ids[-1]
    values = {"last_plate_id": last, "done": promotion.c.done + len(plate_ids), "moved_at": now}
    connection.execute(sa.update(promotion).values(values))
    return not all_there


def _next(connection: Connection, version: Version, after: int, end: int) -> tuple[list[int], bool]:
    """List the next plates, few enough for one transaction, and tell if they are the last ones."""
    wanted = sa.select(plate.c.id).where(plate.c.id > after, plate.c.id <= end)
    few = sa.select(score.c.image_id).where(_by(version)).limit(FEW + 1)
    image_ids = list(connection.execute(few).scalars())
    if len(image_ids) <= FEW:
        its = sa.select(inspection.c.plate_id).join(image, image.c.inspection_id == inspection.c.id)
        wanted = wanted.where(plate.c.id.in_(its.where(image.c.id.in_(image_ids))))
    plate_ids = list(connection.execute(wanted.order_by(plate.c.id).limit(PLATES)).scalars())
    chosen = _portion(connection, plate_ids)
    return chosen, len(chosen) == len(plate_ids) < PLATES


def _portion(connection: Connection, plate_ids: list[int]) -> list[int]:
    """Choose the first plates, one at least, that have so many images together."""
    counted = (
        sa.select(inspection.c.plate_id, sa.func.count())
        .join(image, image.c.inspection_id == inspection.c.id)
        .where(inspection.c.plate_id.in_(plate_ids))
        .group_by(inspection.c.plate_id)
    )
    images = {int(row[0]): int(row[1]) for row in connection.execute(counted)}
    total = 0
    for place, plate_id in enumerate(plate_ids):
        total += images.get(plate_id, 0)
        if total > PORTION and place:
            return plate_ids[:place]
    return plate_ids


def _work_out(connection: Connection, version: Version, plate_ids: list[int], now: datetime) -> None:
    of_plates = sa.select(inspection.c.id).where(inspection.c.plate_id.in_(plate_ids))
    # Held before it is asked what was scored: a worker to whom the version was silent holds them until its scores
    # can be seen, and any other makes the rows itself.
    locks.hold(connection, inspections=connection.execute(of_plates).scalars())
    lacking = (
        sa.select(
            image.c.drop_id,
            image.c.inspection_id,
            drop_summary.c.drop_id.is_(None).label("no_drop"),
            inspection_summary.c.inspection_id.is_(None).label("no_inspection"),
        )
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .join(score, current_score(version.id))
        .outerjoin(drop_summary, _of(drop_summary, drop_summary.c.drop_id == image.c.drop_id, version))
        .outerjoin(
            inspection_summary,
            _of(inspection_summary, inspection_summary.c.inspection_id == image.c.inspection_id, version),
        )
        .where(inspection.c.plate_id.in_(plate_ids), counted_in(version.modality))
    )
    rows = connection.execute(lacking).all()
    drop_ids = {int(row.drop_id) for row in rows if row.no_drop}
    inspection_ids = {int(row.inspection_id) for row in rows if row.no_inspection}
    if drop_ids or inspection_ids:
        derived.make_rows(connection, version, drop_ids, inspection_ids, now)


def _of(table: sa.Table, place: sa.ColumnElement[bool], version: Version) -> sa.ColumnElement[bool]:
    return sa.and_(place, table.c.model_version_id == version.id)


def _by(version: Version) -> sa.ColumnElement[bool]:
    return score.c.model_version_id == version.id
