"""How the database itself is, for the doctor: its version, its clock, and what this user may do in it."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.store.schema import image, metadata, source

_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def version(connection: Connection) -> str:
    """The database program and its version, such as ``SQLite 3.45.1``."""
    if connection.dialect.name == "sqlite":
        return f"SQLite {connection.execute(sa.select(sa.func.sqlite_version())).scalar_one()}"
    return f"PostgreSQL {connection.execute(sa.text('show server_version')).scalar_one()}"


def clock(connection: Connection) -> datetime:
    """What time a PostgreSQL server has."""
    found: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return found


def lacking_rights(connection: Connection) -> list[str]:
    """What this user may not do with marcod's tables, such as ``INSERT on score``; nothing on a writable SQLite."""
    if connection.dialect.name == "sqlite":
        read_only = connection.execute(sa.text("pragma query_only")).scalar_one()
        return ["change anything"] if read_only else []
    rows = connection.execute(
        sa.text(
            "select p.name, c.relname from pg_class c cross join unnest(cast(:rights as text[])) as p(name)"
            " where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r' and c.relname = any(:tables)"
            " and not has_table_privilege(c.oid, p.name) order by 2, 1"
        ),
        {"rights": list(_RIGHTS), "tables": sorted(metadata.tables)},
    )
    return [f"{right} on {table}" for right, table in rows]


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
