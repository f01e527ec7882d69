"""Files made to cost a reader its time or its memory, and names that lead it elsewhere."""

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marcod import images
from marcod.errors import ImageError
from marcod.files import EscapesRootError

SMALL = Image.new("L", (8, 8), 128)

Entry = tuple[int, int, int, int]
"""Tag, type, count and value."""


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 9 * 8))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND")


def gif(extension: bytes) -> bytes:
    data = encoded(SMALL, "GIF")
    place = data.index(b",")
    return data[:place] + extension + data[place:]


def jpeg(segments: bytes) -> bytes:
    data = encoded(SMALL, "JPEG")
    return data[:2] + segments + data[2:]


def tiff(*entries: Entry, body: bytes = b"", big: bool = False) -> bytes:
    """A little-endian TIFF of 8 x 8 grey pixels with further tags."""
    plain = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1}
    own = {entry[0] for entry in entries}
    found = sorted([(tag, 4, 1, value) for tag, value in plain.items() if tag not in own] + list(entries))
    if big:
        head = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(found))
        return head + b"".join(struct.pack("<HHQQ", *entry) for entry in found) + bytes(8) + body
    head = b"II*\0" + struct.pack("<IH", 8, len(found))
    return head + b"".join(struct.pack("<HHII", *entry) for entry in found) + bytes(4) + body


