"""Damaged images and hostile names, each made from a seed and a number alone, so that any can be made again."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from itertools import product
from typing import Any, Final

import numpy as np
from PIL import Image

from marcod import synthetic
from marcod.domain import DropImage, Modality
from marcod.errors import LayoutError
from marcod.layouts import NAMES
from marcod.settings import USED_BY, SourceSettings
from marcod.watch.ingest import layout_of

SIZE: Final = (48, 36)
BAIT: Final = "bait.png"
"""A file beside the root; whoever reads it has left the root."""

_NUMBERS: Final = (0, 1, 2, 7, 8, 255, 256, 4096, 9999, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_TIFF_TYPES: Final = (0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 16, 99)
_PNG_KINDS: Final = (b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"acTL", b"fdAT", b"eXIf")

Change = Callable[[bytes, random.Random], bytes]

_GIVEN: Final[dict[str, Any]] = {
    "wells": 384,
    "profiles": {1: Modality.VISIBLE, 2: Modality.UV},
    "pattern": r"(?P<plate>[^/]+)/(?P<inspection>[^/]+)/(?P<well>[^/]+)_(?P<drop>.)\.jpg",
}
SOURCES: Final[dict[str, dict[str, Any]]] = {
    name: {"layout": name, **{key: value for key, value in _GIVEN.items() if name in USED_BY[key]}} for name in NAMES
}
"""Configuration of one source in every layout; the root is missing."""

LAYOUTS: Final = {
    name: layout_of(name, SourceSettings.model_validate({"root": "/", **given})) for name, given in SOURCES.items()
}


@cache
def images() -> tuple[tuple[str, bytes], ...]:
    """Small rendered drops in every format and mode that is read, with the format's name."""
    pixels = np.asarray(synthetic.render(synthetic.random_scene(1), SIZE))
    colour = Image.fromarray(pixels)
    grey, deep = colour.convert("L"), Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    alpha, palette = colour.convert("RGBA"), colour.quantize(16)
    found: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((image, "JPEG", {}) for image in (colour, grey, colour.convert("CMYK"))),
        (colour, "JPEG", {"progressive": True}), (colour, "JPEG", {"quality": 95, "subsampling": 0}),
        *((image, "PNG", {}) for image in (colour, grey, deep, alpha, palette, grey.convert("1"), grey.convert("LA"))),
        *((image, "TIFF", {}) for image in (colour, grey, deep, alpha, palette, grey.convert("1"))),
        *((image, "TIFF", {"compression": name}) for image in (colour, grey)
          for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        (grey.convert("1"), "TIFF", {"compression": "group4"}), (grey.convert("F"), "TIFF", {}),
        (grey.convert("I"), "TIFF", {"tiffinfo": {278: 4}}),
        *((image, "BMP", {}) for image in (colour, grey, palette, grey.convert("1"))),
        (palette, "GIF", {}), (palette, "GIF", {"interlace": 0, "save_all": True, "append_images": [palette]}),
        (colour, "MPO", {"save_all": True, "append_images": [colour]}),
    ]  # fmt: skip
    return tuple((name, _encoded(image, name, options)) for image, name, options in found)


def _encoded(image: Image.Image, name: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def image(seed: int, number: int) -> tuple[str, bytes]:
    """One damaged image and the format that it was."""
    chance = random.Random(f"{seed} {number}")
    name, data = chance.choice(images())
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice((*_ANYWHERE, *_WITHIN.get(name, ()) * 2))(data, chance)
    return name, data


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 32)) if data else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, chance: random.Random) -> bytes:
    """Numbers of 1 to 8 bytes that parsers stumble over, half of them near the start."""
    reach = min(len(data), chance.choice((64, len(data))))
    place = chance.randrange(max(1, reach))
    width = chance.choice((1, 2, 4, 8))
    number = (chance.choice(_NUMBERS) % (1 << 8 * width)).to_bytes(width, chance.choice(("little", "big")))
    return data[:place] + number + data[place + width :]


def _truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _cut_out(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * chance.choice((1, 2, 50)) + data[end:]


def _insert(data: bytes, chance: random.Random) -> bytes:
    place, length = chance.randrange(len(data) + 1), chance.choice((1, 4, 100, 70_000))
    filling = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))
    return data[:place] + filling + data[place:]


