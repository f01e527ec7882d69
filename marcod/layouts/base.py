"""Base of every imager family: the options of a source, the way to reject a path, shared readings.

A family is one :class:`Grammar`: it reads a normalised path into a :class:`~marcod.domain.DropImage` or raises
:class:`Aside`, and writes the canonical path of an image. Everything common to all of them (normalising,
files that are never images, checking what was written) is in :mod:`marcod.layouts`, so a grammar holds only
what its imager does differently.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, ClassVar, Final

from marcod.domain import (
    PLATE_FORMATS,
    DropImage,
    IgnoreReason,
    ImageKind,
    LayoutWarning,
    Modality,
    PlateFormat,
    PlateSetup,
    WarningKind,
    folded,
    well_name,
)
from marcod.errors import LayoutError
from marcod.text import quoted

Companions = Callable[[str], bytes | None]
"""Reads a small file by its path relative to the source root; None when there is none."""

IMAGE: Final = r"\.(?:jpe?g|png|tiff?|gif|bmp)"
"""The extensions an image may have, as a piece of a regular expression."""


def no_companions(path: str) -> bytes | None:
    """Return the companions of a path looked at alone: none."""
    return None


class Aside(Exception):  # noqa: N818 - an outcome of reading, not an error of anybody
    """A path is not a drop image, and why. Never leaves :mod:`marcod.layouts`."""

    def __init__(self, reason: IgnoreReason, detail: str, *, may_change: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.may_change = may_change


Plates = Callable[[str], PlateSetup | None]
"""A look-up of a plate's setup by its key; None where no database keeps setups."""


def no_plates(plate_key: str) -> PlateSetup | None:
    """Return the plates of a path looked at alone: nothing is known of any, and nothing can be kept."""
    return None


def any_plates(plate_key: str) -> PlateSetup | None:
    """Return the plates of a nominated path: each may be as large as its wells ask for, without reservoir."""
    return PlateSetup(reservoirs=frozenset())


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """Settings of a source that its imager's paths leave open.

    ``plate_format`` is the grid of plates that ``plates`` does not know: it turns well numbers into rows and columns
    (HWI plates are always 1536). ``profiles`` maps a capture profile, by its number or its name in either case, to its
    light; ``light`` is that of images whose paths name none. ``reservoir_subwells`` are Rigaku subwells without a
    drop. ``pattern`` and ``date_format`` belong to the regex layout. ``timezone`` is the zone of the imager's clock.
    """

    plate_format: PlateFormat = PLATE_FORMATS[96]
    profiles: Mapping[Any, Modality] = field(default_factory=dict)
    reservoir_subwells: frozenset[int] = frozenset()
    pattern: str | None = None
    date_format: str | None = None
    timezone: tzinfo = UTC
    light: Modality | None = None
    plates: Plates = no_plates

    def __post_init__(self) -> None:
        object.__setattr__(self, "profiles", {str(name).lower(): light for name, light in self.profiles.items()})

    def reservoirs_of(self, plate_key: str) -> frozenset[int]:
        """Return the subwells of a plate that hold no drop."""
        setup = self.plates(plate_key)
        return self.reservoir_subwells if setup is None or setup.reservoirs is None else setup.reservoirs

    def grid_of(self, plate_key: str) -> PlateFormat:
        """Return the grid on which a plate's well numbers are read: its own, unless it is outgrown."""
        setup = self.plates(plate_key)
        own = None if setup is None else setup.format
        if own is None or setup is None:
            return self.plate_format
        return max(self.plate_format, own, key=lambda grid: grid.wells) if setup.inferred else own

    def lit_with(self, profile: int, name: str) -> tuple[Modality, tuple[LayoutWarning, ...]]:
        """Return the modality of a numbered capture profile and a warning where it is only guessed from the extension.

        Rock Maker writes UV profiles as .png and the rest as .jpg (Merck/polo polo/sql.py); nothing else in a
        path tells them apart, so an unmapped .png must not reach a model made for visible light.
        """
        known = self.profiles.get(str(profile))
        if known is not None:
            return known, ()
        if name[-4:].lower() != ".png":
            return Modality.VISIBLE, ()
        hint = f"profile {profile} is not mapped and its images are .png, which suggests UV; add it to profiles"
        return Modality.UV, (LayoutWarning(WarningKind.UNMAPPED_PROFILE, hint),)

    def light_named(self, word: str) -> Modality:
        """Return the light of a profile by its name: as ``profiles`` says, else as :func:`modality_named`."""
        return self.profiles.get(word.lower()) or modality_named(word)