def many_scans(scans: int) -> bytes:
    """The last scan of a progressive JPEG again and again; each costs a few bytes and a pass over all pixels."""
    data = encoded(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


HOSTILE = {
    "PNG of 100,000 texts": (png(before=chunk(b"tEXt", b"a\0b") * 100_000), "more parts"),
    "PNG of 100,000 chunks behind its pixels": (png(after=chunk(b"abCd") * 100_000), "more parts"),
    "PNG with a text of 5 MB in 5 kB": (
        png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
        "too large",
    ),
    "PNG with a colour profile of 5 MB in 5 kB": (
        png(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
        "too large",
    ),
    "GIF of 100,000 comments": (gif(b"!\xfe\1a\0" * 100_000), "more parts"),
    "GIF with a comment of 5 MB": (gif(b"!\xfe" + (b"\xff" + b"a" * 255) * 20_000 + b"\0"), "more parts"),
    "JPEG of 100,000 comments": (jpeg(b"\xff\xfe\0\3a" * 100_000), "more parts"),
    "JPEG of 2 MB of filling bytes": (jpeg(b"\xff" * 2_000_000), "more parts"),
    "JPEG of a thousand scans": (many_scans(1000), "more scans"),
    "TIFF of 60,000 tags that share their values": (
        tiff(*((tag, 1, 50_000, 0) for tag in range(1000, 60_000)), body=bytes(50_000)),
        "tags",
    ),
    "TIFF of 500,000 strips": (
        tiff((273, 4, 500_000, 200), (278, 4, 1, 1), (279, 4, 500_000, 200), body=bytes(2_000_000)),
        "pieces",
    ),
    "BigTIFF of 500,000 strips": (
        tiff((273, 4, 500_000, 400), (279, 4, 500_000, 400), body=bytes(2_000_000), big=True),
        "pieces",
    ),
    "TIFF with a tile of 1.6 gigapixels": (
        tiff((259, 4, 1, 8), (322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 300)),
        "1,600,000,000 pixels",
    ),
    "TIFF with narrow pixels in wide tiles": (
        tiff((256, 4, 1, 1), (257, 4, 1, 50_000), (322, 4, 1, 60_000), (323, 4, 1, 1), (324, 4, 1, 8), (325, 4, 1, 9)),
        "pixels",
    ),
    "TIFF that shows one strip 50,000 times": (
        tiff((256, 4, 1, 3000), (257, 4, 1, 3000), (273, 4, 50_000, 200), (278, 4, 1, 2999), (279, 4, 1, 9),
             body=struct.pack("<I", 8) * 50_100),
        "pixels",
    ),
    "TIFF with one strip of a hundred": (
        tiff((257, 4, 1, 800), (273, 4, 1, 200), (278, 4, 1, 8), (279, 4, 1, 64), body=bytes(300)),
        "strips or tiles of it are missing",
    ),
    "TIFF with a tile of no size": (tiff((322, 4, 1, 0), (323, 4, 1, 8), (324, 4, 1, 8), (325, 4, 1, 9)), "no size"),
}  # fmt: skip


# The test run turns warnings into errors, also those about metadata that the module switches off.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_a_file_made_to_cost_time_or_memory_is_refused(name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(ImageError, match=message):
        images.to_rgb(data)


@pytest.mark.slow
def test_images_as_cameras_write_them_pass() -> None:
    pixels = Image.effect_noise((1200, 900), 60)
    for options in ({}, {"progressive": True}, {"comment": b"Rock Imager"}, {"quality": 100, "subsampling": 0}):
        assert images.to_rgb(encoded(pixels.convert("RGB"), "JPEG", **options)).shape == (900, 1200, 3)
    strips = encoded(pixels, "TIFF", tiffinfo={278: 1})
    assert np.array_equal(images.to_rgb(strips)[:, :, 0], np.asarray(pixels))


@pytest.mark.slow
def test_large_images_are_decoded_one_at_a_time() -> None:
    large = encoded(Image.new("L", (5000, 2500)), "PNG")
    assert images.inspect(large).width * images.inspect(large).height > images.LARGE_PIXELS
    with ThreadPoolExecutor(1) as pool:
        with images.room_for(images.LARGE_PIXELS + 1):
            waiting = pool.submit(images.to_rgb, large)
            assert images.to_rgb(encoded(SMALL, "PNG")).shape == (8, 8, 3)
            assert not waiting.done()
        assert waiting.result().shape == (2500, 5000, 3)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A source root with an image, and one beside it that is nobody's business."""
    root = tmp_path / "share"
    (root / "plate").mkdir(parents=True)
    (root / "plate" / "a.png").write_bytes(b"inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").write_bytes(b"outside")
    return root


def test_links_below_the_root_are_followed(share: Path) -> None:
    (share / "file.png").symlink_to("plate/a.png")
    (share / "folder").symlink_to(share / "plate")
    for name in ("plate/a.png", "file.png", "folder/a.png", "plate/../plate/a.png"):
        assert images.read(share / name, share) == b"inside"


@pytest.mark.parametrize("by_link", [False, True])
def test_the_root_itself_may_be_reached_by_a_link(share: Path, tmp_path: Path, by_link: bool) -> None:
    (tmp_path / "link").symlink_to(share)
    root = tmp_path / "link" if by_link else share
    assert images.read(root / "plate" / "a.png", root) == b"inside"


@pytest.mark.parametrize("place", ["file.png", "folder/a.png", "../outside/a.png", "two.png", "beside.png"])
def test_nothing_outside_the_root_is_read(share: Path, tmp_path: Path, place: str) -> None:
    (share / "file.png").symlink_to(tmp_path / "outside" / "a.png")
    (share / "folder").symlink_to("../outside")
    (share / "two.png").symlink_to("folder/a.png")
    # Its name begins as the root's does.
    (tmp_path / "share2").mkdir()
    (tmp_path / "share2" / "a.png").write_bytes(b"outside")
    (share / "beside.png").symlink_to("../share2/a.png")
    with pytest.raises(EscapesRootError, match="leads out of its source"):
        images.read(share / place, share)
    with pytest.raises(EscapesRootError, match="leads out of its source"):
        images.read(tmp_path / "outside" / "a.png", share)


def test_a_folder_swapped_for_a_link_after_it_was_recorded_is_not_followed(share: Path, tmp_path: Path) -> None:
    assert images.read(share / "plate" / "a.png", share) == b"inside"
    (share / "plate").rename(share / "former")
    (share / "plate").symlink_to(tmp_path / "outside")
    with pytest.raises(EscapesRootError, match="leads out of its source"):
        images.read(share / "plate" / "a.png", share)


def test_what_is_not_a_regular_file_is_not_opened(share: Path) -> None:
    os.mkfifo(share / "pipe.png")
    (share / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "plate"):
        with pytest.raises(ImageError, match="not a regular file"):
            images.read(share / name, share)
    with pytest.raises(ImageError, match="not a regular file"):
        images.read(share / "zero.png")
    with pytest.raises(FileNotFoundError):
        images.read(share / "none.png", share)
