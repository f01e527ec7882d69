"""A limit for a whole exchange, beside that for each step: a receiver that answers a byte a second ends too."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def hung_up_after(seconds: float, connected: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Shut the socket down when the block takes longer. Raises TimeoutError for what the block then raises."""
    over = threading.Event()

    def hang_up() -> None:
        over.set()
        held = connected()
        if held is not None:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

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
