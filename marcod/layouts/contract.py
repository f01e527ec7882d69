"""What every imager family builds on: the options of a source, the way to put a path aside, shared readings.

A family is one :class:`Grammar`: it reads a normalised path into a :class:`~marcod.domain.DropImage` or raises
:class:`Aside`, and writes the canonical path of an image. Everything common to all of them (normalising,
files that are never pictures, checking what was written) is in :mod:`marcod.layouts`, so a grammar holds only
what its imager does differently.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import ClassVar, Final

from marcod.domain import (
    PLATE_FORMATS,
    DropImage,
    LayoutWarning,
    Modality,
    PlateFormat,
    Reason,
    WarningKind,
    well_name,
)
from marcod.errors import LayoutError

Companions = Callable[[str], bytes | None]
"""Reads a small file by its path relative to the source root; None when there is none."""

IMAGE: Final = r"\.(?:jpe?g|png|tiff?|gif|bmp)"
"""The extensions a picture may have, as a piece of a regular expression."""


def no_companions(path: str) -> bytes | None:
    """The companions of a path looked at alone: none."""
    return None


class Aside(Exception):  # noqa: N818 - an outcome of reading, not an error of anybody
    """A path is not a drop image, and why. Never leaves :mod:`marcod.layouts`."""

    def __init__(self, reason: Reason, detail: str, *, may_change: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.may_change = may_change


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """What a site must tell because its imager's paths do not.

    ``plate_format`` turns well numbers into rows and columns and bounds every well (HWI plates are always
    1536). ``profiles`` maps a Formulatrix capture profile to what it was lit with. ``reservoir_subwells`` are
    Rigaku subwells without a drop. ``pattern`` and ``date_format`` belong to the regex layout. ``timezone`` is
    the zone of the imager's clock.
    """

    plate_format: PlateFormat = PLATE_FORMATS[96]
    profiles: Mapping[int, Modality] = field(default_factory=dict)
    reservoir_subwells: frozenset[int] = frozenset()
    pattern: str | None = None
    date_format: str | None = None
    timezone: tzinfo = UTC

    def lit_with(self, profile: int, name: str) -> tuple[Modality, tuple[LayoutWarning, ...]]:
        """The modality of a capture profile and a warning where it is only guessed from the extension.

        Rock Maker writes UV profiles as .png and the rest as .jpg (Merck/polo polo/sql.py); nothing else in a
        path tells them apart, so an unmapped .png must not reach a model made for visible light.
        """
        known = self.profiles.get(profile)
        if known is not None:
            return known, ()
        if name[-4:].lower() != ".png":
            return Modality.VISIBLE, ()
        hint = f"profile {profile} is not mapped and its pictures are .png, which suggests UV; add it to profiles"
        return Modality.UV, (LayoutWarning(WarningKind.UNMAPPED_PROFILE, hint),)


class Grammar(ABC):
    """One imager family. Subclasses give ``name``, :meth:`read` and :meth:`write`."""

    name: ClassVar[str]
    below_inspection: ClassVar[int] = 0
    """Folders between the folder that holds an inspection and its images."""

    def __init__(self, options: LayoutOptions) -> None:
        self.options = options

    @abstractmethod
    def read(self, path: str, companions: Companions) -> DropImage:
        """What a normalised path says. Raises Aside when it names no drop image of this family."""

    @abstractmethod
    def write(self, image: DropImage) -> str:
        """A path that reads back as the image; fields the names do not carry are left out."""

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        """Count the folders at the end of an image's path that the imager made, from the plate's folder on.

        A source's root lies above them. Zero when none of them is named like the plate.
        """
        named = [folder.casefold() == image.plate_key.casefold() for folder in reversed(folders[-4:])]
        return named.index(True) + 1 if any(named) else 0

    def sidecars(self, images: Iterable[DropImage]) -> dict[str, bytes]:
        """Small files, by path, that must exist for these images' paths to be read."""
        return {}


def shown(text: str) -> str:
    """Text from a path, safe to print in a sentence: quoted, escaped, at most 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}")


def not_mine(what: str) -> Aside:
    """The path does not look like this family's; ``what`` says what was looked for."""
    return Aside(Reason.NOT_THIS_LAYOUT, f"not a path of this layout; expected {what}")


def unreadable(name: str, what: str) -> Aside:
    """The folder or the outline is this family's, but the name cannot be read."""
    return Aside(Reason.UNREADABLE_NAME, f"cannot read the name {shown(name)}; expected {what}")


def check_well(plate: PlateFormat, row: int, column: int) -> None:
    """Raises Aside when the well is not on the plate."""
    if not (1 <= row <= plate.rows and 1 <= column <= plate.columns):
        well = well_name(row, column) if row > 0 and column > 0 else f"row {row}, column {column}"
        size = f"a plate of {plate.rows} rows and {plate.columns} columns"
        raise Aside(Reason.OUT_OF_RANGE, f"{well} is not on {size}; set the source's number of wells")


def well_at(plate: PlateFormat, number: int) -> tuple[int, int]:
    """Row and column of a row-major well number from 1. Raises Aside when it is not on the plate."""
    try:
        return plate.position(number)
    except ValueError as error:
        raise Aside(Reason.OUT_OF_RANGE, f"{error}; set the source's number of wells") from error


def check_drop(drop: int, most: int = 99) -> None:
    """Raises Aside when a well of this plate has no such drop."""
    if not 1 <= drop <= most:
        raise Aside(Reason.OUT_OF_RANGE, f"drop {drop} is not between 1 and {most}")


def moment(
    zone: tzinfo, year: str, month: str, day: str, hour: str = "0", minute: str = "0", second: str = "0"
) -> datetime:
    """An aware time from digits. Raises Aside for a date that cannot be.

    A two-digit year is of this century: no imager is older.
    """
    full_year = int(year) + 2000 if len(year) == 2 else int(year)
    try:
        if not 1980 <= full_year <= 2100:
            raise ValueError("no imager took pictures in that year")
        return datetime(full_year, int(month), int(day), int(hour), int(minute), int(second), tzinfo=zone)
    except ValueError as error:
        date = f"{year}-{month}-{day} {hour}:{minute}:{second}"
        raise Aside(Reason.OUT_OF_RANGE, f"the time {date} cannot be: {error}") from error


def clock_time(image: DropImage, zone: tzinfo) -> datetime:
    """When the image was taken, on the imager's clock. Raises LayoutError when the image does not say."""
    if image.captured_at is None:
        raise LayoutError("The names of this layout carry a date; give the image a captured_at.")
    return image.captured_at.astimezone(zone)


def modality_named(text: str) -> Modality:
    """What a light or profile called ``text`` is: UV and SHG say so in their names, everything else is visible."""
    word = text.lower()
    if "shg" in word:
        return Modality.SHG
    return Modality.UV if "uv" in word or "tpef" in word else Modality.VISIBLE


def disagreement(what: str, folder: str, name: str, kept: str) -> LayoutWarning:
    """A warning that a folder and a file name contradict each other, and which of the two was believed.

    ``what`` is "inspection", or a word for the plate.
    """
    kind = WarningKind.INSPECTION_DIFFERS if what == "inspection" else WarningKind.BARCODE_DIFFERS
    text = f"{what}: the folder says {shown(folder)}, the name {shown(name)}; the {kept} was believed"
    return LayoutWarning(kind, text)
