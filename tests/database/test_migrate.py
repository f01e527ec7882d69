"""The schema: steps up and down, one truth with the code's tables, and nobody works on one they do not know."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from factories import promote, record, register, rows, sightings, utc

from marcod.catalog.deliveries import Sighting
from marcod.database import migrate
from marcod.database.engine import Database, insert
from marcod.database.migrate import SchemaState
from marcod.database.schema import drop, image, inspection, metadata, plate, schema_mark, source
from marcod.domain import text_path
from marcod.errors import SchemaError


def names(db: Database) -> tuple[set[str], set[str]]:
    """Tables and views."""

    def work(connection: sa.Connection) -> tuple[set[str], set[str]]:
        inspector = sa.inspect(connection)
        return set(inspector.get_table_names()), set(inspector.get_view_names())

    return db.read(work)


def view_files() -> set[str]:
    """The views that files define; ``NAME.0002.sql`` is the same view as step 0002 defines it anew."""
    return {path.name.split(".")[0] for path in (migrate.folder() / "views").glob("*.sql")}


def set_revision(db: Database, revision: str) -> None:
    db.write(lambda c: c.execute(sa.text("update alembic_version set version_num = :r"), {"r": revision}))


def test_up_down_and_up_again(empty_db: Database) -> None:
    assert migrate.state(empty_db) is SchemaState.EMPTY
    for _ in range(2):
        migrate.upgrade(empty_db)
        assert migrate.state(empty_db) is SchemaState.CURRENT
        tables, views = names(empty_db)
        assert tables == set(metadata.tables) | {"alembic_version"}
        assert views <= view_files()
        assert {"lims_image_score_v1", "lims_plate_summary_v1"} <= views
        migrate.downgrade(empty_db, "base")
        assert names(empty_db) == ({"alembic_version"}, set())
        assert migrate.state(empty_db) is SchemaState.EMPTY


def test_one_step_at_a_time(empty_db: Database) -> None:
    from alembic.script import ScriptDirectory

    steps = [step.revision for step in ScriptDirectory(str(migrate.folder())).walk_revisions()][::-1]
    for step in steps:
        migrate.upgrade(empty_db, step)
        expected = SchemaState.CURRENT if step == steps[-1] else SchemaState.OLDER
        assert migrate.state(empty_db) is expected
    for step in [*steps[-2::-1], "base"]:
        migrate.downgrade(empty_db, step)
        assert migrate.state(empty_db) is (SchemaState.EMPTY if step == "base" else SchemaState.OLDER)


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


@pytest.mark.parametrize("told", [_constraint_names, _partial_indexes])
def test_names_and_conditions_are_those_of_the_code(db: Database, empty_db: Database, told: Any) -> None:
    """What Alembic's own comparison does not look at."""
    empty_db.write(metadata.create_all)
    assert db.read(told) == empty_db.read(told)
    assert db.read(told)


def test_an_empty_database_is_made_ready(empty_db: Database) -> None:
    migrate.require_current(empty_db)
    assert migrate.state(empty_db) is SchemaState.CURRENT
    migrate.require_current(empty_db)
    migrate.upgrade(empty_db)


def test_a_schema_from_the_future_is_left_alone(db: Database) -> None:
    set_revision(db, "9999")
    db.write(lambda c: c.execute(sa.update(schema_mark).values(oldest_revision="9998")))
    assert migrate.state(db) is SchemaState.UNKNOWN
    for attempt in (migrate.require_current, migrate.upgrade):
        with pytest.raises(SchemaError, match="is newer than this marcod; install the marcod that made it"):
            attempt(db)
    assert migrate.state(db) is SchemaState.UNKNOWN


def test_tables_of_somebody_else_are_left_alone(empty_db: Database) -> None:
    empty_db.write(lambda c: c.execute(sa.text("create table image (id integer primary key)")))
    assert migrate.state(empty_db) is SchemaState.UNKNOWN
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
        found = migrate.state(db)
        db.close()
        return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(upgrade, range(2))) == [SchemaState.CURRENT] * 2


