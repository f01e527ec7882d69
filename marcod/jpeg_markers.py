"""Coded bytes of a JPEG: damage that they show by themselves, which a decoder passes over without a word.

Where a share lost a part of a file zeros stand in it, and a decoder that finds the next restart marker or scan goes on.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

SCAN: Final = b"\xff\xda"
"""Marker of a scan."""

END: Final = b"\xff\xd9"
"""Marker of the end."""

ZEROS: Final = bytes(64)
"""A part of a file that a share lost."""

_RESTART_INTERVAL: Final = b"\xff\xdd"
_HUFFMAN: Final = 0xC4
_FIRST_RESTART: Final = 0xD0

_LOWEST, _HIGHER = 0, 1
"""Kinds of Huffman tables: of the lowest frequency, which is a block's mean, and of all others."""

_NEXT_SEGMENT: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MARKERS: Final = re.compile(rb"\xff[^\x00\xff]")


class Coded(NamedTuple):
    """Coded data of a JPEG: from ``start`` up to its end marker, or to its last byte where it has none.

    ``markers`` are the second bytes of those between.
    """

    start: int
    end: int
    markers: bytes


def find_coded(data: bytes, start: int) -> Coded:
    """Find the end of the coded data that begin at ``start``, and the markers in them."""
    found = bytearray()
    for match in _MARKERS.finditer(data, start):
        if match[0] == END:
            return Coded(start, match.start(), bytes(found))
        found.append(match[0][-1])
    return Coded(start, len(data), bytes(found))


def fault(data: bytes, coded: Coded, *, one_scan: bool) -> str | None:
    """Name the damage that shows in a JPEG's bytes, or None.

    With ``one_scan`` the first scan, where the coded data begin, has all pixels.
    """
    if coded.end == len(data) and not one_scan:
        # Nothing tells how many scans there should be.
        return "data is missing"
    if data.find(ZEROS, coded.start, coded.end) >= 0 and not _zeros_are_flat(
        data[: coded.start], data[coded.start : coded.end]
    ):
        return "it has a block of zeros"
    if not one_scan:
        return None
    restarts = data.find(_RESTART_INTERVAL, 0, coded.start) >= 0
    order = bytes(_FIRST_RESTART + number % 8 for number in range(len(coded.markers))) if restarts else b""
    return None if coded.markers == order else "markers are missing, or stand where none can"


def components_of_first_scan(data: bytes) -> int:
    """Return the number of a JPEG's components in its first scan, 0 where there is none.

    A thumbnail in its header has scans of its own, which count for nothing.
    """
    return next((content[0] for marker, content in _segments(data) if marker == SCAN[1] and content), 0)


def _zeros_are_flat(header: bytes, coded: bytes) -> bool:
    """Return True where blocks of zeros stand in scans alone whose tables code a uniform area so.

    ``header`` ends with that of the first scan, and ``coded`` is all that follows.
    """
    flat: dict[int, bool] = {}
    while True:
        scan = b""
        for marker, content in _segments(header):
            if marker == _HUFFMAN:
                flat |= _codes_flat_as_zeros(content)
            elif marker == SCAN[1]:
                scan = content
        following = _NEXT_SEGMENT.search(coded)
        end = len(coded) if following is None else following.start()
        if ZEROS in coded[:end] and not _may_be_zeros(scan, flat):
            return False
        at = coded.find(SCAN, end)
        if at < 0:
            return True
        start = at + 2 + int.from_bytes(coded[at + 2 : at + 4], "big")
        # The next scan's tables and its own segment, as if they stood in a header behind its first two bytes.
        header, coded = bytes(2) + coded[end:start], coded[start:]


def _may_be_zeros(scan: bytes, flat: Mapping[int, bool]) -> bool:
    """Return True for a scan, by the content of its header, in which a uniform area is coded as zeros.

    Scans of the lowest frequency are: those that refine it have one bare bit for each block. Later scans of the others
    alone say how many blocks are uniform.
    """
    if len(scan) < 4:
        return False
    lowest, highest, order = scan[-3:]
    if lowest != 0:
        return False
    kinds = (_LOWEST,) if highest == 0 else (_LOWEST, _HIGHER)
    return order >> 4 != 0 or all(is_flat for table, is_flat in flat.items() if table >> 4 in kinds)


def _segments(header: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment up to the end of a JPEG's header, behind its first two bytes."""
    at = 2
    while at + 4 <= len(header):
        length = int.from_bytes(header[at + 2 : at + 4], "big")
        yield header[at + 1], header[at + 4 : at + 2 + length]
        at += 2 + length


def _codes_flat_as_zeros(tables: bytes) -> dict[int, bool]:
    """Tell of Huffman tables, by kind and number, if their first code, of zeros, means that nothing changes."""
    at, found = 0, {}
    while at + 17 < len(tables):
        found[tables[at]] = tables[at + 17] == 0
        at += 17 + sum(tables[at + 1 : at + 17])
    return found
