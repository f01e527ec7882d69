"""TCP connection with a total time limit, also for a peer that answers one byte per second.

A socket's own timeout is for each step only, and TLS takes the socket from its first owner; so a second handle shuts
the connection down. The look-up of a name alone takes as long as the system's resolver lets it.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Connection:
    """A connected ``socket``, and a second handle that shuts it down after TLS has wrapped the first."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        """Connect to an address of a name, within this time in all. Raises OSError; TimeoutError where that is over."""
        self.socket = _connected(host, port, timeout_s)
        self.socket.settimeout(timeout_s)
        self._handle = self.socket.dup()

    def close(self) -> None:
        """Close both handles."""
        self.socket.close()
        self._handle.close()

    @contextlib.contextmanager
    def limited_to(self, seconds: float) -> Iterator[None]:
        """Shut the connection down when the block takes longer. Its error is then a TimeoutError."""
        over = threading.Event()

        def shut_down() -> None:
            over.set()
            with contextlib.suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:  # a cut connection fails in many ways
            if over.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()


def _connected(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to the first address that answers; each gets its share of the time that is left."""
    ways = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ends, failure = time.monotonic() + timeout_s, OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(ways):
        share_s = (ends - time.monotonic()) / (len(ways) - number)
        if share_s <= 0:
            raise TimeoutError
        attempt = socket.socket(family, kind, protocol)
        try:
            attempt.settimeout(share_s)
            attempt.connect(address)
        except OSError as error:
            attempt.close()
            failure = error
        else:
            return attempt
    raise failure
