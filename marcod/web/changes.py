"""Changes since the last look: which plates have new scores, labels, marks, images or hits.

A look costs a few index look-ups while nothing changes. Rows are found by their ids, which on PostgreSQL may become
visible out of order; so a look goes back over the latest ids, and remembers those it has seen.
"""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import drop, drop_mark, hit, image, label, plate, score
from marcod.web.people import User
from marcod.web.queries import visible

WINDOW: Final = 500
"""Ids that a look goes back over."""

MANY: Final = 5000
"""New rows of one table beyond which any plate may have changed."""

PLATES: Final = 200
"""Plates that are named."""


@dataclass(frozen=True, slots=True)
class PageChange:
    """Plates that changed, None for any."""

    plates: frozenset[int] | None = frozenset()

    def __add__(self, other: "PageChange") -> "PageChange":
        named = None if self.plates is None or other.plates is None else self.plates | other.plates
        if named is not None and len(named) > PLATES:
            named = None
        return PageChange(named)

    def __bool__(self) -> bool:
        return self.plates is None or bool(self.plates)

    def as_json(self) -> dict[str, Any]:
        """Return it as the browser gets it."""
        return {"plates": None if self.plates is None else sorted(self.plates)}


def seen_by(connection: Connection, user: User, change: PageChange) -> PageChange:
    """Return what a person may hear of a change."""
    if change.plates is None:
        return change
    named = sa.select(plate.c.id).where(plate.c.id.in_(change.plates), visible(user))
    return PageChange(frozenset(connection.execute(named).scalars()))


_OF_DROP: Final = {
    table.name: sa.select(table.c.id, drop.c.plate_id).join(drop, drop.c.id == table.c.drop_id)
    for table in (image, label, drop_mark, hit)
}
_TAILS: Final[tuple[tuple[sa.Table, sa.Select[Any]], ...]] = (
    (
        score,
        sa.select(score.c.id, drop.c.plate_id)
        .join(image, image.c.id == score.c.image_id)
        .join(drop, drop.c.id == image.c.drop_id),
    ),
    *((table, _OF_DROP[table.name]) for table in (image, label, drop_mark, hit)),
    (plate, sa.select(plate.c.id, plate.c.id.label("plate_id"))),
)


class ChangeWatch:
    """Memory of what was seen. The first look only remembers."""

    def __init__(self) -> None:
        self._tails = [_Tail(table, statement) for table, statement in _TAILS]

    def look(self, connection: Connection) -> PageChange:
        """Return what is new since the last look."""
        found = PageChange()
        for tail in self._tails:
            new = tail.look(connection)
            found += PageChange(None if new is None else frozenset(new.values()))
        return found


class _Tail:
    """The latest rows of one table: ``_seen`` are the ids above ``_top - WINDOW``."""

    def __init__(self, table: sa.Table, statement: sa.Select[Any]) -> None:
        self.table, self._statement = table, statement
        self._top: int | None = None
        self._seen: frozenset[int] = frozenset()

    def look(self, connection: Connection) -> dict[int, int] | None:
        """Return the plate of each new row by its id, None for too many."""
        if self._top is None:
            self._remember(connection, self._last(connection))
            return {}
        floor = self._top - WINDOW
        rows = sa.select(sa.func.coalesce(sa.func.max(self.table.c.id), 0), sa.func.count())
        top, count = connection.execute(rows.where(self.table.c.id > floor)).one()
        if (top, count) == (self._top, len(self._seen)):
            return {}
        if count > MANY:
            self._remember(connection, top)
            return None
        found = {row[0]: row[1] for row in connection.execute(self._statement.where(self.table.c.id > floor))}
        new = {number: plate_id for number, plate_id in found.items() if number not in self._seen}
        self._remember(connection, top or self._last(connection))
        return new

    def _last(self, connection: Connection) -> int:
        return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(self.table.c.id), 0))).scalar_one())

    def _remember(self, connection: Connection, top: int) -> None:
        latest = sa.select(self.table.c.id).where(self.table.c.id > top - WINDOW)
        self._top, self._seen = top, frozenset(connection.execute(latest).scalars())
