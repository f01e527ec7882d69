"""EMBL HTX lab, CRIMS: ``rawimages/{year}/{barcode}/{inspection}/FORMULATRIX_..._Vis.jpg``.

``{maker}_{barcode}_{inspection}_{DD-MM-YYYY}_{column}_{row}_{drop}_00_99_{Vis|UV}.jpg``: **column before row,
day first**. The barcode may hold underscores, since all
that follows it has a fixed form. The visible and the UV image of a drop differ in the last field only. Sources:
marquez-group-embl/AXIS and the MXCuBE harvester code.
"""

import re
from collections.abc import Sequence
from typing import Final

from marcod.domain import DropImage, LayoutWarning, Modality
from marcod.errors import LayoutError
from marcod.layouts.base import Aside, Companions, Grammar, disagreement, not_mine, same_name, unreadable
from marcod.layouts.paths import folder_above, split

_NAME: Final = re.compile(
    r"[A-Z]+_(?P<barcode>[^/]+)_(?P<inspection>\d{1,9})_(?P<day>\d\d)-(?P<month>\d\d)-(?P<year>\d{4})"
    r"_(?P<column>\d\d)_(?P<row>\d\d)_(?P<drop>\d\d)_\d\d_\d\d_(?P<light>Vis|UV)\.(?:jpe?g|png)",
    re.IGNORECASE | re.ASCII,
)
_YEAR: Final = re.compile(r"(?:19|20)\d\d", re.ASCII)
_LIGHT: Final = {"vis": Modality.VISIBLE, "uv": Modality.UV}


class Crims(Grammar):
    """CRIMS numbers inspections truly, so the ordinal is the path's."""

    name = "crims"
    title = "EMBL CRIMS"

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refusal(name)
        where = self.place(match["barcode"], int(match["row"]), int(match["column"]), int(match["drop"]))
        inspection = int(match["inspection"])
        return self.image(
            where,
            str(inspection),
            _LIGHT[match["light"].lower()],
            barcode=match["barcode"],
            inspection_ordinal=inspection,
            captured_at=self.moment(match["year"], match["month"], match["day"]),
            warnings=_contradictions(folders, match["barcode"], inspection),
        )

    def write(self, image: DropImage) -> str:
        lights = {modality: text for text, modality in (("Vis", Modality.VISIBLE), ("UV", Modality.UV))}
        if image.modality not in lights:
            raise LayoutError(f"CRIMS names know Vis and UV, not {image.modality}.")
        date = self.clock_time(image)
        return (
            f"rawimages/{date:%Y}/{image.plate_key}/{image.inspection_key}/FORMULATRIX_{image.plate_key}"
            f"_{image.inspection_key}_{date:%d-%m-%Y}_{image.column:02d}_{image.row:02d}_{image.drop:02d}"
            f"_00_99_{lights[image.modality]}.jpg"
        )

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        own = super().own_folders(folders, image)
        return own + 1 if own and _YEAR.fullmatch("".join(folders[-own - 1 : -own])) else own


def _contradictions(folders: str, barcode: str, inspection: int) -> tuple[LayoutWarning, ...]:
    further, last = folder_above(folders)
    if not (last.isascii() and last.isdigit() and len(last) <= 9):
        return ()
    warnings: list[LayoutWarning] = []
    if int(last) != inspection:
        warnings.append(disagreement("inspection", last, str(inspection), "name"))
    plate = folder_above(further)[1]
    if plate and not same_name(plate, barcode):
        warnings.append(disagreement("barcode", plate, barcode, "name"))
    return tuple(warnings)


def _refusal(name: str) -> Aside:
    expected = "a CRIMS name such as FORMULATRIX_CD044931_3_04-12-2025_02_03_01_00_99_Vis.jpg"
    return unreadable(name, expected) if name.lower().startswith("formulatrix_") else not_mine(expected)
