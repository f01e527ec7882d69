"""Packed images: prepared once as training keeps them, in tar files that any process reads in sequence.

A pack is a folder. ``shard-NUMBER.tar`` holds lossless WebP images, each named by the SHA-256 of the file that it was
made of; ``shard-NUMBER.json``, written last, has each image's place, size and SHA-256, which is compared whenever it
is read. A shard is there whole or not at all, and never changes. One process at a time adds to a pack, the one that
holds the file ``lock``.
"""

import fcntl
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from marcod import files
from marcod.errors import TRY_AGAIN, MarcodError, os_reason
from marcod.model.preprocess import Preprocessing

FORMAT: Final = "marcod pack 1"
SHARD_BYTES: Final = 1_000_000_000

Pixels = NDArray[np.uint8]


def folder_of(packs: Path, how: Preprocessing) -> Path:
    """Return the folder of the pack of images prepared in one way."""
    parts = [str(how.size), how.resize, *([str(how.decode_ratio)] if how.decode_ratio > 1 else [])]
    return packs / "-".join(parts if how.coverage == "centre" else [*parts, how.coverage])


@dataclass(frozen=True, slots=True)
class Packed:
    """Place of an image: its shard, where its bytes begin and how many there are, and their SHA-256."""

    shard: str
    offset: int
    size: int
    sha256: str


class Pack:
    """Packed images by the SHA-256 of the files that they were made of; threads may share one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._images = folder, dict[str, Packed]()
        self._open = threading.local()
        for index in sorted(folder.glob("shard-*.json")):
            self._add(index)

    def _add(self, index: Path) -> None:
        try:
            found = json.loads(index.read_bytes())
            if found["format"] != FORMAT:
                raise MarcodError(f"{index} is a {found['format']!r}, and this marcod reads {FORMAT!r} only")
            shard = index.with_suffix(".tar").name
            self._images |= {name: Packed(shard, *place) for name, place in found["images"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MarcodError(f"{index} is damaged; remove it and pack the data set again") from error

    def __contains__(self, content: object) -> bool:
        return content in self._images

    def __len__(self) -> int:
        return len(self._images)

    def place(self, content: str) -> tuple[str, int]:
        """Return where an image lies, so that several are read in sequence; those that are missing come last."""
        found = self._images.get(content)
        return ("~", 0) if found is None else (found.shard, found.offset)

    def read(self, content: str) -> Pixels | None:
        """Return an image, uint8 [size, size, 3]; None where there is none. Raises MarcodError for a damaged one."""
        found = self._images.get(content)
        if found is None:
            return None
        file = self.folder / found.shard
        try:
            data = os.pread(self._descriptor(file), found.size, found.offset)
        except OSError as error:
            raise MarcodError(f"{file} cannot be read: {os_reason(error)}") from error
        if hashlib.sha256(data).hexdigest() != found.sha256:
            raise MarcodError(
                f"{file} is damaged: the image of {content[:12]} has another checksum; "
                f"remove {file} and {file.with_suffix('.json').name}, and pack the data set again"
            )
        return decoded(data)

    def _descriptor(self, file: Path) -> int:
        """Return the shard's descriptor of this thread, which has one shard open at a time."""
        held: tuple[Path, io.FileIO] | None = getattr(self._open, "held", None)
        if held is None or held[0] != file:
            held = self._open.held = file, io.FileIO(file)
        return held[1].fileno()


def decoded(data: bytes) -> Pixels:
    """Return the pixels of a packed image."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def encoded(pixels: Pixels) -> bytes:
    """Return pixels uint8 [size, size, 3] as a WebP file that holds every bit of them, as quickly as it can."""
    out = io.BytesIO()
    # Without `exact` nothing is lost either, as there is no transparency.
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, quality=0, method=0)
    return out.getvalue()


class BusyPackError(MarcodError):
    """Another process adds to the pack; it can be added to when that one has ended."""

    exit_code = TRY_AGAIN


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a pack until the block or this process ends; no other process adds to it meanwhile.

    Where the file system has no such locks nothing is held. Raises BusyPackError when another one holds it, OSError.
    """
    lock = _opened(folder / "lock")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyPackError(
                f"another `marcod dataset pack` writes to {folder}; start this one again when it has ended"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(lock)


def _opened(lock: Path) -> int:
    """Open a lock to write, as NFS wants it for one that excludes others; to read where somebody else owns it."""
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        return os.open(lock, os.O_RDONLY | os.O_CLOEXEC)


def write(folder: Path, images: Iterable[tuple[str, bytes]], most: int = SHARD_BYTES) -> int:
    """Add encoded images to a pack in shards of about ``most`` bytes; return how many. Raises OSError.

    Shards that were finished before an error stay, so that the next call goes on after them.
    """
    number = 1 + max((int(file.stem.rpartition("-")[2]) for file in folder.glob("shard-*.json")), default=-1)
    written, waiting = 0, iter(images)
    for first in waiting:
        written += _write_shard(folder / f"shard-{number:05d}.tar", chain([first], waiting), most)
        number += 1
    return written


def _write_shard(place: Path, images: Iterator[tuple[str, bytes]], most: int) -> int:
    """Write one shard, then its list; return how many images are in it."""
    found: dict[str, tuple[int, int, str]] = {}
    with files.replacing(place) as unfinished, tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in images:
            member = tarfile.TarInfo(f"{name}.webp")
            member.size = len(data)
            # A member's header is one block in this format.
            found[name] = tar.offset + tarfile.BLOCKSIZE, len(data), hashlib.sha256(data).hexdigest()
            tar.addfile(member, io.BytesIO(data))
            if tar.offset >= most:
                break
    files.write_whole(place.with_suffix(".json"), json.dumps({"format": FORMAT, "images": found}))
    return len(found)
