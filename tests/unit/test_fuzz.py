"""Hostile images and paths, some thousands; `python -m benchmarks fuzz` tries a hundred thousand of each."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from marcod import images, synthetic
from marcod.domain import PLATE_FORMATS, DropImage, Modality, path_text, text_path
from marcod.errors import ImageError
from marcod.layouts import NAMES, LayoutOptions, make
from marcod.watch.tree import Root

PIXELS = np.asarray(synthetic.render(synthetic.random_scene(1), (48, 36)))
COLOUR = Image.fromarray(PIXELS)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


IMAGES = [
    encoded(COLOUR, "JPEG"), encoded(COLOUR.convert("L"), "JPEG", progressive=True),
    encoded(COLOUR, "PNG"), encoded(COLOUR.quantize(16), "PNG"), encoded(COLOUR.convert("RGBA"), "PNG"),
    encoded(COLOUR, "TIFF"), encoded(COLOUR, "TIFF", compression="tiff_lzw"), encoded(COLOUR.convert("F"), "TIFF"),
    encoded(COLOUR.convert("1"), "TIFF", compression="group4"), encoded(COLOUR, "BMP"),
    encoded(COLOUR.quantize(16), "GIF"), encoded(COLOUR, "MPO", save_all=True, append_images=[COLOUR]),
]  # fmt: skip

NUMBERS = st.sampled_from([0, 1, 2, 255, 256, 9999, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1])
PLACES = st.floats(0, 1, exclude_max=True)

Edit = Callable[[bytes], bytes]


def flip(place: float, value: int) -> Edit:
    def edit(data: bytes) -> bytes:
        at = int(place * len(data))
        return data[:at] + bytes([value]) + data[at + 1 :]

    return edit


def write_number(place: float, number: int, width: int, order: str) -> Edit:
    def edit(data: bytes) -> bytes:
        at = int(place * min(len(data), 200))
        return data[:at] + (number % 256**width).to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]

    return edit


LARGEST = 1 << 20
"""Bytes up to which an edit repeats a part of an image."""


def cut(start: float, end: float, times: int) -> Edit:
    """What lies between is gone, or there several times."""

    def edit(data: bytes) -> bytes:
        low, high = sorted((int(start * len(data)), int(end * len(data))))
        # Four edits of forty times each would make gigabytes of a small image.
        return data[:low] + data[low:high] * (times if len(data) <= LARGEST else 1) + data[high:]

    return edit


def splice(other: int, head: float, tail: float) -> Edit:
    return lambda data: data[: int(head * len(data))] + IMAGES[other][int(tail * len(IMAGES[other])) :]


def edit_tag(index: int, field: int, number: int) -> Edit:
    """Another tag, type, count or value in the first directory of a TIFF."""

    def edit(data: bytes) -> bytes:
        try:
            (start,) = struct.unpack_from("<I", data, 4)
            (count,) = struct.unpack_from("<H", data, start)
            place = start + 2 + 12 * (index % max(count, 1))
            entry = list(struct.unpack_from("<HHII", data, place))
        except struct.error:
            return data
        entry[field] = number % (65_536 if field < 2 else 2**32)
        return data[:place] + struct.pack("<HHII", *entry) + data[place + 12 :]

    return edit if 0 <= field < 4 else lambda data: data


def edit_chunk(index: int, kind: bytes, body: bytes) -> Edit:
    """One more chunk in a PNG, its checksum right."""

    def edit(data: bytes) -> bytes:
        place = 8
        for _ in range(index):
            length = int.from_bytes(data[place : place + 4])
            place = min(len(data), place + 12 + length)
        chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        return data[:place] + chunk + data[place:]

    return edit


KINDS = st.sampled_from([b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"tEXt", b"zTXt", b"iCCP", b"acTL", b"fdAT", b"IEND"])
BODIES = st.binary(max_size=30) | st.sampled_from([b"a\0\0" + zlib.compress(bytes(5_000_000), 1), bytes(70_000)])
EDITS = st.one_of(
    st.builds(flip, PLACES, st.integers(0, 255)),
    st.builds(write_number, PLACES, NUMBERS, st.sampled_from([1, 2, 4]), st.sampled_from(["big", "little"])),
    st.builds(cut, PLACES, PLACES, st.sampled_from([0, 2, 40])),
    st.builds(splice, st.integers(0, len(IMAGES) - 1), PLACES, PLACES),
    st.builds(edit_tag, st.integers(0, 20), st.integers(0, 3), NUMBERS | st.integers(250, 340)),
    st.builds(edit_chunk, st.integers(0, 3), KINDS, BODIES),
)


# The test run turns warnings into errors, also those about metadata that the module switches off.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(IMAGES) - 1), st.lists(EDITS, min_size=1, max_size=4))
def test_whatever_a_image_holds_it_is_read_or_refused(index: int, edits: list[Edit]) -> None:
    data = IMAGES[index]
    for edit in edits:
        data = edit(data)
    with suppress(ImageError):
        header = images.inspect(data)
        rgb = images.to_rgb(data)
        assert rgb.shape == (header.height, header.width, 3)
        assert rgb.dtype == np.uint8


OPTIONS = LayoutOptions(
    plate_format=PLATE_FORMATS[384],
    profiles={1: Modality.VISIBLE},
    pattern=r"(?P<plate>[^/]+)/(?P<inspection>[^/]+)/(?P<well>[^/]+)_(?P<drop>.)\.jpg",
)
LAYOUTS = [make(name, OPTIONS) for name in NAMES]
EXAMPLES = [
    b"WellImages/1/plateID_4001/batchID_12/wellNum_52/profileID_1/d1_r7_ef.jpg",
    b"SubwellImages/4001_2026-03-01_RI1000-0001-3drop/4001_04C_1.jpg",
    b"4001/Scored/4001_C4_1_0_12.jpg",
    b"0003/Run1/A1_1.jpg",
    b"X000012345/X0000123450001200603231005.jpg",
    b"AB12/1/RMM3_01_222_ROBO_Test1_Clon1_AB_00000000AB12_001_260301_04_03_01_HF_99_030_001_RDI.jpg",
]
PARTS = st.sampled_from([
    b"..", b".", b"", b"link", b"up", b"../bait.png", b"bait.csv", b"\x1b[2J", b"a\nb", b"\xff\xfe",
    b"\xc0\xae\xc0\xae", "\u202e".encode(), "\uff0e\uff0e".encode(), "\u0661".encode(), b"\\..\\", b"\\x2e", b"\0",
    b"9" * 400, b"x" * 5000, b"=1+1", b"<b>", b"C:", b"/",
]) | st.binary(max_size=12)  # fmt: skip


@st.composite
def hostile_paths(draw: st.DrawFn) -> str:
    parts = draw(st.sampled_from(EXAMPLES)).split(b"/") if draw(st.booleans()) else []
    for part in draw(st.lists(PARTS, min_size=1, max_size=4)):
        parts.insert(draw(st.integers(0, len(parts))), part)
    return os.fsdecode(draw(st.sampled_from([b"/", b"/", b"\\", b""])).join(parts))


@pytest.fixture(scope="module")
def baited(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root beside files that must not be read, and links in it that lead to them."""
    place = tmp_path_factory.mktemp("fuzz")
    root = place / "root"
    root.mkdir()
    for name in ("bait.png", "bait.csv"):
        (place / name).write_bytes(b"outside")
    (root / "link").symlink_to(place)
    (root / "up").symlink_to("..")
    (root / "bait.csv").symlink_to(place / "bait.csv")
    return Root(root)


@contextmanager
def allowed() -> Iterator[None]:
    """A NUL is refused by the operating system, what is too long by the file system."""
    with suppress(ValueError, OSError):
        yield


@settings(max_examples=700, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=hostile_paths())
def test_no_path_leaves_the_root_or_breaks_a_layout(baited: Root, path: str) -> None:
    assert text_path(path_text(path)) == path
    companions = baited.companions()
    with allowed():
        assert baited.stat(path) is None
    assert companions(path) is None
    with suppress(ImageError), allowed():
        assert images.read(Path(baited.path) / path, Path(baited.path)) != b"outside"
    for layout in LAYOUTS:
        verdict = layout.parse(path, companions)
        if isinstance(verdict, DropImage):
            assert ".." not in path.replace("\\", "/").split("/")
            assert f"{verdict.plate_key}{verdict.inspection_key}{verdict.barcode or ''}".isprintable()
