"""Sources of models: from a path or a URL to files of a known kind on this disk.

Guarantees:

* Nothing is written outside the folder given for it; no member of an archive decides where it is unpacked.
* Sizes are bounded while they grow, not by what a header claims.
* Nothing found here has been run or interpreted yet.
"""

import hashlib
import http.client
import lzma
import re
import ssl
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final
from urllib.parse import urlsplit

from marcod import __version__
from marcod.errors import BundleError, ConfigError

Progress = Callable[[str, int, int], None]

TIMEOUT_S: Final = 60.0
_CHUNK: Final = 1 << 20


class ModelFormat(StrEnum):
    """Kinds of source that a model comes as."""

    SAVED_MODEL = "SavedModel"
    CHECKPOINT = "TensorFlow checkpoint"
    KERAS = "Keras file"
    BUNDLE = "bundle"


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits of what is downloaded and unpacked. The published model is 46 MB in four files."""

    download_bytes: int = 1 << 30
    members: int = 1000
    unpacked_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Files of one kind. ``path`` is their folder, for a checkpoint the prefix its files share.

    ``name`` says where they came from, without any login. ``sha256`` is that of the one file that was given; for a
    folder it is that of the list of its ``files`` (name to SHA-256) as ``sha256sum`` prints it.
    """

    kind: ModelFormat
    path: Path
    name: str
    sha256: str
    files: Mapping[str, str]


