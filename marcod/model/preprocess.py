"""Preprocessing: from the bytes of a drop image to the network's input, on the CPU and without TensorFlow.

The decoder matters: the graph decodes JPEG with TensorFlow's default, the fast integer DCT, and other
decoders differ from it by up to 4/255. So JPEGs in grey or RGB go to one that gives the same bits, all else to Pillow.

Guarantees:

* The published network gets the published graph's own arithmetic.
* All functions may run in many threads at once (the decoder and the resizers release the GIL).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from marcod import images
from marcod.errors import BundleError
from marcod.model import jpeg, squares
from marcod.model.resize import Bilinear, bilinear
from marcod.model.squares import Coverage

Resize = Literal["bilinear-tf1", "area"]

DECODE_RATIOS: Final = (1, 2, 4, 8)
"""Parts of its size, 1 in so many, at which a JPEG can be decoded: its blocks have 8 x 8 pixels."""

_DECODER_MODES: Final = ("RGB", "L")


@dataclass(frozen=True)
class Preprocessing:
    """Parameters that bring squares of images to ``size`` x ``size`` pixels.

    ``bilinear-tf1`` is the published graph's resize: four neighbours, no half-pixel centres, no antialiasing.
    ``area`` averages all pixels under an output pixel, so that needles survive strong shrinking. JPEGs are decoded at
    1/2, 1/4 or 1/8 of their size, down to ``1 / decode_ratio``, as long as the shorter side keeps ``size`` pixels.
    The network looks at the central square, or with ``coverage`` "whole" at as many as :mod:`squares` says.
    """

    size: int
    resize: Resize
    decode_ratio: int = 1
    coverage: Coverage = "centre"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for bundle.toml, which says nothing of the central square."""
        values = asdict(self)
        return central(values) if self.coverage == "centre" else values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Invert :meth:`to_dict`. Raises BundleError for a key or a resize that is not known."""
        try:
            record = cls(**values)
        except TypeError as error:
            raise BundleError(f"the bundle's [preprocessing] cannot be used: {error}") from error
        if record.resize not in get_args(Resize):
            raise BundleError(f"the bundle's [preprocessing] asks for the unknown resize {record.resize!r}")
        if record.decode_ratio not in DECODE_RATIOS:
            allowed = ", ".join(map(str, DECODE_RATIOS))
            raise BundleError(f"the bundle's [preprocessing] has decode_ratio {record.decode_ratio!r}, not {allowed}")
        if record.coverage not in get_args(Coverage):
            raise BundleError(f"the bundle's [preprocessing] asks for the unknown coverage {record.coverage!r}")
        return record

    def ratio(self, width: int, height: int) -> int:
        """Return the part, 1 in so many, of its width and height at which a JPEG is decoded."""
        allowed = (r for r in DECODE_RATIOS if r <= self.decode_ratio and min(width, height) // r >= self.size)
        return max(allowed, default=1)


def central(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a ``[preprocessing]`` that looks at the central square, whatever it looked at before."""
    return {name: value for name, value in values.items() if name != "coverage"}


def read(data: bytes, record: Preprocessing) -> NDArray[np.float32]:
    """Decode an image and prepare its central square as :func:`prepare` does. Raises ImageError as :func:`decoded`."""
    with decoded(data, record) as rgb:
        return prepare(rgb, record)


def decode(data: bytes, record: Preprocessing | None = None) -> NDArray[np.uint8]:
    """Decode an image to an array of its own, otherwise as :func:`decoded`."""
    with decoded(data, record) as rgb:
        return rgb.copy()


@contextmanager
def decoded(data: bytes, record: Preprocessing | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yield an image as RGB, uint8 [height, width, 3], at full size or at the part that ``record`` asks for.

    The array must not be kept beyond the block. Raises ImageError as marcod.images does.
    """
    header = images.inspect(data)
    if header.format != "JPEG" or header.mode not in _DECODER_MODES:
        yield images.to_rgb(data)
        return
    ratio = 1 if record is None else record.ratio(header.width, header.height)
    with images.room_for(header.width * header.height), jpeg.decoded(data, header.width, header.height, ratio) as rgb:
        yield rgb


def prepare(rgb: NDArray[np.uint8], record: Preprocessing, resize: Bilinear = bilinear) -> NDArray[np.float32]:
    """Prepare the central square, float32 [size, size, 3] in -1..1, of an image uint8 [height, width, 3].

    ``resize`` may do ``bilinear-tf1`` in the place of ours, which it must equal bit for bit.
    """
    square = centre_square(rgb)
    if record.resize == "area":
        shrunk = Image.fromarray(square).resize((record.size, record.size), Image.Resampling.BOX)
        return np.asarray(shrunk, np.float32) * np.float32(2 / 255) - np.float32(1)
    # The graph scales by 1/255 first. Resizing the bytes is the same sum a quarter as dear, to a rounding.
    resized = resize(square, record.size)
    # TensorFlow lends its memory for reading alone.
    scaled = np.multiply(resized, np.float32(2 / 255), out=resized if resized.flags.writeable else None)
    scaled -= np.float32(1)
    return scaled


def prepare_whole(rgb: NDArray[np.uint8], record: Preprocessing, resize: Bilinear = bilinear) -> NDArray[np.float32]:
    """Prepare all squares of an image uint8 [height, width, 3] as :func:`prepare`, float32 [squares, size, size, 3]."""
    height, width = rgb.shape[:2]
    places = squares.places(height, width, squares.needed(height, width))
    return np.stack([prepare(place.of(rgb), record, resize) for place in places])


def centre_square(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop the central square of side min(height, width); an odd pixel left over is on the right and bottom.

    Source: ``resize_image_with_crop_or_pad`` in the published graph, which floors the offsets.
    """
    height, width = rgb.shape[:2]
    (place,) = squares.places(height, width, 1)
    return place.of(rgb)
