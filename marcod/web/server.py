"""The server of the page: listens, and serves the application until an event ends it."""

import socket
import stat
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import uvicorn
from anyio import to_thread
from starlette.types import ASGIApp

from marcod import telemetry
from marcod.database.engine import Database, Patience
from marcod.errors import ConfigError, os_reason
from marcod.settings import Settings, WebSettings
from marcod.web.app import build

log = telemetry.logger(__name__)

BACKLOG: Final = 128
STOP_S: Final = 5
"""Seconds that answers under way have when the page stops; streams of events are cut then."""

THREADS: Final = 10
"""Requests that are answered at a time, as many as there are connections to the database."""

KEEP_ALIVE_S: Final = 30
"""Seconds for which a browser's connection stays open between two requests."""

HEADERS_LIMIT: Final = 32 * 1024
"""Bytes of a request's head."""

PATIENCE: Final = Patience(connect_s=2, busy_s=10.0, lock_s=5.0, retry_s=3.0)
"""Patience of a page that somebody waits for; a label may wait for a scorer's transaction."""

SOCKET_MODE: Final = 0o660


class Listener:
    """The socket of the page, taken before the service says that it is ready: a taken port is an error of the start."""

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._socket: socket.socket | None = self._open()

    @property
    def address(self) -> str:
        """Where the page is, as a person writes it."""
        if self._settings.socket is not None:
            return str(self._settings.socket)
        host = f"[{self._settings.address}]" if ":" in self._settings.address else self._settings.address
        return f"http://{host}:{self._settings.port}"

    def take(self) -> socket.socket:
        """Return the listening socket; who takes it closes it, and the next one gets a new one."""
        taken, self._socket = self._socket or self._open(), None
        return taken

    def _open(self) -> socket.socket:
        """Raise ConfigError where the address cannot be listened on."""
        try:
            if self._settings.socket is not None:
                return _unix_socket(self._settings.socket)
            family = socket.AF_INET6 if ":" in self._settings.address else socket.AF_INET
            made = socket.create_server((self._settings.address, self._settings.port), family=family, backlog=BACKLOG)
            # Connections inherit it. Else the kernel holds the end of an answer back for 40 ms: asyncio asks for it on
            # sockets alone whose protocol is named.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            raise ConfigError(
                f"the page cannot listen on {self.address}: {os_reason(error)}; another web.port may be free"
            ) from error


def _unix_socket(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_abandoned(path):
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        path.chmod(SOCKET_MODE)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _is_abandoned(path: Path) -> bool:
    """Tell if a process that is gone left this socket behind."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            try:
                asking.connect(str(path))
            except ConnectionRefusedError:
                return True
    return False


class _Server(uvicorn.Server):
    """A server in any thread, ended by an event."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event, alive: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop, self._alive = stop, alive

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        self._alive()
        return await super().on_tick(counter) or self._stop.is_set()


class Page:
    """The page as a loop of a service, with a database connection of its own that waits as short as a person does."""

    def __init__(self, settings: Settings) -> None:
        """Take the address. Raises ConfigError where it cannot be had."""
        self._settings = settings
        self._listener = Listener(settings.web)

    @property
    def address(self) -> str:
        """Address for a browser."""
        return self._settings.web.public_url or self._listener.address

    def run(self, stop: threading.Event, alive: Callable[[], None]) -> None:
        """Serve until the event is set; ``alive`` is called ten times a second by the thread that answers."""
        with closing(Database(self._settings.store.url.get_secret_value(), patience=PATIENCE)) as db:
            log.info("page served", address=self.address, access=self._settings.web.access)
            _Server(_configured(build(self._settings, db)), stop, alive).run(sockets=[self._listener.take()])


def _configured(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        # The guard looks at the address of the connection itself; no header may change it.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=HEADERS_LIMIT,
    )
