"""Databases of each schema since the first release, with rows in every table: upgrading and going back keep them all.

A step that renames or moves a column adds it to ``RENAMED``.
"""

from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from factories import utc
from later_steps import ADDING, BREAKING, LAST
from populated import fill_rest, populate, reflected

from marcod.database import migrate, revisions
from marcod.database.engine import Database

LATER: Final = utc(days=400)
RENAMED: Final = {("hit", "cause"): "reason"}
"""Columns that have another name after a later step."""
OF_STEPS: Final = {"schema_mark"}
"""Tables whose rows the steps write."""

Rows = dict[str, list[dict[str, Any]]]


def rows_of(db: Database, tables: dict[str, sa.Table], *, renamed: bool = False) -> Rows:
    """Every row of these tables in their columns, which may have other names by now."""

    def read(connection: sa.Connection, table: sa.Table) -> list[dict[str, Any]]:
        names = {c.name: RENAMED.get((table.name, c.name), c.name) if renamed else c.name for c in table.c}
        now = sa.Table(table.name, sa.MetaData(), *(sa.Column(names[c.name], c.type) for c in table.c))
        ordered = sa.select(*(now.c[new].label(old) for old, new in names.items()))
        found = connection.execute(ordered.order_by(*(now.c[c.name] for c in table.primary_key)))
        return [dict(row) for row in found.mappings()]

    return {name: db.read(read, table) for name, table in tables.items() if name not in OF_STEPS}


def copy_rows(db: Database, given: Rows, tables: dict[str, sa.Table]) -> None:
    """Rows of today's schema, written by SQL alone into the columns that these tables have."""
    former = {(table, new): old for (table, old), new in RENAMED.items()}

    def place(table: sa.Table, name: str) -> str | None:
        names = (name, RENAMED.get((table.name, name)), former.get((table.name, name)))
        return next((n for n in names if n is not None and n in table.c), None)

    def work(connection: sa.Connection) -> None:
        for name, table in tables.items():
            for row in given.get(name, []):
                values = {place(table, column): value for column, value in row.items() if value is not None}
                values.pop(None, None)
                connection.execute(sa.insert(table).values(values))
            if connection.dialect.name == "postgresql" and given.get(name) and "id" in table.c:
                # Rows with ids of their own leave the counter behind.
                counter = f"pg_get_serial_sequence('\"{name}\"', 'id')"
                connection.execute(sa.text(f'select setval({counter}, (select max(id) from "{name}"))'))

    db.write(work)


def columns_of(db: Database) -> dict[str, list[str]]:
    """The LIMS views with their columns."""

    def read(connection: sa.Connection) -> dict[str, list[str]]:
        inspector = sa.inspect(connection)
        names = [name for name in inspector.get_view_names() if name.startswith("lims_")]
        return {name: [column["name"] for column in inspector.get_columns(name)] for name in names}

    return db.read(read)


def answers(db: Database, columns: dict[str, list[str]]) -> dict[str, list[Any]]:
    """The rows of the views in these columns."""
    found = {}
    for view, names in columns.items():
        statement = f"select {', '.join(names)} from {view} order by {', '.join(names[:6])}"
        found[view] = db.read(lambda c, s=statement: [tuple(row) for row in c.exec_driver_sql(s)])
    return found


@pytest.mark.parametrize("start", [*revisions.known().revisions, ADDING, BREAKING])
@pytest.mark.slow
def test_a_populated_database_keeps_every_row_up_and_down(
    db: Database, empty_db: Database, to_come: Path, start: str
) -> None:
    populate(db)
    migrate.upgrade(empty_db, start, scripts=to_come)
    tables = reflected(empty_db)
    copy_rows(empty_db, rows_of(db, reflected(db)), tables)
    fill_rest(empty_db)
    before, columns = rows_of(empty_db, tables), columns_of(empty_db)
    said = answers(empty_db, columns)
    assert all(before.values()), "every table has rows"
    assert all(said.values()), "every view has rows"
    migrate.upgrade(empty_db, now=LATER, scripts=to_come)
    assert revisions.known(to_come).newest == LAST == empty_db.read(revisions.revision_of)
    assert rows_of(empty_db, tables, renamed=True) == before
    assert answers(empty_db, columns) == said
    now = columns_of(empty_db)
    assert all(now[view][: len(names)] == names for view, names in columns.items())
    migrate.downgrade(empty_db, start, to_come)
    assert rows_of(empty_db, tables) == before
    assert answers(empty_db, columns) == said
    assert {name: table.c.keys() for name, table in reflected(empty_db).items()} == {
        name: table.c.keys() for name, table in tables.items()
    }
