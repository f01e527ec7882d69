"""Notices between those who use one database: sent by a transaction once it is committed, heard on a line.

PostgreSQL carries notices to every host. SQLite has none: within a process the engine passes them on, and for other
processes the file's counter of commits is looked at, which tells of any commit. A notice can be lost: with a
connection, or behind a pooler that lends connections by the transaction. So a notice only makes it quick; who listens
looks by itself as well.
"""

import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Event
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import telemetry
from marcod.database.engine import ANNOUNCED, Database

log = telemetry.logger(__name__)

LOOK_S: Final = 0.1
"""Pause between two looks at SQLite's counter; a look takes microseconds, but every wake-up of a thread some more."""

STOP_S: Final = 0.25
"""Pause between two looks at a stop event."""

RETRY_S: Final = 2.0
"""Pause before a line that was lost or refused is opened again."""


def announce(connection: Connection, channel: str) -> None:
    """Wake those who listen on a channel, once this transaction is committed; several calls in one are one notice."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(channel, "")))
    else:
        connection.info[ANNOUNCED] = connection.info.get(ANNOUNCED, frozenset()) | {channel}


class Waker:
    """Means of other threads to end the wait of one that listens."""

    def __init__(self) -> None:
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def wake(self) -> None:
        """End the wait that is under way, or the next one."""
        # A full pipe wakes as well, and who was closed meanwhile need not be woken.
        with suppress(OSError):
            self._waker.send(b"x")

    def close(self) -> None:
        """Close both ends; later calls of :meth:`wake` do nothing."""
        self._woken.close()
        self._waker.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable once somebody woke."""
        return self._woken.fileno()

    def take(self) -> bool:
        """Tell if somebody woke since the last call."""
        try:
            return bool(self._woken.recv(4096))
        except BlockingIOError:
            return False


class NoticeLine:
    """A line on which one thread hears notices; it is opened by the first wait, and again whenever it was lost.

    ``look_s`` is the pause between two looks at an SQLite file; ``waker`` ends a wait as a notice does.
    """

    def __init__(
        self, db: Database, channels: Sequence[str], *, look_s: float = LOOK_S, waker: Waker | None = None
    ) -> None:
        self._db, self._channels, self._look_s, self._waker = db, tuple(channels), look_s, waker
        self._line: _Line | None = None
        self._open_at = float("-inf")
        self._troubled = False

    def clear(self) -> None:
        """Forget what was heard. Call it before each look for work, and now and then during long work.

        The server keeps every notice that is not taken.
        """
        self._heard()

    def wait(self, limit_s: float, stop: Event | None = None) -> bool:
        """Wait for a notice since the last :meth:`clear`, at most ``limit_s`` seconds or until ``stop`` is set.

        Returns True when the caller should look at once: after a notice, when it was woken, and when the line was just
        opened, because notices before that were not heard.
        """
        until = time.monotonic() + limit_s
        pause_s = self._look_s if self._db.is_sqlite else STOP_S if stop else RETRY_S
        while stop is None or not stop.is_set():
            if self._opened() or self._heard():
                return True
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            self._sleep(min(left_s, pause_s))
            if self._waker is not None and self._waker.take():
                return True
        return False

    def close(self) -> None:
        """Close the connection; another wait would open it again."""
        line, self._line = self._line, None
        if line is not None:
            with suppress(Exception):
                line.close()

    def _opened(self) -> bool:
        """Open the line where there is none and it is time to try. True when it was opened now."""
        if self._line is not None or time.monotonic() < self._open_at:
            return False
        try:
            self._line = (_SqliteLine if self._db.is_sqlite else _PostgresLine)(self._db, self._channels)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, who listens works on without a line
            self._lost(error)
            return False
        if self._troubled:
            log.info("line to the database is back")
        self._troubled = False
        return True

    def _heard(self) -> bool:
        if self._line is None:
            return False
        try:
            return self._line.heard()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the line is made again
            self._lost(error)
            return False

    def _lost(self, error: Exception) -> None:
        self.close()
        self._open_at = time.monotonic() + RETRY_S
        if not self._troubled:
            log.warning("line to the database lost", error=str(error).strip() or type(error).__name__)
        self._troubled = True

    def _sleep(self, limit_s: float) -> None:
        ready = select.poll()
        for one in (self._waker, self._line):
            if one is not None:
                ready.register(one, select.POLLIN)
        ready.poll(max(1.0, 1000 * limit_s))


class _Line(Protocol):
    """A connection on which notices come. Every call raises what its driver raises when it is lost."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with a notice."""

    def heard(self) -> bool:
        """Take what came since the last call, without waiting. True when there was something."""

    def close(self) -> None:
        """Close the connection."""


class _PostgresLine:
    """Connection that PostgreSQL notifies."""

    def __init__(self, db: Database, channels: Sequence[str]) -> None:
        self._connection = _own_connection(db)
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute("; ".join(f"listen {channel}" for channel in channels))

    def fileno(self) -> int:
        return int(self._connection.fileno())

    def heard(self) -> bool:
        self._connection.poll()
        heard = bool(self._connection.notifies)
        self._connection.notifies.clear()
        return heard

    def close(self) -> None:
        self._connection.close()


class _SqliteLine:
    """Connection whose counter of others' commits is looked at; it belongs to one file, not to the path."""

    def __init__(self, db: Database, channels: Sequence[str]) -> None:
        self._path = str(db.url.database)
        self._connection = _own_connection(db)
        self._file, self._commits = self._identity(), self._counted()
        self._here = Waker()
        self._end = db.listen(channels, self._here.wake)

    def fileno(self) -> int:
        return self._here.fileno()

    def heard(self) -> bool:
        if self._identity() != self._file:
            raise FileNotFoundError("the database file is another one now")
        here, before = self._here.take(), self._commits
        self._commits = self._counted()
        return here or self._commits != before

    def close(self) -> None:
        self._end()
        self._here.close()
        self._connection.close()

    def _identity(self) -> tuple[int, int]:
        found = os.stat(self._path)  # noqa: PTH116 - ten times a second
        return found.st_dev, found.st_ino

    def _counted(self) -> int:
        return int(self._connection.execute("pragma data_version").fetchone()[0])


def _own_connection(db: Database) -> Any:
    """Open a connection that is not the pool's, because it is used for as long as somebody listens."""
    pooled = db.engine.raw_connection()
    connection = pooled.driver_connection
    pooled.detach()
    return connection
