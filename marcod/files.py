"""Opening a file inside a folder: hides links, and promises that what was checked is what is read.

Whoever may write to an imager's share may put a link there, or swap a folder for one, at any moment. A link is followed
as long as it stays below the folder; one that leaves it is never followed. The file is first held without being opened,
so that no pipe is waited for and no device started, and then asked where it lies. Needs /proc, as every Linux has it.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_HOLD: Final = os.O_PATH | os.O_CLOEXEC
_LEAST: Final = 1 << 16


def shipped(name: str) -> Path:
    """Return a folder that came with the project: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package.parent / name


class OutsideError(PermissionError):
    """A file lies outside the folder it was looked for in."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "a link on its path leads out of its source, and is not followed")


@contextmanager
def held(path: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> Iterator[int]:
    """A descriptor that holds what is at ``path``, opened for nothing but :func:`regular` and :func:`content`.

    Raises OutsideError when it is not below ``root``, wherever the names of both lead by now, and OSError.
    """
    descriptor = os.open(path, _HOLD)
    try:
        if root is not None and not _is_below(descriptor, root):
            # A share that was mounted anew in between: what was held is of the former one.
            os.close(descriptor)
            descriptor = os.open(path, _HOLD)
            if not _is_below(descriptor, root):
                raise OutsideError
        yield descriptor
    finally:
        os.close(descriptor)


def regular(descriptor: int) -> os.stat_result | None:
    """Size and times of a held file; None for folders, pipes, devices and sockets."""
    found = os.fstat(descriptor)
    return found if stat.S_ISREG(found.st_mode) else None


def content(descriptor: int, limit: int) -> bytes:
    """The first ``limit`` bytes of a held regular file. Raises OSError."""
    # As much room as it needs: a buffer of the whole limit would take longer to get than the file to read.
    wanted = min(limit, max(os.fstat(descriptor).st_size, _LEAST) + 1)
    with open(_name(descriptor), "rb") as file:  # noqa: PTH123 - no path, but this very file
        return file.read(wanted)


def reader(root: str, limit: int) -> Callable[[str], bytes | None]:
    """Make a reader of small files by path relative to ``root``, of at most ``limit`` bytes each.

    It remembers what it read and gives None for what is no regular file below ``root`` or cannot be read.
    """
    read: dict[str, bytes | None] = {}

    def read_once(path: str) -> bytes | None:
        if path not in read:
            read[path] = _beginning(root, path, limit)
        return read[path]

    return read_once


def _beginning(root: str, path: str, limit: int) -> bytes | None:
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        return None
    try:
        with held(f"{root}/{path}", root) as descriptor:
            return content(descriptor, limit) if regular(descriptor) is not None else None
    except OSError:
        return None


def _is_below(descriptor: int, root: str | os.PathLike[str]) -> bool:
    folder = os.open(root, _HOLD | os.O_DIRECTORY)
    try:
        within = os.readlink(_name(folder))  # noqa: PTH115
    finally:
        os.close(folder)
    return os.readlink(_name(descriptor)).startswith(os.path.join(within, ""))  # noqa: PTH115, PTH118


def _name(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
