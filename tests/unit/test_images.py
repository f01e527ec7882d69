"""Reading pictures: every format and mode, and nothing but ImageError for everything else."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from marcod import images
from marcod.errors import ImageError

HEIGHT, WIDTH = 24, 32
RAMP = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
COLOUR = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def grey16(values: np.ndarray, format_: str = "TIFF") -> bytes:
    return encoded(Image.fromarray(values), format_)


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes that promise a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


PICTURES = {
    "JPEG grey": encoded(Image.fromarray(RAMP), "JPEG"),
    "JPEG colour": encoded(Image.fromarray(COLOUR), "JPEG"),
    "JPEG CMYK": encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "JPEG progressive": encoded(Image.fromarray(COLOUR), "JPEG", progressive=True),
    "PNG bilevel": encoded(Image.fromarray(RAMP).convert("1"), "PNG"),
    "PNG grey": encoded(Image.fromarray(RAMP), "PNG"),
    "PNG colour": encoded(Image.fromarray(COLOUR), "PNG"),
    "PNG palette": encoded(Image.fromarray(COLOUR).quantize(16), "PNG"),
    "PNG grey alpha": encoded(Image.fromarray(RAMP).convert("LA"), "PNG"),
    "PNG colour alpha": encoded(Image.fromarray(COLOUR).convert("RGBA"), "PNG"),
    "PNG grey 16": grey16(RAMP.astype(np.uint16) * 257, "PNG"),
    "TIFF bilevel": encoded(Image.fromarray(RAMP).convert("1"), "TIFF"),
    "TIFF grey": encoded(Image.fromarray(RAMP), "TIFF"),
    "TIFF colour LZW": encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"),
    "TIFF colour deflate": encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF CMYK": encoded(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"),
    "TIFF palette": encoded(Image.fromarray(COLOUR).quantize(16), "TIFF"),
    "TIFF alpha": encoded(Image.fromarray(COLOUR).convert("RGBA"), "TIFF"),
    "TIFF grey 16": grey16(RAMP.astype(np.uint16) * 257),
    "TIFF grey 32": grey16(RAMP.astype(np.int32) * 65536),
    "TIFF float": grey16(RAMP.astype(np.float32) / 255),
    "BMP": encoded(Image.fromarray(COLOUR), "BMP"),
    "GIF": encoded(Image.fromarray(COLOUR).quantize(16), "GIF"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_format_and_mode_becomes_rgb(name: str) -> None:
    header = images.inspect(PICTURES[name])
    rgb = images.to_rgb(PICTURES[name])
    assert (header.format, header.width, header.height) == (name.split()[0], WIDTH, HEIGHT)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb.flags.c_contiguous
    assert rgb.min() < 30
    assert rgb.max() > 225


@pytest.mark.parametrize("name", ["PNG grey", "PNG grey 16", "TIFF grey", "TIFF grey 16", "TIFF grey 32", "TIFF float"])
def test_lossless_grey_keeps_its_values(name: str) -> None:
    rgb = images.to_rgb(PICTURES[name])
    assert np.array_equal(rgb, np.repeat(RAMP[:, :, np.newaxis], 3, axis=2))


@pytest.mark.parametrize("name", ["PNG colour", "PNG colour alpha", "TIFF colour LZW", "TIFF alpha", "BMP"])
def test_lossless_colour_keeps_its_values(name: str) -> None:
    assert np.array_equal(images.to_rgb(PICTURES[name]), COLOUR)


def test_cmyk_is_converted_and_not_inverted() -> None:
    white = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert images.to_rgb(white).min() > 250


@pytest.mark.parametrize(("top", "white"), [(4095, 4095), (4096, 65535), (65535, 65535), (1000, 4095)])
def test_sixteen_bit_grey_is_read_from_12_or_16_bits(top: int, white: int) -> None:
    values = np.array([[0, top // 2, top]], np.uint16)
    expected = np.rint(values / white * 255)
    assert np.abs(images.to_rgb(grey16(values))[:, :, 0] - expected).max() <= 1


def test_big_endian_sixteen_bit_grey() -> None:
    data = encoded(Image.frombytes("I;16B", (2, 1), b"\x00\x00\xff\xff"), "TIFF")
    assert images.to_rgb(data)[0, :, 0].tolist() == [0, 255]


def test_float_values_that_are_no_numbers_are_black() -> None:
    values = np.array([[np.nan, np.inf, -1.0, 0.5, 1.0]], np.float32)
    assert images.to_rgb(grey16(values))[0, :, 0].tolist() == [0, 0, 0, 128, 255]


def test_sixteen_bit_colour_keeps_its_high_bytes() -> None:
    rows = b"".join(b"\0" + bytes([200, 13, 100, 77, 50, 255]) * 4 for _ in range(3))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert images.to_rgb(data)[0, 0].tolist() == [200, 100, 50]


def test_transparency_is_laid_over_white() -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")
    assert images.to_rgb(clear).min() == 255
    half = encoded(Image.new("LA", (4, 4), (0, 128)), "PNG")
    assert images.to_rgb(half)[0, 0].tolist() == [127, 127, 127]
    keyed = encoded(Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", transparency=(10, 20, 30))
    assert images.to_rgb(keyed).min() == 255


@pytest.mark.parametrize("format_", ["TIFF", "GIF"])
def test_of_several_frames_the_first_counts(format_: str) -> None:
    frames = [Image.new("L", (8, 8), 250), Image.new("L", (8, 8), 5)]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    assert images.to_rgb(data).min() >= 245


def test_a_jpeg_followed_by_another_is_a_jpeg() -> None:
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert images.inspect(data).format == "JPEG"
    assert images.to_rgb(data).min() > 250


@pytest.mark.parametrize(("width", "height"), [(10_001, 5_000), (10_000, 10_001), (2_000_000, 2_000_000)])
def test_decompression_bombs_are_refused_for_good(width: int, height: int) -> None:
    for read in (images.inspect, images.to_rgb):
        with pytest.raises(ImageError, match=r"pixels|too large") as caught:
            read(png_claiming(width, height))
        assert not caught.value.retryable


def test_the_largest_picture_allowed_is_still_looked_at() -> None:
    assert images.inspect(png_claiming(10_000, 5_000)).width == 10_000


@pytest.mark.parametrize(
    ("data", "message", "retryable"),
    [
        (b"", "empty", True),
        (b"\0" * 4096, "incomplete", True),
        (b"\xff\xd8", "incomplete", True),
        (PICTURES["JPEG colour"][:100], "incomplete|truncated", True),
        (PICTURES["PNG colour"][:20], "incomplete|truncated", True),
        (b"Well,Drop,Score\nA1,1,0\n", "not a JPEG", False),
        (b"%PDF-1.7\n" + b"x" * 100, "not a JPEG", False),
        (encoded(Image.fromarray(COLOUR), "WEBP"), "not a JPEG", False),
        (encoded(Image.fromarray(COLOUR), "PPM"), "not a JPEG", False),
    ],
)
def test_what_is_no_picture_says_so(data: bytes, message: str, retryable: bool) -> None:
    for read in (images.inspect, images.to_rgb):
        with pytest.raises(ImageError, match=message) as caught:
            read(data)
        assert caught.value.retryable is retryable


@pytest.mark.parametrize("name", [n for n in PICTURES if n.split()[0] in ("JPEG", "PNG", "BMP")])
def test_a_truncated_picture_may_still_be_arriving(name: str) -> None:
    data = PICTURES[name]
    with pytest.raises(ImageError, match=r"truncated|damaged") as caught:
        images.to_rgb(data[: int(len(data) * 0.7)])
    assert caught.value.retryable


# The test run turns warnings into errors, also those about metadata that the module switches off.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(PICTURES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    keep=st.floats(0, 1),
)
def test_damaged_pictures_raise_nothing_but_image_errors(
    name: str, changes: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(PICTURES[name])
    for where, value in changes:
        data[int(where * len(data))] = value
    damaged = bytes(data[: max(1, int(keep * len(data)))])
    with suppress(ImageError):
        rgb = images.to_rgb(damaged)
        assert rgb.dtype == np.uint8
        assert rgb.ndim == 3
