"""Opening a database and running transactions: hides the differences between SQLite and PostgreSQL.

SQLite runs in WAL mode with ``BEGIN IMMEDIATE`` for writers, because a transaction that reads first and writes
later would otherwise fail at once when another writer came between. Work is passed in as a function, so that a
passing fault (a dropped connection, a deadlock, a busy database) repeats the whole transaction and never a part.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from marcod.errors import StoreError

T = TypeVar("T")

BUSY_S: Final = 30.0
"""How long a SQLite writer waits for another one."""

PATIENCE_S: Final = 10.0
"""How long passing faults are retried here; beyond it the caller's loop backs off and comes again."""

_RETRY_STATES: Final = frozenset({"40001", "40P01", "55P03", "57P01", "57P02", "57P03"})
"""PostgreSQL: serialization failure, deadlock, lock not available, and the server shutting down or starting."""


_NO_PRIVILEGE: Final = "42501"
_OUR_FAULT: Final = (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError)
"""Errors of a statement, not of the database; they are raised as they are."""


class Database:
    """One database, shared by the threads of a process.

    Raises StoreError from every call when the database cannot be used.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        try:
            self.url: URL = make_url(url)
        except (ValueError, sa.exc.ArgumentError) as error:
            raise StoreError("the database URL cannot be read; write postgresql://USER:PASSWORD@HOST/NAME") from error
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._patience_s = patience_s
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction and commit it; repeat it whole after a passing fault."""
        return self._run(work, self.engine)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction that does not write, so that it never waits for writers."""
        return self._run(work, self.engine.execution_options(marcod_read_only=True))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _run(self, work: Callable[[Connection], T], engine: Engine) -> T:
        def once() -> T:
            with engine.begin() as connection:
                return work(connection)

        attempts = Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=0.05, max=2.0),
            stop=stop_after_delay(self._patience_s),
            reraise=True,
        )
        try:
            return attempts(once)
        except DBAPIError as error:
            refused = getattr(error.orig, "pgcode", None) == _NO_PRIVILEGE
            if isinstance(error, _OUR_FAULT) and not refused:
                raise
            raise StoreError(f"database {self} cannot be used: {_first_line(error)}") from error


def is_passing(error: BaseException) -> bool:
    """Whether repeating the whole transaction can help."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or getattr(error.orig, "pgcode", None) in _RETRY_STATES:
        return True
    if isinstance(error.orig, sqlite3.OperationalError):
        return "locked" in str(error.orig) or "busy" in str(error.orig)
    text = str(error.orig).lower()
    refused = "authentication" in text or "does not exist" in text
    return isinstance(error, OperationalError) and "connect" in text and not refused


def insert(connection: Connection, table: sa.Table) -> Any:
    """The dialect's insert, which alone knows ``on conflict``; both dialects spell it alike."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _sqlite_engine(url: URL) -> Engine:
    _check_sqlite_place(url)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _check_sqlite_place(url: URL) -> None:
    if not url.database or url.database == ":memory:":
        raise StoreError("an in-memory SQLite database forgets everything; give sqlite:/// a file path")
    folder = Path(url.database).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the database folder {folder} cannot be made: {error.strerror}") from error


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


def _postgres_engine(url: URL) -> Engine:
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg2"),
        pool_pre_ping=True,
        executemany_mode="values_plus_batch",
        pool_size=5,
        max_overflow=5,
        connect_args={"connect_timeout": 5, "application_name": "marcod"},
    )


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
