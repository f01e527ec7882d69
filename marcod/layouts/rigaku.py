"""Rigaku Minstrel with CrystalTrak: ``{barcode}/{inspection}/`` and a name of 18 fields.

``RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_121121_01_02_03_HF_99_030_001_RDI.jpg``: machine, free text,
barcode letters, barcode padded with zeros to 12, inspection, date, **column before row**, subwell, image type.
The free text and the barcode may hold more underscores, so a name is read from both ends, and the barcode's folder is
a witness. What fields 2 and 14 to 18 mean is not known; the image type (14) may stand for a light, as the source's
``profiles`` say. The folders win over the name, because that is where CrystalTrak looks. Source: CMD-Oxford/TeXRank,
whose 288 real names of plate CI022987 and one of CSIRO this grammar was made from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from marcod.domain import DropImage, IgnoreReason, ImageKind, LayoutWarning, Modality
from marcod.errors import LayoutError
from marcod.layouts.base import IMAGE, Aside, Companions, Grammar, disagreement, not_mine, same_name, unreadable
from marcod.layouts.paths import folder_above, split

_NAME: Final = re.compile(
    r"[A-Z0-9]+_\d+_\d+_(?P<text>[^/]+_(?P<letters>[A-Z]+)_(?P<padded>[^_/]+)|[^/]+)_(?P<inspection>\d{3,9})"
    r"_(?P<year>\d\d)(?P<month>\d\d)(?P<day>\d\d)_(?P<column>\d\d)_(?P<row>\d\d)_(?P<subwell>\d\d)"
    rf"_(?P<type>[A-Z0-9]{{2}})_\d+_\d+_\d+_[A-Z]+(?P<thumb>_thumb)?{IMAGE}",
    re.IGNORECASE | re.ASCII,
)
_OUTLINE: Final = re.compile(rf"(?:[^_]*_){{14,}}[^_]*{IMAGE}|.*_RDI{IMAGE}", re.IGNORECASE | re.ASCII)
_MONTAGE: Final = re.compile(rf"(?:^|/)RigakuMontage/|_RDI_thumb{IMAGE}\Z", re.IGNORECASE | re.ASCII)
_PADDED_TO: Final = 12


@dataclass(frozen=True, slots=True)
class _Identity:
    barcode: str
    inspection: int
    warnings: tuple[LayoutWarning, ...] = ()


class Rigaku(Grammar):
    """Minstrel images; the drop is the subwell as CrystalTrak numbers it (1, 3, 4 on three-lens plates)."""

    name = "rigaku"
    title = "Rigaku Minstrel, CrystalTrak"

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refusal(path, name)
        identity = _identity(folders, name, match)
        row, column, subwell = int(match["row"]), int(match["column"]), int(match["subwell"])
        where = self.place(identity.barcode, row, column, subwell)
        if subwell in self.options.reservoirs_of(identity.barcode):
            raise Aside(IgnoreReason.RESERVOIR, f"subwell {subwell} is the reservoir on this plate")
        return self.image(
            where,
            str(identity.inspection),
            self._light(match["type"]),
            kind=ImageKind.THUMBNAIL if match["thumb"] else ImageKind.COMPOSITE,
            barcode=identity.barcode,
            inspection_ordinal=identity.inspection,
            captured_at=self.moment(match["year"], match["month"], match["day"]),
            profile=match["type"],
            warnings=identity.warnings,
        )

    def _light(self, image_type: str) -> Modality:
        if self.options.light is None or image_type.lower() in self.options.profiles:
            return self.options.light_named(image_type)
        return self.options.light

    def write(self, image: DropImage) -> str:
        if not image.inspection_key.isdecimal():
            raise LayoutError("Rigaku inspections are numbered; give the image a number as inspection_key.")
        date = self.clock_time(image)
        letters = re.match(r"[A-Za-z]*", image.plate_key)
        return (
            f"{image.plate_key}/{image.inspection_key}/RMM3_01_222_ROBO_Test1_Clon1"
            f"_{(letters[0] if letters else '') or 'XX'}_{image.plate_key.rjust(_PADDED_TO, '0')}"
            f"_{int(image.inspection_key):03d}_{date:%y%m%d}_{image.column:02d}_{image.row:02d}_{image.drop:02d}"
            f"_{image.profile or 'HF'}_99_030_001_RDI{'_thumb' if image.kind is ImageKind.THUMBNAIL else ''}.jpg"
        )

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        own = super().own_folders(folders, image)
        return own or int(bool(folders) and folders[-1].isascii() and folders[-1].isdigit())


def _identity(folders: str, name: str, match: re.Match[str]) -> _Identity:
    further, last = folder_above(folders)
    plate = folder_above(further)[1]
    padded, inspection = match["padded"], int(match["inspection"])
    numbered = last.isascii() and last.isdigit() and len(last) <= 9
    same = _at_end(match["text"], plate) if numbered else None
    if same is None and padded is None:
        raise unreadable(name, "the barcode, which the folder above the inspection gives as well")
    if not numbered or (same is None and int(last) != inspection and _unpadded(padded, last)):
        return _Identity(padded.lstrip("0") or "0", inspection)
    warnings: tuple[LayoutWarning, ...] = ()
    if int(last) != inspection:
        warnings = (disagreement("inspection", last, match["inspection"], "folder"),)
    barcode, more = _barcode(plate, match) if same is None else (same, ())
    return _Identity(barcode, int(last), warnings + more)


def _at_end(text: str, folder: str) -> str | None:
    """Return the end of the name's text when it is the folder's barcode, which has an underscore, padded with zeros."""
    end = text[-len(folder) :] if "_" in folder else ""
    return end if end and same_name(end, folder) and text[: -len(end)].rstrip("0").endswith("_") else None


def _barcode(folder: str, match: re.Match[str]) -> tuple[str, tuple[LayoutWarning, ...]]:
    padded = match["padded"]
    if not folder:
        return padded.lstrip("0") or "0", ()
    # The name's spelling is kept where both agree, so that the case of a share's folders does not make two plates.
    if same := _unpadded(padded, folder):
        return same, ()
    if _unpadded(match["letters"] + padded.lstrip("0"), folder):
        return folder, ()
    # A folder without any digit is a person's or a project's; believing it would melt its plates into one.
    if not any(character.isdigit() for character in folder):
        return padded.lstrip("0") or "0", (disagreement("barcode", folder, padded, "name"),)
    return folder, (disagreement("barcode", folder, padded, "folder"),)


def _unpadded(padded: str, barcode: str) -> str | None:
    """Return the end of the padded field when it is the barcode but for case and leading zeros, else None."""
    if len(barcode) > len(padded) or padded[: -len(barcode)].strip("0"):
        return None
    end = padded[-len(barcode) :]
    return end if end.casefold() == barcode.casefold() else None


def _refusal(path: str, name: str) -> Aside:
    expected = "the 18 fields of a Minstrel name, such as RMM3_01_..._003_121121_01_02_03_HF_99_030_001_RDI.jpg"
    if _MONTAGE.search(path):
        return Aside(IgnoreReason.THUMBNAIL, "a thumbnail of a plate montage")
    return unreadable(name, expected) if _OUTLINE.fullmatch(name) else not_mine(expected)
