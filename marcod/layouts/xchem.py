"""Diamond's XChem pipeline: ``{barcode}_{date}_{imager}-{plate type}/{barcode}_{column}{row}_{drop}.jpg``.

**Column before row** (``01A``). The folder is an inspection: one a plate and day; an older revision wrote it
``{barcode}_{imager}_{date}_{plate type}``. Sources: xchem/formulatrix_pipe transfer_images.py, rockingester,
xchembku.
"""

import re
from collections.abc import Sequence
from typing import Final

from marcod.domain import DropImage, LayoutWarning, Modality, row_letters, row_number
from marcod.layouts.base import Aside, Companions, Grammar, disagreement, not_mine, same_name, unreadable
from marcod.layouts.paths import folder_above, split

_DATE: Final = r"(?P<{}>\d{{4}}-\d\d-\d\d)"
_FOLDER: Final = re.compile(
    rf"(?P<barcode>[^/]+)_(?:{_DATE.format('date')}_RI\d+-\d+|RI\d+-\d+_{_DATE.format('older_date')})"
    r"[-_](?P<type>2drop|3drop|mitegen)",
    re.IGNORECASE | re.ASCII,
)
_NAME: Final = re.compile(r"([^/]+)_(\d\d)([A-Z]{1,2})_(\d)\.jpe?g", re.IGNORECASE | re.ASCII)
_MOST_DROPS: Final = {"2drop": 2, "3drop": 3, "mitegen": 9}


class XChem(Grammar):
    """Only composites of visible light are ever put here."""

    name = "xchem"
    title = "Diamond XChem"

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        folder = _FOLDER.fullmatch(folder_above(folders)[1])
        match = _NAME.fullmatch(name)
        if folder is None or match is None:
            raise _refusal(in_folder=folder is not None, name=name)
        barcode, most_drops = match[1], _MOST_DROPS[folder["type"].lower()]
        where = self.place(barcode, row_number(match[3]), int(match[2]), int(match[4]), most_drops)
        date = folder["date"] or folder["older_date"]
        warnings: tuple[LayoutWarning, ...] = ()
        if not same_name(folder["barcode"], barcode):
            warnings = (disagreement("barcode", folder["barcode"], barcode, "name"),)
        return self.image(
            where,
            date,
            self.options.light or Modality.VISIBLE,
            barcode=barcode,
            captured_at=self.moment(*date.split("-")),
            warnings=warnings,
        )

    def write(self, image: DropImage) -> str:
        plate_type = "3drop" if image.drop <= _MOST_DROPS["3drop"] else "mitegen"
        return (
            f"SubwellImages/{image.plate_key}_{image.inspection_key}_RI1000-0001-{plate_type}"
            f"/{image.plate_key}_{image.column:02d}{row_letters(image.row)}_{image.drop}.jpg"
        )

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        return 1


def _refusal(*, in_folder: bool, name: str) -> Aside:
    if in_folder:
        return unreadable(name, "barcode, column, row and drop, such as 90j8_01A_1.jpg")
    return not_mine("a dated folder and a name such as 90j8_2018-04-11_RI1000-0081-2drop/90j8_01A_1.jpg")