@dataclass(frozen=True, slots=True)
class DropPosition:
    """A drop on its plate; ``inferred`` and ``warnings`` where the plate's grid follows from the well alone."""

    plate_key: str
    row: int
    column: int
    drop: int = 1
    warnings: tuple[LayoutWarning, ...] = ()
    inferred: PlateFormat | None = None


class Grammar(ABC):
    """One imager family. Subclasses give ``name``, ``title``, :meth:`read` and :meth:`write`."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The family as people call it."""
    has_levels: ClassVar[bool] = False
    """True where keys of plates may have several levels, such as ``kinase/hit2/plate1``."""
    below_inspection: ClassVar[int] = 0
    """Folders between the folder that holds an inspection and its images."""
    numbers_wells: ClassVar[bool] = False
    """Whether wells may be counted through, so that another grid makes another well of the same path."""
    skipped: ClassVar[frozenset[str]] = frozenset()
    """Folders, in lower case, in which only this imager's tools keep working copies."""
    revision: ClassVar[int] = 1
    """Counts the meanings that the same path has had; recorded images are read again when it grows."""

    def __init__(self, options: LayoutOptions) -> None:
        self.options = options

    @abstractmethod
    def read(self, path: str, companions: Companions) -> DropImage:
        """Read a normalised path. Raises Aside when it names no drop image of this family."""

    @abstractmethod
    def write(self, image: DropImage) -> str:
        """Return a path that reads back as the image; fields the names do not carry are left out."""

    def place(self, plate_key: str, row: int, column: int, drop: int = 1, most_drops: int = 99) -> DropPosition:
        """Return a drop in a well given by row and column. Raises Aside when it is not on the plate.

        A plate without a given format may be larger than the source's usual ones, up to 1536 wells.
        """
        setup = self.options.plates(plate_key)
        told = setup.format if setup is not None and not setup.inferred else None
        usual = told or self.options.plate_format
        warnings: tuple[LayoutWarning, ...] = ()
        if not usual.holds(row, column):
            larger = None if told else next((grid for grid in PLATE_FORMATS.values() if grid.holds(row, column)), None)
            if larger is None:
                well = well_name(row, column) if row > 0 and column > 0 else f"row {row}, column {column}"
                what = f"{well} is not on a plate of {usual.rows} rows and {usual.columns} columns"
                raise _off_plate(what, told is not None)
            warnings = (_inferred(well_name(row, column), usual, larger),)
        check_drop(drop, most_drops)
        return DropPosition(plate_key, row, column, drop, warnings)

    def place_numbered(self, plate_key: str, number: int, drop: int = 1) -> DropPosition:
        """Return a drop in a well given by its row-major number from 1. Raises Aside when it is not on the plate.

        A number beyond the grid makes a plate without a given format the next larger usual one. All images of the
        plate have to be read with one grid, so this is done only where ``plates`` keeps the inferred grid.
        """
        setup = self.options.plates(plate_key)
        grid, usual = self.options.grid_of(plate_key), self.options.plate_format
        told = setup is not None and setup.format is not None and not setup.inferred
        if setup is not None and not told:
            larger = (each for each in PLATE_FORMATS.values() if each.wells > grid.wells)
            grid = next((each for each in (grid, *larger) if number <= each.wells), grid)
        try:
            row, column = grid.position(number)
        except ValueError as error:
            raise _off_plate(str(error), told) from error
        check_drop(drop)
        if grid == usual or told:
            return DropPosition(plate_key, row, column, drop)
        return DropPosition(plate_key, row, column, drop, (_inferred(f"well {number}", usual, grid),), grid)

    def moment(
        self, year: str, month: str, day: str, hour: str = "0", minute: str = "0", second: str = "0"
    ) -> datetime:
        """Return an aware time on the imager's clock from digits. Raises Aside for a date that cannot be.

        A two-digit year is of this century: no imager is older.
        """
        zone, full_year = self.options.timezone, int(year) + 2000 if len(year) == 2 else int(year)
        try:
            if not 1980 <= full_year <= 2100:
                raise ValueError("no imager took images in that year")
            return datetime(full_year, int(month), int(day), int(hour), int(minute), int(second), tzinfo=zone)
        except ValueError as error:
            date = f"{year}-{month}-{day} {hour}:{minute}:{second}"
            raise Aside(IgnoreReason.OUT_OF_RANGE, f"the time {date} cannot be: {error}") from error

    def clock_time(self, image: DropImage) -> datetime:
        """When the image was taken, on the imager's clock. Raises LayoutError when the image does not say."""
        if image.captured_at is None:
            raise LayoutError("The names of this layout carry a date; give the image a captured_at.")
        return image.captured_at.astimezone(self.options.timezone)

    def image(
        self,
        where: DropPosition,
        inspection_key: str,
        modality: Modality,
        *,
        kind: ImageKind = ImageKind.COMPOSITE,
        barcode: str | None = None,
        inspection_ordinal: int | None = None,
        captured_at: datetime | None = None,
        profile: str | None = None,
        region: int | None = None,
        warnings: tuple[LayoutWarning, ...] = (),
    ) -> DropImage:
        """Return the image of a drop; its warnings are those of the path and of the place."""
        return DropImage(
            self.name, where.plate_key, inspection_key, where.row, where.column, where.drop, modality, kind, barcode,
            inspection_ordinal, captured_at, profile, region, warnings + where.warnings, where.inferred,
        )  # fmt: skip

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        """Count the folders at the end of an image's path that the imager made, from the plate's folder on.

        A source's root lies above them. Zero when none of them is named like the plate.
        """
        named = [same_name(folder, image.plate_key) for folder in reversed(folders[-4:])]
        return named.index(True) + 1 if any(named) else 0

    def sidecars(self, images: Iterable[DropImage]) -> dict[str, bytes]:
        """Small files, by path, that must exist for these images' paths to be read."""
        return {}


