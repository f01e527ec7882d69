"""AMi, the open-source imager: ``{plate}/{YYYYMMDD_HHMMSS}/A1a.jpg``, one stacked picture a drop.

The name alone (``A1.jpg``) would fit anything, so the dated folder is required. ``rawimages/`` and ``cropped/``
hold AMi's own working copies. Source: LP-CDF/AMi_Image_Analysis README.
"""

import re
from typing import Final

from marcod.domain import DropImage, Kind, Modality, Reason, row_letters, row_number
from marcod.layouts.contract import Aside, Companions, Grammar, check_well, moment, not_mine, unreadable
from marcod.layouts.paths import split

_FOLDERS: Final = re.compile(
    r"(?:.*/)?(?P<plate>[^/]+)/(?P<stamp>(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d))(?P<working>/(?:rawimages|cropped)(?:/.*)?)?",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_NAME: Final = re.compile(
    r"(?P<row>[A-Z]{1,2})(?P<column>[1-9]\d?)(?P<drop>[abc])?(?P<slice>_\d+)?\.(?:jpe?g|png|tiff?)",
    re.IGNORECASE | re.ASCII,
)


class Ami(Grammar):
    """The plate's folder is its barcode; subwells a, b, c are drops 1, 2, 3."""

    name = "ami"

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        folder, match = _FOLDERS.fullmatch(folders), _NAME.fullmatch(name)
        if folder is None:
            raise not_mine("a plate's dated folder and a well, such as plate7/20240131_093000/A1a.jpg")
        if folder["working"]:
            raise Aside(Reason.WORKING_COPY, "a working copy of AMi, not the stacked picture")
        if match is None:
            raise unreadable(name, "a well and perhaps a subwell, such as A1.jpg or A1a.jpg")
        row, column = row_number(match["row"]), int(match["column"])
        check_well(self.options.plate_format, row, column)
        return DropImage(
            layout=self.name,
            plate_key=folder["plate"],
            inspection_key=folder["stamp"],
            row=row,
            column=column,
            drop="abc".index((match["drop"] or "a").lower()) + 1,
            modality=Modality.VISIBLE,
            kind=Kind.SLICE if match["slice"] else Kind.COMPOSITE,
            barcode=folder["plate"],
            captured_at=moment(self.options.timezone, *folder.groups()[2:8]),
        )

    def write(self, image: DropImage) -> str:
        subwell = "abc"[image.drop - 1 : image.drop]
        plane = "_1" if image.kind is Kind.SLICE else ""
        well = f"{row_letters(image.row)}{image.column}"
        return f"{image.plate_key}/{image.inspection_key}/{well}{subwell}{plane}.jpg"
