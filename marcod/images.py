"""Reading picture bytes safely into 8-bit RGB, without TensorFlow.

Hides Pillow: its modes, its many exceptions and its guard against decompression bombs. Promises that
nothing but JPEG, PNG, TIFF, BMP and GIF is ever parsed, that no picture above :data:`PIXEL_LIMIT` is
decoded, that no file, however it was made, costs more than seconds and a few hundred megabytes, that nothing is
read outside the folder it is looked for in, and that whatever is wrong with the bytes comes out as one ImageError.

Choices a reader of scores should know: transparency is laid over white, because a drop is photographed
against a bright field; of several frames the first counts; the EXIF orientation is not applied, as the
published graph does not apply it; embedded colour profiles are ignored for the same reason.
"""

import io
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from marcod import enclosure
from marcod.errors import ImageError

PIXEL_LIMIT: Final = 50_000_000
"""Largest picture that is decoded, in pixels; the largest drop images known are 2560 x 1920, 4.9 million."""

LARGE_PIXELS: Final = 12_000_000
"""Pictures above are decoded one at a time, so that several bombs at once cost no more memory than one."""

MAX_FILE_BYTES: Final = 256 * 2**20
"""Larger files are not drop images; reading one would only cost memory."""

OPENING_READS: Final = 20_000
DECODING_READS: Final = 200_000
"""How often a parser may ask for the next bytes, before the pixels and among them.

A picture needs some dozens and some hundreds. A file of a million empty chunks or filling bytes is short, and keeps
a parser written in Python busy for minutes.
"""

SCAN_PIXELS: Final = 1_000_000_000
"""Pixels times scans of a JPEG. A progressive one has ten scans; each of thousands takes few bytes and a whole pass."""

PIECES: Final = 65_536
TAGS: Final = 4_096
"""Strips or tiles, and tags, of a TIFF. Parsing a list of millions of them takes more memory than any picture."""

THUMBNAIL_QUALITY: Final = 75

FORMATS: Final = ("JPEG", "PNG", "TIFF", "BMP", "GIF")

# Pillow also warns about damaged metadata; pixels decide here whether a picture is damaged.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Pillow only warns between once and twice its limit. As an error the warning makes the guard one sharp line.
Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
warnings.simplefilter("error", Image.DecompressionBombWarning)

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
_NO_LIGHT: Final = 1e-4
_NO_EDGE: Final = 1e-6

_TIFF_LISTS: Final = frozenset((273, 279, 324, 325))
_TILE_SIDES: Final = (322, 323)
_SCAN: Final = b"\xff\xda"

_one_large: Final = threading.Lock()

_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"GIF8")

# What Pillow's parsers are known to raise on damaged bytes. MemoryError and KeyboardInterrupt are not ours.
_DAMAGE: Final = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    RuntimeError, AssertionError, struct.error, zlib.error,
)  # fmt: skip


def read(path: Path, root: Path | None = None) -> bytes:
    """The bytes of a picture's file. Raises ImageError when it is no regular file or too large, and OSError.

    With ``root``, the folder of its source, nothing outside that folder is read: see :mod:`marcod.enclosure`.
    """
    with enclosure.held(path, root) as descriptor:
        if enclosure.regular(descriptor) is None:
            raise ImageError("not a regular file", retryable=False)
        data = enclosure.content(descriptor, MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"larger than {MAX_FILE_BYTES // 2**20} MiB; not a drop image", retryable=False)
    return data


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes of a picture say: format and mode in Pillow's words, width and height in pixels."""

    format: str
    mode: str
    width: int
    height: int


def inspect(data: bytes) -> ImageHeader:
    """The header of a picture, without decoding its pixels.

    Raises ImageError: not retryable when it is no picture of a known format or larger than
    :data:`PIXEL_LIMIT`, retryable when it is empty or looks like the beginning of a picture.
    """
    with _opened(data) as image:
        return _header(image)


