"""Databases that are away, full, locked, read-only or replaced: one sentence while it lasts, and then work goes on."""

import re
import resource
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from factories import rows, utc
from fault_tools import Network, limited, no_file_left_to_open, ordinary_user
from waiting import wait_until
from watched_site import Site, well_image

from marcod.database import engine, workers
from marcod.database.engine import Database
from marcod.database.schema import audit, worker
from marcod.errors import StoreError
from marcod.store.audit_log import write as note
from marcod.watch.loop import LONGEST_PAUSE_S

on_postgres = pytest.mark.parametrize("backend", ["postgres"], indirect=True)
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)

SESSION = ("lock_timeout", "idle_in_transaction_session_timeout")


def write(db: Database, subject: str) -> None:
    db.write(lambda c: note(c, "test", "try", subject, {}, utc()))


def subjects(db: Database) -> list[str]:
    return sorted(row[0] for row in rows(db, sa.select(audit.c.subject)))


def refused(db: Database, reason: str) -> None:
    with pytest.raises(StoreError, match=f"^database .* cannot be used: .*{reason}"):
        write(db, "lost")


@pytest.fixture
def impatient(db_url: str) -> Iterator[Database]:
    """The database of the test, which gives up at once."""
    database = Database(db_url, patience_s=0.0)
    yield database
    database.close()


# A network, and the server behind it


def test_a_server_that_was_offline_is_used_again(network: Network, server: Database) -> None:
    far = Database(network.url, patience_s=0.0)
    write(far, "before the outage")
    network.cut()
    for _ in range(3):
        refused(far, "(Connection refused|server closed the connection)")
    network.restore()
    write(far, "after the outage")
    far.close()
    assert {"before the outage", "after the outage"} <= set(subjects(server))


def test_an_outage_shorter_than_the_patience_is_not_noticed(network: Network, server: Database) -> None:
    far = Database(network.url)
    tries = []

    def work(connection: sa.Connection) -> None:
        tries.append(1)
        if len(tries) == 1:
            network.cut()
        note(connection, "test", "try", "a short outage", {}, utc())

    @sa.event.listens_for(far.engine, "handle_error")
    def back(_: object) -> None:
        if not network.is_up:
            network.restore()

    far.write(work)
    far.close()
    assert len(tries) == 2
    assert subjects(server).count("a short outage") == 1


def wire(connection: sa.Connection) -> dict[str, int]:
    """The options of a connection's socket."""
    names = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    number = connection.connection.dbapi_connection.fileno()  # type: ignore[union-attr]
    with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as end:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        return {name: end.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}


