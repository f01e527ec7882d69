"""Changes of the database, as they happen, for open pages.

One thread of a process looks, however many browsers listen, and none while nobody does. On PostgreSQL it waits for
notifications and looks now and then besides, because not every change sends one; on SQLite it looks at a few counters.
What a page gets are ids of plates that changed; it asks again for what it shows of them.
"""

import asyncio
import json
import select
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from marcod import telemetry
from marcod.database.engine import Database
from marcod.web.changes import ChangeWatch, PageChange
from marcod.web.site import site_of

log = telemetry.logger(__name__)

CHANNEL: Final = "marcod_page"
"""PostgreSQL's channel on which pages are woken; the payload is empty."""

LISTEN: Final = "listen marcod_page; listen marcod_plate_scored"
"""The channels of pages and of :mod:`marcod.store.events`."""

SQLITE_S: Final = 1.5
POSTGRES_S: Final = 5.0
"""Pauses between two looks that nothing asked for."""

GAP_S: Final = 0.5
"""Least time between two messages to one page."""

HEART_S: Final = 20.0
"""Pause after which a page hears that the line is up, and its person is looked up again."""

MOST: Final = 500
"""Pages that may listen at once."""


def announce(connection: Connection) -> None:
    """Wake the pages of all servers once this transaction is committed; SQLite has no notifications."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))


def wake(request: Request) -> None:
    """Wake the pages of this server."""
    pulse: Pulse = request.app.state.pulse
    pulse.wake()


@dataclass(eq=False)
class OpenPage:
    """One open page: changes that it has not heard of yet."""

    loop: asyncio.AbstractEventLoop
    waiting: PageChange = field(default_factory=PageChange)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, change: PageChange) -> None:
        """Add changes; for the thread of the loop."""
        self.waiting += change
        self.ready.set()

    async def get(self) -> PageChange:
        """Wait for changes, and return all there are."""
        await self.ready.wait()
        self.ready.clear()
        found, self.waiting = self.waiting, PageChange()
        return found


class Pulse:
    """The thread that looks for changes, and the pages that listen. Thread-safe."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._listeners: set[OpenPage] = set()
        self._thread: threading.Thread | None = None
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def wake(self) -> None:
        """Look now."""
        # A full pipe wakes as well.
        with suppress(BlockingIOError):
            self._waker.send(b"x")

    def open(self) -> OpenPage | None:
        """Let the running loop listen, or None where too many do."""
        listener = OpenPage(asyncio.get_running_loop())
        with self._lock:
            if len(self._listeners) >= MOST:
                return None
            self._listeners.add(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="page changes", daemon=True)
                self._thread.start()
        return listener

    def close(self, listener: OpenPage) -> None:
        """Let a page listen no more; after the last one the thread ends."""
        with self._lock:
            self._listeners.discard(listener)
        self.wake()

    def _run(self) -> None:
        changes = ChangeWatch()
        line: Any = None
        while self._is_wanted():
            try:
                line = line or self._line()
                found = self._db.read(changes.look)
            except Exception as error:  # noqa: BLE001 - the thread must outlive whatever a driver raises
                log.warning("changes not seen", error=str(error) or type(error).__name__)
                _close(line)
                line, found = None, PageChange()
            if found:
                self._tell(found)
            line = self._wait(line)
        _close(line)

    def _is_wanted(self) -> bool:
        with self._lock:
            if self._listeners:
                return True
            self._thread = None
            return False

    def _line(self) -> Any:
        """Open a connection that PostgreSQL notifies; None with SQLite."""
        if self._db.is_sqlite:
            return None
        pooled = self._db.engine.raw_connection()
        line: Any = pooled.driver_connection
        # Not one of the pool's any more: it waits for as long as somebody listens.
        pooled.detach()
        line.autocommit = True
        with line.cursor() as cursor:
            cursor.execute(LISTEN)
        return line

    def _wait(self, line: Any) -> Any:
        """Wait until something may have changed. Returns the line, None where it is down."""
        waiting = [self._woken] if line is None else [self._woken, line]
        select.select(waiting, [], [], SQLITE_S if self._db.is_sqlite else POSTGRES_S)
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        if line is None:
            return None
        try:
            line.poll()
            line.notifies.clear()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the line is made again
            log.warning("line to the database lost", error=type(error).__name__)
            _close(line)
            return None
        return line

    def _tell(self, change: PageChange) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            # A loop that was closed meanwhile has no page.
            with suppress(RuntimeError):
                listener.loop.call_soon_threadsafe(listener.put, change)


def _close(line: Any) -> None:
    if line is not None:
        with suppress(Exception):
            line.close()


async def stream(request: Request) -> Response:
    """Send events ``change`` with ``{plates: [id, ...] or null for any, hits, arrived}`` for as long as a page is open.

    ``hits`` counts new hits, ``arrived`` new plates. What changed while a page had no line is not sent again: it asks
    for all that it shows when the line is up again. A browser has six lines to a server, so a page in the background
    should close its own.
    """
    pulse: Pulse = request.app.state.pulse
    listener = pulse.open()
    if listener is None:
        return JSONResponse({"error": "too many pages are open; this one is not refreshed"}, 503, {"Retry-After": "60"})
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_messages(request, pulse, listener), media_type="text/event-stream", headers=headers)


async def _messages(request: Request, pulse: Pulse, listener: OpenPage) -> AsyncIterator[str]:
    try:
        yield "retry: 3000\n: open\n\n"
        while True:
            try:
                change = await asyncio.wait_for(listener.get(), HEART_S)
            except TimeoutError:
                if await run_in_threadpool(site_of(request).access.who, request) is None:
                    return
                yield ": up\n\n"
                continue
            yield f"event: change\ndata: {json.dumps(change.as_json())}\n\n"
            await asyncio.sleep(GAP_S)
    finally:
        pulse.close(listener)


ROUTES: Final[list[BaseRoute]] = [Route("/events", stream)]