def not_mine(what: str) -> Aside:
    """Reject a path that does not look like this family's; ``what`` names what was looked for."""
    return Aside(IgnoreReason.NOT_THIS_LAYOUT, f"not a path of this layout; expected {what}")


def unreadable(name: str, what: str) -> Aside:
    """Reject a name that cannot be read in a folder or outline of this family."""
    return Aside(IgnoreReason.UNREADABLE_NAME, f"cannot read the name {quoted(name)}; expected {what}")


def _off_plate(what: str, told: bool) -> Aside:
    mend = "correct" if told else "give"
    more = "" if told else ", or set `wells` or `grid` of the source where all its plates are so"
    return Aside(IgnoreReason.OUT_OF_RANGE, f"{what}; {mend} the plate's format with `marcod plate import`{more}")


def _inferred(well: str, usual: PlateFormat, grid: PlateFormat) -> LayoutWarning:
    text = (
        f"{well}: the plate is taken for one of {grid.rows}x{grid.columns} wells, not {usual.rows}x{usual.columns}; "
        "give its format with `marcod plate import`"
    )
    return LayoutWarning(WarningKind.FORMAT_INFERRED, text)


def check_drop(drop: int, most: int = 99) -> None:
    """Raise Aside when a well of this plate has no such drop."""
    if not 1 <= drop <= most:
        raise Aside(IgnoreReason.OUT_OF_RANGE, f"drop {drop} is not between 1 and {most}")


_UNLIKE: Final = ("fluor", "sonicc")
"""Parts of names of lights that are neither visible nor one of those that marcod tells apart."""


def modality_named(text: str) -> Modality:
    """Return the modality of a light or profile by its name: UV and SHG, else visible."""
    word = text.lower()
    if any(part in word for part in _UNLIKE):
        return Modality.UNKNOWN
    if "shg" in word:
        return Modality.SHG
    return Modality.UV if "uv" in word or "tpef" in word else Modality.VISIBLE


def unknown_light(word: str) -> LayoutWarning:
    """Return a warning that the word by which a path names its light is not known."""
    return LayoutWarning(WarningKind.UNKNOWN_LIGHT, f"the light {quoted(word)} is not known; not scored")


def same_name(one: str, other: str) -> bool:
    """Tell if two names of a plate are the same but for case and Unicode form."""
    return folded(one) == folded(other)


def disagreement(what: str, folder: str, name: str, kept: str) -> LayoutWarning:
    """Return a warning that a folder and a file name contradict each other, and which of the two was believed.

    ``what`` is "inspection", or a word for the plate.
    """
    kind = WarningKind.INSPECTION_DIFFERS if what == "inspection" else WarningKind.BARCODE_DIFFERS
    text = f"{what}: the folder says {quoted(folder)}, the name {quoted(name)}; the {kept} was believed"
    return LayoutWarning(kind, text)
