"""Transactions: whole or not at all, again after a passing fault, one clear sentence after a lasting one."""

import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest
import sqlalchemy as sa
from factories import record, rows, sightings, utc

from marcod.database import workers
from marcod.database.engine import Database, is_passing
from marcod.database.schema import audit, worker
from marcod.errors import MarcodError, NotFoundError, StoreError
from marcod.store import audit_log
from marcod.store.versions import Version

on_postgres = pytest.mark.parametrize("backend", ["postgres"], indirect=True)
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def note(connection: sa.Connection, subject: str) -> None:
    audit_log.write(connection, "test", "try", subject, {}, utc())


def subjects(db: Database) -> list[str]:
    return sorted(row[0] for row in rows(db, sa.select(audit.c.subject)))


def test_a_failed_transaction_leaves_nothing(db: Database) -> None:
    def work(connection: sa.Connection) -> None:
        note(connection, "half")
        raise NotFoundError

    with pytest.raises(NotFoundError):
        db.write(work)
    assert subjects(db) == []


def test_a_broken_rule_is_the_callers_fault_and_not_tried_again(db: Database) -> None:
    calls = []

    def work(connection: sa.Connection) -> None:
        calls.append(1)
        connection.execute(sa.text("insert into model_alias values ('champion', 99, :now)"), {"now": str(utc())})

    with pytest.raises(sa.exc.IntegrityError):
        db.write(work)
    assert calls == [1]


@on_postgres
def test_both_of_two_deadlocked_transactions_succeed(db: Database) -> None:
    for name in ("a", "b"):
        db.write(lambda c, name=name: workers.beat(c, name, "host", 1, "score", utc()))
    together = Barrier(2)
    calls: list[str] = []

    def touch(first: str, second: str) -> None:
        def work(connection: sa.Connection) -> None:
            note(connection, first)
            connection.execute(sa.update(worker).where(worker.c.name == first).values(pid=worker.c.pid + 1))
            if calls.count(first) == 0:
                calls.append(first)
                together.wait(timeout=20)
            else:
                calls.append(first)
            connection.execute(sa.update(worker).where(worker.c.name == second).values(pid=worker.c.pid + 1))

        db.write(work)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(touch, "a", "b"), pool.submit(touch, "b", "a")]:
            future.result(timeout=60)
    assert len(calls) == 3
    assert subjects(db) == ["a", "b"]
    assert rows(db, sa.select(worker.c.pid)) == [(3,), (3,)]


@on_postgres
def test_a_transaction_whose_connection_was_killed_is_run_again_whole(db: Database, db_url: str) -> None:
    other = Database(db_url)
    killed: list[int] = []

    def work(connection: sa.Connection) -> None:
        note(connection, "once")
        if not killed:
            killed.append(connection.execute(sa.text("select pg_backend_pid()")).scalar_one())
            other.write(lambda c: c.execute(sa.text("select pg_terminate_backend(:pid)"), {"pid": killed[0]}))
        note(connection, "twice")

    db.write(work)
    other.close()
    assert len(killed) == 1
    assert subjects(db) == ["once", "twice"]


@on_postgres
def test_idle_connections_that_were_killed_do_no_harm(db: Database, db_url: str) -> None:
    db.write(lambda c: note(c, "before"))
    other = Database(db_url)
    kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
    other.write(lambda c: c.execute(sa.text(f"{kill} and pid <> pg_backend_pid()")))
    other.close()
    db.write(lambda c: note(c, "after"))
    assert subjects(db) == ["after", "before"]


def test_a_server_that_is_not_there_is_one_sentence_without_the_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        db = Database(f"postgresql://lab:secret@127.0.0.1:{unused.getsockname()[1]}/marcod", patience_s=0.01)
        with pytest.raises(StoreError) as caught:
            db.read(lambda c: None)
    message = str(caught.value)
    assert message.startswith("database postgresql://lab:***@127.0.0.1:")
    assert "cannot be used: connection" in message
    assert "\n" not in message
    assert "secret" not in message
    db.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="an in-memory SQLite database forgets everything"):
        Database(url)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the database folder .*/file/below cannot be made: Not a directory"):
        Database(f"sqlite:///{tmp_path}/file/below/marcod.sqlite")


