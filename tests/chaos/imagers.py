"""The imagers' shares: plates written file by file, what is wrong with some of them, and the truth about every file.

No two images have the same bytes: a comment in each names its copy, so that a few rendered drops make any number
of files and the right probabilities of each are known. A share can be moved away and its folder be emptied; what the
imager writes meanwhile stands there when it is back. Everything is synthetic.
"""

import hashlib
import io
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

from PIL import Image

from marcod import layouts
from marcod.domain import PLATE_FORMATS, DropImage, Modality
from marcod.synthetic import drop_jpeg

PICTURES: Final = 8
DROPS_A_PLATE: Final = 8
START: Final = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
ODD: Final = (
    b"Stra\xdfe", "Tröpfchen".encode(), b"a b'c\"d", b"=cmd|x", b"<b>&amp;", b"line\nbreak", b"tab\tand\x7f",
    b"\xff\xfe", "\N{SNOWMAN}".encode(), b"%s{0}$HOME", b"';drop table image;--",
)  # fmt: skip
"""Parts of names that somebody, somewhere, has typed, or that an old file server has left behind."""


class State(StrEnum):
    """What a file is, and so what has to become of it."""

    INTACT = "intact"
    BROKEN = "broken"
    UNLIT = "in another light"
    NEVER = "no file to take in"


@dataclass(frozen=True, slots=True)
class Truth:
    """What marcod has to find at a path: which rendered image, or what is wrong (a regular expression)."""

    state: State
    photograph: int | None = None
    digest: str | None = None
    reason: str | None = None
    image: DropImage | None = None


@cache
def photographs() -> tuple[bytes, ...]:
    """The rendered drops of which all files are copies."""
    return tuple(drop_jpeg(seed)[0] for seed in range(PICTURES))


def marked(jpeg: bytes, text: str) -> bytes:
    """The same image as other bytes: a comment stands behind the first marker."""
    comment = f"synthetic, {text}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


