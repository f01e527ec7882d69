"""The image plane and smooth random fields over it, the same at every resolution.

Everything is ``float32`` (which numpy's annotations cannot follow). A field is an array [h, w] aligned with a
:class:`Plane`; light is [3, h, w], because numpy multiplies whole colour planes several times faster than triples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.floating[Any]]
Light = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

# Fields are drawn on a canvas wider than any image and a little taller, so that every aspect ratio and every
# small shift of the camera cuts out of the same field.
CANVAS_WIDTH = 2.2
CANVAS_HEIGHT = 1.1
WIDEST = 2.0


@dataclass(frozen=True)
class Plane:
    """Pixel centres in scene lengths: ``x`` [1, w], ``y`` [h, 1]; ``scale`` is pixels per scene length."""

    x: Field
    y: Field
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.shape[0], self.x.shape[1]

    def from_point(self, point: tuple[float, float]) -> tuple[Field, Field, Field]:
        """Return the offsets from a point: ``dx`` [1, w], ``dy`` [h, 1] and the distance [h, w]."""
        dx, dy = self.x - np.float32(point[0]), self.y - np.float32(point[1])
        return dx, dy, np.sqrt(dx * dx + dy * dy)


def plane(size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)) -> Plane:
    """Return the plane of an image of ``size`` (width, height) pixels, moved by ``shift``."""
    width, height = size
    scale = max(float(height), width / WIDEST)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / scale - shift[0]
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / scale - shift[1]
    return Plane(x[None, :].astype(np.float32), y[:, None].astype(np.float32), scale)


def rng_of(*seeds: int) -> np.random.Generator:
    """Return a generator that depends on these numbers alone."""
    return np.random.default_rng([seed & 0xFFFFFFFF for seed in seeds])


def resized(values: NDArray[Any], plane_: Plane) -> Field:
    """Cut and interpolate a canvas array [rows, 2 * rows] to the plane."""
    rows, columns = values.shape
    height, width = plane_.shape
    left = (float(plane_.x[0, 0]) - 0.5 / plane_.scale + CANVAS_WIDTH / 2) * columns / CANVAS_WIDTH
    top = (float(plane_.y[0, 0]) - 0.5 / plane_.scale + CANVAS_HEIGHT / 2) * rows / CANVAS_HEIGHT
    right = left + width / plane_.scale * columns / CANVAS_WIDTH
    bottom = top + height / plane_.scale * rows / CANVAS_HEIGHT
    box = (max(left, 0.0), max(top, 0.0), min(right, float(columns)), min(bottom, float(rows)))
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)


def noise(plane_: Plane, rng: np.random.Generator, cells: float) -> Field:
    """Smooth noise of about unit deviation with ``cells`` bumps per height."""
    rows = max(2, round(cells * CANVAS_HEIGHT))
    return resized(rng.standard_normal((rows, 2 * rows), dtype=np.float32), plane_)


def fractal(plane_: Plane, rng: np.random.Generator, cells: float, octaves: int = 3) -> Field:
    """Noise with detail at ``octaves`` scales, each half as strong and twice as fine as the last."""
    total = noise(plane_, rng, cells)
    for octave in range(1, octaves):
        total = total + noise(plane_, rng, cells * 2**octave) * np.float32(0.5**octave)
    return total


def smoothstep(values: Field, low: float, high: float) -> Field:
    """0 below ``low``, 1 above ``high``, smooth between; ``low`` may be the larger one."""
    t: Field = np.clip((values - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def coloured(colour: tuple[float, ...], gain: Field) -> Light:
    """Return a field in a colour, [3, h, w]."""
    return np.asarray(colour, dtype=np.float32)[:, None, None] * gain


def relief(height: Field, plane_: Plane, light: float) -> Field:
    """Return the slope of a height field towards the light, per height; it makes a texture look embossed."""
    down, right = np.gradient(height)
    slope = right * np.float32(np.cos(light)) + down * np.float32(np.sin(light))
    return np.asarray(slope * plane_.scale, dtype=np.float32)
