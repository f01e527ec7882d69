"""The layer on which everything with an outline is drawn: crystals, oil, dust, fibres, bubbles.

The layer holds gains, 1 leaving the light alone. Thin things are strokes on one supersampled image, where the later
cover the earlier; clear things (crystals, bubbles) multiply a window of the layer, so that they show through another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from marcod.synthetic.fields import Field, Light, Plane

Point = tuple[float, float]
NEUTRAL = 128
_SUPERSAMPLE = 2


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a layer, with ``x`` [1, w] and ``y`` [h, 1] in scene lengths from the point it was opened at."""

    rows: slice
    columns: slice
    x: Field
    y: Field


class Layer:
    """A drawing surface in scene lengths; ``pixel`` is one pixel's length."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.pixel = 1.0 / plane.scale
        height, width = plane.shape
        self._scale = plane.scale * _SUPERSAMPLE
        self._x = float(plane.x[0, 0]) - 0.5 / plane.scale
        self._y = float(plane.y[0, 0]) - 0.5 / plane.scale
        self._image = Image.new("RGB", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), (NEUTRAL,) * 3)
        self._draw = ImageDraw.Draw(self._image)
        self._stroked = False
        self._clear: Light | None = None

    def polygon(self, points: Sequence[Point], gain: Sequence[float]) -> None:
        """Draw a filled polygon."""
        self._stroked = True
        self._draw.polygon(self._pixels(points), fill=_grey(gain))

    def line(self, points: Sequence[Point], gain: Sequence[float], width: float) -> None:
        """Draw an open line of ``width`` scene lengths; one thinner than a supersampled pixel is fainter."""
        self._stroked = True
        wide = width * self._scale
        shown = [1.0 + (value - 1.0) * min(1.0, wide) for value in gain]
        self._draw.line(self._pixels(points), fill=_grey(shown), width=max(1, round(wide)), joint="curve")

    def disc(self, centre: Point, radius: float, gain: Sequence[float]) -> None:
        """Draw a filled circle."""
        self._stroked = True
        x, y = (centre[0] - self._x) * self._scale, (centre[1] - self._y) * self._scale
        reach = max(radius * self._scale, 0.5)
        self._draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=_grey(gain))

    def window(self, centre: Point, reach: float) -> Window | None:
        """Open the pixels within ``reach`` of a point in both directions; None when the image ends before."""
        plane = self._plane
        height, width = plane.shape
        left, right = (round((centre[0] + side * reach - self._x) * plane.scale) for side in (-1, 1))
        above, below = (round((centre[1] + side * reach - self._y) * plane.scale) for side in (-1, 1))
        rows, columns = slice(max(above, 0), min(below + 1, height)), slice(max(left, 0), min(right + 1, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        x, y = plane.x[:, columns] - np.float32(centre[0]), plane.y[rows] - np.float32(centre[1])
        return Window(rows, columns, x, y)

    def shade(self, window: Window, gain: Light | Field) -> None:
        """Multiply a window by a gain, [3, h, w] or [h, w]."""
        if self._clear is None:
            self._clear = np.ones((3, *self._plane.shape), np.float32)
        self._clear[:, window.rows, window.columns] *= gain

    def gain(self) -> Light | None:
        """Return the layer as a gain [3, h, w], or None when nothing was drawn."""
        if not self._stroked:
            return self._clear
        small = np.asarray(self._image.reduce(_SUPERSAMPLE)).transpose(2, 0, 1).astype(np.float32, order="C")
        strokes = small * np.float32(1.0 / NEUTRAL)
        return strokes if self._clear is None else strokes * self._clear

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [((x - self._x) * self._scale, (y - self._y) * self._scale) for x, y in points]


def _grey(gain: Sequence[float]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(value * NEUTRAL))) for value in gain)
    return red, green, blue


def grey_gain(value: float) -> tuple[float, float, float]:
    """Return the same gain for every colour."""
    return value, value, value
