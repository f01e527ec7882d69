"""Reading image bytes safely into 8-bit RGB, without TensorFlow.

Guarantees:
- Only JPEG, PNG, TIFF, BMP and GIF are parsed, and no image above :data:`PIXEL_LIMIT` is decoded.
- No file, however it was made, costs more than seconds and a few hundred megabytes.
- No file outside its source's folder is read.
- Any fault in the bytes becomes one ImageError.

Choices a reader of scores should know: transparency is laid over white, because a drop is photographed
against a bright field, and an alpha channel of zeros is none; of several frames the first counts; the EXIF orientation
is not applied, as the published graph does not apply it; embedded colour profiles are ignored for the same reason.
Samples of more than 8 bits are scaled from the range that the image uses, see :func:`to_rgb`. A JPEG whose coded data
does not fit its size is damaged, however much of it a decoder would show.
"""

import io
import math
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from marcod import files, jpeg_markers
from marcod.domain import WarningKind
from marcod.errors import ImageError, is_out_of_memory
from marcod.text import printable

PIXEL_LIMIT: Final = 50_000_000
"""Largest image that is decoded, in pixels; the largest drop images known are 2560 x 1920, 4.9 million."""

LARGE_PIXELS: Final = 12_000_000
"""Images above are decoded one at a time, so that several bombs at once cost no more memory than one."""

MAX_FILE_BYTES: Final = 256 * 2**20
"""Larger files are not drop images; reading one would only cost memory."""

OPENING_READS: Final = 20_000
DECODING_READS: Final = 200_000
"""Reads that a parser may make, before the pixels and among them.

An image needs some dozens and some hundreds. A file of a million empty chunks or filling bytes is short, and keeps
a parser written in Python busy for minutes.
"""

SCAN_PIXELS: Final = 1_000_000_000
"""Pixels times scans of a JPEG. A progressive one has ten scans; each of thousands takes few bytes and a whole pass."""

PIECES: Final = 65_536
TAGS: Final = 4_096
"""Strips or tiles, and tags, of a TIFF. Parsing a list of millions of them takes more memory than any image."""

_WHOLE: Final = "whole width "
"""Begin of the comment by which a small JPEG says how wide the image was that it was made from."""

THUMBNAIL_QUALITY: Final = 75
DETAILED_PX: Final = 800
"""Small images from this size on are made of no more pixels than they need, which takes a third of the time."""

FORMATS: Final = ("JPEG", "PNG", "TIFF", "BMP", "GIF")

# Pillow also warns about damaged metadata; pixels decide here whether an image is damaged.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Pillow only warns between once and twice its limit. As an error the warning makes the guard one sharp line.
Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
warnings.simplefilter("error", Image.DecompressionBombWarning)

_HALF_LUMA: Final = np.array([0.299 / 2, 0.587 / 2, 0.114 / 2], np.float32)
"""Shares of the colours in the grey of a pixel between 0 and 1, where the colours are between -1 and 1."""
_NO_LIGHT: Final = 1e-4
_NO_EDGE: Final = 1e-6

_TIFF_LISTS: Final = frozenset((273, 279, 324, 325))
_TILE_SIDES: Final = (322, 323)
_END: Final = jpeg_markers.END

_DEPTHS: Final = (8, 10, 12, 14, 16)
"""Bits per sample of cameras, as their values lie in files of 16 bits."""

_DARKEST: Final = 16
"""A range that tags tell is not believed where the brightest sample is below this fraction of it."""

_BITS_TAG: Final = 258
_RANGE_TAGS: Final = (281, 341)
_PHOTOMETRIC: Final = 262
_PLANAR: Final = 284
_PLANES: Final = tuple(f"{band};16" for band in "RGBA")
_WITH_ALPHA: Final = ("LA", "PA", "La", "RGBA", "RGBa")
_BYTE_ORDERS: Final = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte orders in Pillow's raw modes, each with the one that unpacks the other byte of a 16-bit sample."""

SLACK: Final = 64
"""Bytes by which the coded data of a JPEG may be longer than needed; some cameras append a few."""

_PADS: Final = (bytes(SLACK), bytes(range(1, 200, 3))[:SLACK])

_DARK: Final = 0.03
_BRIGHT: Final = 0.97
"""Brightness below which an image is black, and above which it is white."""

_FLAT: Final = 0.02
_EVEN: Final = 0.004
"""Contrast below which a black or white image is blank, and below which any is."""

_one_large: Final = threading.Lock()

_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"GIF8")

