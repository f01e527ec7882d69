"""The terms of the field as frozen types, and the rules that need no input or output.

Everything here is a value: layouts produce it, the store keeps it, the views show it.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final


class DropClass(StrEnum):
    """The four outcomes of the MARCO paper, in the index order of the published graph."""

    CLEAR = "Clear"
    CRYSTALS = "Crystals"
    OTHER = "Other"
    PRECIPITATE = "Precipitate"


CLASSES: Final = tuple(DropClass)
COLUMN_OF_CLASS: Final = {each: f"p_{each.lower()}" for each in CLASSES}
"""Name under which the probability of each class is kept and printed."""
CRYSTALS: Final = CLASSES.index(DropClass.CRYSTALS)
"""Index of the class Crystals, such as its column among probabilities."""


class TrainedOn(StrEnum):
    """Images that a model's weights learned from. A child keeps what its parent learned from."""

    PUBLISHED = "published"
    RENDERED = "rendered"
    LAB = "lab"


class Precision(StrEnum):
    """Numbers that a network calculates with. Another precision gives other scores, so it is another model version."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


def hit_rule(threshold: float) -> str:
    """Return the rule for a model's hits as every list of hits prints it: ``crystals >= 0.25``."""
    return f"crystals >= {threshold:.4g}"


class Modality(StrEnum):
    """The light of an image. A model is made for one; images in the others are recorded and not scored."""

    VISIBLE = "visible"
    UV = "uv"
    SHG = "shg"
    UNKNOWN = "unknown"


class ImageKind(StrEnum):
    """Kind of an image. Only a composite shows the whole drop and is scored; others have an :class:`IgnoreReason`."""

    COMPOSITE = "composite"
    THUMBNAIL = "thumbnail"
    SLICE = "slice"
    OVERVIEW = "overview"
    DROP_LOCATION = "drop_location"


class IgnoreReason(StrEnum):
    """Why a file in an imager's folder is not scored."""

    THUMBNAIL = "thumbnail"
    SLICE = "slice"
    OVERVIEW = "overview"
    DROP_LOCATION = "drop_location"
    UNKNOWN_KIND = "unknown_kind"
    RESERVOIR = "reservoir"
    SIDECAR = "sidecar"
    ARCHIVE = "archive"
    TEMPORARY = "temporary"
    WORKING_COPY = "working_copy"
    NO_REPORT = "no_report"
    OUT_OF_RANGE = "out_of_range"
    UNREADABLE_NAME = "unreadable_name"
    NOT_THIS_LAYOUT = "not_this_layout"


NOT_UNDERSTOOD: Final = frozenset(
    {
        IgnoreReason.NOT_THIS_LAYOUT,
        IgnoreReason.UNREADABLE_NAME,
        IgnoreReason.OUT_OF_RANGE,
        IgnoreReason.NO_REPORT,
        IgnoreReason.UNKNOWN_KIND,
    }
)
"""Reasons that need a person when the file is an image; the others are what imagers' folders are full of."""


class WarningKind(StrEnum):
    """Kinds of warnings about an image: what its layout finds in its path, and :data:`RECORDED_WARNINGS`."""

    BARCODE_DIFFERS = "barcode_differs"
    INSPECTION_DIFFERS = "inspection_differs"
    UNMAPPED_PROFILE = "unmapped_profile"
    LIGHT_LOST = "light_lost"
    UNKNOWN_LIGHT = "unknown_light"
    DROP_NUMBER_LOST = "drop_number_lost"
    REPORT_MISSING = "report_missing"
    DATE_UNREADABLE = "date_unreadable"
    FORMAT_INFERRED = "format_inferred"
    SIDECAR_DIFFERS = "sidecar_differs"
    SIDECAR_UNREADABLE = "sidecar_unreadable"
    BARCODE_REUSED = "barcode_reused"
    BLANK = "blank"
    NO_END_MARKER = "no_end_marker"


PIXEL_WARNINGS: Final = frozenset({WarningKind.BLANK, WarningKind.NO_END_MARKER})
"""Warnings that only reading an image's bytes can give."""


RECORDED_WARNINGS: Final = PIXEL_WARNINGS | {WarningKind.BARCODE_REUSED}
"""Warnings that no path tells, so that they are kept with the image however often its path is read."""


MAY_END: Final = frozenset({WarningKind.REPORT_MISSING})
"""Warnings that a file still to arrive may remove."""


@dataclass(frozen=True, slots=True)
class LayoutWarning:
    """A kind of warning, by which files are counted, and a sentence about one image."""

    kind: WarningKind
    text: str

    def __str__(self) -> str:
        return self.text


