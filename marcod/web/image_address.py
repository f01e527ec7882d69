"""Addresses of images: an id, a size, and a tag of the bytes, so that a browser may keep an answer for ever."""

import hashlib
from enum import StrEnum
from typing import Final

TAG_LENGTH: Final = 16
UNREAD: Final = "u"
"""First character of the tag of bytes that no scorer has read yet."""


class ImageSize(StrEnum):
    """Sizes of an image: 160 or 1024 pixels, all of them, the heat map over it, or the file to keep."""

    THUMB = "thumb"
    VIEW = "view"
    ORIGINAL = "original"
    HEAT = "heat"
    FILE = "file"


def tag_of(content_hash: str | None, size: int, mtime_ns: int, *, unread: bool) -> str:
    """Name the bytes of an image: the first digits of their hash, else of the file's size and time."""
    if content_hash is not None and not unread:
        return content_hash[:TAG_LENGTH]
    # An image to be read again has its time below zero, see ``registration.read_again``.
    time_ns = -mtime_ns - 1 if mtime_ns < 0 else mtime_ns
    return UNREAD + hashlib.sha256(f"{size}:{time_ns}".encode()).hexdigest()[: TAG_LENGTH - 1]


def address(image_id: int, size: ImageSize, tag: str) -> str:
    """Return the address of an image."""
    return f"/image/{image_id}/{size}/{tag}"
