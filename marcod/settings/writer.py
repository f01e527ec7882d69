"""Adding tables to a configuration file: whole or not at all, after the result was loaded as marcod loads it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from marcod.errors import ConfigError, MarcodError
from marcod.settings import Settings, config_file, load, user_file

HEAD: Final = """\
# Configuration of marcod. `marcod config show` prints every key with its value and its meaning,
# `marcod config check` says what is wrong, `marcod setup FOLDER` adds a source at the end.

# store.url = "postgresql://marcod@db.example.org/marcod"    # instead of SQLite in this user's state folder
"""
"""Beginning of a new file."""


def file_to_write(named: Path | None = None) -> Path:
    """The file from which the configuration is read, or would be read if it were there."""
    if named is None and (variable := os.environ.get("MARCOD_CONFIG")):
        named = Path(variable)
    if named is not None:
        return named
    return config_file() or user_file()


def add_tables(path: Path, tables: str, check: Callable[[Settings], None] = lambda settings: None) -> Settings:
    """Add tables at the end of the file, or make the file; returns the settings that it gives now.

    The text that is there stays as it is. The new file is loaded and given to ``check`` before it takes its place.
    Raises ConfigError when it would not load or does not pass, or changed meanwhile; MarcodError when it cannot be
    written. Then nothing has changed.
    """
    target = Path(os.path.realpath(path))
    before = target.read_bytes() if target.exists() else None
    text = HEAD.encode() if before is None else before if before.endswith(b"\n") or not before else before + b"\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            unfinished = Path(scratch) / target.name
            _write(unfinished, text + b"\n" + tables.encode(), like=target)
            loaded = _loaded(unfinished, path, check)
            if (target.read_bytes() if target.exists() else None) != before:
                raise ConfigError(f"{path} was changed by another program just now; run this again")
            unfinished.replace(target)
    except OSError as error:
        raise MarcodError(f"{path} cannot be written: {error.strerror}") from error
    return loaded


def _write(unfinished: Path, content: bytes, *, like: Path) -> None:
    """Write to the disk, with the mode and the owner of the file that will be replaced."""
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if like.exists():
        old = like.stat()
        unfinished.chmod(old.st_mode & 0o7777)
        if (old.st_uid, old.st_gid) != (unfinished.stat().st_uid, unfinished.stat().st_gid):
            os.chown(unfinished, old.st_uid, old.st_gid)


def _loaded(unfinished: Path, path: Path, check: Callable[[Settings], None]) -> Settings:
    try:
        loaded = load(unfinished)
        check(loaded)
    except MarcodError as error:
        raise ConfigError(str(error).replace(str(unfinished), str(path))) from error
    return loaded
