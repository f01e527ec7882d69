"""Adding tables to a configuration file: whole or not at all, after the result was loaded as marcod loads it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from marcod import files
from marcod.errors import ConfigError, MarcodError, os_reason
from marcod.settings import Settings
from marcod.settings.loading import config_file, load, user_file, variable

HEAD: Final = """\
# Configuration of marcod. `marcod config show` prints every key with its value and its meaning,
# `marcod config check` says what is wrong, `marcod setup FOLDER` adds a source at the end.

# store.url = "postgresql://marcod@db.example.org/marcod"    # instead of SQLite in this user's state folder
"""
"""Beginning of a new file."""


def file_to_write(named: Path | None = None) -> Path:
    """Return the file from which the configuration is read, or would be read if it were there."""
    return named or variable() or config_file() or user_file()


class Addition:
    """Tables to be added at the end of a configuration file; the text that is there stays as it is."""

    def __init__(self, path: Path, tables: str) -> None:
        self.path: Final = path
        self._target = Path(os.path.realpath(path))
        self._before = self._content()
        self._after = _ended(HEAD.encode() if self._before is None else self._before) + tables.encode()

    def check(self, check: Callable[[Settings], None]) -> None:
        """Load the file as it would be, and give the settings to ``check``. Raises ConfigError; changes nothing."""
        with tempfile.TemporaryDirectory(prefix="marcod-setup-") as folder:
            trial = Path(folder) / self.path.name
            trial.write_bytes(self._after)
            try:
                check(load(trial))
            except MarcodError as error:
                raise ConfigError(str(error).replace(str(trial), str(self.path))) from error

    def write(self) -> None:
        """Put the file in its place, whole or not at all, with the mode and the owner that it had.

        Raises ConfigError when the file changed meanwhile, and MarcodError when it cannot be written.
        """
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(self._target) as unfinished:
                _write(unfinished, self._after, like=self._target)
                if self._content() != self._before:
                    raise ConfigError(f"{self.path} was changed by another program just now; run this again")
        except OSError as error:
            raise MarcodError(f"{self.path} cannot be written: {os_reason(error)}") from error

    def _content(self) -> bytes | None:
        try:
            return self._target.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from error


def _ended(text: bytes) -> bytes:
    """Return the text with its last line ended and an empty line after it."""
    return text if not text else text.rstrip(b"\r\n") + b"\n\n"


def _write(unfinished: Path, content: bytes, *, like: Path) -> None:
    unfinished.write_bytes(content)
    if like.exists():
        old, new = like.stat(), unfinished.stat()
        unfinished.chmod(old.st_mode & 0o7777)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.chown(unfinished, old.st_uid, old.st_gid)