class Split(StrEnum):
    """The side of a data set on which a plate stands; see :func:`split_of`."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class PlateFormat:
    """The grid of a plate."""

    rows: int
    columns: int

    @property
    def wells(self) -> int:
        return self.rows * self.columns

    def position(self, well_number: int) -> tuple[int, int]:
        """Row and column, from 1, of a row-major well number from 1. Raises ValueError outside the plate."""
        if not 1 <= well_number <= self.wells:
            raise ValueError(f"well {well_number} is outside a {self.rows}x{self.columns} plate")
        row, column = divmod(well_number - 1, self.columns)
        return row + 1, column + 1

    def number(self, row: int, column: int) -> int:
        """Return the inverse of :meth:`position`."""
        return (row - 1) * self.columns + column

    def holds(self, row: int, column: int) -> bool:
        """Return True where a well is on the plate."""
        return 1 <= row <= self.rows and 1 <= column <= self.columns


PLATE_FORMATS: Final = {
    24: PlateFormat(4, 6),
    48: PlateFormat(6, 8),
    96: PlateFormat(8, 12),
    384: PlateFormat(16, 24),
    1536: PlateFormat(32, 48),
}

MOST_WELLS: Final = 48
"""Wells in a row or a column of a plate."""

_GRID: Final = re.compile(r"([0-9]{1,2})\s*[xX×*]\s*([0-9]{1,2})")


def grid_of(text: str) -> PlateFormat:
    """Parse a grid written as rows x columns, such as ``8x6``. Raises ValueError."""
    match = _GRID.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not rows x columns; write it like 8x6")
    grid = PlateFormat(int(match[1]), int(match[2]))
    if not (1 <= grid.rows <= MOST_WELLS and 1 <= grid.columns <= MOST_WELLS):
        raise ValueError(f"a plate has 1 to {MOST_WELLS} rows and columns, not {text}")
    return grid


@dataclass(frozen=True, slots=True)
class PlateSetup:
    """Grid and reservoirs of one plate, each None while unknown. An ``inferred`` grid is the smallest that fits."""

    format: PlateFormat | None = None
    reservoirs: frozenset[int] | None = None
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class DropImage:
    """The facts that a path gives about its image.

    ``plate_key`` and ``inspection_key`` identify within one source; ``barcode`` is given only where the path
    carries it. ``row``, ``column`` and ``drop`` count from 1 (row 1 is A). ``captured_at`` is aware; imagers
    write no time zone, so it is the imager's clock read in the source's configured zone.
    ``warnings`` name what the path contradicts itself in. ``inferred`` is the plate's grid where it follows
    from the well's number alone.
    """

    layout: str
    plate_key: str
    inspection_key: str
    row: int
    column: int
    drop: int
    modality: Modality
    kind: ImageKind = ImageKind.COMPOSITE
    barcode: str | None = None
    inspection_ordinal: int | None = None
    captured_at: datetime | None = None
    profile: str | None = None
    region: int | None = None
    warnings: tuple[LayoutWarning, ...] = field(default=())
    inferred: PlateFormat | None = None

    @property
    def well(self) -> str:
        """The well as people write it, such as ``A01`` or ``AF48``."""
        return well_name(self.row, self.column)


@dataclass(frozen=True, slots=True)
class NotADrop:
    """Why a path is not a drop image of a layout; ``detail`` is a sentence for people.

    ``may_change`` is true when a file that is still to come (such as report.csv) can turn it into one.
    """

    layout: str | None
    reason: IgnoreReason
    detail: str
    may_change: bool = False


_WELL = re.compile(r"^([A-Za-z]{1,2})0*(\d{1,2})$")


def row_letters(row: int) -> str:
    """Return A, B, ... Z, AA, ... AF for rows 1, 2, ... 26, 27, ... 32."""
    letters = ""
    while row > 0:
        row, rest = divmod(row - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def row_number(letters: str) -> int:
    """Return the inverse of :func:`row_letters`, in either case."""
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


def well_name(row: int, column: int) -> str:
    """``A01`` style: row letters, column padded to two digits."""
    return f"{row_letters(row)}{column:02d}"


def drop_name(well: str, drop_number: int | None) -> str:
    """Return a drop's name in lists, such as ``A01.2``; the well alone where its only drop is meant."""
    return well if drop_number is None else f"{well}.{drop_number}"


def parse_well(text: str) -> tuple[int, int]:
    """Row and column of ``A1``, ``a01`` or ``AF48``. Raises ValueError for anything else."""
    match = _WELL.match(text.strip())
    if match is None or int(match[2]) == 0:
        raise ValueError(f"{text!r} is not a well; write it like A1 or AF48")
    return row_number(match[1]), int(match[2])


def why_not_scored(image: DropImage) -> IgnoreReason | None:
    """Return the reason a parsed image is never scored; None for a composite."""
    return None if image.kind is ImageKind.COMPOSITE else IgnoreReason(image.kind)


_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def path_text(path: str) -> str:
    """Write a relative path, of any bytes a file system allows, as text that any database takes.

    Undecodable bytes (``surrogateescape``), the backslash, and the bytes of characters that are not seen but steer a
    terminal or turn the order of letters become ``\\xNN``; :func:`text_path` inverts it.
    """
    if path.isascii() and path.isprintable() and "\\" not in path:
        return path
    return _STEERING.sub(_as_bytes, _decodable(path))


def _decodable(path: str) -> str:
    """Escape only undecodable bytes and the backslash of a path."""
    raw = path.encode("utf-8", "surrogateescape").replace(b"\\", rb"\x5c")
    return raw.decode("utf-8", "backslashreplace")


def _as_bytes(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode())


def text_path(text: str) -> str:
    """Return the inverse of :func:`path_text`."""
    raw = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8"))
    return raw.decode("utf-8", "surrogateescape")


def composed(name: str) -> str:
    """Return a plate's name in the Unicode form that is stored (NFC); file systems give several of one name."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Return the form in which plates' names are compared: case-folded, in one Unicode form."""
    return composed(composed(name).casefold())


def names_stored(name: str) -> set[str]:
    """Return the forms of a person's name for a thing in the database: as it is, or escaped by :func:`path_text`."""
    return {name, path_text(name)}


def split_of(source: str, plate_key: str) -> Split:
    """Return the permanent side of a plate: 20 % of the plates test, 15 % validate, the others train.

    It follows from the plate's name alone, so that no growth of the labels moves a plate, and all drops and
    inspections of a plate are on one side.
    """
    # Not path_text: how names are written for people may change, the side of a plate may not.
    digest = hashlib.sha256(f"{_decodable(source)}\x00{_decodable(plate_key)}".encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    if share < 0.20:
        return Split.TEST
    return Split.VALIDATION if share < 0.35 else Split.TRAIN
