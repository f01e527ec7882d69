"""AMi, the open-source imager: ``images/[{project}/]{target}/{plate}/{YYYYMMDD_HHMMSS}/A1a.jpg``, one image per drop.

A plate's name is given by a person and is one of its own only within its project and target, so all three make the key.

The name alone (``A1.jpg``) would fit anything, so the dated folder is required. ``rawimages/`` and ``cropped/``
hold AMi's own working copies. Source: LP-CDF/AMi_Image_Analysis README.
"""

import re
from collections.abc import Sequence
from typing import Final

from marcod.domain import DropImage, IgnoreReason, ImageKind, Modality, row_letters, row_number
from marcod.layouts.base import Aside, Companions, Grammar, not_mine, unreadable
from marcod.layouts.paths import split

_FOLDERS: Final = re.compile(
    r"(?P<above>.*[^/])/(?P<stamp>(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d))(?P<working>/(?:rawimages|cropped)(?:/.*)?)?",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_NAME: Final = re.compile(
    r"(?P<row>[A-Z]{1,2})(?P<column>[1-9]\d?)(?P<drop>[abc])?(?P<slice>_\d+)?\.(?:jpe?g|png|tiff?)",
    re.IGNORECASE | re.ASCII,
)


_STORE: Final = "images"
_LEVELS: Final = 3
"""Project, target and plate."""


class Ami(Grammar):
    """The folders down to the plate are its key; subwells a, b, c are drops 1, 2, 3."""

    name = "ami"
    title = "AMi"
    has_levels = True
    revision = 2

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        folder, match = _FOLDERS.fullmatch(folders), _NAME.fullmatch(name)
        if folder is None:
            raise not_mine("a plate's dated folder and a well, such as plate7/20240131_093000/A1a.jpg")
        if folder["working"]:
            raise Aside(IgnoreReason.WORKING_COPY, "a working copy of AMi, not the stacked image")
        if match is None:
            raise unreadable(name, "a well and perhaps a subwell, such as A1.jpg or A1a.jpg")
        row, column = row_number(match["row"]), int(match["column"])
        plate = _levels(folder["above"].split("/"))
        key = "/".join(plate)
        return self.image(
            self.place(key, row, column, "abc".index((match["drop"] or "a").lower()) + 1),
            folder["stamp"],
            self.options.light or Modality.VISIBLE,
            kind=ImageKind.SLICE if match["slice"] else ImageKind.COMPOSITE,
            barcode=key if len(plate) == 1 else None,
            captured_at=self.moment(*folder.groups()[2:8]),
        )

    def write(self, image: DropImage) -> str:
        subwell = "abc"[image.drop - 1 : image.drop]
        plane = "_1" if image.kind is ImageKind.SLICE else ""
        well = f"{row_letters(image.row)}{image.column}"
        return f"{image.plate_key}/{image.inspection_key}/{well}{subwell}{plane}.jpg"

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        above = folders[:-1]
        named = [folder.lower() == _STORE for folder in reversed(above[-_LEVELS - 1 : -1])]
        return named.index(True) + 2 if any(named) else 2


def _levels(above: Sequence[str]) -> Sequence[str]:
    """Return the folders that name a plate: those below ``images``, at most three."""
    last = list(above[-_LEVELS:])
    for at in range(len(last) - 2, -1, -1):
        if last[at].lower() == _STORE:
            return last[at + 1 :]
    return last
