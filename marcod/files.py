"""Files opened safely below a folder, and files and folders written whole or not at all.

Guarantees:
- :func:`open_beneath` follows a link as long as it stays below the folder, and never one that leads out of it. What was
  checked is what is read: somebody who may write to an imager's share may swap a folder for a link at any moment. The
  file is first opened with O_PATH, so that no pipe blocks and no device starts. Needs /proc, as every Linux has it.
- A reader of a file that was written by :func:`write_whole` or :func:`replacing` finds the former or the new content
  whole, also after a kill or a power cut.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from marcod.errors import ConfigError, MarcodError, os_reason

_NO_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EACCES, errno.EPERM})
"""Error numbers of file systems that cannot sync a folder, and of folders that may be written but not read."""

_HOLD: Final = os.O_PATH | os.O_CLOEXEC
_LEAST: Final = 1 << 16


def shipped(name: str) -> Path:
    """Return a folder that came with the project: inside the installed package, else next to it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package.parent / name


class EscapesRootError(PermissionError):
    """A file lies outside the folder it was looked for in."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "a link on its path leads out of its source, and is not followed")


@contextmanager
def open_beneath(path: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> Iterator[int]:
    """Yield a descriptor of the file at ``path`` that is below ``root``, for :func:`regular` and :func:`content`.

    Raises EscapesRootError when links lead out of ``root``, and OSError. Without a root every path is allowed.
    """
    descriptor = os.open(path, _HOLD)
    try:
        if root is not None and not _is_below(descriptor, root):
            # The share may have been mounted again in between: the descriptor is then of the former mount.
            os.close(descriptor)
            descriptor = os.open(path, _HOLD)
            if not _is_below(descriptor, root):
                raise EscapesRootError
        yield descriptor
    finally:
        os.close(descriptor)


def regular(descriptor: int) -> os.stat_result | None:
    """Return size and times of an open file; None for folders, pipes, devices and sockets."""
    found = os.fstat(descriptor)
    return found if stat.S_ISREG(found.st_mode) else None


def content(descriptor: int, limit: int) -> bytes:
    """Return the first ``limit`` bytes of an open regular file. Raises OSError."""
    # A buffer of the whole limit would take longer to allocate than the file to read.
    wanted = min(limit, max(os.fstat(descriptor).st_size, _LEAST) + 1)
    with open(_name(descriptor), "rb") as file:  # noqa: PTH123 - the descriptor and not the path, which may have changed
        return file.read(wanted)


def reader(root: str, limit: int) -> Callable[[str], bytes | None]:
    """Make a reader of small files by path relative to ``root``, of at most ``limit`` bytes each.

    It remembers what it read, and returns None for a path that is not a readable regular file below ``root``.
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
        with open_beneath(f"{root}/{path}", root) as descriptor:
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


def refuse_inside(target: Path, roots: Iterable[Path]) -> None:
    """Raise ConfigError for a file to write inside one of the folders, where only imagers write."""
    for root in roots:
        if target.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"{target} is inside the source folder {root}, where only the imager writes; choose another"
            )


def save(target: Path, content: bytes | str, protected: Iterable[Path]) -> None:
    """Write a file that a person named, as :func:`write_whole` does; a device or a pipe is written in place.

    Raises ConfigError for one inside a ``protected`` folder, and MarcodError.
    """
    refuse_inside(target, protected)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(_encoded(content))
        else:
            write_whole(target, content)
    except OSError as error:
        raise MarcodError(f"{target} cannot be written: {os_reason(error)}") from error


def write_whole(target: Path, content: bytes | str, *, mode: int | None = None) -> None:
    """Write or replace a file in one step, text as UTF-8. ``mode`` is exact; without one the umask decides.

    Raises OSError, with the former file as it was.
    """
    with replacing(target) as unfinished:
        unfinished.write_bytes(_encoded(content))
        if mode is not None:
            unfinished.chmod(mode)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path to write the new content to; at the end it replaces ``target`` in one step.

    Until then it lies in a hidden folder next to the target, which only this user can enter. Raises OSError, with the
    former file as it was.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}-", dir=target.parent) as scratch:
        unfinished = Path(scratch) / target.name
        yield unfinished
        put_in_place(unfinished, target)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Replace a file by a finished one of the same file system, in one step. Raises OSError."""
    # The content must be on the disk before the name is: after a power cut the file would be empty.
    sync(unfinished)
    unfinished.replace(target)
    sync(target.parent)


def put_folder_in_place(unfinished: Path, final: Path) -> None:
    """Give a finished folder of the same file system its name, in one step, with its files on the disk.

    Raises OSError, also where ``final`` is a folder that is not empty.
    """
    for path in (*unfinished.rglob("*"), unfinished):
        sync(path)
    unfinished.rename(final)
    sync(final.parent)


@contextmanager
def new_folder(final: Path, *, mode: int) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it gets its mode and appears as ``final``, or not at all.

    Raises OSError, also where ``final`` is a folder that is not empty.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name[:40]}-", dir=final.parent))
    try:
        yield scratch
        scratch.chmod(mode)
        put_folder_in_place(scratch, final)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, survive a power cut. Raises OSError."""
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (folder and error.errno in _NO_SYNC):
            raise


def _encoded(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content
