"""Small images kept on disk, in a folder of bounded size that several processes may share.

A file appears whole or not at all. One that a power cut left torn counts as missing. A folder that cannot be written
costs speed and nothing else.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final
from uuid import uuid4

from marcod import telemetry
from marcod.errors import os_reason

log = telemetry.logger(__name__)

BEGIN, END = b"\xff\xd8\xff", b"\xff\xd9"
"""First and last bytes of a JPEG, by which a torn file is known."""

ROOM: Final = 0.9
"""Share of the limit that is left after old files went."""

USED_S: Final = 86_400.0
"""Age after which a file that is used again gets a new time, so that the files in use stay."""

ABANDONED_S: Final = 3_600.0
"""Age after which an unfinished file is removed."""


class ImageCache:
    """A folder of JPEGs by name, of at most ``limit`` bytes; those not used for longest go first. Thread-safe."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._bytes: int | None = None
        self._lock = Lock()
        self._complained = False

    def get(self, name: str) -> bytes | None:
        """Return a kept image, or None."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            if not (data.startswith(BEGIN) and data.endswith(END)):
                return None
            if time.time() - path.stat().st_mtime > USED_S:
                os.utime(path)
        except OSError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep an image; where that cannot be done the next request makes it again."""
        path = self._path(name)
        unfinished = path.with_name(f".{uuid4().hex}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished.write_bytes(data)
            unfinished.replace(path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            self._complain(error)
            return
        self._make_room(len(data))

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("small images cannot be kept", folder=str(self._folder), error=os_reason(error))

    def _make_room(self, added: int) -> None:
        """Count what was added, and remove the files not used for longest where it is too much."""
        with self._lock:
            if self._bytes is not None:
                self._bytes += added
                if self._bytes <= self._limit:
                    return
            files = sorted(self._files())
            total = sum(size for _, size, _ in files)
            wanted = self._limit if total <= self._limit else ROOM * self._limit
            for _, size, path in files:
                if total <= wanted:
                    break
                with suppress(OSError):
                    path.unlink()
                total -= size
            self._bytes = total

    def _files(self) -> list[tuple[float, int, Path]]:
        """List the kept files by time of use, and remove what a process that was killed left unfinished."""
        found = []
        for path in self._folder.glob("??/*"):
            with suppress(OSError):
                stat = path.stat()
                if not path.name.startswith("."):
                    found.append((stat.st_mtime, stat.st_size, path))
                elif time.time() - stat.st_mtime > ABANDONED_S:
                    path.unlink()
        return found
