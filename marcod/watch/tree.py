"""The file system below one source root, with its links, odd bytes, failing and vanishing folders.

A :class:`Walk` finds files in small portions, so that a loop can do other things between them.
:class:`FolderMemory` makes a second walk cheap: a folder's modification time changes when a file or folder appears
in it, so a rescan asks every known folder for its time and lists only those that changed. What it cannot see, a
file rewritten in place, is left to events, polls and the full walk. An empty or failed listing means nothing about
what was there before.

Paths are relative to the root, with ``/`` between parts and undecodable bytes as surrogates (``os.fsdecode``).
"""

import errno
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from marcod import files as marcod_files
from marcod.errors import MarcodError
from marcod.files import EscapesRootError
from marcod.layouts import is_entered
from marcod.layouts.findings import Cause
from marcod.watch.settle import FileStat

MTIME_GRACE_S: Final = 5.0
"""A folder's time is believed once a listing came this long after the time was first seen.

A file that appears right after a listing can leave the folder's time as it was: kernels keep it in ticks of
milliseconds, FAT in steps of two seconds.
"""

COMPANION_LIMIT: Final = 16 * 2**20
"""Bytes of a report or sidecar that are read, and one more, by which a layout can tell that there are too many."""

EXAMPLES: Final = 5

LATEST_NS: Final = 2**63 - 1
"""In the year 2262."""

_GONE: Final = (FileNotFoundError, NotADirectoryError)


class MissingRootError(MarcodError):
    """The source root is not a folder that can be read."""


Identity = tuple[int, int]
"""Device and inode: another pair at the same path means that something else is mounted there now."""


