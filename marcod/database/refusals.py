"""Sentences for a database that refuses: what it said, and what a person does next. No sentence has a password."""

import re
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

NO_PRIVILEGE: Final = "42501"
_DISK_FULL: Final = "53100"
_READ_ONLY: Final = "25006"

_LITTLE: Final = 2**20
"""Bytes free below which SQLite's "disk I/O error" means a full disk."""

_STEPS: Final = (
    ("password authentication failed", "correct the password of {user} in store.url"),
    ("no password supplied", "give the password of {user} in store.url, or in a ~/.pgpass of who runs this"),
    (r"role .* does not exist", "create the role as operating.md says, or correct the user in store.url"),
    ("not permitted to log in", "let an administrator run `alter role {user} login`, or correct the user in store.url"),
    (r"database .* does not exist", "create it with `createdb {name}`, as operating.md says, or correct store.url"),
    ("no pg_hba.conf entry", "let the server's administrator add a line for {user} and this host to pg_hba.conf"),
    ("permission denied for database", "let its owner run `marcod db roles`, and give {user} one of these roles"),
    ("translate host name", "correct the host in store.url, or the name service of this host"),
    ("timeout expired", "is {place} up, and does a firewall let its port through?"),
    ("starting up|shutting down|recovery mode", "the server starts or stops; try again in a moment"),
    ("too many c|connection slots", "end some connections, or raise max_connections or the limit of {user}"),
    ("refused|no such file|could not connect", "start the PostgreSQL server at {place}, or correct store.url"),
    ("ssl negotiation|expected authentication", "what answers at {place} is no PostgreSQL server; correct store.url"),
    ("invalid (dsn|port|connection option)|invalid .* value", "correct store.url"),
    ("lock timeout", "somebody keeps a transaction open; end it, or try again"),
)
"""Patterns of PostgreSQL's messages, each with the next step. The first that fits counts."""


def reason(error: DBAPIError, url: URL, *, read_only: bool) -> str:
    """Say why a database refused, and what to do; for after "cannot be used: "."""
    said = _first_line(error)
    if isinstance(error.orig, sqlite3.Error):
        return of_file(error.orig, Path(url.database or "").absolute())
    return _of_server(str(getattr(error.orig, "pgcode", None) or ""), said, url, read_only=read_only)


def silence(url: URL, limit_s: float) -> str:
    """Say of a database that does not answer what to do."""
    if url.get_backend_name() == "sqlite":
        return f"its folder does not answer within {limit_s:g} s; check the file server, the network and the mount"
    step = f"is {_place(url)} up, and does a firewall let its port through?"
    return f"the server does not answer within {limit_s:g} s; {step}"


def _of_server(code: str, said: str, url: URL, *, read_only: bool) -> str:
    if code == _DISK_FULL:
        return f"the disk of the database server {_place(url)} is full ({said}); free some room there"
    if code == NO_PRIVILEGE and read_only:
        return f"{said}; let the owner of the tables run `marcod db roles`, and give {_user(url)} a role of it"
    if code == NO_PRIVILEGE:
        return f"{said}: {_user(url)} may only read; use an account of marcod_app, for `marcod db` the tables' owner"
    if code == _READ_ONLY and not read_only:
        return f"{said}; it may be a standby: give store.url the server that takes changes"
    step = next((step for pattern, step in _STEPS if re.search(pattern, said, re.IGNORECASE)), None)
    if step is None:
        return said
    return f"{said}; {step.format(user=_user(url), name=url.database or _user(url), place=_place(url))}"


def _user(url: URL) -> str:
    return url.username or "this user"


def _place(url: URL) -> str:
    host = url.query.get("host", url.host)
    return f"{host if isinstance(host, str) else 'localhost'}:{url.port or 5432}"


def of_file(error: sqlite3.Error, file: Path) -> str:
    """Say why SQLite refused a file, and what to do."""
    # Errors of our own, such as of a file that is gone, have no name.
    said = str(error)
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _has_no_room(file)):
        return f"the disk of {file} is full ({said}); free some room there"
    if name.startswith("SQLITE_READONLY"):
        return f"this user may only read {file} ({said}); run this as {_owner(file)}, who owns it"
    if name.startswith("SQLITE_CANTOPEN") or (name.startswith("SQLITE_IOERR") and file.is_dir()):
        return f"{said}; {_closed(file)}"
    if name.startswith("SQLITE_BUSY"):
        return f"{said}; another program writes to it for long: let it end, and try again"
    if name == "SQLITE_NOTADB":
        return f"{said}; correct store.url, or put a copy back with `marcod db restore`"
    if name.startswith("SQLITE_CORRUPT"):
        return f"{said}; stop marcod, keep the file, and put a copy back with `marcod db restore`"
    return said


def _closed(file: Path) -> str:
    """Say why a file cannot be opened."""
    try:
        if file.exists() and not file.is_file():
            return f"{file} is not a file; correct store.url"
        file.open("rb").close()
    except FileNotFoundError:
        return f"there is no {file}, and this user may not make it; correct store.url"
    except OSError as error:
        return f"{file}: {error.strerror}; let this user read it, or correct store.url"
    return f"this user may only read {file}; run this as {_owner(file)}, who owns it"


def _owner(file: Path) -> str:
    try:
        return file.owner()
    except (KeyError, OSError):
        return "the user"


def _has_no_room(file: Path) -> bool:
    try:
        return shutil.disk_usage(file.parent).free < _LITTLE
    except OSError:
        return False


def _first_line(error: DBAPIError) -> str:
    """Return the line that says most: of a host with several addresses each has one, and a server's answer counts."""
    lines = [line for line in str(error.orig).strip().splitlines() if line.strip()] or [type(error.orig).__name__]
    return next((line for line in lines if "FATAL:" in line), lines[0]).strip()
