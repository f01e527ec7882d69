"""Start of every program of marcod: sources that can work, and signals; ``app`` opens the database."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from marcod.app import Ready as Ready
from marcod.app import opened as opened
from marcod.app import roots as roots
from marcod.app import waited_for as waited_for
from marcod.settings import Settings
from marcod.watch.folders import require_apart
from marcod.watch.ingest import layout_of


def worker_name() -> str:
    """A name that no other process ever has, and that tells where it runs."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


def check_sources(settings: Settings) -> None:
    """Raises ConfigError or LayoutError for the first source that cannot work, wherever its share is now."""
    for name, source in settings.sources.items():
        layout_of(name, source)
    require_apart(roots(settings))


@contextmanager
def stopped_by_signals(begun: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second exits at once. For the main thread only.

    Until ``begun`` is set, where it is given, there is nothing to end in order: the first signal exits with 0.
    """
    stop, asked = threading.Event(), False

    def handle(number: int, _frame: object) -> None:
        nonlocal asked
        if begun is not None and not begun.is_set():
            os._exit(0)
        if asked:
            os._exit(128 + number)
        asked = True
        # Not here: the main thread may hold the event's lock at this very moment, and would wait for itself.
        threading.Thread(target=stop.set, daemon=True).start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