def to_rgb(data: bytes) -> NDArray[np.uint8]:
    """The first frame of a picture as uint8 [height, width, 3], whatever its mode.

    16-bit grey is scaled linearly from its full range, or from 12 bits when no value reaches 4096, since
    cameras store 12-bit data so. 16-bit colour keeps its high bytes. Floating-point and 32-bit grey count
    from 0 to 1 or to their largest value. Raises ImageError as :func:`inspect` does, and a retryable one for
    pixels that cannot be decoded.
    """
    with _opened(data) as image, room_for(image.width * image.height):
        return _rgb(image)


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """To be held while so many pixels are decoded; pictures above :data:`LARGE_PIXELS` wait for one another."""
    if pixels <= LARGE_PIXELS:
        yield
        return
    with _one_large:
        yield


def thumbnail(data: bytes, longest_px: int) -> bytes:
    """The first frame of a picture as a small JPEG, its longer side at most ``longest_px``, for people to look at.

    Raises ImageError as :func:`to_rgb` does.
    """
    with _opened(data) as image, room_for(image.width * image.height):
        # A JPEG is decoded at a fraction of its size at once, which makes a plate's sheet ten times faster.
        image.draft(None, (2 * longest_px, 2 * longest_px))
        small = Image.fromarray(_rgb(image))
        small.thumbnail((longest_px, longest_px))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=THUMBNAIL_QUALITY)
        return out.getvalue()


@dataclass(frozen=True, slots=True)
class Appearance:
    """How a picture looks, whatever is in it: its mean grey and the grey's standard deviation, both of a white of 1.

    ``focus`` is the common logarithm of the mean squared gradient over the squared mean grey (Tenenbaum's measure,
    normalised): another exposure leaves it as it is, and every blur lowers it. A picture without an edge has -6.
    """

    brightness: float
    contrast: float
    focus: float


def appearance(pixels: NDArray[np.float32]) -> Appearance:
    """How a prepared picture looks, float32 [size, size, 3] in -1..1.

    Measured on what the model sees, so that imagers with sensors of different sizes compare.
    """
    grey = (pixels @ _LUMA) * np.float32(0.5) + np.float32(0.5)
    brightness = float(grey.mean())
    across, down = grey[:, 2:] - grey[:, :-2], grey[2:] - grey[:-2]
    edges = (float(np.vdot(across, across)) / across.size + float(np.vdot(down, down)) / down.size) / 4
    return Appearance(brightness, float(grey.std()), math.log10(edges / (brightness**2 + _NO_LIGHT) + _NO_EDGE))


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_rgb(np.asarray(image))
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        return np.array(_over_white(image))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture, opened and not yet decoded; damage found inside the block becomes ImageError."""
    if not data:
        raise ImageError("the file is empty (0 bytes)", retryable=True)
    _refuse_long_lists(data)
    file = _Metered(data)
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_bomb(image.width * image.height)
            _refuse_work(image, data, file.tell())
            # Of a compressed BMP every run is read by itself, and each has a pixel.
            runs = 4 * image.width * image.height if image.format == "BMP" else 0
            file.left = max(DECODING_READS, runs)
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the picture is too large: {error}", retryable=False) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DAMAGE as error:
        # Some parsers put bytes of the file into what they say.
        detail = "".join(c for c in str(error)[:200] if c.isprintable()) or type(error).__name__
        raise ImageError(f"the picture is truncated or damaged: {detail}", retryable=True) from error


class _Metered(io.BytesIO):
    """The bytes for a parser, which may ask for more of them only so often."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = OPENING_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ImageError("the picture's file is cut into more parts than any picture has", retryable=False)
        return super().read(size)


def _refuse_bomb(pixels: int) -> None:
    if pixels > PIXEL_LIMIT:
        raise ImageError(
            f"the picture has {pixels:,} pixels; more than {PIXEL_LIMIT:,} are not decoded", retryable=False
        )