def _splice(data: bytes, chance: random.Random) -> bytes:
    _, other = chance.choice(images())
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other)) :]


def _png(data: bytes, chance: random.Random) -> bytes:
    """A chunk's kind, length or body changed with the checksum put right, or chunks lost, doubled or moved."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return data
    index = chance.randrange(len(chunks))
    kind, body = chunks[index]
    match chance.randrange(6):
        case 0:
            chunks[index] = chance.choice(_PNG_KINDS), body
        case 1:
            chunks[index] = kind, chance.choice(_ANYWHERE)(body, chance)
        case 2:
            chunks.insert(chance.randrange(len(chunks) + 1), chunks.pop(index))
        case 3:
            chunks[index:index] = [chunks[index]] * chance.choice((1, 3, 1000))
        case 4:
            sides = struct.pack(">II", *(chance.choice(_NUMBERS) for _ in range(2)))
            chunks[0] = chunks[0][0], sides + chunks[0][1][8:]
        case _:
            packed = zlib.compress(bytes(chance.choice((10, 100_000, 5_000_000))), 1)
            chunks.insert(index, (chance.choice(_PNG_KINDS), b"name\0\0" + packed))
    return data[:8] + b"".join(_chunk(*each) for each in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _jpeg(data: bytes, chance: random.Random) -> bytes:
    """A segment's marker, length or content changed, or the segment lost or doubled; or the size of the frame."""
    segments, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        segments.append(data[place:end])
        place = end
    rest = data[place:]
    if not segments:
        return data
    index = chance.randrange(len(segments))
    segment = segments[index]
    match chance.randrange(5):
        case 0:
            segments[index] = b"\xff" + bytes([chance.randrange(256)]) + segment[2:]
        case 1:
            segments[index] = segment[:2] + chance.choice(_NUMBERS).to_bytes(8)[-2:] + segment[4:]
        case 2:
            segments[index] = segment[:4] + chance.choice((_flip, _overwrite))(segment[4:], chance)
        case 3:
            segments[index : index + 1] = [segment] * chance.choice((0, 2, 500))
        case _:
            sides = b"".join(chance.choice(_NUMBERS).to_bytes(8)[-2:] for _ in range(2))
            segments = [s[:5] + sides + s[9:] if s[1] in (0xC0, 0xC2) else s for s in segments]
    return data[:2] + b"".join(segments) + rest


def _tiff(data: bytes, chance: random.Random) -> bytes:
    """A tag's number, type, count or value changed, its entry overwritten by another, or the directory's length."""
    order = ">" if data[:2] == b"MM" else "<"
    if len(data) < 8:
        return data
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return data
    (count,) = struct.unpack_from(f"{order}H", data, start)
    changed, place = bytearray(data), start + 2 + 12 * chance.randrange(max(1, count))
    if place + 12 > len(data):
        return data
    tag, kind, length, value = struct.unpack_from(f"{order}HHII", data, place)
    match chance.randrange(6):
        case 0:
            tag = chance.choice((256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 339))
        case 1:
            kind = chance.choice(_TIFF_TYPES)
        case 2:
            length = chance.choice(_NUMBERS)
        case 3:
            value = chance.choice(_NUMBERS)
        case 4:
            other = start + 2 + 12 * chance.randrange(max(1, count))
            changed[place : place + 12] = (changed[other : other + 12] + bytes(12))[:12]
            return bytes(changed)
        case _:
            struct.pack_into(f"{order}H", changed, start, chance.choice(_NUMBERS) % 65_536)
            return bytes(changed)
    struct.pack_into(f"{order}HHII", changed, place, tag, kind, length, value)
    return bytes(changed)


