"""The views are what the committed contract says, on both databases, with every column filled."""

import pytest
import sqlalchemy as sa
from populated import populate

from marcod.database import migrate, revisions, roles, views
from marcod.database.engine import Database

VIEWS = views.read(revisions.folder())
PINNED = {view.name: view for view in VIEWS}


def test_every_view_has_a_contract(db: Database) -> None:
    found = db.read(lambda c: sa.inspect(c).get_view_names())
    files = {path.name.split(".")[0] for path in (revisions.folder() / "views").glob("*.sql")}
    assert sorted(found) == sorted({*roles.INTERNAL_VIEWS, *PINNED}) == sorted(files)


def test_every_column_says_what_it_means() -> None:
    for view in VIEWS:
        assert view.about
        assert all(column.about and "\n" not in column.comment and "|" not in column.comment for column in view.columns)
        assert len({column.name for column in view.columns}) == len(view.columns)


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_columns_and_types_on_postgresql(db: Database) -> None:
    statement = sa.text(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = to_regclass(:view) and attnum > 0 and not attisdropped order by attnum"
    )
    for view in VIEWS:
        found = db.read(lambda c, n=view.name: [tuple(row) for row in c.execute(statement, {"view": n})])
        assert found == [(column.name, column.postgresql) for column in view.columns], view.name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_columns_and_types_on_sqlite(db: Database) -> None:
    populate(db)
    for view in VIEWS:
        found = db.read(lambda c, v=view.name: [row[1] for row in c.exec_driver_sql(f"pragma table_info({v})")])
        assert found == [column.name for column in view.columns], view.name
        for column in view.columns:
            statement = f'select distinct typeof("{column.name}") from {view.name} where "{column.name}" is not null'
            kinds = db.read(lambda c, s=statement: list(c.exec_driver_sql(s).scalars()))
            assert kinds == [column.sqlite], f"{view.name}.{column.name}"


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_postgresql_carries_every_comment(db: Database) -> None:
    of_view = sa.text("select obj_description(to_regclass(:view), 'pg_class')")
    of_columns = sa.text(
        "select attname, col_description(attrelid, attnum) from pg_attribute"
        " where attrelid = to_regclass(:view) and attnum > 0 order by attnum"
    )
    for view in VIEWS:
        at = {"view": view.name}
        assert db.read(lambda c, at=at: c.execute(of_view, at).scalar_one()) == view.about
        found = db.read(lambda c, at=at: [tuple(row) for row in c.execute(of_columns, at)])
        assert found == [(column.name, column.comment) for column in view.columns]


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_an_upgrade_corrects_comments_and_writes_no_more(db: Database) -> None:
    assert db.write(lambda c: views.comment(c, VIEWS)) == 0
    db.write(lambda c: c.exec_driver_sql("comment on view lims_hit_v1 is 'something else'"))
    db.write(lambda c: c.exec_driver_sql("comment on column lims_hit_v1.well is null"))
    migrate.upgrade(db)
    assert db.write(lambda c: views.comment(c, VIEWS)) == 0