class Root:
    """The folder an imager writes to; a symbolic link in its own path is followed, one below it is not left by."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = os.path.abspath(path)  # noqa: PTH100 - a Path would lose speed in every call below

    def __str__(self) -> str:
        return self.path

    def absolute(self, path: str) -> str:
        """Return the path to give to the operating system."""
        return f"{self.path}/{path}" if path else self.path

    def identity(self) -> Identity | None:
        """Which folder stands at the root now; None when there is none that can be read."""
        try:
            found = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return None
        if not stat.S_ISDIR(found.st_mode) or not os.access(self.path, os.R_OK | os.X_OK):
            return None
        return found.st_dev, found.st_ino

    def stat(self, path: str) -> FileStat | None:
        """Return size and time of a file; None when it is gone, no regular file, or a link that leaves the root.

        Raises OSError when the file system cannot tell now.
        """
        try:
            with marcod_files.open_beneath(self.absolute(path), self.path) as descriptor:
                found = marcod_files.regular(descriptor)
        except (*_GONE, EscapesRootError):
            return None
        except OSError as error:
            # A link that goes in circles leads nowhere, now and later.
            if error.errno == errno.ELOOP:
                return None
            raise
        return None if found is None else _file_stat(found)

    def companions(self) -> Callable[[str], bytes | None]:
        """Return a reader of small files by relative path that remembers what it read, to be used for one portion."""
        return marcod_files.reader(self.path, COMPANION_LIMIT + 1)


Counts = tuple[tuple[Cause | None, int], ...]
"""Files of one folder by what they are counted under."""


class Folder:
    """Memory of one folder: its time, when that time was first seen, its sub-folders by name.

    ``counts`` are those of its files since the last listing, ``before`` those of the listing before.
    """

    __slots__ = ("before", "believed", "children", "counts", "first_seen", "mtime_ns")

    def __init__(self) -> None:
        self.mtime_ns = -1
        self.first_seen = 0.0
        self.believed = False
        self.children: dict[str, Folder] = {}
        self.counts: Counts = ()
        self.before: Counts = ()

    def listed(self, mtime_ns: int, names: Iterable[str], now: float) -> None:
        if mtime_ns == self.mtime_ns:
            self.believed = now - self.first_seen >= MTIME_GRACE_S
        else:
            self.mtime_ns, self.first_seen, self.believed = mtime_ns, now, False
        self.before, self.counts = self.counts, ()
        before = self.children
        self.children = {sys.intern(name): before.get(name) or Folder() for name in names}

    def doubt(self) -> None:
        self.mtime_ns, self.believed = -1, False


class FolderMemory:
    """The folders of a root as the last walks saw them. Losing it costs one full walk."""

    def __init__(self) -> None:
        self.top = Folder()

    def counts(self) -> Counter[Cause | None]:
        """Return the counts of all folders together, those that could not be listed lately included."""
        total: Counter[Cause | None] = Counter()
        stack = [self.top]
        while stack:
            folder = stack.pop()
            stack.extend(folder.children.values())
            for cause, files in folder.counts:
                total[cause] += files
        return total

    def forget(self) -> None:
        """Believe nothing any more: another file system may stand at the root."""
        self.top = Folder()


@dataclass(slots=True)
class WalkCounts:
    """Counts of a walk so far: folders asked for their time, folders listed, files found, folders not readable."""

    folders: int = 0
    listed: int = 0
    files: int = 0
    unreadable: int = 0
    unreadable_examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """A name in a listing that is not a folder, and the folder; without ``entry`` it is only known by its path."""

    path: str
    entry: os.DirEntry[str] | None = None
    folder: Folder | None = None

    def stat(self, root: Root) -> FileStat | None:
        """As :meth:`Root.stat`, from the listing where that is enough."""
        if self.entry is None or self.entry.is_symlink():
            return root.stat(self.path)
        try:
            found = self.entry.stat(follow_symlinks=False)
        except _GONE:
            return None
        return _file_stat(found) if stat.S_ISREG(found.st_mode) else None


class Walk:
    """One look at the folders below ``folders``, in portions.

    With a memory, folders whose time is believed are not listed, unless the walk is ``full``. Symbolic links to
    folders are not entered: they leave the root, go in circles, or show what is walked anyway. Hidden folders and
    snapshot folders of file servers are not entered either, since no layout reads them.
    """

    def __init__(
        self, root: Root, memory: FolderMemory | None = None, *, full: bool = True, folders: Iterable[str] = ("",)
    ) -> None:
        self.full: Final = full
        self.is_rescan: Final = memory is not None
        self.counts: Final = WalkCounts()
        self._root = root
        self._stack = [(folder, memory.top if memory else Folder()) for folder in folders if is_entered(folder)]
        self._found: list[Found] = []

    @property
    def done(self) -> bool:
        """True when everything was found and handed out."""
        return not self._stack and not self._found

    def more(self, now: float, limit: int) -> list[Found]:
        """Return the next files, at most ``limit``, after asking at most ``limit`` folders.

        Raises MissingRootError when the root itself cannot be read; then nothing of it was forgotten.
        """
        asked = 0
        while self._stack and asked < limit and len(self._found) < limit:
            asked += 1
            self._visit(*self._stack[-1], now)
        portion, self._found = self._found[:limit], self._found[limit:]
        return portion

    def _visit(self, path: str, folder: Folder, now: float) -> None:
        """Ask the folder on top of the stack, which stays there when the root is offline."""
        self.counts.folders += 1
        try:
            mtime_ns = self._mtime_ns(path)
            if self.full or not folder.believed or mtime_ns != folder.mtime_ns:
                self._list(path, folder, mtime_ns, now)
            self._stack.pop()
        except OSError as error:
            if not path:
                raise MissingRootError(f"the folder {self._root} cannot be read: {error.strerror}") from error
            self._stack.pop()
            folder.doubt()
            self._note_unreadable(path, error)
            return
        prefix = f"{path}/" if path else ""
        self._stack.extend((prefix + name, folder.children[name]) for name in sorted(folder.children, reverse=True))

    def _mtime_ns(self, path: str) -> int:
        found = os.stat(self._root.absolute(path), follow_symlinks=not path)  # noqa: PTH116
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return found.st_mtime_ns

    def _list(self, path: str, folder: Folder, mtime_ns: int, now: float) -> None:
        prefix = f"{path}/" if path else ""
        names: list[str] = []
        files: list[Found] = []
        with os.scandir(self._root.absolute(path)) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    if is_entered(entry.name):
                        names.append(entry.name)
                else:
                    files.append(Found(prefix + entry.name, entry, folder))
        folder.listed(mtime_ns, names, now)
        self.counts.listed += 1
        self.counts.files += len(files)
        self._found += files

    def _note_unreadable(self, path: str, error: OSError) -> None:
        if isinstance(error, _GONE):
            return
        self.counts.unreadable += 1
        if len(self.counts.unreadable_examples) < EXAMPLES:
            self.counts.unreadable_examples.append(path)


def outermost(folders: Iterable[str]) -> list[str]:
    """Return the folders that do not lie in another one of them, sorted."""
    kept: list[str] = []
    for folder in sorted(folders, key=lambda path: path.split("/")):
        if not kept or not (kept[-1] == "" or folder == kept[-1] or folder.startswith(f"{kept[-1]}/")):
            kept.append(folder)
    return kept


def _file_stat(found: os.stat_result) -> FileStat:
    """Return size and time, clamped to times that a database holds: an imager's clock may be centuries wrong."""
    return FileStat(found.st_size, min(max(found.st_mtime_ns, 0), LATEST_NS))
