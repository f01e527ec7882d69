"""Statements over many rows, in parts that stay below the variable limit of both databases."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

CHUNK: Final = 500
"""Ids that one statement carries; below the parameter limits of both databases."""


def parts(ids: Iterable[Any]) -> Iterator[list[Any]]:
    """Divide ids into lists that one statement carries."""
    every = list(ids)
    for start in range(0, len(every), CHUNK):
        yield every[start : start + CHUNK]


def select_in(
    connection: Connection, statement: sa.Select[Any], column: sa.Column[Any], ids: Iterable[Any]
) -> Iterator[Any]:
    """Select the rows of a statement whose column is one of the ids."""
    for part in parts(dict.fromkeys(ids)):
        yield from connection.execute(statement.where(column.in_(part))).all()


def delete_in(connection: Connection, table: sa.Table, column: sa.Column[Any], ids: Iterable[Any]) -> None:
    """Delete the rows whose column is one of the ids."""
    for part in parts(ids):
        connection.execute(sa.delete(table).where(column.in_(part)))


def update_rows(connection: Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Update rows by their ``row_id``; all have the same other columns."""
    if not rows:
        return
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in rows[0] if name != "row_id"}
    statement = sa.update(table).where(table.c.id == sa.bindparam("row_id")).values(values)
    connection.execute(
        statement, [{name if name == "row_id" else f"new_{name}": value for name, value in row.items()} for row in rows]
    )
