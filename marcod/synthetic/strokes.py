"""Things with outlines, drawn as polygons on one supersampled layer: crystals, oil, dust, fibres, bubbles.

The layer holds gains: grey 128 leaves the light alone, darker removes, brighter adds. Drawing at twice the
resolution and averaging gives clean edges without a graphics library.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from marcod.synthetic.fields import Light, Plane

Point = tuple[float, float]
NEUTRAL = 128
_SUPERSAMPLE = 2


class Layer:
    """A drawing surface in scene lengths."""

    def __init__(self, plane: Plane) -> None:
        height, width = plane.shape
        self._scale = plane.scale * _SUPERSAMPLE
        self._x = float(plane.x[0, 0]) - 0.5 / plane.scale
        self._y = float(plane.y[0, 0]) - 0.5 / plane.scale
        self._image = Image.new("RGB", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), (NEUTRAL,) * 3)
        self._draw = ImageDraw.Draw(self._image)
        self._marked = False

    def polygon(self, points: Sequence[Point], gain: Sequence[float]) -> None:
        """Draw a filled polygon."""
        self._marked = True
        self._draw.polygon(self._pixels(points), fill=_grey(gain))

    def line(self, points: Sequence[Point], gain: Sequence[float], width: float) -> None:
        """Draw an open line of ``width`` scene lengths, at least one supersampled pixel."""
        self._marked = True
        self._draw.line(self._pixels(points), fill=_grey(gain), width=max(1, round(width * self._scale)), joint="curve")

    def disc(self, centre: Point, radius: float, gain: Sequence[float]) -> None:
        """Draw a filled circle."""
        self._marked = True
        x, y = (centre[0] - self._x) * self._scale, (centre[1] - self._y) * self._scale
        reach = max(radius * self._scale, 0.5)
        self._draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=_grey(gain))

    def gain(self) -> Light | None:
        """Return the layer as a gain [3, h, w], or None when nothing was drawn."""
        if not self._marked:
            return None
        small = np.asarray(self._image.reduce(_SUPERSAMPLE)).transpose(2, 0, 1).astype(np.float32, order="C")
        return small * np.float32(1.0 / NEUTRAL)

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [((x - self._x) * self._scale, (y - self._y) * self._scale) for x, y in points]


def _grey(gain: Sequence[float]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(value * NEUTRAL))) for value in gain)
    return red, green, blue


def grey_gain(value: float) -> tuple[float, float, float]:
    """Return the same gain for every colour."""
    return value, value, value