# What Pillow's parsers are known to raise on damaged bytes. MemoryError and KeyboardInterrupt are not ours.
_DAMAGE: Final = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    RuntimeError, AssertionError, struct.error, zlib.error,
)  # fmt: skip


def read(path: Path, root: Path | None = None) -> bytes:
    """Read an image's file. Raises ImageError when it is not a regular file or too large, and OSError.

    With ``root``, the folder of its source, nothing outside that folder is read: see :mod:`marcod.files`.
    """
    with files.open_beneath(path, root) as descriptor:
        if files.regular(descriptor) is None:
            raise ImageError("not a regular file", retryable=False)
        data = files.content(descriptor, MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"larger than {MAX_FILE_BYTES // 2**20} MiB; not a drop image", retryable=False)
    return data


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image: Pillow's names of format and mode, width and height in pixels."""

    format: str
    mode: str
    width: int
    height: int


def inspect(data: bytes) -> ImageHeader:
    """Read the header of an image, without decoding its pixels.

    Raises ImageError: not retryable when it is not of a known format or larger than
    :data:`PIXEL_LIMIT`, retryable when it is empty or looks like the beginning of an image.
    """
    with _opened(data) as image:
        return _header(image)


def to_rgb(data: bytes) -> NDArray[np.uint8]:
    """Decode the first frame of an image to uint8 [height, width, 3], whatever its mode.

    Grey and colour of 16 bits are scaled linearly from the range that the tags of a TIFF tell (bits per sample, largest
    sample), where the samples fit it and are not all in its lowest sixteenth. Else the range is the smallest of
    8, 10, 12, 14 and 16 bits that holds every sample, since cameras store fewer bits in files of 16. Floating-point
    and 32-bit grey count from 0 to 1 or to their largest value. Raises ImageError as :func:`inspect` does, and a
    retryable one for pixels that cannot be decoded.
    """
    data = whole_jpeg(data)
    with _opened(data) as image, room_for(image.width * image.height):
        return _rgb(image, data)


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """To be held while so many pixels are decoded; images above :data:`LARGE_PIXELS` wait for one another."""
    if pixels <= LARGE_PIXELS:
        yield
        return
    with _one_large:
        yield


def thumbnail(data: bytes, longest_px: int, *, quality: int = THUMBNAIL_QUALITY) -> bytes:
    """Make a small JPEG of the first frame for people, its longer side at most ``longest_px``.

    Raises ImageError as :func:`to_rgb` does.
    """
    if lacks_end(data):
        data += _END
    with _opened(data) as image, room_for(image.width * image.height):
        # A JPEG is decoded at a fraction of its size at once, which makes a plate's sheet ten times faster.
        # Twice as large as needed, so that details of small ones are averaged; of large ones nobody sees it.
        least_px = 2 * longest_px if longest_px < DETAILED_PX else longest_px
        share = least_px / max(image.size)
        whole = image.width
        image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
        small = Image.fromarray(_rgb(image, data))
        small.thumbnail((longest_px, longest_px))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=quality, comment=f"{_WHOLE}{whole}")
        return out.getvalue()


def whole_width(small: bytes) -> int | None:
    """Return the width of the image from which :func:`thumbnail` made a small one; None where that does not say."""
    with _opened(small) as image:
        said: Any = image.info.get("comment", b"")
    number = said.removeprefix(_WHOLE.encode())
    return int(number) if number != said and number.isdigit() else None


@dataclass(frozen=True, slots=True)
class Appearance:
    """The look of an image, whatever its content: mean grey and the grey's standard deviation, for a white of 1.

    ``focus`` is the common logarithm of the mean squared gradient over the squared mean grey (Tenenbaum's measure,
    normalised): another exposure leaves it as it is, and every blur lowers it. An image without an edge has -6.
    """

    brightness: float
    contrast: float
    focus: float


def appearance(pixels: NDArray[np.float32]) -> Appearance:
    """Measure the look of a prepared image, float32 [size, size, 3] in -1..1; of several squares the mean of theirs.

    Measured on what the model sees, so that imagers with sensors of different sizes compare.
    """
    if pixels.ndim > 3:
        parts = [appearance(square) for square in pixels]
        return Appearance(*(float(np.mean([getattr(p, f.name) for p in parts])) for f in fields(Appearance)))
    grey: NDArray[np.float32] = pixels @ _HALF_LUMA
    grey += np.float32(0.5)
    brightness = float(grey.mean())
    edges = (_mean_square(grey[:, 2:] - grey[:, :-2]) + _mean_square(grey[2:] - grey[:-2])) / 4
    grey -= np.float32(brightness)
    focus = math.log10(edges / (brightness**2 + _NO_LIGHT) + _NO_EDGE)
    return Appearance(brightness, math.sqrt(_mean_square(grey)), focus)


