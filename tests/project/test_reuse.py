"""Databases that tests use one after the other are as if they were new, or are not used again."""

import factories
import pytest
import reuse
import sqlalchemy as sa
from sqlalchemy.engine import URL

from marcod.database.engine import Database

pytestmark = pytest.mark.parametrize("backend", ["postgres"], indirect=True)


@pytest.fixture
def used(db: Database) -> tuple[Database, URL, reuse.New]:
    return db, db.url, reuse.look(db.url)


def test_rows_and_their_numbers_are_gone(used: tuple[Database, URL, reuse.New]) -> None:
    db, url, new = used
    first = factories.register_source(db)
    db.close()
    assert reuse.empty(url, new)
    assert reuse.look(url) == new
    assert factories.register_source(db) == first


@pytest.mark.parametrize(
    "change",
    [
        "create table extra (id int)", "drop table delivery", "alter table image add column extra int",
        "create index extra on image (path)", "create or replace view hits as select 1 as one",
        "grant select on image to public", "analyze source", "comment on table image is 'other'",
        "create function extra() returns int language sql as 'select 1'",
        "alter database {name} set default_transaction_read_only = on",
    ],
)  # fmt: skip
def test_more_than_rows_shows(used: tuple[Database, URL, reuse.New], change: str) -> None:
    db, url, new = used
    factories.register_source(db)
    db.close()
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(change.format(name=url.database))
    assert not reuse.empty(url, new)
