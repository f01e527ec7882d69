"""Packing of a data set: its images prepared once, so that later trainings read neither imagers' shares nor JPEGs.

The sides that train and validate are packed. The gate looks at the test side's own files, as scoring does.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from marcod import images
from marcod.domain import Split
from marcod.errors import TRY_AGAIN, ImageError, MarcodError, os_reason
from marcod.fitting import batches, packs
from marcod.model.preprocess import Preprocessing
from marcod.training import data
from marcod.training.snapshot import Item, Snapshot

AT_ONCE = 64
"""Images that are prepared before they are written."""


class StoppedPackError(MarcodError):
    """The packing was stopped; the next `marcod dataset pack` goes on."""

    exit_code = TRY_AGAIN


@dataclass(frozen=True, slots=True)
class PackReport:
    """Outcome: images that were in the pack before, those added, its bytes, and sentences on what was left out."""

    folder: Path
    before: int
    added: int
    bytes: int
    left_out: tuple[str, ...]


def pack(
    snapshot: Snapshot,
    how: Preprocessing,
    place: Path,
    roots: Mapping[str, Path],
    *,
    threads: int,
    done: Callable[[int, int], None],
    stopped: Callable[[], bool],
    shard_bytes: int = packs.SHARD_BYTES,
) -> PackReport:
    """Add what a data set's training and validation sides lack to the pack below ``place``.

    ``done`` is called with the images looked at and their number. Raises StoppedPackError, BusyPackError and
    MarcodError.
    """
    folder = packs.folder_of(place, how)
    wanted = {item.content_hash: item for side in (Split.TRAIN, Split.VALIDATION) for item in snapshot.side(side)}
    wrong: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with packs.held(folder):
            there = packs.Pack(folder)
            missing = [item for content, item in wanted.items() if content not in there]
            prepared = _prepared(missing, how, roots, threads, stopped, wrong)
            added = packs.write(folder, _counted(prepared, len(wanted) - len(missing), len(wanted), done), shard_bytes)
        size = sum(file.stat().st_size for file in folder.glob("shard-*.tar"))
    except OSError as error:
        raise MarcodError(f"{error.filename or folder} cannot be written: {os_reason(error)}") from error
    if stopped():
        raise StoppedPackError
    return PackReport(folder, len(wanted) - len(missing), added, size, tuple(wrong))


def _counted(
    prepared: Iterator[tuple[str, bytes | None]], before: int, total: int, done: Callable[[int, int], None]
) -> Iterator[tuple[str, bytes]]:
    for count, (content, image) in enumerate(prepared, start=before + 1):
        done(count, total)
        if image is not None:
            yield content, image


def _prepared(
    items: list[Item],
    how: Preprocessing,
    roots: Mapping[str, Path],
    threads: int,
    stopped: Callable[[], bool],
    wrong: list[str],
) -> Iterator[tuple[str, bytes | None]]:
    """Yield each image by the SHA-256 of its file; None, and a sentence, for one that is not there any more."""

    def one(item: Item) -> bytes | str:
        file = data.file_of(item, roots)
        try:
            content = images.read(file)
            if hashlib.sha256(content).hexdigest() != item.content_hash:
                return f"{file}: is another file than a moment ago"
            return packs.encoded(batches.as_kept(content, how))
        except ImageError as error:
            return f"{file}: {error}"
        except OSError as error:
            return f"{file}: {error.strerror or 'cannot be read'}"

    with ThreadPoolExecutor(threads, thread_name_prefix="pack") as pool:
        for start in range(0, len(items), AT_ONCE):
            if stopped():
                return
            some = items[start : start + AT_ONCE]
            for item, found in zip(some, pool.map(one, some), strict=True):
                if isinstance(found, str):
                    wrong.append(found)
                yield item.content_hash, None if isinstance(found, str) else found
