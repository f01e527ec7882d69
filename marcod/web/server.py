"""The server of the page: listens, and serves the application until an event ends it."""

import os
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from marcod import telemetry
from marcod.errors import ConfigError, os_reason
from marcod.settings import WebSettings

log = telemetry.logger(__name__)

BACKLOG: Final = 128
STOP_S: Final = 5
"""Seconds that answers under way have when the page stops; streams of events are cut then."""

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
            return socket.create_server((self._settings.address, self._settings.port), family=family, backlog=BACKLOG)
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

    async def on_tick(self, counter: int) -> bool:
        self._alive()
        return await super().on_tick(counter) or self._stop.is_set()


def serve(app: ASGIApp, listener: Listener, stop: threading.Event, alive: Callable[[], None] = lambda: None) -> None:
    """Serve until the event is set; ``alive`` is called ten times a second from the thread that answers."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        # The guard looks at the address of the connection itself; no header may change it.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=32 * 1024,
    )
    log.info("page served", address=listener.address, process=os.getpid())
    _Server(config, stop, alive).run(sockets=[listener.take()])