def fetch(source: str, scratch: Path, limits: ArchiveLimits, progress: Progress | None = None) -> ModelSource:
    """Open ``source``, a path or an http(s) URL; archives and downloads lie in ``scratch`` afterwards.

    Raises ConfigError when there is nothing to fetch, BundleError when it cannot be had, is too large, is unsafe to
    unpack, or is not a model of a known kind.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        downloaded = scratch / "download"
        name = _download(source, downloaded, limits.download_bytes, progress)
        return _from_archive(downloaded, name, scratch, limits)
    path = Path(source).expanduser()
    if path.is_dir():
        return _listed(path, path.resolve().name)
    if path.is_file() and zipfile.is_zipfile(path):
        return _from_archive(path, path.name, scratch, limits)
    return _from_file(path)


def _from_file(path: Path) -> ModelSource:
    if path.name == "saved_model.pb" and path.is_file():
        return _listed(path.parent, path.parent.resolve().name)
    prefix = path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name))
    if prefix.with_name(f"{prefix.name}.index").is_file():
        return _described(ModelFormat.CHECKPOINT, prefix, prefix.name)
    if not path.exists():
        raise ConfigError(f"there is no file or folder {path}")
    raise BundleError(
        f"{path} is neither a zip nor a .keras file, nor part of a SavedModel or a checkpoint; "
        "give the folder or the archive that the model came in"
    )


def _from_archive(archive: Path, name: str, scratch: Path, limits: ArchiveLimits) -> ModelSource:
    unpacked = scratch / "unpacked"
    unpack(archive, unpacked, limits, name)
    found = _listed(unpacked, name)
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return ModelSource(found.kind, found.path, name, digest, found.files)


def _listed(folder: Path, name: str) -> ModelSource:
    """Recognise a folder, or the only folder in it."""
    for place in (folder, *_only_folder(folder)):
        if (kind := _kind(place)) is not None:
            return _described(kind, place, name)
        if prefixes := sorted(place.glob("*.index")):
            if len(prefixes) > 1:
                raise BundleError(f"{name} holds {len(prefixes)} checkpoints; name one of them: {prefixes[-1].name}")
            return _described(ModelFormat.CHECKPOINT, prefixes[0].with_suffix(""), name)
    raise BundleError(
        f"{name} holds no model: neither saved_model.pb, nor the .index of a checkpoint, nor a Keras model's "
        "config.json and model.weights.h5, nor bundle.toml"
    )


def _kind(folder: Path) -> ModelFormat | None:
    if (folder / "bundle.toml").is_file():
        return ModelFormat.BUNDLE
    if (folder / "saved_model.pb").is_file():
        return ModelFormat.SAVED_MODEL
    return ModelFormat.KERAS if all((folder / name).is_file() for name in _FILES_OF[ModelFormat.KERAS]) else None


def _only_folder(folder: Path) -> Sequence[Path]:
    visible = [p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX"))]
    return visible if len(visible) == 1 and visible[0].is_dir() else ()


_FILES_OF: Final = {
    ModelFormat.SAVED_MODEL: ("saved_model.pb", "variables/variables.*"),
    ModelFormat.KERAS: ("config.json", "model.weights.h5"),
    ModelFormat.BUNDLE: ("bundle.toml",),
}


def _described(kind: ModelFormat, path: Path, name: str) -> ModelSource:
    if kind is ModelFormat.CHECKPOINT:
        folder = path.parent
        paths = [p for p in folder.iterdir() if p.name.startswith((f"{path.name}.index", f"{path.name}.data-"))]
    else:
        folder = path
        paths = [p for pattern in _FILES_OF[kind] for p in folder.glob(pattern)]
    files = {}
    for file in sorted(paths):
        with file.open("rb") as stream:
            files[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    listing = "".join(f"{digest}  {file}\n" for file, digest in files.items())
    return ModelSource(kind, path, name, hashlib.sha256(listing.encode()).hexdigest(), files)


def unpack(archive: Path, folder: Path, limits: ArchiveLimits, name: str) -> None:
    """Unpack a zip into the new ``folder``; ``name`` is what messages call it.

    Raises BundleError naming the member that points outside, is not a plain file, is damaged, or is too much.
    """
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            if len(members) > limits.members:
                raise BundleError(f"{name} has {len(members)} members; more than {limits.members} are not unpacked")
            _refuse_unsafe(members, name)
            left = limits.unpacked_bytes
            for member in members:
                left -= _unpack_member(opened, member, folder, left, name)
    except zipfile.BadZipFile as error:
        raise BundleError(f"{name} is not a zip that can be read: {error}") from error


def _refuse_unsafe(members: Sequence[zipfile.ZipInfo], name: str) -> None:
    seen = set()
    for member in members:
        text = member.orig_filename
        shown = ascii(text)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if text.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", text):
            raise BundleError(f"{name} is not unpacked: its member {shown} has an absolute path")
        if ".." in re.split(r"[/\\]", text) or "\\" in text or not text.isprintable():
            raise BundleError(f"{name} is not unpacked: its member {shown} could land outside the folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BundleError(f"{name} is not unpacked: its member {shown} is a link or a special file")
        if (path := PurePosixPath(text)) in seen:
            raise BundleError(f"{name} is not unpacked: its member {shown} is there twice")
        seen.add(path)


def _unpack_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, limit: int, name: str) -> int:
    """Return the number of bytes written."""
    target = folder / member.filename
    try:
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as stream, target.open("xb") as file:
            return _copy(stream, file, limit, f"{name} is not unpacked: with its member {member.filename}")
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{name} is damaged: its member {member.filename} cannot be read ({error})") from error
    except OSError as error:
        raise BundleError(f"{name} cannot be unpacked: {member.filename}: {error.strerror or error}") from error


def _copy(
    stream: IO[bytes], file: IO[bytes], limit: int, subject: str, report: Callable[[int], None] | None = None
) -> int:
    """Copy a stream, counting what really comes; BundleError beyond ``limit`` bytes."""
    done = 0
    while chunk := stream.read(_CHUNK):
        done += len(chunk)
        if done > limit:
            raise BundleError(f"{subject} it is larger than the {limit:,} bytes that are left of the limit")
        file.write(chunk)
        if report is not None:
            report(done)
    return done


class _SameOrBetter(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError("the server redirects from https to a connection without it")
        if "@" in urlsplit(newurl).netloc:
            raise urllib.error.URLError("the server redirects to a URL with a login in it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Knows http and https with verified certificates, and no other scheme."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        _SameOrBetter(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _refuse_login(url: str) -> None:
    """Detect a login: a password may hold what ends urlsplit's login, so an @ after a : is enough."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority or (":" in authority and "@" in rest):
        raise ConfigError(
            "models are not fetched from a URL with a login in it; download the file by another way and name it "
            "(an @ that is no login is written %40)"
        )


def _download(url: str, target: Path, limit: int, progress: Progress | None) -> str:
    """Download and return the URL without its query."""
    _refuse_login(url)
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"models are fetched from https:// or http:// alone, not from {parts.scheme}://")
    name = f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
    request = urllib.request.Request(url, headers={"User-Agent": f"marcod/{__version__}"})
    try:
        with _opener().open(request, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
            _receive(answer, file, limit, name, progress)
    except urllib.error.HTTPError as error:
        raise BundleError(f"cannot download {name}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise BundleError(f"cannot download {name}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise BundleError(f"cannot download {name}: {error or type(error).__name__}") from error
    return name


def _receive(answer: Any, file: IO[bytes], limit: int, name: str, progress: Progress | None) -> None:
    announced = int(length) if (length := answer.headers.get("Content-Length", "")).isdigit() else None
    if announced is not None and announced > limit:
        raise BundleError(f"{name} has {announced:,} bytes; more than {limit:,} are not downloaded")

    def report(done: int) -> None:
        if progress is not None:
            progress("downloading, MB", done >> 20, (announced or done) >> 20)

    done = _copy(answer, file, limit, f"{name} is not downloaded:", report)
    if announced is not None and done != announced:
        raise BundleError(f"cannot download {name}: the connection ended after {done:,} of {announced:,} bytes")
