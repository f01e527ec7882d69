"""Formulatrix Rock Imager: the native image store below ``WellImages``.

``WellImages/{shard}/plateID_{n}/batchID_{n}/wellNum_{n}/profileID_{n}/d{drop}_r{region}_{type}.{ext}``, and the
same from ``plateID`` on, because people copy single plates; ``plateID1070`` without underscore exists. The shard
(PlateID modulo 1000) means nothing here. No barcode and no date in the path; a batch is one imaging task, numbered
over all plates, so it is a key and not an ordinal. Sources: roberto-formulatrix/RM_Image_export
ImageAnalyzer/src/ImageExporter.cs, chrishmorris/PiMS ManufacturerVersion.java, Merck/polo polo/sql.py,
xchem/formulatrix_pipe transfer_images.py.
"""

import re
from collections.abc import Sequence
from typing import Final

from marcod.domain import DropImage, IgnoreReason, ImageKind, Modality
from marcod.errors import LayoutError
from marcod.layouts.base import IMAGE, Aside, Companions, Grammar, not_mine, unreadable
from marcod.layouts.paths import split
from marcod.text import quoted

_PATH: Final = re.compile(
    r"(?:^|/)plateid_?(\d{1,18})/batchid_?(\d{1,18})/wellnum_?(\d{1,9})/profileid_?(\d{1,9})"
    rf"/d(\d{{1,2}})_r(\d{{1,9}})_([a-z0-9_]+){IMAGE}\Z",
    re.IGNORECASE | re.ASCII,
)
_FAMILY: Final = re.compile(r"(?:^|/)(?:plateid|batchid|wellnum|profileid)_?\d+(?:/|\Z)", re.IGNORECASE | re.ASCII)
_KINDS: Final = {
    "ef": ImageKind.COMPOSITE,
    "th": ImageKind.THUMBNAIL,
    "th_low": ImageKind.THUMBNAIL,
    "dl": ImageKind.DROP_LOCATION,
}
_TYPES: Final = {
    ImageKind.COMPOSITE: "ef",
    ImageKind.THUMBNAIL: "th",
    ImageKind.DROP_LOCATION: "dl",
    ImageKind.SLICE: "f000",
}
_SLICE: Final = re.compile(r"f\d{1,4}", re.ASCII)


class Formulatrix(Grammar):
    """The native store. Two ``ef`` regions of one drop are one drop, distinguished by ``region``."""

    name = "formulatrix"
    title = "Formulatrix Rock Imager store"
    below_inspection = 2
    numbers_wells = True

    def read(self, path: str, companions: Companions) -> DropImage:
        match = _PATH.search(path)
        if match is None:
            raise _refusal(path)
        plate, batch, well, profile, drop, region, kind = match.groups()
        where = self.place_numbered(str(int(plate)), int(well), int(drop))
        modality, warnings = self.options.lit_with(int(profile), path)
        return self.image(
            where,
            str(int(batch)),
            modality,
            kind=_kind(kind.lower()),
            profile=str(int(profile)),
            region=int(region),
            warnings=warnings,
        )

    def write(self, image: DropImage) -> str:
        if not image.plate_key.isdecimal() or image.kind not in _TYPES:
            raise LayoutError(f"The Formulatrix store has no {image.kind} of a plate {quoted(image.plate_key)}.")
        grid = image.inferred or self.options.grid_of(image.plate_key)
        well = grid.number(image.row, image.column)
        extension = "png" if image.modality is Modality.UV else "jpg"
        return (
            f"WellImages/{int(image.plate_key) % 1000}/plateID_{image.plate_key}/batchID_{image.inspection_key}"
            f"/wellNum_{well}/profileID_{image.profile or 1}"
            f"/d{image.drop}_r{image.region or 0}_{_TYPES[image.kind]}.{extension}"
        )

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        return 6 if [folder.lower() for folder in folders[-6:-5]] == ["wellimages"] else 4


def _kind(text: str) -> ImageKind:
    if text in _KINDS:
        return _KINDS[text]
    # No slice has been seen by name; Rock Maker's short type names have at most three or four characters.
    if _SLICE.fullmatch(text):
        return ImageKind.SLICE
    raise Aside(IgnoreReason.UNKNOWN_KIND, f"the image type {quoted(text)} is not known; only ef is a whole drop")


def _refusal(path: str) -> Aside:
    if _FAMILY.search(path) is None:
        return not_mine("plateID_/batchID_/wellNum_/profileID_ folders")
    return unreadable(split(path)[1], "plateID_/batchID_/wellNum_/profileID_ folders and d1_r1_ef.jpg in them")
