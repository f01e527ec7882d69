"""Read-only checks of the database itself: existence, version, clock, and this user's rights."""

import os
from datetime import datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from marcod.database.schema import SECRET, image, metadata, source
from marcod.errors import StoreError, os_reason

_CHANGES: Final = ("INSERT", "UPDATE", "DELETE")
_RIGHTS: Final = ("SELECT", *_CHANGES)
CHANGE_ANYTHING: Final = "change anything"


def sqlite_file(url: str) -> Path | None:
    """Find the file of an SQLite database; None for any other database, or a URL without a file."""
    try:
        found = make_url(url)
    except (ValueError, sa.exc.ArgumentError):
        return None
    named = found.database if found.get_backend_name() == "sqlite" else None
    return Path(named) if named and named != ":memory:" and not named.startswith("file:") else None


def require_file(url: str) -> None:
    """Check that an SQLite database exists, because opening it would create it. Raises StoreError."""
    file = sqlite_file(url)
    try:
        missing = file is not None and not file.exists()
    except OSError as error:
        raise StoreError(f"the database {file} cannot be looked at: {os_reason(error)}") from error
    if missing:
        raise StoreError(f"there is no database {file}; `marcod scan` or `marcod run` makes it")


def version(connection: Connection) -> str:
    """Read the database program and its version, such as ``SQLite 3.45.1``."""
    if connection.dialect.name == "sqlite":
        return f"SQLite {connection.execute(sa.select(sa.func.sqlite_version())).scalar_one()}"
    return f"PostgreSQL {connection.execute(sa.text('show server_version')).scalar_one()}"


def clock(connection: Connection) -> datetime:
    """Read the clock of a PostgreSQL server."""
    found: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return found


def lacking_rights(connection: Connection) -> list[str]:
    """List what this user may not do with marcod's tables, such as ``INSERT on score``; nothing on a writable SQLite.

    Of who may read everything but accounts, and change nothing, it is :data:`CHANGE_ANYTHING` alone.
    """
    if connection.dialect.name == "sqlite":
        return [] if _may_write(Path(connection.engine.url.database or "").absolute()) else [CHANGE_ANYTHING]
    rows = connection.execute(
        sa.text(
            "select p.name, c.relname from pg_class c cross join unnest(cast(:rights as text[])) as p(name)"
            " where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r' and c.relname = any(:tables)"
            " and not has_table_privilege(c.oid, p.name) order by 2, 1"
        ),
        {"rights": list(_RIGHTS), "tables": sorted(metadata.tables)},
    )
    lacking = [(right, table) for right, table in rows]
    # People who only look have no business with the tables of accounts.
    unread = [table for right, table in lacking if right == "SELECT"]
    if set(unread) <= SECRET and len(lacking) - len(unread) == len(_CHANGES) * len(metadata.tables):
        return [CHANGE_ANYTHING]
    return [f"{right} on {table}" for right, table in lacking]


def _may_write(file: Path) -> bool:
    """Tell if this user may write the file and create SQLite's journal next to it."""
    places = ((file, os.W_OK), (file.parent, os.W_OK | os.X_OK))
    return all(os.access(place, mode, effective_ids=True) for place, mode in places)


def last_file(connection: Connection, source_name: str) -> tuple[str, datetime] | None:
    """Path and time of the image of a source that was recorded last."""
    found = (
        sa.select(image.c.path, image.c.seen_at)
        .join(source, source.c.id == image.c.source_id)
        .where(source.c.name == source_name)
        .order_by(image.c.id.desc())
        .limit(1)
    )
    row = connection.execute(found).one_or_none()
    return None if row is None else (row[0], row[1])
