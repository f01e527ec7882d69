"""One reading of a relative path for all families, and the files that are never images of drops.

Paths come from Windows and Linux, from shares and from CSV files: :func:`normalise` makes them one form, and
no other module looks at separators. :func:`set_aside` knows what every imager folder collects besides images.
"""

import re
from typing import Final

from marcod.domain import IgnoreReason
from marcod.layouts.base import Aside
from marcod.text import quoted

LONGEST: Final = 4096
"""Linux's PATH_MAX; the grammars' running time is only bounded together with the path's length."""

_ARCHIVES: Final = frozenset({"rar", "zip", "7z", "tar", "gz", "tgz", "bz2", "xz"})
_SIDECARS: Final = frozenset(
    {"xml", "csv", "mso", "done", "txt", "json", "log", "ini", "db", "html", "htm", "md", "xls", "xlsx", "pdf"}
)
_TEMPORARY: Final = frozenset({"lock", "part", "partial", "tmp", "temp", "filepart", "crdownload", "swp", "bak"})
_IMAGES: Final = frozenset({"jpg", "jpeg", "png", "tif", "tiff", "gif", "bmp"})

KEPT_BACK: Final = (
    "#recycle", "#snapshot", "@eaDir", "@sharesnap", "@tmp",
    "@Recycle", "@Recently-Snapshot", "Network Trash Folder",
    "$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information",
    "~snapshot", "~latest", "~checkpoint", "lost+found",
)  # fmt: skip
"""Folders in which Synology, QNAP, Windows, NetApp, Hitachi and ext4 keep deleted and replaced files, and snapshots."""

_KEPT_BACK: Final = re.compile(
    # Previous versions of a Windows share are @GMT-2024.03.02-01.00.01, what chkdsk found is FOUND.000.
    "|".join([*(re.escape(name.lower()) for name in KEPT_BACK), r"@gmt-[^/]*", r"found\.\d{3}"])
)
_IN_KEPT_BACK: Final = re.compile(rf"(?:^|/)({_KEPT_BACK.pattern})/")


def normalise(path: str) -> str:
    """Return the path with ``/`` between its parts, none of them empty or ``.``, and none in front."""
    text = path.replace("\\", "/")
    if "//" in text or "./" in text or text.startswith("/"):
        text = "/".join(part for part in text.split("/") if part not in ("", "."))
    return text


def is_entered(path: str) -> bool:
    """Tell if a folder can hold images: hidden folders, bins and snapshots of file servers are not entered."""
    return not any(part.startswith(".") or is_kept_back(part) for part in path.split("/"))


def is_kept_back(name: str) -> bool:
    """Tell if a folder of this name holds what a file server keeps of deleted and replaced files."""
    return _KEPT_BACK.fullmatch(name.lower()) is not None


def has_image_extension(name: str) -> bool:
    """Tell if a file's name ends as an image's does, whatever the layout."""
    return name[name.rfind(".") + 1 :].lower() in _IMAGES


def split(path: str) -> tuple[str, str]:
    """Return the folders and the file name of a normalised path."""
    folders, _, name = path.rpartition("/")
    return folders, name


def folder_above(folders: str) -> tuple[str, str]:
    """Return the folders further up and the last one."""
    further, _, last = folders.rpartition("/")
    return further, last


def stem(name: str) -> str:
    """Return the name without its last extension."""
    return name.rpartition(".")[0] or name


def set_aside(path: str) -> None:
    """Raise Aside for a normalised path that is not an image in any family: hidden, temporary, packed, sidecar."""
    if len(path) > LONGEST:
        raise Aside(IgnoreReason.UNREADABLE_NAME, f"the path is longer than {LONGEST} characters: {quoted(path)}")
    if ".." in path and ".." in path.split("/"):
        raise Aside(IgnoreReason.NOT_THIS_LAYOUT, "the path leads out of its source")
    lower = path.lower()
    suffix = lower[lower.rfind(".") + 1 :]
    if suffix not in _IMAGES:
        _set_aside_by_suffix(suffix, lower)
    if lower.startswith(".") or "/." in lower:
        _set_aside_hidden(lower)
    if lower.rpartition("/")[2].startswith("~"):
        raise Aside(IgnoreReason.TEMPORARY, "a temporary file; it is read under its final name")
    if (found := _IN_KEPT_BACK.search(lower)) is not None:
        raise Aside(
            IgnoreReason.WORKING_COPY, f"below {found[1]}, where a file server keeps deleted files or snapshots"
        )


def _set_aside_by_suffix(suffix: str, lower: str) -> None:
    if suffix in _TEMPORARY or lower.endswith("~"):
        raise Aside(IgnoreReason.TEMPORARY, "a temporary file; it is read under its final name")
    if suffix in _ARCHIVES:
        raise Aside(IgnoreReason.ARCHIVE, "a packed archive; unpack it into a folder of the same name")
    if suffix in _SIDECARS:
        raise Aside(IgnoreReason.SIDECAR, f"a .{suffix} file that lies next to the images")


def _set_aside_hidden(lower: str) -> None:
    if any(part.startswith(".") and part.strip(".") for part in lower.split("/")):
        raise Aside(IgnoreReason.TEMPORARY, "hidden, or in a hidden folder; such files are on their way or not meant")
