"""Start-up shared by all commands: a checked database with a champion or only for reading, and signals."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from marcod.database import probe, revisions
from marcod.database.engine import DAEMON, PERSON, Database, Patience
from marcod.settings import Settings
from marcod.settings.environment import batch_task

if TYPE_CHECKING:
    from marcod.model import engines
    from marcod.model.registry import Registry


@dataclass(frozen=True, slots=True)
class App:
    """A checked database, the folder of the lab's own bundles, and the engine that calculates them here."""

    db: Database
    models: Path
    engine: "engines.Setting" = "auto"

    @property
    def registry(self) -> "Registry":
        """Model versions of this database and of this host."""
        from marcod.model.registry import Registry  # loads NumPy, which few answers need

        return Registry(self.db, self.models, self.engine)


@contextmanager
def open_app(settings: Settings, *, brief: bool = False) -> Iterator[App]:
    """Open the database to be changed, with a current schema and a champion; both are made in a new one.

    A database that refuses or does not answer is reported within five seconds. From then on it is waited for as the
    daemon does; by a ``brief`` command, which a person waits for, no longer than a few seconds.

    Raises:
        StoreError, SchemaError, BundleError: with one sentence, before anything else is done.
    """
    _reach(settings.store.url.get_secret_value())
    with waited_for(settings, PERSON if brief else DAEMON) as ready:
        yield ready


@contextmanager
def connected(settings: Settings) -> Iterator[Database]:
    """Open the database like :func:`open_app`, whatever its schema is; nothing is put into it."""
    url = settings.store.url.get_secret_value()
    _reach(url)
    with closing(Database(url)) as db:
        yield db


def _reach(url: str) -> None:
    """Raise StoreError for a database that refuses, before anything waits for it."""
    with closing(Database(url, patience=PERSON)) as db:
        db.reach()


@contextmanager
def waited_for(settings: Settings, patience: Patience = DAEMON) -> Iterator[App]:
    """Open the database as :func:`open_app` does, and wait for it from the beginning, as the daemon does."""
    from marcod.database import migrate  # imports Alembic, which a reader does not need

    with closing(Database(settings.store.url.get_secret_value(), patience=patience)) as db:
        migrate.require_current(db)
        ready = App(db, settings.models.folder, settings.score.engine)
        ready.registry.ensure_champion(db.now())
        yield ready


@contextmanager
def reading(settings: Settings) -> Iterator[App]:
    """Open the database to be read by somebody who need not be allowed to write.

    Guarantees:
        - No file, folder, schema or row is made or changed.
        - A database that refuses or does not answer is reported within five seconds.

    Raises:
        StoreError: where there is no database, or it cannot be read.
        SchemaError: where it is empty, or its schema is not one that this marcod can work on.
    """
    with looked_at(settings) as db:
        revisions.require_usable(db)
        yield App(db, settings.models.folder, settings.score.engine)


@contextmanager
def looked_at(settings: Settings) -> Iterator[Database]:
    """Open the database like :func:`reading`, whatever its schema is."""
    url = settings.store.url.get_secret_value()
    probe.require_file(url)
    with closing(Database(url, patience=PERSON, read_only=True)) as db:
        db.reach()
        yield db


def roots(settings: Settings) -> dict[str, Path]:
    """Return where each configured source is on this host."""
    return {name: source.root for name, source in settings.sources.items()}


def check_sources(settings: Settings) -> None:
    """Check that every source can be read as configured, wherever its share is now.

    Raises:
        ConfigError, LayoutError: for the first that cannot.
    """
    from marcod.watch.folders import require_apart
    from marcod.watch.ingest import layout_of  # imports watchdog, which few commands need

    for name, source in settings.sources.items():
        layout_of(name, source)
    require_apart(roots(settings))


def worker_name() -> str:
    """Return a name that no other process ever has: host, process id, and the task of a batch system if it is one."""
    task = batch_task()
    return ":".join([socket.gethostname(), str(os.getpid()), *([task] if task else []), uuid4().hex[:8]])


@contextmanager
def stop_event_on_signals(started: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM or SIGINT sets; the second exits at once. For the main thread only.

    Until ``started`` is set, where it is given, there is nothing to end in order: the first signal exits with 0.
    """
    stop, asked = threading.Event(), False

    def handle(number: int, _frame: object) -> None:
        nonlocal asked
        if started is not None and not started.is_set():
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