def _sides(places: tuple[int, ...], width: int) -> Change:
    """Other sizes in a header of fixed form."""

    def change(data: bytes, chance: random.Random) -> bytes:
        changed = bytearray(data)
        for place in places:
            if chance.random() < 0.7:
                changed[place : place + width] = (chance.choice(_NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
        return bytes(changed)

    return change


_ANYWHERE: Final[tuple[Change, ...]] = (_flip, _overwrite, _truncate, _cut_out, _repeat, _insert, _splice)
_WITHIN: Final[dict[str, tuple[Change, ...]]] = {
    "PNG": (_png, _png), "JPEG": (_jpeg, _jpeg), "MPO": (_jpeg, _jpeg), "TIFF": (_tiff, _tiff),
    "BMP": (_sides((18, 22), 4), _sides((10, 14, 28, 30, 46), 4)), "GIF": (_sides((6, 8), 2), _overwrite),
}  # fmt: skip

_TAKEN: Final = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
_DAY: Final = datetime(2026, 3, 1, tzinfo=UTC)
_INSPECTIONS: Final = ("1", "12", "2026-03-01", "20260301", "2026-03-01T12:30:00", "202603011230", "20260301123000")

_PARTS: Final = (
    b"..", b".", b"", b"link", b"up", b"...", b"~", b"-rf", b"con", b"C:", b"%2e%2e", b"$(id)", b"`id`", b"'", b'"',
    b"<script>alert(1)</script>", b"=cmd|'/c calc'!A1", b"@SUM(1)", b"\x1b[2J\x1b]0;x\x07", b"a\nb", b"\r", b"\t",
    b"\x7f", b"\xff\xfe", b"\xc0\xae\xc0\xae", b"\xed\xa0\x80", "\u202egpj.exe".encode(), "\u2028".encode(),
    "A\u0301".encode(), "\u0661\u0662".encode(), "\uff0e\uff0e".encode(), b"\\..\\..\\", b"\\x2e\\x2e", b"\0",
    b"9" * 300, b"A" * 255, b"x" * 5000, b"../" * 50, BAIT.encode(), b"bait.csv",
)  # fmt: skip


@cache
def names() -> tuple[bytes, ...]:
    """Names as the imagers write them, of every layout: whatever its grammar can express of a few plates."""
    found = []
    for (name, layout), barcode, profile, region, key, taken in product(
        LAYOUTS.items(), (None, "4001", "AB12"), (None, "1"), (None, 7), _INSPECTIONS, (None, _TAKEN, _DAY)
    ):
        image = DropImage(
            name, barcode or "4001", key, 3, 4, 1, Modality.VISIBLE, barcode=barcode, profile=profile, region=region,
            captured_at=taken,
        )  # fmt: skip
        with suppress(LayoutError, ValueError):
            found.append(layout.format(image).encode())
    return tuple(sorted({*found, b"0003/Run1/A1_1.jpg", b"X000012345/X0000123450001200603231005.jpg"}))


def path(seed: int, number: int) -> bytes:
    """One hostile relative path as bytes, as a listing might give it or a table name it."""
    chance = random.Random(f"{seed} path {number}")
    name = chance.choice(names())
    for _ in range(chance.choice((1, 1, 2, 4))):
        name = chance.choice(_RENAMES)(name, chance)
    return name


def _other_part(name: bytes, chance: random.Random) -> bytes:
    parts = name.split(b"/")
    parts[chance.randrange(len(parts))] = chance.choice(_PARTS)
    return b"/".join(parts)


def _more_parts(name: bytes, chance: random.Random) -> bytes:
    parts = name.split(b"/")
    place = chance.randrange(len(parts) + 1)
    parts[place:place] = [chance.choice(_PARTS)] * chance.choice((1, 1, 2, 30))
    return b"/".join(parts)


def _within_part(name: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(name) + 1)
    return name[:place] + chance.choice((*_PARTS, chance.randbytes(chance.randrange(1, 9)))) + name[place:]


def _to_bait(name: bytes, chance: random.Random) -> bytes:
    """Several ways out of the root to a file that is there."""
    way = chance.choice(
        (b"../", b"link/", b"up/", b"plate/../../", b"./link/./", b"link/../", b"//", b"/", b"plate/link/")
    )
    return way * chance.choice((1, 1, 2, 9)) + chance.choice((BAIT.encode(), b"bait.csv", name))


def _any_bytes(name: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 20, 255, 4500)))


_RENAMES: Final[tuple[Change, ...]] = (
    _flip, _overwrite, _truncate, _cut_out, _repeat, _other_part, _other_part, _more_parts, _within_part,
    _to_bait, _any_bytes,
)  # fmt: skip