def test_two_processes_may_upgrade_at_once(empty_db_url: str, empty_db: Database) -> None:
    code = (
        "import sys; from marcod.store import migrate; from marcod.database.engine import Database\n"
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
    assert migrate.state(empty_db) is SchemaState.CURRENT


def test_paths_that_steer_a_terminal_are_written_as_they_are_looked_up_now(empty_db: Database) -> None:
    roots = ["/plain", "/line\nbreak", "/turned\u202eback", "/back\\x5cslash"]
    migrate.upgrade(empty_db, "0004")
    statement = "insert into source (name, root, layout, reading, created_at) values (:name, :root, 'hwi', '', :now)"
    rows = [{"name": str(n), "root": root, "now": "2026-01-01 00:00:00"} for n, root in enumerate(roots)]
    empty_db.write(lambda c: c.execute(sa.text(statement), rows))
    migrate.upgrade(empty_db)
    found = empty_db.read(
        lambda c: c.execute(sa.text("select root from source_root order by source_id")).scalars().all()
    )
    assert found == ["/plain", "/line\\x0abreak", "/turned\\xe2\\x80\\xaeback", "/back\\x5cslash"]
    assert [text_path(root) for root in found] == ["/plain", "/line\nbreak", "/turned\u202eback", "/back\\slash"]


def as_step_0004_wrote_it(db: Database, seen: Sighting) -> None:
    """A source 1 with a plate, an inspection, a drop and an image whose names stand as they are on the disk."""
    name, now = seen.image, utc()
    held = {"plate_id": 1, "drop_id": 1, "inspection_id": 1, "source_id": 1}
    read = {"size": seen.size, "mtime_ns": seen.mtime_ns, "seen_at": now}
    as_it_was = sa.Table("source", sa.MetaData(), *(sa.Column(c.name, c.type) for c in source.c), sa.Column("root"))
    plate_then = sa.Table("plate", sa.MetaData(), *(sa.Column(c.name, c.type) for c in plate.c))
    values: dict[sa.Table, dict[str, Any]] = {
        as_it_was: {"name": "imager", "root": "/plates", "layout": "rigaku", "reading": "", "created_at": now},
        plate_then: {"key": name.plate_key, "barcode": name.barcode, "first_seen_at": now},
        inspection: {"key": name.inspection_key, "order_key": "day" + "0" * 19 + "1\x85" + "0" * 19 + "2"},
        drop: {"well": name.well, "well_row": name.row, "well_column": name.column, "drop_number": name.drop},
        image: {"path": seen.path, "modality": "visible", "profile": name.profile, **read},
    }
    values[inspection] |= {"first_seen_at": now}
    for table, row in values.items():
        whole = {column: value for column, value in held.items() if column in table.c} | row
        db.write(lambda c, t=table, v=whole: c.execute(insert(c, t).values(v)))


def test_a_plate_whose_name_steers_a_terminal_is_found_after_the_upgrade(empty_db: Database) -> None:
    odd = {"plate": "P\n1", "inspection": "day1\x852", "barcode": "B\u202e1", "profile": "\x1b[31m"}
    (seen,) = sightings(1, **odd)
    migrate.upgrade(empty_db, "0004")
    as_step_0004_wrote_it(empty_db, seen)
    migrate.upgrade(empty_db)
    promote(empty_db, register(empty_db))
    done = record(empty_db, 1, [seen])
    assert (done.new, done.changed) == (0, 0)
    # What a name says with a backslash is another name, and so is every further inspection.
    twin, next_one = sightings(1, **(odd | {"plate": "P\\x0a1"})), sightings(1, **(odd | {"inspection": "day1\x8510"}))
    assert record(empty_db, 1, [seen, *twin, *next_one]).new == 2
    keys = rows(empty_db, sa.select(plate.c.key, plate.c.barcode).order_by(plate.c.id))
    assert keys == [("P\\x0a1", "B\\xe2\\x80\\xae1"), ("P\\x5cx0a1", "B\\xe2\\x80\\xae1")]
    assert rows(empty_db, sa.select(image.c.profile).distinct()) == [("\\x1b[31m",)]
    of_plate = sa.select(inspection.c.key).where(inspection.c.plate_id == 1)
    ordered = [row[0] for row in rows(empty_db, of_plate.order_by(inspection.c.order_key))]
    assert [text_path(key) for key in ordered] == ["day1\x852", "day1\x8510"]
