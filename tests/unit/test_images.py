"""Reading images: every format and mode, and nothing but ImageError for everything else."""

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
from marcod.domain import WarningKind
from marcod.errors import ImageError
from marcod.model import preprocess

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
    """A few bytes that promise a huge image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


IMAGES = {
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


@pytest.mark.parametrize("name", IMAGES)
def test_every_format_and_mode_becomes_rgb(name: str) -> None:
    header = images.inspect(IMAGES[name])
    rgb = images.to_rgb(IMAGES[name])
    assert (header.format, header.width, header.height) == (name.split()[0], WIDTH, HEIGHT)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb.flags.c_contiguous
    assert rgb.min() < 30
    assert rgb.max() > 225


@pytest.mark.parametrize("name", ["PNG grey", "PNG grey 16", "TIFF grey", "TIFF grey 16", "TIFF grey 32", "TIFF float"])
def test_lossless_grey_keeps_its_values(name: str) -> None:
    rgb = images.to_rgb(IMAGES[name])
    assert np.array_equal(rgb, np.repeat(RAMP[:, :, np.newaxis], 3, axis=2))


@pytest.mark.parametrize("name", ["PNG colour", "PNG colour alpha", "TIFF colour LZW", "TIFF alpha", "BMP"])
def test_lossless_colour_keeps_its_values(name: str) -> None:
    assert np.array_equal(images.to_rgb(IMAGES[name]), COLOUR)


def test_cmyk_is_converted_and_not_inverted() -> None:
    white = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert images.to_rgb(white).min() > 250


BY_HISTOGRAM = [(180, 255), (256, 1023), (1000, 1023), (4095, 4095), (4096, 16383), (11_520, 16383), (16_384, 65535)]


def tiff16(values: np.ndarray, tags: dict[int, int] | None = None, planar: int = 1, *, zipped: bool = False) -> bytes:
    """A little-endian TIFF of uint16 [h, w] or [h, w, 3], which Pillow does not write, with more tags where given."""
    bands = 1 if values.ndim == 2 else 3
    layers = list(values.transpose(2, 0, 1)) if planar == 2 else [values]
    strips = [np.ascontiguousarray(layer).astype("<u2").tobytes() for layer in layers]
    return tiff(values.shape[1], values.shape[0], bands, strips, {284: planar, **(tags or {})}, zipped=zipped)


def tiff(
    width: int, height: int, bands: int, strips: list[bytes], tags: dict[int, int], *, bits: int = 16, zipped: bool
) -> bytes:
    """A TIFF of these strips, one after the other behind the tags."""
    strips = [zlib.compress(strip) if zipped else strip for strip in strips]
    entries: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [bits] * bands, 259: [8 if zipped else 1], 262: [1 if bands == 1 else 2],
        273: [0] * len(strips), 277: [bands], 278: [height], 279: [len(strip) for strip in strips],
    } | {tag: [value] for tag, value in tags.items()}  # fmt: skip
    lists = 8 + 2 + 12 * len(entries) + 4
    pixels = lists + sum(4 * len(found) for found in entries.values() if len(found) > 1)
    entries[273] = [pixels + sum(map(len, strips[:number])) for number in range(len(strips))]
    table, more = b"", b""
    for tag, found in sorted(entries.items()):
        value = found[0] if len(found) == 1 else lists + len(more)
        table += struct.pack("<HHII", tag, 4, len(found), value)
        more += struct.pack(f"<{len(found)}I", *found) if len(found) > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + more + b"".join(strips)


def packed12(values: list[int]) -> bytes:
    """A TIFF of one row of grey samples of 12 bits each, two in three bytes."""
    bits = "".join(f"{value:012b}" for value in values)
    return tiff(len(values), 1, 1, [int(bits, 2).to_bytes(len(bits) // 8, "big")], {}, bits=12, zipped=False)


@pytest.mark.parametrize(("top", "white"), [*BY_HISTOGRAM, (65_535, 65_535)])
@pytest.mark.parametrize("format_", ["TIFF", "PNG"])
def test_sixteen_bit_grey_is_scaled_from_the_bits_that_it_uses(top: int, white: int, format_: str) -> None:
    values = np.array([[0, top // 2, top]], np.uint16)
    expected = np.rint(values / white * 255)
    assert np.abs(images.to_rgb(grey16(values, format_))[:, :, 0] - expected).max() <= 1


@pytest.mark.parametrize(("top", "white"), [*BY_HISTOGRAM, (65_535, 65_535)])
@pytest.mark.parametrize("planar", [1, 2])
def test_sixteen_bit_colour_is_scaled_from_the_bits_that_it_uses(top: int, white: int, planar: int) -> None:
    values = np.array([[[0, top // 2, top], [top // 3, top, 0]]], np.uint16)
    found = images.to_rgb(tiff16(values, planar=planar))
    assert np.abs(found - np.rint(values / white * 255)).max() <= 1


def test_compressed_sixteen_bit_colour_is_scaled_too() -> None:
    values = COLOUR.astype(np.uint16) * 16
    assert np.abs(images.to_rgb(tiff16(values, zipped=True)) - np.rint(values / 4095 * 255)).max() <= 1
    with pytest.raises(ImageError, match="export it otherwise") as caught:
        images.to_rgb(tiff16(values, planar=2, zipped=True))
    assert not caught.value.retryable


@pytest.mark.parametrize("tag", [281, 341])
@pytest.mark.parametrize(
    ("told", "top", "white"), [(12, 1000, 4095), (12, 5000, 16_383), (12, 180, 255), (14, 3000, 16_383)]
)
def test_tags_tell_the_range_where_the_samples_fit_it(tag: int, told: int, top: int, white: int) -> None:
    values = np.array([[0, top // 2, top]], np.uint16)
    found = images.to_rgb(tiff16(values, {tag: (1 << told) - 1}))
    assert np.abs(found[:, :, 0] - np.rint(values / white * 255)).max() <= 1


@pytest.mark.parametrize(("top", "white"), [(1000, 4095), (180, 255)])
def test_packed_samples_have_as_many_bits_as_their_file_says(top: int, white: int) -> None:
    found = images.to_rgb(packed12([0, top // 2, top, 0]))[0, :, 0]
    assert np.abs(found - np.rint(np.array([0, top // 2, top, 0]) / white * 255)).max() <= 1


def test_white_is_zero_where_the_tiff_says_so() -> None:
    values = np.array([[0, 4095]], np.uint16)
    assert images.to_rgb(tiff16(values, {262: 0}))[0, :, 0].tolist() == [255, 0]


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
    layer = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    layer.putpixel((0, 0), (0, 0, 0, 255))
    assert images.to_rgb(encoded(layer, "PNG")).min(axis=2).ravel().tolist() == [0] + 15 * [255]
    half = encoded(Image.new("LA", (4, 4), (0, 128)), "PNG")
    assert images.to_rgb(half)[0, 0].tolist() == [127, 127, 127]
    keyed = encoded(Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", transparency=(10, 20, 30))
    assert images.to_rgb(keyed).min() == 255


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
@pytest.mark.parametrize("alpha", [0, 1])
def test_an_alpha_channel_of_zeros_is_none(format_: str, alpha: int) -> None:
    for mode, shown in (("RGB", COLOUR), ("L", np.repeat(RAMP[:, :, np.newaxis], 3, axis=2))):
        image = Image.fromarray(COLOUR if mode == "RGB" else RAMP)
        image.putalpha(alpha)
        assert np.array_equal(images.to_rgb(encoded(image, format_)), shown)


def drop(size: tuple[int, int] = (330, 270), seed: int = 1, grey: bool = False) -> Image.Image:
    """Grain over a gradient, which is no drop and is coded as one would be."""
    rng = np.random.default_rng(seed)
    values = np.linspace(60, 200, size[0])[np.newaxis] + rng.normal(0, 12, (size[1], size[0]))
    found = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return found if grey else found.convert("RGB")


def with_thumbnail(data: bytes) -> bytes:
    """Put a small JPEG into the header, as cameras do."""
    small = b"Exif\0\0" + encoded(Image.new("RGB", (16, 16), "red"), "JPEG")
    return data[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + data[2:]


CODED = {
    "plain": encoded(drop(), "JPEG"),
    "grey": encoded(drop(grey=True), "JPEG"),
    "optimised": encoded(drop(), "JPEG", optimize=True),
    "coarse": encoded(drop(), "JPEG", quality=40),
    "full colour": encoded(drop(), "JPEG", subsampling=0),
    "restarts": encoded(drop(), "JPEG", restart_marker_rows=1),
    "progressive": encoded(drop(), "JPEG", progressive=True),
    "thumbnail": with_thumbnail(encoded(drop(), "JPEG")),
    "CMYK": encoded(drop().convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("name", CODED)
def test_a_jpeg_with_a_block_of_zeros_is_damaged(name: str) -> None:
    data = CODED[name]
    for read in (images.to_rgb, preprocess.decode):
        assert read(data).std() > 10
        for length in (64, 512):
            for start in range(1000, len(data) - length - 100, len(data) // 5):
                with pytest.raises(ImageError, match="damaged") as caught:
                    read(data[:start] + bytes(length) + data[start + length :])
                assert caught.value.retryable


@pytest.mark.parametrize("name", [name for name in CODED if name != "progressive"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read_with_a_warning(name: str) -> None:
    data = CODED[name]
    looks = images.Appearance(0.5, 0.2, -3)
    assert images.warnings_of(data, looks) == ()
    for lacking in (data[:-2], data[:-1]):
        for read in (images.to_rgb, preprocess.decode):
            assert np.array_equal(read(lacking), read(data))
        assert images.warnings_of(lacking, looks) == (WarningKind.NO_END_MARKER,)
    for short in (data[: len(data) // 2], data[:-200]):
        with pytest.raises(ImageError, match="truncated") as caught:
            preprocess.decode(short)
        assert caught.value.retryable


def test_of_a_progressive_jpeg_without_its_end_nobody_knows_whether_it_is_whole() -> None:
    with pytest.raises(ImageError, match="truncated"):
        images.to_rgb(CODED["progressive"][:-2])


@pytest.mark.parametrize("name", CODED)
def test_what_follows_the_end_of_a_jpeg_does_not_count(name: str) -> None:
    for more in (bytes(5000), CODED[name], b"trailer"):
        assert np.array_equal(images.to_rgb(CODED[name] + more), images.to_rgb(CODED[name]))


@pytest.mark.parametrize("value", [0, 9, 255])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_a_uniform_jpeg_is_whole_and_blank(value: int, options: dict[str, object]) -> None:
    plain = encoded(Image.new("RGB", (640, 480), (value,) * 3), "JPEG", **options)
    for data in (plain, with_thumbnail(plain)):
        assert np.abs(images.to_rgb(data).astype(int) - value).max() <= 1
    pixels = preprocess.prepare(preprocess.decode(data), preprocess.Preprocessing(96, "area"))
    assert images.warnings_of(data, images.appearance(pixels)) == (WarningKind.BLANK,)


@pytest.mark.parametrize("shape", ["spot", "faint grain", "grey spot"])
def test_a_nearly_uniform_progressive_jpeg_is_whole_and_one_with_a_hole_in_its_details_is_not(shape: str) -> None:
    values = np.full((1024, 1224), 120, np.uint8)
    if shape == "faint grain":
        values += (np.random.default_rng(3).random(values.shape) < 0.1).astype(np.uint8)
    else:
        values[400:500, 500:600] = 60
    image = Image.fromarray(values)
    data = encoded(image if shape.startswith("grey") else image.convert("RGB"), "JPEG", progressive=True)
    assert bytes(64) in data
    for read in (images.to_rgb, preprocess.decode):
        assert np.abs(read(data).astype(int) - values[..., np.newaxis]).max() < 40
    busy = CODED["progressive"]
    details = busy.index(b"\xff\xda", busy.index(b"\xff\xda") + 1) + 60
    with pytest.raises(ImageError, match="zeros"):
        images.to_rgb(busy[:details] + bytes(64) + busy[details + 64 :])


def test_grain_on_black_and_on_white_is_blank_and_a_drop_is_not() -> None:
    rng = np.random.default_rng(4)
    shape = preprocess.Preprocessing(96, "bilinear-tf1")

    def warned(grey: np.ndarray) -> tuple[WarningKind, ...]:
        rgb = np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
        return images.warnings_of(b"", images.appearance(preprocess.prepare(rgb, shape)))

    grain = rng.normal(0, 2, (270, 330))
    assert warned(grain + 3) == warned(253 + grain) == (WarningKind.BLANK,)
    assert warned(np.linspace(118, 124, 330)[np.newaxis] + grain) == ()


def test_a_decoder_without_memory_is_not_damage() -> None:
    with pytest.raises(MemoryError), images._opened(CODED["plain"]):
        raise OSError("out of memory when reading image file")


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


def test_the_largest_image_allowed_is_still_looked_at() -> None:
    assert images.inspect(png_claiming(10_000, 5_000)).width == 10_000


@pytest.mark.parametrize(
    ("data", "message", "retryable"),
    [
        (b"", "empty", True),
        (b"\0" * 4096, "incomplete", True),
        (b"\xff\xd8", "incomplete", True),
        (IMAGES["JPEG colour"][:100], "incomplete|truncated", True),
        (IMAGES["PNG colour"][:20], "incomplete|truncated", True),
        (b"Well,Drop,Score\nA1,1,0\n", "not a JPEG", False),
        (b"%PDF-1.7\n" + b"x" * 100, "not a JPEG", False),
        (encoded(Image.fromarray(COLOUR), "WEBP"), "not a JPEG", False),
        (encoded(Image.fromarray(COLOUR), "PPM"), "not a JPEG", False),
    ],
)
def test_what_is_not_an_image_says_so(data: bytes, message: str, retryable: bool) -> None:
    for read in (images.inspect, images.to_rgb):
        with pytest.raises(ImageError, match=message) as caught:
            read(data)
        assert caught.value.retryable is retryable


@pytest.mark.parametrize("name", [n for n in IMAGES if n.split()[0] in ("JPEG", "PNG", "BMP")])
def test_a_truncated_image_may_still_be_arriving(name: str) -> None:
    data = IMAGES[name]
    with pytest.raises(ImageError, match=r"truncated|damaged") as caught:
        images.to_rgb(data[: int(len(data) * 0.7)])
    assert caught.value.retryable


# The test run turns warnings into errors, also those about metadata that the module switches off.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(IMAGES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    keep=st.floats(0, 1),
)
def test_damaged_images_raise_nothing_but_image_errors(
    name: str, changes: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(IMAGES[name])
    for where, value in changes:
        data[int(where * len(data))] = value
    damaged = bytes(data[: max(1, int(keep * len(data)))])
    with suppress(ImageError):
        rgb = images.to_rgb(damaged)
        assert rgb.dtype == np.uint8
        assert rgb.ndim == 3
