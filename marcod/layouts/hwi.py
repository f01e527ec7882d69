"""Hauptman-Woodward (HWMRI) 1536-well plates under oil: ``{plate}{well}{YYYYMMDDHHMM}.png``.

The plate id is 10 characters, the well 4 digits counted row by row over 32 rows (A to AF) of 48 columns, one
drop a well. The folder ``{plate}{YYYYMMDDHHMM}-{jpg|uvt|shg}`` is one run in one light; there is no inspection
number. Only this folder says how the drops were lit: of a file in a renamed folder the light is not known, unless the
source's `light` is. Sources: Hauptman-Woodward/Marco_Polo
io_utils.py and __init__.py; ubccr/besra README; the row-major order was inferred from Polo's cocktail lists.
"""

import re
from collections.abc import Sequence
from typing import Final

from marcod.domain import PLATE_FORMATS, DropImage, IgnoreReason, LayoutWarning, Modality, WarningKind
from marcod.errors import LayoutError
from marcod.layouts.base import Aside, Companions, DropPosition, Grammar, disagreement, not_mine, unreadable
from marcod.layouts.paths import split

PLATE: Final = PLATE_FORMATS[1536]

_NAME: Final = re.compile(
    r"([A-Z0-9]{10})(\d{4})(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)\.(?:jpe?g|png)", re.IGNORECASE | re.ASCII
)
_FOLDER: Final = re.compile(r"([A-Z0-9]{10})(\d{12})-([A-Z0-9]+)", re.IGNORECASE | re.ASCII)
_KEY: Final = re.compile(r"(\d{12})(?:-([a-z0-9]+))?", re.ASCII)
_MODES: Final = {"jpg": Modality.VISIBLE, "uvt": Modality.UV, "shg": Modality.SHG}


class Hwi(Grammar):
    """One image a well. The run is the folder's stamp; the modes of one plate are runs of their own."""

    name = "hwi"
    title = "HWI delivery"
    revision = 2

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refusal(folders, name)
        plate, well, *stamp = match.groups()
        where = DropPosition(plate, *_position(int(well)))
        taken = self.moment(*stamp)
        key, modality, warnings = _run(folders, plate, "".join(stamp[:3]), self.options.light)
        return self.image(where, key, modality, barcode=plate, captured_at=taken, warnings=warnings)

    def write(self, image: DropImage) -> str:
        run = _KEY.fullmatch(image.inspection_key)
        if image.captured_at is None and run is None:
            raise LayoutError("HWI names carry a date; give the image a captured_at or a run of 12 digits.")
        stamp = (
            f"{image.captured_at.astimezone(self.options.timezone):%Y%m%d%H%M}"
            if image.captured_at
            else image.inspection_key[:12]
        )
        name = f"{image.plate_key}{PLATE.number(image.row, image.column):04d}{stamp}"
        if run is None:
            return f"{name}.jpg"
        return f"{image.plate_key}{run[1]}-{run[2] or 'jpg'}/{name}.{'jpg' if run[2] is None else 'png'}"

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        dated = [_FOLDER.fullmatch(folder) is not None for folder in reversed(folders)]
        return dated.index(True) + 1 if any(dated) else 0


def _position(well: int) -> tuple[int, int]:
    try:
        return PLATE.position(well)
    except ValueError as error:
        raise Aside(IgnoreReason.OUT_OF_RANGE, str(error)) from error


def _run(
    folders: str, plate: str, date: str, light: Modality | None
) -> tuple[str, Modality, tuple[LayoutWarning, ...]]:
    """Return key, modality and doubts of a run, from the nearest folder above the file that is a run's."""
    match = _dated_folder(folders)
    if match is None:
        if light is not None:
            return date, light, ()
        lost = "no dated folder above the file, and only that says how it was lit; not scored"
        return date, Modality.UNKNOWN, (LayoutWarning(WarningKind.LIGHT_LOST, lost),)
    mode = match[3].lower()
    warnings: tuple[LayoutWarning, ...] = ()
    if match[1].casefold() != plate.casefold():
        warnings = (disagreement("plate", match[1], plate, "name"),)
    if mode not in _MODES:
        warnings += (LayoutWarning(WarningKind.UNKNOWN_LIGHT, f"the mode -{mode} of the folder is not known"),)
    key = match[2] if mode == "jpg" else f"{match[2]}-{mode}"
    return key, _MODES.get(mode, Modality.UNKNOWN), warnings


def _dated_folder(folders: str) -> re.Match[str] | None:
    return next((found for folder in reversed(folders.split("/")) if (found := _FOLDER.fullmatch(folder))), None)


def _refusal(folders: str, name: str) -> Aside:
    expected = "10 characters of plate, 4 digits of well, 12 of date and time, such as X0000051270868200506241635.jpg"
    if _dated_folder(folders):
        return unreadable(name, expected)
    return not_mine(expected)
