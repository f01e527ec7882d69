"""A copy of an SQLite database while it is in use, and putting one in its place.

A copy is one moment of the database, in one checked file. Neither a copy nor a database is ever left half-written. The
database that a copy replaces is kept next to it.

PostgreSQL has tools of its own for this; :func:`dump_command` tells how to call them.
"""

import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from marcod.database import refusals, revisions, workers
from marcod.database.engine import Database
from marcod.database.revisions import SchemaState
from marcod.errors import ConfigError, SchemaError, StoreError, os_reason
from marcod.files import put_in_place

PAGES: Final = 2000
"""Pages copied between two reports, 8 MB."""

WAIT_S: Final = 5.0
"""Wait of a restore for other users of the database, in seconds."""

_LEFT: Final = ("-wal", "-shm", "-journal")

Report = Callable[[int, int], None]
"""Callback with the pages copied, and the pages in all."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A finished copy."""

    path: Path
    bytes: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A database that is in place; ``kept`` is the one of before, None where there was none.

    ``schema`` is how the restored one stands to this marcod.
    """

    path: Path
    kept: Path | None
    schema: SchemaState


def path_of(db: Database) -> Path:
    """Find the file of an SQLite database. Raises ConfigError for PostgreSQL, with the command to use instead."""
    if not db.is_sqlite:
        raise ConfigError(
            f"{db} is on PostgreSQL, which copies itself: run `{dump_command(db)}`; to bring that back into an empty"
            " database, `pg_restore --no-owner --no-privileges --exit-on-error -d URL FILE`, then `marcod db roles`"
        )
    return Path(str(db.url.database)).absolute()


def dump_command(db: Database) -> str:
    """Build the command that copies a PostgreSQL database in use; the password comes from ~/.pgpass."""
    url = db.url.set(drivername="postgresql")._replace(password=None).render_as_string()
    return f"pg_dump --format=custom --file=marcod.dump '{url}'"


def copy(db: Database, target: Path, *, overwrite: bool, report: Report) -> Copied:
    """Copy the database as it is now into a file of its own, readable to its owner alone.

    Writers go on meanwhile, and the copy is of the moment at which it began. Raises StoreError when the target is there
    already and may not be overwritten, when the copy cannot be written, and when it is not sound.
    """
    origin = path_of(db)
    if not origin.is_file():
        raise StoreError(f"there is no database at {origin}")
    if target.exists() and (not overwrite or not target.is_file() or target.samefile(origin)):
        raise StoreError(f"{target} is there already; name another file, or overwrite a former copy with --force")
    with _unfinished(target) as scratch:
        _copy_pages(origin, scratch, report)
        _check(scratch, origin)
        put_in_place(scratch, target)
    return Copied(target, target.stat().st_size)


def restore(
    db: Database, copied: Path, *, now: datetime, force: bool, report: Report, scripts: Path | None = None
) -> Restored:
    """Put a copy in the place of the database, which is kept next to it.

    Raises StoreError when the copy is not sound, SchemaError when this marcod does not know its schema, and StoreError
    while workers are alive or anybody has the database open. ``force`` takes the word of the caller that no worker runs
    where a database is too damaged to tell.
    """
    place = path_of(db)
    if not copied.is_file():
        raise StoreError(f"there is no file {copied}")
    if place.exists() and copied.samefile(place):
        raise StoreError(f"{copied} is the database itself; name a copy")
    with _unfinished(place) as scratch:
        _copy_pages(copied, scratch, report)
        _check(scratch, copied)
        schema = _prepare(scratch, copied, scripts)
        with _alone(db, place, now, force):
            _inherit(scratch, place)
            kept = _set_aside(place, now)
            put_in_place(scratch, place)
    return Restored(place, kept, schema)


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Make a file next to the target, in a private folder that is always removed."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}-", dir=target.parent) as folder:
            scratch = Path(folder) / target.name
            scratch.touch(mode=0o600)
            yield scratch
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {os_reason(error)}") from error
    except sqlite3.OperationalError as error:
        raise StoreError(f"{target} cannot be written: {refusals.of_file(error, target)}") from error


def _open(path: Path) -> sqlite3.Connection:
    """Connect to an existing file; never creates one."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=WAIT_S, isolation_level=None)


