"""Notes, harvested marks and follow marks of drops, and the drops that a random audit asks a person about."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import drop, drop_mark, follow, inspection, review_item
from marcod.plates.harvest import HARVEST, MarkKind
from marcod.review.queue import Stream
from marcod.web.access import User


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of a plate's drops: those harvested, those that the asking person follows, and the number of notes."""

    harvested: frozenset[int]
    followed: frozenset[int]
    notes: Counter[int]


@dataclass(frozen=True, slots=True)
class DropMark:
    """One note or mark of a drop; ``inspection`` is the key of the inspection at which it was set."""

    kind: str
    text: str
    person: str
    marked_at: datetime
    inspection: str


def of_plate(connection: Connection, user: User, plate_id: int) -> Marks:
    """Read the marks of a plate's drops."""
    return _marks(connection, user, drop.c.plate_id == plate_id)


def of_drop(connection: Connection, user: User, drop_id: int) -> Marks:
    """Read the marks of one drop."""
    return _marks(connection, user, drop.c.id == drop_id)


def of_drops(connection: Connection, user: User, drop_ids: Sequence[int]) -> Marks:
    """Read the marks of some drops."""
    return _marks(connection, user, drop.c.id.in_(drop_ids))


def _marks(connection: Connection, user: User, chosen: sa.ColumnElement[bool]) -> Marks:
    rows = connection.execute(
        sa.select(drop_mark.c.drop_id, drop_mark.c.kind)
        .join(drop, drop.c.id == drop_mark.c.drop_id)
        .where(chosen)
        .order_by(drop_mark.c.marked_at, drop_mark.c.id)
    ).all()
    last = {row.drop_id: row.kind for row in rows if row.kind in HARVEST}
    theirs = sa.select(follow.c.drop_id).join(drop, drop.c.id == follow.c.drop_id).where(follow.c.person == user.name)
    return Marks(
        frozenset(drop_id for drop_id, kind in last.items() if kind == MarkKind.HARVESTED),
        frozenset(connection.execute(theirs.where(chosen)).scalars()),
        Counter(row.drop_id for row in rows if row.kind == MarkKind.NOTE),
    )


def history(connection: Connection, drop_id: int) -> list[DropMark]:
    """List the notes and marks of a drop, the latest first."""
    columns = (drop_mark.c.kind, drop_mark.c.text, drop_mark.c.person, drop_mark.c.marked_at, inspection.c.key)
    statement = sa.select(*columns).join(inspection, inspection.c.id == drop_mark.c.inspection_id)
    its = statement.where(drop_mark.c.drop_id == drop_id)
    rows = connection.execute(its.order_by(drop_mark.c.marked_at.desc(), drop_mark.c.id.desc()))
    return [DropMark(*row) for row in rows]


def add(
    connection: Connection,
    kind: MarkKind,
    drop_id: int,
    inspection_id: int,
    text: str,
    *,
    person: str,
    request: str | None,
    now: datetime,
) -> Any:
    """Append a note or mark, once for a request. Returns the row that has the request."""
    values = {"drop_id": drop_id, "inspection_id": inspection_id, "kind": str(kind), "text": text, "person": person}
    statement = insert(connection, drop_mark).values(**values, marked_at=now, request=request)
    connection.execute(statement.on_conflict_do_nothing(index_elements=["request"]))
    return connection.execute(sa.select(drop_mark).where(drop_mark.c.request == request)).one_or_none()


def set_followed(connection: Connection, drop_id: int, person: str, now: datetime, *, followed: bool) -> None:
    """Let a person follow a drop, or stop."""
    if followed:
        statement = insert(connection, follow).values(drop_id=drop_id, person=person, since=now)
        connection.execute(statement.on_conflict_do_nothing())
    else:
        connection.execute(sa.delete(follow).where(follow.c.drop_id == drop_id, follow.c.person == person))


def asked_in_audit(connection: Connection, user: User, inspection_id: int) -> frozenset[int]:
    """Find the drops at an inspection that a random audit asks this person about and that have no answer yet."""
    asked = sa.and_(
        review_item.c.inspection_id == inspection_id,
        review_item.c.stream == str(Stream.AUDIT),
        review_item.c.person == user.name,
        review_item.c.answered_at.is_(None),
    )
    return frozenset(connection.execute(sa.select(review_item.c.drop_id).where(asked)).scalars())


def as_json(marks: Sequence[DropMark]) -> list[dict[str, Any]]:
    """Write marks for the browser: kind, text, person, at and inspection."""
    return [
        {"kind": m.kind, "text": m.text, "person": m.person, "at": m.marked_at.isoformat(), "inspection": m.inspection}
        for m in marks
    ]