@cache
def bomb() -> bytes:
    """A small file of 400 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


_BROKEN: Final[dict[str, tuple[Callable[[bytes], bytes], str]]] = {
    "truncated image": (lambda jpeg: jpeg[: 2 * len(jpeg) // 3], "truncated or damaged"),
    "header alone": (lambda jpeg: jpeg[:9], "truncated or damaged|header is incomplete"),
    "not an image": (lambda jpeg: b"<html>404</html>" + hashlib.sha256(jpeg).digest(), "not a JPEG"),
    "decompression bomb": (lambda jpeg: bomb() + jpeg[:400], "400,000,000 pixels|too large"),
}
BROKEN: Final = tuple(_BROKEN)
NEVER: Final = ("empty file", "named pipe", "link out of the share", "folder with an image's name")


class Share:
    """One imager's folder, and the truth about every file that was ever written there."""

    def __init__(self, root: Path, layout: str) -> None:
        self.name, self.root, self.layout = root.name, root, layout
        self.truth: dict[str, Truth] = {}
        self.held: set[str] = set()
        """Paths that are damaged for now and will be mended."""
        self.disturbed: Counter[str] = Counter()
        """How often something happened to a path for which it may be scored once more."""
        self._home = root
        self._lock = threading.RLock()
        self._copies = count(1)
        root.mkdir()

    @property
    def is_there(self) -> bool:
        """Whether marcod can see it."""
        return self._home == self.root

    @contextmanager
    def still(self) -> Iterator[Path]:
        """Where the files are; nothing is written or moved meanwhile."""
        with self._lock:
            yield self._home

    def write(self, path: str, photograph: int, state: State, image: DropImage | None, halves: bool = False) -> None:
        """Write an image in place, as imagers do; in two halves where the imager is slow."""
        data = marked(photographs()[photograph], f"copy {next(self._copies)} of {image}")
        with self.still() as home:
            # The first of two halves may pass for a whole file where the machine is slow.
            self.disturbed[path] += (path in self.truth) + halves
            self.truth[path] = Truth(state, photograph, hashlib.sha256(data).hexdigest(), None, image)
            _put(home / path, data, halves)

    def write_beside(self, path: str, data: bytes) -> None:
        """Write what is no image of a drop."""
        with self.still() as home:
            _put(home / path, data)

    def spoil(self, path: str, what: str, image: DropImage | None = None) -> None:
        """Write a file of a kind that cannot be scored."""
        change, reason = _BROKEN[what]
        data = change(marked(photographs()[0], f"copy {next(self._copies)}"))
        with self.still() as home:
            self.truth[path] = Truth(State.BROKEN, None, hashlib.sha256(data).hexdigest(), reason, image)
            _put(home / path, data)

    def mislead(self, path: str, what: str) -> None:
        """Put something where an image is expected that is no file, or will never be one."""
        with self.still() as home:
            self.truth[path] = Truth(State.NEVER)
            target = home / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if what == "empty file":
                target.touch()
            elif what == "named pipe":
                os.mkfifo(target)
            elif what == "link out of the share":
                target.symlink_to("/etc/hostname")
            else:
                target.mkdir()

    def truncate(self, path: str) -> Callable[[], None]:
        """Cut an intact file to a part of it. Returns what mends it, with the bytes it had."""
        with self.still() as home:
            whole = (home / path).read_bytes()
            self.held.add(path)
            self.disturbed[path] += 2
            os.truncate(home / path, len(whole) // 3)

        def mend() -> None:
            with self.still() as home:
                _put(home / path, whole)
                self.held.discard(path)

        return mend

    def move_away(self, emptied: bool) -> Callable[[], None]:
        """Take the share away, as an unmount does. Returns what brings it back."""
        with self._lock:
            self._home = self.root.with_name(f"{self.root.name}.away")
            self.root.rename(self._home)
            if emptied:
                self.root.mkdir()

        def back() -> None:
            with self._lock:
                if emptied:
                    self.root.rmdir()
                self._home.rename(self.root)
                self._home = self.root

        return back

    def touch(self, path: str) -> None:
        """Change a file's time alone."""
        with self.still() as home:
            self.disturbed[path] += 1
            os.utime(home / path)

    def hide(self, path: str) -> Callable[[], None] | None:
        """Move the folder of a file out of the share. Returns what brings it back; None when it holds damaged files."""
        with self.still() as home:
            folder = Path(path).parent
            aside = self.root.with_name(f"{self.root.name}.{next(self._copies)}.hidden")
            below = {p for p in self.truth if Path(p).is_relative_to(folder)}
            if below & self.held:
                return None
            self.held |= below
            (home / folder).rename(aside)

        def back() -> None:
            with self.still() as home:
                # What the imager wrote into a new folder of the same name stays beside what returns.
                _merge(aside, home / folder)
                self.held -= below

        return back

    def intact(self) -> list[str]:
        """The images that are whole and are where they belong."""
        with self._lock:
            return [p for p, truth in self.truth.items() if truth.state is State.INTACT and p not in self.held]


def _put(target: Path, data: bytes, halves: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb", buffering=0) as file:
        half = len(data) // 2
        file.write(data[:half])
        if halves:
            threading.Event().wait(0.2)
        file.write(data[half:])


def _merge(source: Path, target: Path) -> None:
    if not target.is_dir() or target.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    for child in source.iterdir():
        if child.is_dir() and not child.is_symlink() and (target / child.name).is_dir():
            _merge(child, target / child.name)
        elif not (target / child.name).exists():
            child.rename(target / child.name)
        else:
            child.unlink()
    source.rmdir()


@dataclass
class Imager:
    """Writes one plate after another into its share, some of their files broken."""

    share: Share
    rng: random.Random
    number: int = 0
    planned: list[Callable[[], None]] = field(default_factory=list)

    def write_next(self) -> None:
        """The next file."""
        if not self.planned:
            self.number += 1
            self.planned = list(self._plate())
        self.planned.pop(0)()

    def finish(self) -> None:
        """The rest of the plate."""
        while self.planned:
            self.write_next()

    def _plate(self) -> Iterator[Callable[[], None]]:
        """One inspection of a plate: mostly a new one, sometimes a plate imaged before."""
        again = self.share.layout == "rigaku" and self.number % 3 == 0
        number, inspection = (self.number - 1, 2) if again else (self.number, 1)
        odd = os.fsdecode(self.rng.choice(ODD))
        images = _images(self.share.layout, number, inspection)
        for image in images:
            path = _path(self.share.layout, image, odd)
            yield self._one(path, image)
            if self.share.layout == "formulatrix":
                thumbnail = path.replace("_ef.", "_th.")
                yield lambda where=thumbnail: self.share.write_beside(where, photographs()[0])
        for path, content in layouts.make(self.share.layout).sidecars(images).items():
            yield lambda where=path, what=content: self.share.write_beside(where, what)

    def _one(self, path: str, image: DropImage) -> Callable[[], None]:
        chance, rng, share = self.rng.random(), self.rng, self.share
        if chance < 0.03:
            what = rng.choice(NEVER)
            return lambda: share.mislead(path, what)
        visible = image.modality is Modality.VISIBLE
        if chance < 0.10 and visible:
            what = rng.choice(BROKEN)
            return lambda: share.spoil(path, what, image)
        state = State.INTACT if visible else State.UNLIT
        photograph, halves = rng.randrange(PICTURES), rng.random() < 0.1
        return lambda: share.write(path, photograph, state, image, halves)


LAYOUTS: Final = ("rigaku", "formulatrix", "hwi", "crims", "rockmaker-export")


def _images(layout: str, number: int, inspection: int) -> list[DropImage]:
    """What one inspection of a plate shows; where the vendor writes them, in ultraviolet light too."""
    taken = START + timedelta(days=number, hours=inspection)
    keys = {
        "rigaku": (f"CI{300_000 + number}", str(inspection)),
        "formulatrix": (str(4_000 + number), str(9_000 + number)),
        "hwi": (f"X{number:09d}", f"{taken:%Y%m%d%H%M}"),
        "crims": (f"CD{40_000 + number}", str(inspection)),
        "rockmaker-export": (f"{number}j8", str(3_000 + number)),
    }
    plate, key = keys[layout]
    grid = PLATE_FORMATS[1536 if layout == "hwi" else 96]
    found = []
    for well in range(1, DROPS_A_PLATE + 1):
        row, column = grid.position(5 * well)
        region = well * 10 + 1 if layout == "formulatrix" else None
        image = DropImage(layout, plate, key, row, column, 1, Modality.VISIBLE, captured_at=taken, region=region)
        found.append(image)
        if layout == "crims" and well % 4 == 0:
            found.append(DropImage(layout, plate, key, row, column, 1, Modality.UV, captured_at=taken))
    return found


def _path(layout: str, image: DropImage, odd: str) -> str:
    """The image's path with an odd part where this imager lets people type one."""
    path = layouts.make(layout).format(image)
    if layout == "rigaku":
        return path.replace("Test1", f"Test{odd}")
    return path if layout == "rockmaker-export" else f"{odd}/{path}"
