"""Bounded sample of the files below a folder.

Folders are entered one descent after another: each descent goes down the least visited way to a folder that was not
listed yet. A small tree is seen whole; of a large one every part is seen about equally often, whenever time runs out.

Guarantees:
    * At most ``SurveyLimits.entries`` names of a folder and ``SurveyLimits.folders`` folders of a level are listed.
    * Links to folders, hidden folders and snapshot folders are not entered.
    * A folder that cannot be read is counted, and ends nothing but its own descent.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

from marcod import layouts

DEEPEST: Final = 16
"""Folders below which nothing is listed; the deepest known layout has six."""

EXAMPLES: Final = 3

_LEAST_NAMES: Final = 24
_ASK_CLOCK_EVERY: Final = 256


@dataclass(frozen=True, slots=True)
class SurveyLimits:
    """Bounds of one look. ``seconds`` is asked between names: a file server that hangs is not interrupted.

    ``names`` is about how many file names are read by the layouts; folders listed later give fewer of theirs.
    """

    entries: int = 2_000
    folders: int = 200
    names: int = 4_000
    seconds: float = 20.0


@dataclass(slots=True)
class Sample:
    """Files found by a look. ``cut`` says why they are not all of them; it is empty when they are."""

    files: int = 0
    folders: int = 0
    links: int = 0
    unreadable: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def note_cut(self, why: str) -> None:
        """Add a reason why the sample is not everything, once."""
        if why not in self.cut:
            self.cut.append(why)


class _Folder:
    """A folder on the way; ``children`` is None until it is listed, and empty when nothing is left to see."""

    __slots__ = ("children", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.children: deque[_Folder] | None = None

    @property
    def done(self) -> bool:
        return self.children is not None and not self.children


def take_sample(
    folder: Path, limits: SurveyLimits, progress: Callable[[int], None] = lambda files: None, *, below: str = ""
) -> Sample:
    """Look at the files below ``folder``, or below its sub-folder ``below``; paths are relative to ``folder``.

    Calls ``progress`` with the number of files seen so far. Raises OSError when the folder itself cannot be listed.
    """
    look = _Look(folder, limits, progress)
    top = _Folder(below)
    look.descend(top, DEEPEST)
    for _ in range(limits.folders - 1):
        if top.done or look.is_late():
            break
        look.descend(top, DEEPEST)
    if not top.done:
        late = look.is_late()
        look.sample.note_cut(f"{limits.seconds:g} s were over" if late else "there are more folders than were entered")
    return look.sample


class _Look:
    def __init__(self, folder: Path, limits: SurveyLimits, progress: Callable[[int], None]) -> None:
        self.sample: Final = Sample()
        self._folder = os.fspath(folder)
        self._limits = limits
        self._progress = progress
        self._until = time.monotonic() + limits.seconds

    def is_late(self) -> bool:
        return time.monotonic() > self._until

    def descend(self, folder: _Folder, levels: int) -> None:
        """Go down to a folder that was not listed yet, listing what lies on the way."""
        if folder.children is None:
            if not levels:
                self.sample.note_cut(f"folders lie more than {DEEPEST} deep")
            folder.children = deque(self._list(folder.path) if levels else ())
        if folder.children:
            child = folder.children.popleft()
            self.descend(child, levels - 1)
            if not child.done:
                folder.children.append(child)

    def _list(self, path: str) -> list[_Folder]:
        """List one folder: keep a share of its files, and give its sub-folders in an order without a pattern."""
        prefix = f"{path}/" if path else ""
        folders: list[str] = []
        files: list[str] = []
        try:
            for entry in self._entries(path):
                if self._is_folder(entry):
                    if layouts.is_entered(entry.name):
                        folders.append(prefix + entry.name)
                elif not self._is_link_to_folder(entry):
                    files.append(prefix + entry.name)
        except OSError:
            if not self.sample.folders:
                raise
            self.sample.unreadable.append(path)
        self.sample.folders += 1
        self.sample.files += len(files)
        room = max(_LEAST_NAMES, self._limits.names - len(self.sample.paths))
        self.sample.paths += _shuffled(files)[:room]
        self._progress(self.sample.files)
        return [_Folder(name) for name in _shuffled(folders)]

    def _entries(self, path: str) -> Iterator["os.DirEntry[str]"]:
        with os.scandir(f"{self._folder}/{path}") as entries:
            for number, entry in enumerate(entries):
                if number == self._limits.entries:
                    self.sample.note_cut(f"a folder has more than {number:,} entries")
                    return
                if number % _ASK_CLOCK_EVERY == _ASK_CLOCK_EVERY - 1 and self.is_late():
                    return
                yield entry

    def _is_folder(self, entry: "os.DirEntry[str]") -> bool:
        try:
            return entry.is_dir(follow_symlinks=False)
        except OSError:
            return False

    def _is_link_to_folder(self, entry: "os.DirEntry[str]") -> bool:
        """Tell by the name alone, because asking for what a link leads to may hang."""
        if layouts.has_image_extension(entry.name) or not entry.is_symlink():
            return False
        self.sample.links += 1
        return True


def _shuffled(paths: list[str]) -> list[str]:
    """Return the paths in an order that is always the same and follows no pattern of the names."""
    return sorted(paths, key=lambda path: crc32(os.fsencode(path)))
