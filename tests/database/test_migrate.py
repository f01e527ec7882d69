"""The schema: steps up and down, one truth with the code's tables, and nobody works on one they do not know."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from factories import promote, record, register, register_source, rows, sightings
from later_steps import ADDING, BREAKING, LAST
from populated import populate
from unreleased import before_release, everything

from marcod.database import migrate, revisions
from marcod.database.engine import Database
from marcod.database.revisions import SchemaState
from marcod.database.schema import image, inspection, metadata, plate, schema_mark
from marcod.domain import text_path
from marcod.errors import SchemaError


def names(db: Database) -> tuple[set[str], set[str]]:
    """Tables and views."""

    def work(connection: sa.Connection) -> tuple[set[str], set[str]]:
        inspector = sa.inspect(connection)
        return set(inspector.get_table_names()), set(inspector.get_view_names())

    return db.read(work)


def view_files() -> set[str]:
    """The views that files define; ``NAME.0011.sql`` is the same view as step 0011 defines it."""
    return {path.name.split(".")[0] for path in (revisions.folder() / "views").glob("*.sql")}


def set_revision(db: Database, revision: str) -> None:
    db.write(lambda c: c.execute(sa.text("update alembic_version set version_num = :r"), {"r": revision}))


@pytest.mark.slow
def test_up_down_and_up_again(empty_db: Database) -> None:
    assert revisions.state(empty_db) is SchemaState.EMPTY
    for _ in range(2):
        migrate.upgrade(empty_db)
        assert revisions.state(empty_db) is SchemaState.CURRENT
        tables, views = names(empty_db)
        assert tables == set(metadata.tables) | {"alembic_version"}
        assert views <= view_files()
        assert {"lims_image_score_v1", "lims_plate_summary_v1"} <= views
        migrate.downgrade(empty_db, "base")
        assert names(empty_db) == ({"alembic_version"}, set())
        assert revisions.state(empty_db) is SchemaState.EMPTY


@pytest.mark.slow
def test_one_step_at_a_time(empty_db: Database, to_come: Path) -> None:
    from alembic.script import ScriptDirectory

    steps = [step.revision for step in ScriptDirectory(str(to_come)).walk_revisions()][::-1]
    assert steps == [*revisions.known().revisions, ADDING, BREAKING, LAST]
    for step in steps:
        migrate.upgrade(empty_db, step, scripts=to_come)
        expected = SchemaState.CURRENT if step == steps[-1] else SchemaState.OLDER
        assert revisions.state(empty_db, to_come) is expected
    for step in [*steps[-2::-1], "base"]:
        migrate.downgrade(empty_db, step, to_come)
        assert revisions.state(empty_db, to_come) is (SchemaState.EMPTY if step == "base" else SchemaState.OLDER)


def test_the_steps_make_the_tables_the_code_knows(db: Database) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    assert db.read(differences) == []


def _constraint_names(connection: sa.Connection) -> set[tuple[str, str]]:
    inspector = sa.inspect(connection)
    found = set()
    for table in metadata.tables:
        found.add((table, str(inspector.get_pk_constraint(table)["name"])))
        found |= {(table, str(key["name"])) for key in inspector.get_foreign_keys(table)}
        found |= {(table, str(key["name"])) for key in inspector.get_unique_constraints(table)}
        found |= {(table, str(key["name"])) for key in inspector.get_check_constraints(table)}
        found |= {(table, str(i["name"])) for i in inspector.get_indexes(table) if not i.get("duplicates_constraint")}
    return found


def _partial_indexes(connection: sa.Connection) -> set[tuple[str, str]]:
    inspector = sa.inspect(connection)
    found = set()
    for table in metadata.tables:
        for index in inspector.get_indexes(table):
            where = index.get("dialect_options", {}).get(f"{connection.dialect.name}_where")
            if where is not None:
                found.add((str(index["name"]), str(where).lower().strip("()")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("told", [_constraint_names, _partial_indexes])
def test_names_and_conditions_are_those_of_the_code(db: Database, empty_db: Database, told: Any) -> None:
    """What Alembic's own comparison does not look at."""
    empty_db.write(metadata.create_all)
    assert db.read(told) == empty_db.read(told)
    assert db.read(told)


