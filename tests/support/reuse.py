"""PostgreSQL databases that many tests use one after the other, each as if it were new.

Making a database takes far longer than emptying one. A database goes back to the others only when nothing but rows
was changed in it: whatever a test did to its tables, rights or statistics shows in the system catalogs.
"""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

CATALOGS: Final = (
    "pg_attrdef", "pg_attribute", "pg_class", "pg_constraint", "pg_default_acl", "pg_description", "pg_extension",
    "pg_index", "pg_namespace", "pg_policy", "pg_proc", "pg_rewrite", "pg_seclabel", "pg_statistic", "pg_trigger",
    "pg_type",
)  # fmt: skip
"""Who writes one of their rows shows as its xmin; who removes one, by their number."""

LARGEST_BYTES: Final = 16 * 2**20
"""Rows that are gone take up room; a database beyond it is not emptied once more."""

_STATE: Final = " union all ".join(
    f"select '{name}', count(*), max(xmin::text::bigint)::text from {name}" for name in CATALOGS
)
_OWN: Final = """
    select datacl::text, datconnlimit, (select count(*) from pg_db_role_setting where setdatabase = d.oid)
    from pg_database d where datname = current_database()
"""
_LEAVE: Final = """
    select pg_terminate_backend(pid, 5000) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
"""
_OF_OURS: Final = "from pg_class where relnamespace = 'public'::regnamespace and relkind"

State = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class New:
    """What a database had as it was made: its catalogs, the few rows of its own, and where its numbers begin."""

    catalogs: State
    rows: dict[str, State]
    sequences: dict[str, tuple[int, bool]]


def look(url: URL) -> New:
    """What a database that nobody has used yet is like."""
    with _connected(url) as connection:
        rows = {name: _all(connection, f'select * from "{name}"') for name in _names(connection, "r")}
        begin = {
            name: _all(connection, f'select last_value, is_called from "{name}"')[0] for name in _names(connection, "S")
        }
        return New(_state(connection), rows, {name: (value, called) for name, (value, called) in begin.items()})


def empty(url: URL, new: New) -> bool:
    """Make a used database new again; False when more than rows was changed, or it has grown too large."""
    with _connected(url) as connection:
        connection.exec_driver_sql(_LEAVE)
        if _state(connection) != new.catalogs:
            return False
        if connection.exec_driver_sql("select pg_database_size(current_database())").scalar_one() > LARGEST_BYTES:
            return False
        deletes = [f'delete from "{name}"' for name in new.rows]
        resets = [
            f"select setval('\"{name}\"', {at}, {str(called).lower()})" for name, (at, called) in new.sequences.items()
        ]
        # As a replica the order of tables is free: no trigger and no foreign key is asked.
        connection.exec_driver_sql("; ".join(["set session_replication_role = replica", *deletes, *resets]))
        for name, rows in new.rows.items():
            for row in rows:
                marks = ", ".join(["%s"] * len(row))
                connection.exec_driver_sql(f'insert into "{name}" values ({marks})', row)
        return True


def _connected(url: URL) -> Connection:
    return sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect()


def _all(connection: Connection, statement: str) -> State:
    return [tuple(row) for row in connection.exec_driver_sql(statement)]


def _names(connection: Connection, kind: str) -> list[str]:
    return [name for (name,) in _all(connection, f"select relname {_OF_OURS} = '{kind}'")]


def _state(connection: Connection) -> State:
    return sorted(_all(connection, _STATE)) + _all(connection, _OWN)
