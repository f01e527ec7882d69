"""Changes of the database, as they happen, for open pages.

One thread per process looks for all open pages, and none while no page is open. It waits for notices
(:mod:`marcod.database.notices`) and also looks at intervals, because not every change sends one.
What a page gets are ids of plates that changed; it asks again for what it shows of them.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from marcod import telemetry
from marcod.database import notices
from marcod.database.engine import Database
from marcod.database.notices import NoticeLine, Waker
from marcod.store import events
from marcod.web.changes import ChangeWatch, PageChange, seen_by
from marcod.web.site import site_of, user_of

log = telemetry.logger(__name__)

CHANNEL: Final = "marcod_page"
"""PostgreSQL's channel on which pages are woken; the payload is empty."""

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
    notices.announce(connection, CHANNEL)


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
        self._waker = Waker()

    def wake(self) -> None:
        """Look now."""
        self._waker.wake()

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
        channels = CHANNEL, events.CHANNEL
        with closing(NoticeLine(self._db, channels, look_s=SQLITE_S, waker=self._waker)) as line:
            while self._is_wanted():
                line.clear()
                try:
                    found = self._db.read(changes.look)
                except Exception as error:  # noqa: BLE001 - the thread must outlive whatever a driver raises
                    log.warning("changes not seen", error=str(error) or type(error).__name__)
                    found = PageChange()
                if found:
                    self._tell(found)
                line.wait(SQLITE_S if self._db.is_sqlite else POSTGRES_S)

    def _is_wanted(self) -> bool:
        with self._lock:
            if self._listeners:
                return True
            self._thread = None
            return False

    def _tell(self, change: PageChange) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            # A loop that was closed meanwhile has no page.
            with suppress(RuntimeError):
                listener.loop.call_soon_threadsafe(listener.put, change)


async def stream(request: Request) -> Response:
    """Send events ``change`` with ``{plates: [id, ...] or null for any}`` for as long as a page is open.

    What changed while a page had no line is not sent again: it asks for all that it shows when the line is up again.
    A browser has six lines to a server, so one of its windows listens for all.
    """
    pulse: Pulse = request.app.state.pulse
    listener = pulse.open()
    if listener is None:
        return JSONResponse({"error": "too many pages are open; this one is not refreshed"}, 503, {"Retry-After": "60"})
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_messages(request, pulse, listener), media_type="text/event-stream", headers=headers)


async def _messages(request: Request, pulse: Pulse, listener: OpenPage) -> AsyncIterator[str]:
    site, user = site_of(request), user_of(request)
    try:
        yield "retry: 3000\n: open\n\n"
        while True:
            try:
                change = await asyncio.wait_for(listener.get(), HEART_S)
            except TimeoutError:
                if await run_in_threadpool(site.access.who, request) is None:
                    return
                yield ": up\n\n"
                continue
            change = await run_in_threadpool(site.db.read, seen_by, user, change)
            if not change:
                continue
            yield f"event: change\ndata: {json.dumps(change.as_json())}\n\n"
            await asyncio.sleep(GAP_S)
    finally:
        pulse.close(listener)


ROUTES: Final[list[BaseRoute]] = [Route("/events", stream)]
