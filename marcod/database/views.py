"""The contract of the LIMS views, as ``migrations/views/contract.toml`` pins it.

On PostgreSQL every view and column carries its meaning as a comment.
"""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

FILE: Final = Path("views") / "contract.toml"
"""The contract within the folder of migrations."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its type in the contract, the type names of each database, its unit and its meaning."""

    name: str
    type: str
    postgresql: str
    sqlite: str
    unit: str
    about: str

    @property
    def comment(self) -> str:
        """The meaning and unit in one line."""
        return f"{self.about} ({self.unit})" if self.unit else self.about


@dataclass(frozen=True)
class View:
    """One view with its columns in order."""

    name: str
    about: str
    columns: tuple[Column, ...]

    @cached_property
    def comments(self) -> dict[str | None, str]:
        """The comments by column; None is the view itself."""
        return {None: self.about, **{column.name: column.comment for column in self.columns}}


def read(migrations: Path) -> tuple[View, ...]:
    """Read the views, in the order of the file."""
    document = tomllib.loads((migrations / FILE).read_text(encoding="utf-8"))
    types = document["types"]
    return tuple(
        View(
            name,
            entry["about"].strip(),
            tuple(
                Column(column, kind, types[kind]["postgresql"], types[kind]["sqlite"], unit, about)
                for column, kind, unit, about in entry["columns"]
            ),
        )
        for name, entry in document["views"].items()
    )


def comment(connection: Connection, views: tuple[View, ...]) -> int:
    """Write the comments that are missing or differ on PostgreSQL. Returns how many; SQLite has no comments.

    Views and columns that the schema does not have (yet) are skipped.
    """
    if connection.dialect.name != "postgresql":
        return 0
    before = _comments(connection)
    wrong = [
        (view.name, column, text)
        for view in views
        for column, text in view.comments.items()
        if before.get((view.name, column), text) != text
    ]
    quote = connection.dialect.identifier_preparer.quote_identifier
    for view_name, column, text in wrong:
        target = f"view {quote(view_name)}" if column is None else f"column {quote(view_name)}.{quote(column)}"
        connection.execute(sa.text(f"comment on {target} is :text"), {"text": text})
    return len(wrong)


def _comments(connection: Connection) -> dict[tuple[str, str | None], str]:
    """Read the comment of every view and column of this schema; an empty text where there is none."""
    rows = connection.execute(
        sa.text(
            "select c.relname, a.attname, coalesce(col_description(c.oid, a.attnum), '')"
            " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
            " where c.relkind = 'v' and c.relnamespace = current_schema()::regnamespace"
            " union all"
            " select c.relname, null, coalesce(obj_description(c.oid, 'pg_class'), '')"
            " from pg_class c where c.relkind = 'v' and c.relnamespace = current_schema()::regnamespace"
        )
    )
    return {(row[0], row[1]): row[2] for row in rows}
