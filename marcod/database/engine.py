"""Database engine: opens SQLite or PostgreSQL and runs transactions the same way on both.

SQLite runs in WAL mode with ``BEGIN IMMEDIATE`` for writers, because a transaction that reads first and writes
later would otherwise fail at once when another writer came between. Work is passed in as a function, so that a
passing fault (a dropped connection, a deadlock, a busy database) repeats the whole transaction and never a part.
No call waits for ever, and no connection outlives what it was made for: one to a file that was replaced, or to a
server that has become a standby, is replaced.
"""

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from marcod.database import file_reading, refusals
from marcod.deadline import SilentError, within
from marcod.errors import StoreError, os_reason

T = TypeVar("T")
P = ParamSpec("P")

BUSY_S: Final = 30.0
"""Wait of an SQLite writer for another one, in seconds."""

PATIENCE_S: Final = 10.0
"""Time for which passing faults are retried here, in seconds; beyond it the caller's loop backs off."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a process waits: for a connection, for the locks of others, and over passing faults.

    A connection takes longer where a name stands for several addresses; :func:`reach` bounds that.
    """

    connect_s: int = 5
    busy_s: float | None = None
    lock_s: float = 60.0
    retry_s: float = PATIENCE_S


DAEMON: Final = Patience()

PERSON: Final = Patience(connect_s=2, busy_s=2.5, lock_s=3.0, retry_s=1.0)
"""Patience of a person who waits for an answer."""

REACH_S: Final = 3.0
"""Seconds that a database may take for its first answer to a person."""

_RETRY_STATES: Final = frozenset({"40001", "40P01", "55P03", "57P01", "57P02", "57P03"})
"""PostgreSQL: serialization failure, deadlock, lock not available, and the server shutting down or starting."""

_READ_ONLY: Final = "25006"
"""PostgreSQL: this server or session only reads, as one does that was the primary before a failover."""

_STALE: Final = ("readonly database", "disk i/o error")
"""SQLite: what a connection may go on saying although the disk is well again."""

_NETWORK: Final = {
    "application_name": "marcod",
    "keepalives": 1,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
}
"""A network that swallows packets ends a connection after 40 s. What the URL says instead goes before it."""

_SESSION: Final = (
    "set lock_timeout = {lock_ms}; set idle_in_transaction_session_timeout = '5min'; select clock_timestamp()"
)
"""Nobody waits for ever for a transaction that a person forgot to end, or that died with its host."""

RECYCLE_S: Final = 3_600
"""Age at which a connection is replaced, and the server's clock read again."""

_BEYOND_LIMITS: Final = "54"
"""PostgreSQL: the class of what is too long or too complex, such as a path of more than 2.7 kB that no index takes."""

ANNOUNCED: Final = "marcod_announced"
"""Name in a connection's ``info`` of the channels that its transaction announces on, with SQLite."""

_OUR_FAULT: Final = (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError)
"""Errors of a statement, not of the database; they are raised as they are."""


