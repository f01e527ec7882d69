"""Notices of the database: heard once they are committed, however many listen, and never relied on."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from factories import utc
from waiting import wait_until

from marcod.database import notices
from marcod.database.engine import Database
from marcod.database.notices import NoticeLine, Waker
from marcod.store import audit_log

on_postgres = pytest.mark.parametrize("backend", ["postgres"], indirect=True)
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)

CHANNEL = "marcod_test"
LONG_S = 60.0
LISTENERS = "select pid from pg_stat_activity where datname = current_database() and query like 'listen %'"


def say(connection: sa.Connection, times: int = 1) -> None:
    audit_log.write(connection, "test", "say", "something", {}, utc())
    for _ in range(times):
        notices.announce(connection, CHANNEL)


@pytest.fixture
def line(db: Database) -> Iterator[NoticeLine]:
    """A line that is open and has told nothing yet."""
    with closing(NoticeLine(db, [CHANNEL])) as made:
        assert made.wait(0.0)
        made.clear()
        yield made


def test_a_commit_of_another_process_is_heard(db: Database, db_url: str, line: NoticeLine) -> None:
    with closing(Database(db_url)) as other:
        threading.Timer(0.05, other.write, [say]).start()
        assert line.wait(LONG_S)
        other.write(say)
        assert line.wait(LONG_S)
    assert not line.wait(0.0)


def test_an_announcement_of_this_process_is_heard_without_a_look(db: Database) -> None:
    with closing(NoticeLine(db, [CHANNEL], look_s=10 * LONG_S)) as line:
        assert line.wait(0.0)
        threading.Timer(0.05, db.write, [say]).start()
        assert line.wait(LONG_S)
        assert not line.wait(0.0)
    db.write(say)


def test_several_announcements_of_one_transaction_are_one_notice(db: Database, line: NoticeLine) -> None:
    db.write(say, 5)
    assert line.wait(LONG_S)
    assert not line.wait(0.0)


@on_sqlite
def test_what_came_before_the_wait_is_heard_and_what_was_cleared_is_not(db: Database, line: NoticeLine) -> None:
    db.write(say)
    assert line.wait(0.0)
    db.write(say)
    line.clear()
    assert not line.wait(0.0)


def test_what_was_not_committed_is_not_heard(db: Database, line: NoticeLine) -> None:
    def broken(connection: sa.Connection) -> None:
        say(connection)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        db.write(broken)
    assert not line.wait(0.0)


def test_every_line_hears_every_notice(db: Database, line: NoticeLine) -> None:
    with closing(NoticeLine(db, [CHANNEL])) as second:
        assert second.wait(0.0)
        second.clear()
        db.write(say)
        assert line.wait(LONG_S)
        assert second.wait(LONG_S)


def test_a_wait_ends_when_it_is_to_stop_or_somebody_wakes_it(db: Database) -> None:
    waker, stop = Waker(), threading.Event()
    with closing(NoticeLine(db, [CHANNEL], waker=waker)) as line:
        assert line.wait(LONG_S)
        line.clear()
        threading.Timer(0.05, waker.wake).start()
        assert line.wait(LONG_S)
        threading.Timer(0.05, stop.set).start()
        assert not line.wait(LONG_S, stop)
        assert not line.wait(LONG_S, stop)


@on_postgres
def test_a_line_that_the_server_cuts_comes_back_and_tells_at_once_to_look(db: Database, line: NoticeLine) -> None:
    """What was announced while nobody listened is not heard, so the line that is back counts as a notice."""
    cut = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where pid in"
    assert db.write(lambda c: c.execute(sa.text(f"{cut} ({LISTENERS})")).scalar_one()) == 1
    db.write(say)
    assert line.wait(LONG_S)
    line.clear()
    db.write(say)
    assert line.wait(LONG_S)


@on_postgres
def test_the_line_is_not_one_of_the_pools_connections(db: Database, line: NoticeLine) -> None:
    (listening,) = db.read(lambda c: c.execute(sa.text(LISTENERS)).scalars().all())
    assert db.read(lambda c: c.execute(sa.text("select pg_backend_pid()")).scalar_one()) != listening
    db.close()
    db.write(say)
    assert line.wait(LONG_S)
    line.close()
    wait_until(
        lambda: not db.read(lambda c: c.execute(sa.text(LISTENERS)).scalars().all()), "the server's process to end"
    )


@on_sqlite
def test_a_file_that_was_put_in_the_place_of_the_database_is_listened_to(
    db: Database, line: NoticeLine, tmp_path: Path
) -> None:
    path = Path(str(db.url.database))
    db.close()
    copy = shutil.copy(path, tmp_path / "copy")
    Path(copy).replace(path)
    assert line.wait(LONG_S)
    line.clear()
    db.write(say)
    assert line.wait(LONG_S)


def test_a_database_that_cannot_be_reached_ends_a_wait_in_time() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        db = Database(f"postgresql://lab:secret@127.0.0.1:{unused.getsockname()[1]}/marcod")
        with closing(NoticeLine(db, [CHANNEL])) as line:
            line.clear()
            assert not line.wait(0.05)
            assert not line.wait(0.05)
