"""What every program of marcod stands on: a checked database with a champion, sources that can work, and signals."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from marcod import watch
from marcod.registry import Registry
from marcod.settings import Settings
from marcod.store import migrate
from marcod.store.engine import Database


def worker_name() -> str:
    """A name that no other process ever has, and that tells where it runs."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Ready:
    """What every composition root starts from: a checked database and a champion."""

    db: Database
    registry: Registry


@contextmanager
def opened(settings: Settings) -> Iterator[Ready]:
    """The database with a current schema and a champion, closed at the end.

    Raises StoreError, SchemaError or BundleError with one sentence before anything else is done.
    """
    db = Database(settings.store.url.get_secret_value())
    try:
        migrate.require_current(db)
        registry = Registry(db, settings.models.folder)
        registry.ensure_champion(db.now())
        yield Ready(db, registry)
    finally:
        db.close()


def check_sources(settings: Settings) -> None:
    """Raises ConfigError or LayoutError for the first source that cannot work, wherever its share is now."""
    for name, source in settings.sources.items():
        watch.layout_of(name, source)
    watch.require_apart(roots(settings))


def roots(settings: Settings) -> dict[str, Path]:
    """Where each configured source is on this host."""
    return {name: source.root for name, source in settings.sources.items()}


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
