"""Resize of the published graph in NumPy, bit for bit, for hosts without TensorFlow."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bilinear = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]
"""Resize of a square, uint8 [side, side, 3], to float32 [size, size, 3] in 0..255."""

_BAND: Final = 32
"""Rows that are resized at a time: what is between two passes stays in a core's cache."""


def bilinear(square: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Resize by the four neighbours, without half-pixel centres, in the order of the published graph's arithmetic.

    Source: TensorFlow's ``ResizeBilinear``: float32, first between left and right, then between top and bottom.
    """
    at = _positions(square.shape[0], size)
    out = np.empty((size, 3 * size), np.float32)
    space = np.empty((2 * _BAND, 3 * size), np.uint8)
    both = np.empty((2, *space.shape), np.float32)
    for start in range(0, size, _BAND):
        end = min(size, start + _BAND)
        rows = 2 * (end - start)
        band = square[np.concatenate([at.low[start:end], at.high[start:end]])].reshape(rows, -1)
        left, right = both[:, :rows]
        # Through bytes of their own, because taking converts one by one.
        left[:] = np.take(band, at.left, axis=1, out=space[:rows], mode="clip")
        right[:] = np.take(band, at.right, axis=1, out=space[:rows], mode="clip")
        right -= left
        right *= at.across
        right += left
        top, bottom = right[: end - start], right[end - start :]
        bottom -= top
        bottom *= at.share[start:end, np.newaxis]
        np.add(bottom, top, out=out[start:end])
    return out.reshape(size, size, 3)


class _Positions(NamedTuple):
    """Neighbours of each output pixel along a side: ``low`` and ``high``, and the ``share`` of the higher.

    ``left`` and ``right`` are their bytes in a row, ``across`` the share of each of these.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: NDArray[np.float32]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    across: NDArray[np.float32]


@lru_cache(maxsize=64)
def _positions(side: int, size: int) -> _Positions:
    at = np.arange(size, dtype=np.float32) * (np.float32(side) / np.float32(size))
    whole = np.floor(at)
    low = whole.astype(np.intp)
    high = np.minimum(low + 1, side - 1)
    share, colours = (at - whole).astype(np.float32), np.arange(3)
    left, right = ((3 * one[:, np.newaxis] + colours).ravel() for one in (low, high))
    return _Positions(low, high, share, left, right, np.repeat(share, 3))
