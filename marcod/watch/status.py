"""State of the watching of each source, written by its watcher for people, monitoring and the doctor.

One row per source, whichever process watches it. A watcher that has just started does not overwrite when its
predecessor last saw the whole folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import source, watch_state
from marcod.errors import NotFoundError
from marcod.text import storable

FORGOTTEN: Final = timedelta(days=7)
"""A source that nobody has watched for this long was taken out of the configuration."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """State of the watching of one source; times are aware.

    ``pending`` files have not settled, ``waiting`` ones lack another file. ``walked_files`` is how far the
    walk under way is, or how far the last one came; ``unreadable`` are the folders it could not list. ``walked_at`` and
    ``walked_whole_at`` are when a walk last ended well, over changed folders or over all; ``round_at`` is when the
    watching thread last showed life. ``updated_at`` is when this was written, None before.
    """

    source: str
    worker: str
    host: str
    root_there: bool
    observing: bool
    trouble: str | None
    pending: int
    waiting: int
    walking: bool
    walked_files: int
    unreadable: int
    walked_at: datetime | None
    walked_whole_at: datetime | None
    round_at: datetime | None
    updated_at: datetime | None = None


_OWN: Final = tuple(name for name in SourceStatus.__dataclass_fields__ if name not in ("source", "updated_at"))
_KEPT: Final = ("walked_at", "walked_whole_at")


def write(connection: Connection, states: Sequence[SourceStatus], now: datetime) -> None:
    """Write how these sources stand, over what was written before. Raises NotFoundError for an unregistered source."""
    if not states:
        return
    names = [state.source for state in states]
    found = connection.execute(sa.select(source.c.name, source.c.id).where(source.c.name.in_(names)))
    ids = {row.name: row.id for row in found}
    if missing := sorted(set(names) - ids.keys()):
        raise NotFoundError(f"there is no source {missing[0]!r} in the database; its watcher registers it")
    # In one order, so that two watchers never wait for each other.
    rows = [_row(state, ids[state.source], now) for state in sorted(states, key=lambda s: ids[s.source])]
    statement = insert(connection, watch_state)
    over = {name: statement.excluded[name] for name in (*_OWN, "updated_at")}
    over |= {name: sa.func.coalesce(statement.excluded[name], watch_state.c[name]) for name in _KEPT}
    connection.execute(statement.on_conflict_do_update(index_elements=["source_id"], set_=over), rows)


def _row(state: SourceStatus, source_id: int, now: datetime) -> dict[str, Any]:
    values = {name: getattr(state, name) for name in _OWN}
    # Trouble may quote a path of any bytes.
    trouble = None if state.trouble is None else storable(state.trouble)
    return values | {"source_id": source_id, "trouble": trouble, "updated_at": now}


def read(connection: Connection) -> list[SourceStatus]:
    """Read the state of each watched source as its watcher last wrote it, by name."""
    columns = [watch_state.c[name] for name in _OWN]
    found: sa.Select[Any] = sa.select(source.c.name, *columns, watch_state.c.updated_at).select_from(watch_state)
    return [SourceStatus(*row) for row in connection.execute(found.join(source).order_by(source.c.name))]


def leave(connection: Connection, worker: str) -> None:
    """Say that a watcher ended in order, so that nobody waits for it to be gone."""
    connection.execute(sa.update(watch_state).where(watch_state.c.worker == worker).values(worker=""))


def forget_gone(connection: Connection, now: datetime) -> None:
    """Drop the rows of sources that nobody has watched for :data:`FORGOTTEN`."""
    connection.execute(sa.delete(watch_state).where(watch_state.c.updated_at < now - FORGOTTEN))
