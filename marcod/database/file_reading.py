"""Reading of an SQLite file that this process may or must not change, without leaving another file.

A database in WAL mode has its ``-wal`` and ``-shm`` next to it while somebody has it open,
and reading them needs no right to write. While nobody has, an ordinary reader would make both; here the file is read
as one that does not change, and a transaction during which it did change after all is repeated. What a crash left in a
``-wal`` cannot be left out, so where it cannot be read the refusal says who can put it in order.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, ExceptionContext

_WAL_MARK: Final = (18, b"\x02\x02")
"""Place and content of what the head of a file in WAL mode has."""

_BUSY: Final = "the database is busy: somebody began to write while it was read"

State = tuple[int, int, int, int]
"""Device, number, time and size of a file: when it is another one, so is its content."""


def engine_of(url: URL, file: Path, busy_s: float) -> Engine:
    """Make an engine whose connections only read. Nothing is opened yet."""
    reader = _Reader(file, busy_s)
    engine = sa.create_engine(url)
    event.listen(engine, "do_connect", reader.connect)
    event.listen(engine, "connect", reader.connected)
    event.listen(engine, "checkout", reader.taken)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("begin"))
    event.listen(engine, "commit", reader.finished)
    event.listen(engine, "handle_error", reader.failed)
    return engine


class _Reader:
    """Connections to one file; each of them knows in ``info`` which state of the file it took for unchanging."""

    def __init__(self, file: Path, busy_s: float) -> None:
        self._file, self._busy_s = file, busy_s

    def connect(self, _dialect: object, record: Any, _args: object, _named: object) -> sqlite3.Connection:
        """Open the file in the way that leaves nothing behind. Raises sqlite3.Error."""
        for last in (False, False, True):
            still = record.info["still"] = self._still()
            try:
                return self._open("mode=ro" if still is None else "mode=ro&immutable=1")
            except sqlite3.OperationalError as error:
                # The last user of the file may have closed it in this very moment.
                if (last or still == self._still()) and self._left_by_a_crash(error):
                    raise sqlite3.OperationalError(
                        f"{self._file}-wal holds what a marcod that crashed had not moved into the file yet, and this"
                        " user cannot read it; let the owner of the file start marcod, or run `marcod status` once"
                    ) from error
                if last or still == self._still():
                    raise
        raise AssertionError

    def _open(self, way: str) -> sqlite3.Connection:
        opened = sqlite3.connect(
            f"{self._file.as_uri()}?{way}", uri=True, timeout=self._busy_s, check_same_thread=False
        )
        opened.isolation_level = None
        try:
            opened.execute("pragma query_only=on")
            opened.execute("pragma temp_store=memory")
            # Only now is the file looked at.
            opened.execute("pragma schema_version").fetchone()
        except sqlite3.Error:
            opened.close()
            raise
        return opened

    def _left_by_a_crash(self, error: sqlite3.OperationalError) -> bool:
        closed = error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        return closed and bool(self._beside("-wal")) and os.access(self._file, os.R_OK, effective_ids=True)

    def connected(self, _connection: object, record: Any) -> None:
        record.info["identity"] = self._state()[:2]

    def taken(self, _connection: object, record: Any, _proxy: object) -> None:
        """Refuse a connection of the pool to what is another file, or another state of it, by now."""
        still = record.info.get("still")
        if record.info.get("identity") != self._state()[:2] or still not in (None, self._still()):
            raise sa.exc.DisconnectionError("the database file is another one now")

    def finished(self, connection: Connection) -> None:
        """Have a transaction repeated that may have read a mixture of two states."""
        if self._has_changed(connection):
            connection.invalidate()
            raise _busy()

    def failed(self, context: ExceptionContext) -> Exception | None:
        """Take an error for a passing one where the file changed under the reader."""
        if context.connection is None or not self._has_changed(context.connection):
            return None
        context.is_disconnect = True
        return _busy()

    def _has_changed(self, connection: Connection) -> bool:
        still = connection.info.get("still") if not connection.invalidated else None
        return still is not None and still != self._still()

    def _still(self) -> State | None:
        """State of a file in WAL mode that no process has open; None for any other.

        A file that somebody has open is not opened here: closing it would end the locks of this process on it, and
        the next one that closes it would take itself for the last and remove what others still read.
        """
        if self._beside("-wal") or (self._beside("-wal") is not None and self._beside("-shm") is not None):
            return None
        try:
            if not self._file.is_file():
                return None
            with self._file.open("rb") as head:
                head.seek(_WAL_MARK[0])
                in_wal_mode = head.read(len(_WAL_MARK[1])) == _WAL_MARK[1]
        except OSError:
            return None
        return self._state() if in_wal_mode else None

    def _beside(self, end: str) -> int | None:
        """Measure a companion file of the database, None without it."""
        try:
            return Path(f"{self._file}{end}").stat().st_size
        except OSError:
            return None

    def _state(self) -> State:
        try:
            found = self._file.stat()
        except OSError:
            return 0, 0, 0, 0
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _busy() -> sa.exc.OperationalError:
    return sa.exc.OperationalError("read", {}, sqlite3.OperationalError(_BUSY))