def _mean_square(values: NDArray[np.float32]) -> float:
    # Row by row: for a longer product NumPy's BLAS starts threads, which wait on the cores that predict.
    return float(np.vecdot(values, values).sum(dtype=np.float64)) / values.size


def warnings_of(data: bytes, looks: Appearance) -> tuple[WarningKind, ...]:
    """Kinds of what is odd about an image that can be decoded: it is uniform, or lacks its end marker."""
    extreme = not _DARK <= looks.brightness <= _BRIGHT
    blank = looks.contrast < (_FLAT if extreme else _EVEN)
    found = ((blank, WarningKind.BLANK), (lacks_end(data), WarningKind.NO_END_MARKER))
    return tuple(kind for is_so, kind in found if is_so)


def lacks_end(data: bytes) -> bool:
    """Return True for a JPEG that has a scan and no end marker after it."""
    return (
        data.startswith(_SIGNATURES[0])
        and jpeg_markers.SCAN in data
        and data.rfind(_END) < data.rfind(jpeg_markers.SCAN)
    )


def whole_jpeg(data: bytes, *, decoded: bool = False) -> bytes:
    """Check that the coded data of a JPEG fits its size, and return the bytes with an end marker; others as they are.

    Decoders invent data that is missing and skip data that is left over, and tell only a log of their own. Raises a
    retryable ImageError for both. ``decoded`` says that a decoder took all of it without a complaint, so that what it
    would complain of is not looked for.
    """
    if not data.startswith(_SIGNATURES[0]):
        return data
    # Without its index of further images behind the end, which would be looked for.
    plain = data.replace(b"MPF\0", b"MPX\0", 1)
    with _opened(plain) as image:
        start = image.fp.tell()  # type: ignore[attr-defined]
        pixels, one_scan = image.width * image.height, _scans(image, plain) == 1
    coded = jpeg_markers.find_coded(plain, start)
    fault, ended = jpeg_markers.fault(plain, coded, one_scan=one_scan), coded.end < len(plain)
    if fault is None and not decoded:
        with room_for(pixels):
            fault = _fault_of_length(plain[: coded.end], start, ended=ended)
    if fault is not None:
        raise ImageError(f"the JPEG is truncated or damaged: {fault}", retryable=True)
    return data if ended else data + _END


def _fault_of_length(body: bytes, start: int, *, ended: bool) -> str | None:
    """Coded data that is longer or shorter than the size of the JPEG needs. ``body`` has no end marker."""
    first, took_all = _glance(body + _END, max(start + SLACK, len(body) - SLACK))
    if not took_all and len(body) - start > 3 * SLACK:
        return "it has more data than its size needs"
    # Where data is missing the last blocks are alike, and what follows is taken for more of it.
    if ended and first.size > 1 and first[-1, -1] != first[-1, -2]:
        return None
    one, other = (_glance(body + pad + _END)[0] for pad in _PADS)
    return None if np.array_equal(one, other) else "data is missing"