class Database:
    """One database, shared by the threads of a process on ``host``, by default this one.

    One that is ``read_only`` makes no folder and no file, not even for a moment, and its server refuses to write.
    Raises StoreError from every call when the database cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: Patience = DAEMON,
        patience_s: float | None = None,
        read_only: bool = False,
        host: str | None = None,
    ) -> None:
        try:
            self.url: URL = make_url(url)
        except (ValueError, sa.exc.ArgumentError) as error:
            raise StoreError("the database URL cannot be read; write postgresql://USER:PASSWORD@HOST/NAME") from error
        # The rest of such a password would pass for the host, and be named in every error.
        if "@" in (self.url.host or ""):
            raise StoreError("the database URL has an @ in its password; write it %40")
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.read_only = read_only
        self._patience = patience
        self._patience_s = patience.retry_s if patience_s is None else patience_s
        self._told: tuple[datetime, float] | None = None
        self._lock = threading.Lock()
        self._listening: tuple[tuple[frozenset[str], Callable[[], None]], ...] = ()
        if self.is_sqlite:
            self.engine = _sqlite_engine(self.url, BUSY_S if patience.busy_s is None else patience.busy_s, read_only)
        else:
            self.engine = _postgres_engine(self.url, patience.connect_s)
        self.host: Final = host or socket.gethostname()
        # An SQLite file has one host, whatever a container that opens it is called today.
        named = host if self.is_sqlite else self.host
        self.engine.update_execution_options(marcod_host=named)
        event.listen(self.engine, "handle_error", _leave_stale)
        if not self.is_sqlite:
            event.listen(self.engine, "connect", self._greet)

    def __str__(self) -> str:
        hidden = {name: "***" if "pass" in name.lower() else value for name, value in self.url.query.items()}
        return self.url.set(query=hidden).render_as_string(hide_password=True)

    def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work(connection, ...)`` in one transaction and commit it; repeat it whole after a passing fault."""
        return self._run(lambda connection: work(connection, *args, **kwargs), self.engine)

    def write_portions(self, work: Callable[Concatenate[Connection, P], int], *args: P.args, **kwargs: P.kwargs) -> int:
        """Repeat bounded ``work(connection, ...)``, one transaction each, until it returns 0. Returns the sum.

        Others write between two portions, so a large clean-up never holds SQLite's write lock for long.
        """
        total = 0
        while done := self.write(work, *args, **kwargs):
            total += done
        return total

    def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``work(connection, ...)`` in a transaction that does not write, so that it never waits for writers."""
        reading = self.engine.execution_options(marcod_read_only=True)
        return self._run(lambda connection: work(connection, *args, **kwargs), reading)

    def refresh_statistics(self) -> None:
        """Let SQLite look at samples of its tables, by which it chooses indexes; PostgreSQL does so by itself."""
        if self.is_sqlite:

            def work(connection: Connection) -> None:
                # Rows of each index; without a limit it would read all of them, with the write lock held.
                connection.exec_driver_sql("pragma analysis_limit=1000")
                connection.exec_driver_sql("analyze")

            self.write(work)

    def now(self) -> datetime:
        """Return the time shared by all users of this database, without a query; never fails.

        It is the server's, read with the latest connection and continued by a monotonic clock, so that a host
        whose clock is wrong neither takes the leases of others nor holds its own for hours. With SQLite there is one
        host, and this is its clock.
        """
        if self._told is None:
            return datetime.now(UTC)
        moment, counted = self._told
        return moment + timedelta(seconds=time.monotonic() - counted)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def listen(self, channels: Iterable[str], wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` after each commit here that was announced on a channel, with SQLite. Returns what ends it."""
        mine = frozenset(channels), wake
        with self._lock:
            self._listening += (mine,)

        def end() -> None:
            with self._lock:
                self._listening = tuple(one for one in self._listening if one is not mine)

        return end

    def _greet(self, connection: Any, _record: object) -> None:
        """Set the session up and learn the server's time, in one round trip."""
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(_SESSION.format(lock_ms=round(1000 * self._patience.lock_s)))
            (moment,) = cursor.fetchone()
        connection.autocommit = False
        if self.read_only:
            # Sent with every BEGIN: behind a pooler a session setting would stay for the next client.
            connection.readonly = True
        self._told = (moment.astimezone(UTC), time.monotonic())

    def _run(self, work: Callable[[Connection], T], engine: Engine) -> T:
        def once() -> T:
            with engine.begin() as connection:
                connection.info.pop(ANNOUNCED, None)
                result = work(connection)
                announced = connection.info.pop(ANNOUNCED, frozenset())
            for channels, wake in self._listening if announced else ():
                if channels & announced:
                    wake()
            return result

        attempts = Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=0.05, max=2.0),
            stop=stop_after_delay(self._patience_s),
            reraise=True,
        )
        try:
            return attempts(once)
        except DBAPIError as error:
            if _is_ours(error):
                raise
            raise self._unusable(refusals.reason(error, self.url, read_only=self.read_only)) from error
        except sa.exc.TimeoutError as error:
            raise self._unusable("every connection to it is taken") from error

    def _unusable(self, reason: str) -> StoreError:
        return StoreError(f"database {self} cannot be used: {reason}")

    def reach(self, limit_s: float = REACH_S) -> None:
        """Connect for the first time, and give up after ``limit_s`` seconds whatever it is that does not answer."""
        try:
            within(limit_s, lambda: self.read(lambda connection: None))
        except SilentError as error:
            raise self._unusable(refusals.silence(self.url, limit_s)) from error


