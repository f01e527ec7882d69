"""Squares of an image that a network looks at, and the one score that theirs make.

A network takes a square. With coverage "centre" it is given the central one, as the published network is; with "whole"
as many as cover the image. Both rules are of NumPy alone, so that every engine has the same.

Guarantees:

* The squares of a whole image lie inside it and cover every pixel, up to sides of 1 : 4.
* The squares of a square image are the image, and its score is the network's own.
"""

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Coverage = Literal["centre", "whole"]

MOST: Final = 4
"""Most squares of an image; they bound the time and the memory that a panorama takes."""

_PARTS, _STEP = 5, 4
"""Neighbours are at most 4/5 of a side apart, so what the edge of one cuts lies inside the other, up to a fifth."""


class Square(NamedTuple):
    """Square of an image, in pixels."""

    top: int
    left: int
    side: int

    def of(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the view of this square in an image uint8 [height, width, 3]."""
        return rgb[self.top : self.top + self.side, self.left : self.left + self.side]


def needed(height: int, width: int) -> int:
    """Return how many squares a whole image needs: 1 if it is square, 2 up to 9 : 5, 3 up to 13 : 5, else 4.

    Of a few pixels no more than have places of their own.
    """
    shorter, longer = sorted((height, width))
    rest = longer - shorter
    return min(MOST, 1 - (-_PARTS * rest // (_STEP * shorter)), rest + 1)


def places(height: int, width: int, count: int) -> tuple[Square, ...]:
    """Place so many squares, as wide as the shorter side, evenly along the longer one from end to end.

    A single one is central; an odd pixel left over is on its right or bottom, as in the published graph.
    """
    side = min(height, width)
    rest = max(height, width) - side
    starts = [rest // 2] if count == 1 else [rest * number // (count - 1) for number in range(count)]
    return tuple(Square(start, 0, side) if height > width else Square(0, start, side) for start in starts)


def best(logits: NDArray[np.float32], crystals: NDArray[np.bool_]) -> int:
    """Return the square with the highest crystal probability, by logits [squares, classes]; the first of equals."""
    given = logits.astype(np.float64)
    found = np.logaddexp.reduce(given[:, crystals], axis=1) - np.logaddexp.reduce(given[:, ~crystals], axis=1)
    return int(np.argmax(found))


def combined(logits: NDArray[np.float32], crystals: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Combine logits [squares, classes] to those of the image, float32 [classes]; ``crystals`` are the classes' mask.

    Crystals have the probabilities that they have in the square where they are likeliest. What these leave, the other
    classes share as their mean probabilities over all squares. All of it is before the temperature, like any logit.
    A square without a number leaves the image without one.
    """
    if len(logits) == 1:
        return np.asarray(logits[0], np.float32)
    if not np.isfinite(logits).all():
        return np.full(len(crystals), np.nan, np.float32)
    given = logits.astype(np.float64)
    # In logarithms nothing is too small.
    chances = given - np.logaddexp.reduce(given, axis=1, keepdims=True)
    top = chances[best(logits, crystals)]
    others = np.logaddexp.reduce(chances[:, ~crystals], axis=0)
    found = top.copy()
    found[~crystals] = others - np.logaddexp.reduce(others) + np.logaddexp.reduce(top[~crystals])
    return np.asarray(found, np.float32)