def _copy_pages(origin: Path, scratch: Path, report: Report) -> None:
    """Copy through SQLite, which adds what is still in the journal of the file."""

    def progress(_: int, remaining: int, total: int) -> None:
        report(total - remaining, total)

    try:
        with closing(_open(origin)) as source, closing(_open(scratch)) as made:
            # Of a connection that reads, the copy sees one moment; of another it restarts with every write.
            source.execute("begin")
            source.execute("select count(*) from sqlite_master").fetchone()
            source.backup(made, pages=PAGES, progress=progress, sleep=0)
            # Without a journal the file can lie on a read-only medium.
            made.execute("pragma journal_mode=delete")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname == "SQLITE_FULL":
            raise  # it is the copy's disk that is full
        raise StoreError(f"{origin} cannot be copied: {refusals.of_file(error, origin)}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{origin} is not a sound SQLite database: {error}") from error


def _check(scratch: Path, origin: Path) -> None:
    """Check every page, index and reference of a copy. Raises StoreError."""
    try:
        with closing(_open(scratch)) as connection:
            wrong = [str(row[0]) for row in connection.execute("pragma integrity_check(3)") if row[0] != "ok"]
            wrong += [f"a row of {row[0]} refers to none" for row in connection.execute("pragma foreign_key_check")][:3]
    except sqlite3.DatabaseError as error:
        wrong = [str(error)]
    if wrong:
        raise StoreError(f"{origin} is not a sound SQLite database: {'; '.join(wrong)}")


def _prepare(scratch: Path, copied: Path, scripts: Path | None) -> SchemaState:
    """Forget who was alive when the copy was made. Returns how its schema stands. Raises SchemaError if unknown."""
    made = Database(f"sqlite:///{scratch}")
    try:
        schema = revisions.state(made, scripts)
        if schema is SchemaState.EMPTY:
            raise SchemaError(f"{copied} is no database of marcod")
        if schema is SchemaState.UNRELEASED:
            raise SchemaError(
                f"{copied} is of a marcod before the first release, which this one cannot upgrade; restore it with the"
                " marcod that made it"
            )
        if schema is SchemaState.UNKNOWN:
            raise SchemaError(f"{copied} is of a marcod that this one does not know; install the marcod that made it")
        made.write(workers.forget_all)
    finally:
        made.close()
    with closing(_open(scratch)) as connection:
        connection.execute("pragma journal_mode=delete")
    return schema


@contextmanager
def _alone(db: Database, place: Path, now: datetime, force: bool) -> Iterator[None]:
    """Hold the database so that nobody reads or writes it, with its journal taken into the file.

    A damaged one cannot be locked; its journal stays where it is.
    """
    if not place.is_file():
        yield
        return
    with closing(_open(place)) as connection:
        try:
            connection.execute("pragma schema_version").fetchone()
            _refuse_while_alive(db, now)
            # Leaving the journal needs the database for oneself: it fails while anybody else has it open.
            connection.execute("pragma journal_mode=delete").fetchone()
            connection.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            raise StoreError(f"somebody has {place} open ({error}); stop marcod and all who read the file") from error
        except sqlite3.DatabaseError as error:
            if not force:
                raise StoreError(
                    f"{place} is damaged and cannot tell whether workers run ({error}); stop them and give --force"
                ) from error
        yield


def _refuse_while_alive(db: Database, now: datetime) -> None:
    """Check for workers with a recent heartbeat. Raises StoreError, or DatabaseError where they cannot be read."""
    try:
        alive = db.read(workers.needs, now)
    except StoreError as error:
        raise sqlite3.DatabaseError(str(error)) from error
    finally:
        db.close()
    if alive:
        named = ", ".join(worker.name for worker in alive)
        raise StoreError(f"workers are alive: {named}; stop them first (`systemctl stop marcod.target`)")


def _set_aside(place: Path, now: datetime) -> Path | None:
    """Rename the former database, and journals that it could not include. The path stays reserved."""
    stamp = f"{now:%Y%m%dT%H%M%SZ}"
    kept = place.with_name(f"{place.name}.before-restore-{stamp}")
    for ending in _LEFT:
        if (left := place.with_name(place.name + ending)).exists():
            left.rename(kept.with_name(kept.name + ending))
    if not place.exists():
        return None
    os.link(place, kept)
    return kept


def _inherit(scratch: Path, place: Path) -> None:
    """Give a restored file the owner and mode of the one that it replaces, or the daemon could not open it."""
    there = place.exists()
    like, mine = (place if there else place.parent).stat(), scratch.stat()
    if there:
        scratch.chmod(stat.S_IMODE(like.st_mode))
    if (like.st_uid, like.st_gid) != (mine.st_uid, mine.st_gid):
        os.chown(scratch, like.st_uid, like.st_gid)