def test_an_empty_database_is_made_ready(empty_db: Database) -> None:
    migrate.require_current(empty_db)
    assert revisions.state(empty_db) is SchemaState.CURRENT
    migrate.require_current(empty_db)
    migrate.upgrade(empty_db)


def test_a_schema_from_the_future_is_left_alone(db: Database) -> None:
    set_revision(db, "9999")
    db.write(lambda c: c.execute(sa.update(schema_mark).values(oldest_revision="9998")))
    assert revisions.state(db) is SchemaState.UNKNOWN
    for attempt in (migrate.require_current, migrate.upgrade):
        with pytest.raises(SchemaError, match="is newer than this marcod; install the marcod that made it"):
            attempt(db)
    assert revisions.state(db) is SchemaState.UNKNOWN


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["0001", "0005", "0009"])
def test_a_schema_from_before_the_first_release_is_left_alone(db: Database, revision: str) -> None:
    populate(db)
    before_release(db, revision)
    db.close()
    before = everything(db)
    assert revisions.state(db) is SchemaState.UNRELEASED
    said = f"the schema of {db} is of a marcod before the first release, which cannot be upgraded;"
    for attempt in (migrate.require_current, migrate.upgrade, partial(migrate.upgrade, force=True)):
        with pytest.raises(SchemaError) as refused:
            attempt(db)
        assert str(refused.value).startswith(f"{said} name a new database in store.url; `marcod run` ")
    db.close()
    assert everything(db) == before


def test_tables_of_somebody_else_are_left_alone(empty_db: Database) -> None:
    empty_db.write(lambda c: c.execute(sa.text("create table image (id integer primary key)")))
    assert revisions.state(empty_db) is SchemaState.UNKNOWN
    with pytest.raises(SchemaError):
        migrate.require_current(empty_db)
    assert names(empty_db)[0] == {"image"}


def test_a_step_that_fails_leaves_nothing_behind(empty_db: Database) -> None:
    empty_db.write(lambda c: c.execute(sa.text("create table score (id integer primary key)")))
    with pytest.raises(Exception, match="score"):
        migrate.upgrade(empty_db)
    assert names(empty_db)[0] == {"score"}


def test_two_threads_may_upgrade_at_once(empty_db_url: str) -> None:
    together = Barrier(2)

    def upgrade(_: int) -> SchemaState:
        db = Database(empty_db_url)
        together.wait()
        migrate.require_current(db)
        found = revisions.state(db)
        db.close()
        return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(upgrade, range(2))) == [SchemaState.CURRENT] * 2


@pytest.mark.slow
def test_two_processes_may_upgrade_at_once(empty_db_url: str, empty_db: Database) -> None:
    code = (
        "import sys; from marcod.database import migrate; from marcod.database.engine import Database\n"
        "db = Database(sys.argv[1]); print('ready', flush=True); sys.stdin.readline(); migrate.upgrade(db); db.close()"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_db_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(migrate.__file__).parents[2])},
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert revisions.state(empty_db) is SchemaState.CURRENT


def test_a_plate_whose_name_steers_a_terminal_is_found_again(db: Database) -> None:
    odd = {"plate": "P\n1", "inspection": "day1\x852", "barcode": "B\u202e1", "profile": "\x1b[31m"}
    (seen,) = sightings(1, **odd)
    source_id = register_source(db)
    promote(db, register(db))
    assert record(db, source_id, [seen]).new == 1
    done = record(db, source_id, [seen])
    assert (done.new, done.changed) == (0, 0)
    # What a name says with a backslash is another name, and so is every further inspection.
    twin, next_one = sightings(1, **(odd | {"plate": "P\\x0a1"})), sightings(1, **(odd | {"inspection": "day1\x8510"}))
    assert record(db, source_id, [seen, *twin, *next_one]).new == 2
    keys = rows(db, sa.select(plate.c.key, plate.c.barcode).order_by(plate.c.id))
    assert keys == [("P\\x0a1", "B\\xe2\\x80\\xae1"), ("P\\x5cx0a1", "B\\xe2\\x80\\xae1")]
    assert rows(db, sa.select(image.c.profile).distinct()) == [("\\x1b[31m",)]
    of_plate = sa.select(inspection.c.key).where(inspection.c.plate_id == 1)
    ordered = [row[0] for row in rows(db, of_plate.order_by(inspection.c.order_key))]
    assert [text_path(key) for key in ordered] == ["day1\x852", "day1\x8510"]