def _glance(data: bytes, cut: int = 0) -> tuple[NDArray[np.uint8], bool]:
    """Return a JPEG's luma at an eighth of its size, and whether decoding needed the bytes from ``cut`` on."""
    with _opened(data, cut) as image:
        file: _Metered = image.fp  # type: ignore[attr-defined]
        image.draft("L", (image.width // 8, image.height // 8))
        luma = np.asarray(image.convert("L"))
        return luma, file.passed


def _rgb(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_rgb(np.asarray(image), _tag_white(image), inverted=_tag(image, _PHOTOMETRIC) == 0)
    if (order := _take_high_bytes(image)) is not None:
        image = _in_its_range(image, order, data)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return np.array(_over_white(image))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _opened(data: bytes, cut: int = 0) -> Iterator[Image.Image]:
    """Yield the image, opened and not yet decoded; damage found inside the block becomes ImageError.

    A parser gets the bytes from ``cut`` on in a read of their own.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)", retryable=True)
    _refuse_long_lists(data)
    file = _Metered(data, cut)
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_bomb(image.width * image.height)
            _refuse_work(image, data)
            # Of a compressed BMP every run is read by itself, and each has a pixel.
            runs = 4 * image.width * image.height if image.format == "BMP" else 0
            file.left = max(DECODING_READS, runs)
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image is too large: {error}", retryable=False) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DAMAGE as error:
        # A decoder reports missing memory by an OSError, as it does damaged bytes.
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        # Some parsers put bytes of the file into their messages.
        detail = printable(str(error)[:200], instead="") or type(error).__name__
        raise ImageError(f"the image is truncated or damaged: {detail}", retryable=True) from error


class _Metered(io.BytesIO):
    """The bytes for a parser, asked for only so often; ``passed`` tells that a read went beyond ``cut``."""

    def __init__(self, data: bytes, cut: int = 0) -> None:
        super().__init__(data)
        self.left, self.passed = OPENING_READS, False
        self._cut = cut

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise _too_many_parts(self.getvalue())
        before = self._cut - self.tell()
        if before <= 0:
            self.passed = True
            return super().read(size)
        return super().read(before if size is None or size < 0 else min(size, before))


def _too_many_parts(data: bytes) -> ImageError:
    """Return the error for a parser that reads on and on, as one does that looks for the end of a hole in a header."""
    if data.startswith(_SIGNATURES[0]) and jpeg_markers.ZEROS in data:
        return ImageError("the JPEG is truncated or damaged: it has a block of zeros", retryable=True)
    return ImageError("the image's file is cut into more parts than any image has", retryable=False)


def _refuse_bomb(pixels: int) -> None:
    if pixels > PIXEL_LIMIT:
        raise ImageError(f"the image has {pixels:,} pixels; more than {PIXEL_LIMIT:,} are not decoded", retryable=False)


def _refuse_work(image: Image.Image, data: bytes) -> None:
    """Raise ImageError for a file that makes a decoder repeat its pixels, or decode far more than it shows."""
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO") and pixels * _scans(image, data) > SCAN_PIXELS:
        raise ImageError("the JPEG has more scans than any image needs; it is not decoded", retryable=False)
    if image.format == "TIFF":
        _refuse_bomb(_tiled(image, *(image.tag_v2.get(side) for side in _TILE_SIDES)))  # type: ignore[attr-defined]
    pieces = image.tile  # type: ignore[attr-defined]
    covered = sum((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in pieces)
    # Up to four planes of one image may lie one after the other.
    _refuse_bomb(covered // 4)
    if image.format == "TIFF" and covered < pixels:
        raise ImageError("the image is truncated or damaged: strips or tiles of it are missing", retryable=True)


def _tiled(image: Image.Image, across: object, down: object) -> int:
    """Pixels of all tiles of a TIFF, which may reach far beyond the image; 0 when it has none."""
    if across is None and down is None:
        return 0
    if not isinstance(across, int) or not isinstance(down, int) or min(across, down) < 1:
        raise ImageError("the TIFF's tiles have no size", retryable=False)
    return math.ceil(image.width / across) * across * math.ceil(image.height / down) * down


def _scans(image: Image.Image, data: bytes) -> int:
    """Return the most passes of a decoder over a JPEG's pixels: one if its first scan has all components."""
    has_all = image.format == "JPEG" and jpeg_markers.components_of_first_scan(data) == image.layers  # type: ignore[attr-defined]
    if has_all and not image.info.get("progressive"):
        return 1
    return data.count(jpeg_markers.SCAN)


def _refuse_long_lists(data: bytes) -> None:
    """Raise ImageError for a TIFF whose lists are too long to parse; other files and truncated ones pass."""
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
    """Bytes that begin like an image, or that a file server has reserved as zeros, may still be arriving."""
    head = data[:16]
    if not head.strip(b"\0") or any(head.startswith(s[: len(head)]) for s in _SIGNATURES):
        return ImageError(f"the image's header is incomplete or damaged ({len(data)} bytes)", retryable=True)
    return ImageError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image", retryable=False)


def _header(image: Image.Image) -> ImageHeader:
    # Pillow calls a JPEG with more images behind the first one MPO; the first is an ordinary JPEG.
    name = "JPEG" if image.format == "MPO" else str(image.format)
    return ImageHeader(name, image.mode, image.width, image.height)


def _take_high_bytes(image: Image.Image) -> str | None:
    """Set an image of 16-bit colour to keep its high bytes and return its byte order; None for other images.

    Pillow reads such samples that lie in planes as if they had 8 bits.
    """
    if image.format == "TIFF" and _tag(image, _PLANAR) == 2 and _tag(image, _BITS_TAG) == 16:
        order = "L" if image.tag_v2.prefix == b"II" else "B"  # type: ignore[attr-defined]
        _set_raw_modes(image, lambda mode: f"{mode};16{order}" if len(mode) == 1 else mode)
    modes = {_mode_of(tile) for tile in image.tile}  # type: ignore[attr-defined]
    orders = {mode[-1] for mode in modes if mode[:-1] in ("RGB;16", "RGBX;16", "RGBA;16", *_PLANES)}
    return orders.pop() if len(orders) == 1 else None


def _mode_of(tile: Any) -> str:
    if isinstance(tile.args, str):
        return tile.args
    return str(tile.args[0]) if isinstance(tile.args, tuple) else ""


def _set_raw_modes(image: Image.Image, change: Callable[[str], str]) -> None:
    """Have every part of an image unpacked otherwise."""

    def changed(tile: Any) -> Any:
        mode = change(_mode_of(tile))
        return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))

    image.tile = [changed(tile) for tile in image.tile]  # type: ignore[attr-defined]


def _in_its_range(image: Image.Image, order: str, data: bytes) -> Image.Image:
    """Scale 16-bit colour from its range to 8 bits; Pillow keeps only the high byte of each sample."""
    tag_white = _tag_white(image)
    high = np.asarray(image)
    if high[:, :, :3].max(initial=0) >= 1 << (_DEPTHS[-2] - 8):
        return image
    with _opened(data) as again:
        compressed = again.tile[0].codec_name == "libtiff"  # type: ignore[attr-defined]
        if _take_high_bytes(again) != order or (_tag(again, _PLANAR) == 2 and compressed):
            why = "a TIFF of 16-bit colour in compressed planes, of samples of fewer bits; export it otherwise"
            raise ImageError(why, retryable=False)
        _set_raw_modes(again, lambda mode: mode[:-1] + _BYTE_ORDERS[order])
        values = np.asarray(again).astype(np.uint16)
    values |= high.astype(np.uint16) << 8
    out = np.empty(values.shape, np.uint8)
    bands = [(slice(0, 3), tag_white)] + ([(slice(3, 4), None)] if values.shape[2] == 4 else [])
    for band, its_white in bands:
        out[:, :, band] = _scaled(values[:, :, band], its_white)
    return Image.fromarray(out)


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    if image.mode in _WITH_ALPHA and layer.getchannel("A").getextrema()[1] <= 1:  # type: ignore[operator]
        return layer.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _grey_to_rgb(values: NDArray[np.generic], tag_white: int | None, *, inverted: bool) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] from grey values of 16 or 32 bits; what is negative or not a number is black."""
    grey = _scaled(values, tag_white)
    if inverted:
        np.subtract(255, grey, out=grey)
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _scaled(values: NDArray[np.generic], tag_white: int | None) -> NDArray[np.uint8]:
    """8-bit samples of the same shape; ``tag_white`` is the white that the file's tags give."""
    grey = np.nan_to_num(values.astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    # In place, because each copy of the largest image would take 200 MB.
    grey /= np.float32(_white(float(grey.max(initial=0)), tag_white, whole=values.dtype.kind != "f"))
    np.clip(grey, 0.0, 1.0, out=grey)
    grey *= np.float32(255)
    grey += np.float32(0.5)
    return grey.astype(np.uint8)


def _white(top: float, tag_white: int | None, *, whole: bool) -> float:
    """Return the value shown as white, given the largest one and whether the values are integers."""
    if not whole or top >= 1 << _DEPTHS[-1]:
        return max(top, 1.0)
    if tag_white is not None and tag_white / _DARKEST < top <= tag_white:
        return tag_white
    return next((1 << bits) - 1 for bits in _DEPTHS if top < 1 << bits)


def _tag_white(image: Image.Image) -> int | None:
    """Return the largest sample that a TIFF's tags allow, as a full number of bits; None if they add nothing."""
    bits = _tag(image, _BITS_TAG)
    tops = [_tag(image, tag) for tag in _RANGE_TAGS]
    depths = [bits, *(int(top).bit_length() for top in tops if top is not None and top >= 1)]
    given = [depth for depth in depths if depth is not None and _DEPTHS[0] <= depth < _DEPTHS[-1]]
    return (1 << int(min(given))) - 1 if given else None


def _tag(image: Image.Image, tag: int) -> float | None:
    """Return the first value of a TIFF's tag, where it is a number."""
    found = image.tag_v2.get(tag) if image.format == "TIFF" else None  # type: ignore[attr-defined]
    first = found[0] if isinstance(found, tuple) and found else found
    return first if isinstance(first, int | float) else None