def test_a_folder_in_place_of_the_file_is_one_sentence(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}")
    with pytest.raises(
        StoreError,
        match=r"^database sqlite:///.* cannot be used: unable to open database file; .* is not a file; correct",
    ):
        db.read(lambda c: None)


def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "marcod.sqlite"
    path.write_bytes(b"\xff\xd8\xff\xe0 an image is not a database" * 99)
    db = Database(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=r"cannot be used: file is not a database; correct store.url, or put a copy"):
        db.write(lambda c: note(c, "x"))


def test_missing_folders_are_made(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/new/folder/marcod.sqlite")
    assert db.read(lambda c: c.execute(sa.text("select 1")).scalar_one()) == 1
    assert db.read(lambda c: c.execute(sa.text("pragma journal_mode")).scalar_one()) == "wal"
    db.close()


def test_readers_do_not_wait_for_a_writer_and_see_only_what_is_whole(db: Database) -> None:
    half_done, may_end = Event(), Event()

    def work(connection: sa.Connection) -> None:
        note(connection, "new")
        half_done.set()
        assert may_end.wait(timeout=20)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(db.write, work)
        assert half_done.wait(timeout=20)
        assert subjects(db) == []
        assert not writing.done()
        may_end.set()
        writing.result(timeout=20)
    assert subjects(db) == ["new"]


def test_writers_that_read_first_follow_one_another(db: Database) -> None:
    """Reading first and writing later is what fails at once in SQLite unless the writer begins as a writer."""
    db.write(lambda c: workers.beat(c, "w", "host", 0, "score", utc()))
    together = Barrier(4)

    def work(connection: sa.Connection) -> None:
        (held,) = connection.execute(sa.select(worker.c.pid).where(worker.c.name == "w").with_for_update()).one()
        connection.execute(sa.update(worker).values(pid=held + 1))

    def many() -> None:
        together.wait()
        for _ in range(25):
            db.write(work)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(many) for _ in range(4)]:
            future.result(timeout=60)
    assert rows(db, sa.select(worker.c.pid)) == [(100,)]


@on_sqlite
def test_a_busy_database_is_tried_again(db: Database, db_url: str) -> None:
    calls = []

    def work(connection: sa.Connection) -> None:
        calls.append(1)
        note(connection, "once")
        if len(calls) == 1:
            raise sa.exc.OperationalError("insert", {}, sqlite3.OperationalError("database is locked"))

    db.write(work)
    assert len(calls) == 2
    assert subjects(db) == ["once"]


def test_patience_ends(db_url: str) -> None:
    db = Database(db_url, patience_s=0.0)
    calls = []

    def work(connection: sa.Connection) -> None:
        calls.append(1)
        raise sa.exc.OperationalError("insert", {}, sqlite3.OperationalError("database is locked"))

    with pytest.raises(StoreError, match="cannot be used: database is locked"):
        db.write(work)
    assert calls == [1]
    db.close()


def test_only_faults_of_the_database_are_passing() -> None:
    assert not is_passing(ValueError("connection lost"))
    assert not is_passing(MarcodError("locked"))
    assert not is_passing(sa.exc.OperationalError("x", {}, sqlite3.OperationalError("no such table: job")))


def test_times_without_a_zone_never_reach_the_database(db: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="a time without a zone"):
        db.write(lambda c: workers.beat(c, "w", "host", 1, "score", utc().replace(tzinfo=None)))


@on_postgres
def test_a_server_refuses_every_change_of_who_only_reads(db: Database, db_url: str) -> None:
    reader = Database(db_url, read_only=True, patience_s=0.0)
    assert reader.read(lambda c: c.execute(sa.text("show transaction_read_only")).scalar_one()) == "on"
    assert reader.read(lambda c: c.execute(sa.text("show default_transaction_read_only")).scalar_one()) == "off"
    with pytest.raises(StoreError, match="read-only transaction"):
        reader.write(lambda c: note(c, "mine"))
    assert subjects(reader) == []
    reader.close()


@on_sqlite
def test_sqlite_knows_how_large_its_tables_are(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(50))
    db.refresh_statistics()
    counted = dict(rows(db, sa.text("select tbl, max(cast(stat as integer)) from sqlite_stat1 group by tbl")))
    assert counted["image"] == counted["job"] == 50
