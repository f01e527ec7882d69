"""A connection that ends in time, whatever its other side does: one that answers a byte a second ends too.

Hides that a timeout of a socket is for each step only, that a name may have many addresses, and that TLS takes the
socket away from its first owner. The look-up of a name alone takes as long as the system's resolver lets it.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self


class Line:
    """A connected ``socket``, and a second handle to it by which it is hung up, whoever has wrapped the first."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        """Dial every address of a name, in this time altogether. Raises OSError; TimeoutError where that is over."""
        self.socket = _dialled(host, port, timeout_s)
        self.socket.settimeout(timeout_s)
        self._handle = self.socket.dup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
        self._handle.close()

    @contextlib.contextmanager
    def hung_up_after(self, seconds: float) -> Iterator[None]:
        """Hang up when the block takes longer. Raises TimeoutError for whatever the block then raises."""
        over = threading.Event()

        def hang_up() -> None:
            over.set()
            with contextlib.suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:  # whatever a cut connection looks like to its reader
            if over.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()


def _dialled(host: str, port: int, timeout_s: float) -> socket.socket:
    """The first address that answers; each gets its share of the time that is left."""
    ways = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ends, failure = time.monotonic() + timeout_s, OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(ways):
        share_s = (ends - time.monotonic()) / (len(ways) - number)
        if share_s <= 0:
            raise TimeoutError
        dialling = socket.socket(family, kind, protocol)
        try:
            dialling.settimeout(share_s)
            dialling.connect(address)
        except OSError as error:
            dialling.close()
            failure = error
        else:
            return dialling
    raise failure