def _is_ours(error: DBAPIError) -> bool:
    """Tell if the statement itself is wrong, so that it may succeed without a part of its rows."""
    code = str(getattr(error.orig, "pgcode", None) or "")
    if isinstance(error, sa.exc.ProgrammingError) and error.statement is None and not code:
        # The client refused the URL, such as an option that it does not know, before it asked a server.
        return False
    return code.startswith(_BEYOND_LIMITS) or (isinstance(error, _OUR_FAULT) and code != refusals.NO_PRIVILEGE)


def is_passing(error: BaseException) -> bool:
    """Tell if repeating the whole transaction can help."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or getattr(error.orig, "pgcode", None) in _RETRY_STATES:
        return True
    if isinstance(error.orig, sqlite3.OperationalError):
        return "locked" in str(error.orig) or "busy" in str(error.orig)
    text = str(error.orig).lower()
    refused = "authentication" in text or "does not exist" in text
    unreachable = "connect" in text or "translate host name" in text
    return isinstance(error, OperationalError) and unreachable and not refused


def host_of(connection: Connection) -> str:
    """Return the host whose :class:`Database` opened this connection; paths are valid on one host alone."""
    return str(connection.get_execution_options().get("marcod_host") or socket.gethostname())


def has_one_host(connection: Connection) -> bool:
    """Tell if one host recorded everything, as in an SQLite file."""
    return connection.get_execution_options().get("marcod_host") is None


def insert(connection: Connection, table: sa.Table) -> Any:
    """Build the dialect's insert, which has ``on conflict``; both dialects spell it alike."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def _leave_stale(context: ExceptionContext) -> None:
    """Give up every connection of the pool when one of them can never be well again."""
    error = context.original_exception
    on_sqlite = isinstance(error, sqlite3.Error) and any(text in str(error).lower() for text in _STALE)
    if on_sqlite or getattr(error, "pgcode", None) == _READ_ONLY:
        context.is_disconnect = True


class _File:
    """The file of an SQLite database. A connection belongs to the file that it opened, not to the path.

    Without this a daemon would go on writing into a file that was deleted, and lose everything at its end; and a
    connection made while a backup is put in place would leave an empty database there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._was_there = False

    def connecting(self, *_: object) -> None:
        if self._was_there and self._identity() is None:
            raise sqlite3.OperationalError(f"the file {self._path} is gone; put it back")

    def connected(self, _connection: object, record: Any) -> None:
        record.info["identity"] = identity = self._identity()
        self._was_there = identity is not None

    def taken(self, _connection: object, record: Any, _proxy: object) -> None:
        if record.info.get("identity") != self._identity():
            raise sa.exc.DisconnectionError("the database file is another one now")

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _sqlite_engine(url: URL, busy_s: float, read_only: bool) -> Engine:
    path = _sqlite_path(url)
    if read_only:
        return file_reading.engine_of(url, path, busy_s)
    _make_folder(path.parent)
    file = _File(path)
    engine = sa.create_engine(url, connect_args={"timeout": busy_s, "check_same_thread": False})
    event.listen(engine, "do_connect", file.connecting)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "connect", file.connected)
    event.listen(engine, "checkout", file.taken)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _sqlite_path(url: URL) -> Path:
    if not url.database or url.database == ":memory:":
        raise StoreError("an in-memory SQLite database forgets everything; give sqlite:/// a file path")
    return Path(url.database).absolute()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the database folder {folder} cannot be made: {os_reason(error)}") from error


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode=wal")
    cursor.execute("pragma synchronous=normal")
    cursor.execute("pragma foreign_keys=on")
    cursor.execute("pragma temp_store=memory")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("marcod_read_only")
    connection.exec_driver_sql("begin" if read_only else "begin immediate")


def _postgres_engine(url: URL, connect_s: int) -> Engine:
    network = {"connect_timeout": connect_s, **_NETWORK}
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg2"),
        pool_pre_ping=True,
        executemany_mode="values_plus_batch",
        pool_size=5,
        max_overflow=5,
        pool_recycle=RECYCLE_S,
        connect_args={name: value for name, value in network.items() if name not in url.query},
    )
