"""JPEGs decoded as the published graph does it: the fast integer DCT of libjpeg-turbo, to the bits of TensorFlow's own.

A large image takes a buffer whose pages the kernel has to find each time, which costs more than decoding into it. So
each thread keeps its buffer, and an image is valid only until its block ends.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from marcod import images
from marcod.errors import ImageError

KEPT_BYTES: Final = 128 << 20
"""Largest buffer that a thread keeps."""

_of_thread = threading.local()


@contextmanager
def decoded(data: bytes, width: int, height: int, ratio: int = 1) -> Iterator[NDArray[np.uint8]]:
    """Yield a JPEG in grey or colour as RGB, uint8 [height, width, 3], at 1/``ratio`` of its size.

    ``width`` and ``height`` are of its header, 8 or more where ``ratio`` is not 1. The array must not be kept beyond
    the block. Raises ImageError for one that is truncated or damaged, as :func:`images.whole_jpeg` does.
    """
    down, across = -(-height // ratio), -(-width // ratio)
    buffer = _take(3 * down * across)
    try:
        yield _decode(data, down, across, buffer)
    finally:
        if len(buffer) <= KEPT_BYTES:
            _of_thread.buffer = buffer


def _take(size: int) -> bytearray:
    """Take this thread's buffer, or a new one where it is too small or another image lies in it."""
    buffer: bytearray | None = getattr(_of_thread, "buffer", None)
    _of_thread.buffer = None
    return buffer if buffer is not None and len(buffer) >= size else bytearray(size)


def _decode(data: bytes, down: int, across: int, buffer: bytearray) -> NDArray[np.uint8]:
    try:
        found = _pixels(data, down, across, buffer, strict=True)
    except ValueError:
        # The decoder complains of more than is damage; the rule of images decides.
        whole = images.whole_jpeg(data)
    else:
        images.whole_jpeg(data, decoded=True)
        return found
    try:
        return _pixels(whole, down, across, buffer, strict=False)
    except ValueError as error:
        raise ImageError("the JPEG is truncated or damaged and cannot be decoded", retryable=True) from error


def _pixels(data: bytes, down: int, across: int, buffer: bytearray, *, strict: bool) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, "RGB", fastdct=True, fastupsample=False, min_height=down, min_width=across, buffer=buffer, strict=strict
    )
    return found