def _refuse_work(image: Image.Image, data: bytes, header_end: int) -> None:
    """Raises ImageError for a file that has its pixels decoded again and again, or far more of them than it shows."""
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO") and pixels * _scans(image, data, header_end) > SCAN_PIXELS:
        raise ImageError("the JPEG has more scans than any picture needs; it is not decoded", retryable=False)
    if image.format == "TIFF":
        _refuse_bomb(_tiled(image, *(image.tag_v2.get(side) for side in _TILE_SIDES)))  # type: ignore[attr-defined]
    pieces = image.tile  # type: ignore[attr-defined]
    covered = sum((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in pieces)
    # Up to four planes of one picture may lie one after the other.
    _refuse_bomb(covered // 4)
    if image.format == "TIFF" and covered < pixels:
        raise ImageError("the picture is truncated or damaged: strips or tiles of it are missing", retryable=True)


def _tiled(image: Image.Image, across: object, down: object) -> int:
    """Pixels of all tiles of a TIFF, which may reach far beyond the picture; 0 when it has none."""
    if across is None and down is None:
        return 0
    if not isinstance(across, int) or not isinstance(down, int) or min(across, down) < 1:
        raise ImageError("the TIFF's tiles have no size", retryable=False)
    return math.ceil(image.width / across) * across * math.ceil(image.height / down) * down


def _scans(image: Image.Image, data: bytes, header_end: int) -> int:
    """How often a decoder passes over a JPEG's pixels, at most: once when its first scan has all its components."""
    if image.format == "JPEG" and not image.info.get("progressive"):
        in_first = data[header_end + 2 : header_end + 3]
        if in_first == bytes([image.layers]):  # type: ignore[attr-defined]
            return 1
    return data.count(_SCAN)


def _refuse_long_lists(data: bytes) -> None:
    """Raises ImageError for a TIFF whose lists are too long to be parsed; what is no TIFF, or cut off, passes."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or not {42, 43} & set(data[2:4]):
        return
    # As Pillow tells the two apart, since its parser is the one to protect.
    start, many, entry, count = ("8xQ", "Q", "HHQ8x", 8) if data[2] == 43 else ("4xL", "H", "HHL4x", 2)
    try:
        (first,) = struct.unpack_from(order + start, data)
        (tags,) = struct.unpack_from(order + many, data, first)
        step = struct.calcsize(order + entry)
        for index in range(min(tags, TAGS)):
            tag, _, length = struct.unpack_from(order + entry, data, first + count + index * step)
            if tag in _TIFF_LISTS and length > PIECES:
                raise ImageError(f"the TIFF consists of {length:,} pieces; it is not decoded", retryable=False)
    except (struct.error, OverflowError, IndexError):
        return
    if tags > TAGS:
        raise ImageError(f"the TIFF has {tags:,} tags; it is not decoded", retryable=False)


def _unidentified(data: bytes) -> ImageError:
    """Bytes that begin like a picture, or that a file server has reserved as zeros, may still be arriving."""
    head = data[:16]
    if not head.strip(b"\0") or any(head.startswith(s[: len(head)]) for s in _SIGNATURES):
        return ImageError(f"the picture's header is incomplete or damaged ({len(data)} bytes)", retryable=True)
    return ImageError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture", retryable=False)


def _header(image: Image.Image) -> ImageHeader:
    # Pillow calls a JPEG with more pictures behind the first one MPO; the first is an ordinary JPEG.
    name = "JPEG" if image.format == "MPO" else str(image.format)
    return ImageHeader(name, image.mode, image.width, image.height)


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _grey_to_rgb(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] from grey values of 16 or 32 bits; what is negative or not a number is black."""
    grey = np.nan_to_num(values.astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    # In place, because each copy of the largest picture would take 200 MB.
    grey /= np.float32(_white(float(grey.max()), whole=values.dtype.kind != "f"))
    np.clip(grey, 0.0, 1.0, out=grey)
    grey *= np.float32(255)
    grey += np.float32(0.5)
    return np.repeat(grey.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)


def _white(top: float, *, whole: bool) -> float:
    """The value that is shown white, given the largest one and whether the values are whole numbers."""
    if whole and top < 4096:
        return 4095.0
    if whole and top < 65536:
        return 65535.0
    return max(top, 1.0)