def test_a_network_that_swallows_packets_is_given_up_after_40_seconds(network: Network) -> None:
    db = Database(network.url)
    with db.engine.connect() as connection:
        found = wire(connection)
        held = [connection.exec_driver_sql(f"show {name}").scalar_one() for name in SESSION]
    db.close()
    assert found == {"TCP_USER_TIMEOUT": 40_000, "TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
    assert held == ["1min", "5min"]
    chosen = Database(f"{network.url}?tcp_user_timeout=9000&application_name=lab")
    with chosen.engine.connect() as connection:
        assert wire(connection) == found | {"TCP_USER_TIMEOUT": 9000}
        assert connection.exec_driver_sql("show application_name").scalar_one() == "lab"
    chosen.close()


def test_a_row_that_somebody_holds_is_one_sentence(server: Database, server_url: str) -> None:
    server.write(lambda c: workers.beat(c, "w", "host", 1, "score", utc()))
    change = sa.update(worker).values(pid=2)
    with server.engine.begin() as forgotten:
        forgotten.execute(change)
        hurried = Database(server_url, patience=engine.Patience(lock_s=0.05, retry_s=0.0))
        with pytest.raises(StoreError, match="canceling statement due to lock timeout"):
            hurried.write(lambda c: c.execute(change))
    hurried.write(lambda c: c.execute(change))
    hurried.close()


def test_too_many_connections_are_one_sentence_and_pass(server: Database, server_url: str) -> None:
    role = f"{server.url.database}_one"
    server.write(lambda c: c.exec_driver_sql(f"create role {role} login connection limit 1 password 'x'"))
    url = sa.make_url(server_url).set(username=role, password="x").render_as_string(hide_password=False)
    one, other = Database(url), Database(url, patience_s=0.0)
    try:
        with one.engine.connect(), pytest.raises(StoreError, match="too many connections for role"):
            other.read(lambda c: None)
        one.close()
        # The server's process outlives the connection by a moment.
        left = sa.text("select count(*) from pg_stat_activity where usename = :role")
        wait_until(lambda: not server.read(lambda c: c.execute(left, {"role": role}).scalar()), "the connection to end")
        other.read(lambda c: None)
    finally:
        one.close()
        other.close()
        server.write(lambda c: c.exec_driver_sql(f"drop role {role}"))


def test_a_server_that_only_reads_is_left_for_one_that_writes(server: Database, server_url: str) -> None:
    """A failover leaves connections to the old primary, which answer every ping and refuse every write."""
    db = Database(server_url, patience_s=0.0)

    def default(mode: str) -> None:
        # Like a failover it changes new sessions only: the old ones stay as they are.
        text = f'alter database "{server.url.database}" set default_transaction_read_only = {mode}'
        server.write(lambda c: c.exec_driver_sql(text))

    default("on")
    refused(db, "read-only transaction")
    default("off")
    write(db, "after the failover")
    db.close()
    assert "after the failover" in subjects(server)


@on_postgres
def test_a_full_disk_of_the_server_is_waited_for(site: Site) -> None:
    full = "create function full_disk() returns trigger language plpgsql as $$ begin raise exception using "
    full += "errcode = '53100', message = 'could not extend file \"base/1/2\": No space left on device'; end $$"
    trigger = "create trigger full_disk before insert on image execute function full_disk()"
    site.db.write(lambda c: [c.exec_driver_sql(text) for text in (full, trigger)])
    for well in range(1, 4):
        site.put(well_image(well))
    site.settle()
    site.step(LONGEST_PAUSE_S)
    assert (site.images(), site.status.pending) == ({}, 3)
    site.db.write(lambda c: c.exec_driver_sql("drop trigger full_disk on image"))
    site.step(LONGEST_PAUSE_S)
    assert len(site.images()) == site.jobs() == 3


@on_sqlite
def test_every_connection_in_use_is_one_sentence(impatient: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impatient.engine.pool, "_timeout", 0.01)
    taken = [impatient.engine.connect() for _ in range(15)]
    refused(impatient, "every connection to it is taken")
    for connection in taken:
        connection.close()
    write(impatient, "after")


# SQLite: the disk and the file


def room_of(db: Database) -> int:
    """Bytes in which no transaction more has room: what the write-ahead log has already."""
    log = Path(f"{db.url.database}-wal")
    return log.stat().st_size if log.exists() else 0


@on_sqlite
def test_a_disk_that_takes_no_byte_more_is_waited_for(site: Site) -> None:
    site.db.write(lambda c: workers.beat(c, "w", "host", 1, "watch", utc()))
    site.db._patience_s = 0.0
    for well in range(1, 4):
        site.put(well_image(well))
    site.step()
    with limited(resource.RLIMIT_FSIZE, room_of(site.db)):
        site.step(10.0)
        site.step(LONGEST_PAUSE_S)
        assert site.status.pending == 3
    assert site.images() == {}
    site.step(LONGEST_PAUSE_S)
    assert len(site.images()) == site.jobs() == 3


@on_sqlite
def test_a_full_database_is_one_sentence_and_passes(impatient: Database) -> None:
    """SQLITE_FULL, which a full disk gives too."""
    write(impatient, "before")

    def pages(most: int) -> Callable[[sa.Connection], object]:
        return lambda c: c.exec_driver_sql(f"pragma max_page_count = {most}").scalar_one()

    with impatient.engine.connect() as connection:
        pages(1)(connection)
    with pytest.raises(
        StoreError, match=r"the disk of .*sqlite is full \(database or disk is full\); free some room there"
    ):
        impatient.write(lambda c: [note(c, "test", "try", "x" * 4000, {}, utc()) for _ in range(99)])
    assert subjects(impatient) == ["before"]
    with impatient.engine.connect() as connection:
        pages(10**6)(connection)
    write(impatient, "after")


@on_sqlite
def test_a_database_that_another_program_keeps_locked(db_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_S", 0.01)
    hurried = Database(db_url, patience_s=0.0)
    with closing(sqlite3.connect(hurried.url.database or "", isolation_level=None)) as other:
        other.execute("begin immediate")
        refused(hurried, "database is locked")
        assert subjects(hurried) == []
        other.execute("commit")
    write(hurried, "after")
    hurried.close()


@on_sqlite
def test_a_file_that_is_gone_is_not_made_again_and_one_that_came_instead_is_used(
    db: Database, impatient: Database, tmp_path: Path
) -> None:
    file = Path(str(impatient.url.database))
    write(impatient, "in the backup")
    db.close()
    impatient.close()
    shutil.copy(file, tmp_path / "backup")
    write(impatient, "later")
    file.unlink()
    refused(impatient, re.escape(f"the file {file} is gone; put it back"))
    assert not file.exists()
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    (tmp_path / "backup").rename(file)
    write(impatient, "after")
    with closing(sqlite3.connect(file)) as reader:
        found = [row[0] for row in reader.execute("select subject from audit order by subject")]
    assert found == ["after", "in the backup"]


@on_sqlite
def test_a_disk_mounted_read_only_for_a_while(db: Database, tmp_path: Path) -> None:
    db.close()
    file = Path(str(db.url.database))
    with ordinary_user(file, tmp_path), closing(sqlite3.connect(file)) as other:
        # Somebody has it open, as another thread of the daemon has: only then can it be opened for reading.
        other.execute("begin immediate")
        other.execute("select count(*) from audit")
        other.execute("rollback")
        hurried = Database(f"sqlite:///{file}", patience_s=0.0)
        try:
            for path, mode in [*((one, 0o444) for one in tmp_path.iterdir()), (tmp_path, 0o555)]:
                path.chmod(mode)
            assert subjects(hurried) == []
            refused(hurried, "attempt to write a readonly database")
        finally:
            for path, mode in [(tmp_path, 0o755), *((one, 0o644) for one in tmp_path.iterdir())]:
                path.chmod(mode)
        write(hurried, "after")
        assert subjects(hurried) == ["after"]
        hurried.close()


@on_sqlite
def test_no_file_left_to_open_is_one_sentence_and_passes(impatient: Database) -> None:
    with no_file_left_to_open():
        refused(impatient, "")
    write(impatient, "after")
    assert subjects(impatient) == ["after"]
