"""Databases from before the first release, and the whole content of a database."""

from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from marcod.database.engine import Database
from marcod.database.revisions import VERSION_TABLE
from marcod.database.schema import schema_mark

MARKED: Final = {"0005": "0005", "0006": "0006", "0007": "0007", "0008": "0008", "0009": "0008"}
"""The oldest usable step that each of these wrote down; steps before 0005 had no table for it."""


def before_release(db: Database, revision: str) -> None:
    """Mark a database as that step left it. Its tables are of today, but marcod looks no further than the marks."""
    version = sa.table(VERSION_TABLE, sa.column("version_num"))
    db.write(lambda c: c.execute(sa.update(version).values(version_num=revision)))
    if revision in MARKED:
        db.write(lambda c: c.execute(sa.update(schema_mark).values(oldest_revision=MARKED[revision])))
    else:
        db.write(lambda c: schema_mark.drop(c))


def everything(db: Database) -> Any:
    """The bytes of an SQLite file that nobody has open; on PostgreSQL every row with its transaction, and the catalog.

    A row that was written again with the same values has another transaction.
    """
    if db.is_sqlite:
        file = Path(str(db.url.database))
        journal = file.with_name(f"{file.name}-wal")
        assert not journal.exists() or not journal.stat().st_size
        return file.read_bytes()
    catalog = "select relname, relkind, relfilenode, xmin::text, relacl::text from pg_class"
    found = {"": rows_of(db, f"{catalog} where relnamespace = 'public'::regnamespace order by relname")}
    tables = [row[0] for row in found[""] if row[1] == "r"]
    return found | {
        t: rows_of(db, f'select xmin::text, ctid::text, t::text from "{t}" t order by ctid') for t in tables
    }


def rows_of(db: Database, statement: str) -> list[tuple[Any, ...]]:
    return db.read(lambda c: [tuple(row) for row in c.exec_driver_sql(statement)])
