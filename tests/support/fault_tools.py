"""Faults that a test can bring about and end again: a network that is cut, a resource limit, a user without rights."""

import codecs
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import make_url

NOBODY = 65534


class Network:
    """The way from marcod to a PostgreSQL server: up, or away so that connections break and new ones are refused."""

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self._address = ("127.0.0.1", 0)
        self._ends: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.restore()

    @property
    def is_up(self) -> bool:
        return self._listener is not None

    @property
    def url(self) -> str:
        there = self._server.set(host="127.0.0.1", port=self._address[1]).difference_update_query(["host"])
        return there.render_as_string(hide_password=False)

    def cut(self) -> None:
        """Break what is open and refuse what is new, as a server does that is stopped."""
        listener, self._listener = self._listener, None
        for end in filter(None, (listener, *self._ends)):
            # A thread that waits for a socket learns nothing of its being closed.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def restore(self) -> None:
        self._listener = socket.create_server(self._address)
        self._address = self._listener.getsockname()
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = self._to_server()
            except OSError:
                return
            self._ends += [near, far]
            threading.Thread(target=_pump, args=(near, far), daemon=True).start()

    def _to_server(self) -> socket.socket:
        folder = self._server.query.get("host")
        if folder is None:
            return socket.create_connection((self._server.host or "127.0.0.1", self._server.port or 5432))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{folder}/.s.PGSQL.{self._server.port or 5432}")
        return far


def _pump(near: socket.socket, far: socket.socket) -> None:
    other = {near: far, far: near}
    # Selecting a socket that another thread has closed meanwhile is a ValueError.
    with suppress(OSError, ValueError), near, far:
        while True:
            for end in select.select([near, far], [], [])[0]:
                data = end.recv(65_536)
                if not data:
                    return
                other[end].sendall(data)


@contextmanager
def limited(what: int, value: int) -> Iterator[None]:
    """Lower one of this process's resource limits for a while."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@contextmanager
def no_file_left_to_open() -> Iterator[None]:
    """Every further open, listing or connection fails with EMFILE."""
    with socket.socket() as free:
        lowest = free.fileno()
    with limited(resource.RLIMIT_NOFILE, lowest):
        yield


@contextmanager
def ordinary_user(*owned: Path) -> Iterator[None]:
    """Be somebody whom file modes bind, owning these files; root is not, everybody else is already."""
    if os.geteuid() != 0:
        yield
        return
    # A zip asks for it, and Python remembers for good that this user could not read it.
    codecs.lookup("cp437")
    for path in owned:
        os.chown(path, NOBODY, NOBODY)
    # pytest makes its folders for their owner alone.
    opened = [path for path in owned[0].parents if not path.stat().st_mode & 0o001 and path.owner() == "root"]
    for path in opened:
        path.chmod(path.stat().st_mode | 0o011)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
