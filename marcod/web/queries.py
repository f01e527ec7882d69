"""Lists of the page: plates and hits, as one person may see them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import UtcDateTime, plate
from marcod.web.access import User


def visible(user: User) -> sa.ColumnElement[bool]:
    """Return the condition on ``plate`` under which a person sees a plate; today everybody sees all."""
    return sa.true()


@dataclass(frozen=True, slots=True)
class PlateRow:
    """One plate with its latest inspection, for the list."""

    id: int
    source: str
    key: str
    barcode: str | None
    project: str | None
    inspection_key: str
    hits: int
    seen: int
    scored: int
    expected: int | None
    complete: bool
    last_image_at: datetime | None


def plates(connection: Connection, user: User, limit: int = 50) -> list[PlateRow]:
    """List plates by their latest image."""
    from marcod.plates.reports import _SUMMARY

    statement: sa.Select[Any] = (
        sa.select(
            plate.c.id,
            _SUMMARY.c.source,
            plate.c.key,
            plate.c.barcode,
            plate.c.project,
            _SUMMARY.c.inspection_key,
            _SUMMARY.c.hits,
            _SUMMARY.c.seen,
            _SUMMARY.c.scored,
            _SUMMARY.c.expected,
            _SUMMARY.c.complete,
            sa.type_coerce(_SUMMARY.c.last_image_at, UtcDateTime()),
        )
        .join(plate, plate.c.key == _SUMMARY.c.plate_key)
        .where(visible(user))
        .order_by(_SUMMARY.c.last_image_at.desc(), _SUMMARY.c.inspection_id.desc())
        .limit(limit)
    )
    return [PlateRow(*row) for row in connection.execute(statement)]
