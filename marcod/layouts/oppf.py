"""OPPF, PiMS and Diamond VMXi: images that Rock Imager's ImagerLink extension wrote, with XML next to them.

``{barcode}-{A01}-{drop}-R{region}{DR|OV|RI}P{profile}-{BF|DL|EF|FLn}-z{Z|N}-{YYYYMMDD}-{HHMMSS}.jpg``, and the
older ``{barcode}-{A01}-{drop}-z{Z}-{region}-{Drop|...}-{profile}-{ExtendedFocus|...}-{date}-{time}.jpeg``. Z may be
negative and the barcode may hold dashes. The stamp is the imaging session's: it is the inspection. The XML, with
the image's stem, exists for EF images only and knows the UTC time. Sources:
DiamondLightSource/VMXiImagerLink FileUtils.cs and ImageInfo.xsd, chrishmorris/PiMS.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from xml.parsers import expat

from marcod.domain import (
    DropImage,
    ImageKind,
    LayoutWarning,
    Modality,
    WarningKind,
    parse_well,
    row_letters,
    row_number,
)
from marcod.errors import LayoutError
from marcod.layouts.base import Aside, Companions, Grammar, not_mine, same_name, unreadable
from marcod.layouts.paths import split, stem
from marcod.text import quoted

LONGEST_SIDECAR: Final = 64 * 1024
"""Bytes; a real one has about 1,000."""

_HEAD: Final = r"(?P<barcode>[^/]+)-(?P<row>[A-Z]{1,2})(?P<column>\d\d)-(?P<drop>\d{1,2})-"
_TAIL: Final = r"-(?P<stamp>(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d))(?:\.(?:jpe?g|tiff?|png))?"
_NAME: Final = re.compile(
    rf"{_HEAD}R(?P<region>\d{{1,9}})(?P<area>DR|OV|RI)P(?P<profile>\d{{1,9}})"
    rf"-(?P<type>BF|DL|EF|FL\d{{1,4}})-z(?:-?\d+|N){_TAIL}",
    re.IGNORECASE | re.ASCII,
)
_OLDER: Final = re.compile(
    rf"{_HEAD}z-?\d+(?:[.,]\d+)?(?:E[+-]?\d+)?-(?P<region>\d{{1,9}})-(?P<area>Drop|Overview|RegionOfInterest)"
    rf"-(?P<profile>\d{{1,9}})-(?P<type>BestFocus|DropLocation|ExtendedFocus|FocusLevel){_TAIL}",
    re.IGNORECASE | re.ASCII,
)
_OUTLINE: Final = re.compile(r"-R\d+(?:DR|OV|RI)P\d+-|-z-?\d\S*-\d+-(?:Drop|Overview|Region)", re.IGNORECASE)
_STORES: Final = frozenset({"web", "archive"})
_TYPES: Final = {
    ImageKind.COMPOSITE: "DRP{}-EF",
    ImageKind.SLICE: "DRP{}-FL1",
    ImageKind.OVERVIEW: "OVP{}-EF",
    ImageKind.DROP_LOCATION: "DRP{}-DL",
}


class Oppf(Grammar):
    """A region of interest in extended focus is a composite like the whole drop's, distinguished by ``region``."""

    name = "oppf"
    title = "OPPF, PiMS or VMXi (ImagerLink)"
    skipped = frozenset({"processed", "quarantine"})

    def read(self, path: str, companions: Companions) -> DropImage:
        name = split(path)[1]
        match = _NAME.fullmatch(name) or _OLDER.fullmatch(name)
        if match is None:
            raise _refusal(name)
        image = self._from_name(match, name)
        if image.kind is ImageKind.COMPOSITE:
            sidecar = companions(f"{path[: -len(name)]}{stem(name)}.xml")
            if sidecar is not None:
                return _with_sidecar(image, sidecar)
        return image

    def _from_name(self, match: re.Match[str], name: str) -> DropImage:
        where = self.place(match["barcode"], row_number(match["row"]), int(match["column"]), int(match["drop"]))
        modality, warnings = self.options.lit_with(int(match["profile"]), name)
        return self.image(
            where,
            match["stamp"],
            modality,
            kind=_kind(match["area"].upper(), match["type"].upper()),
            barcode=match["barcode"],
            captured_at=self.moment(*match.groups()[-6:]),
            profile=str(int(match["profile"])),
            region=int(match["region"]),
            warnings=warnings,
        )

    def write(self, image: DropImage) -> str:
        if image.kind not in _TYPES:
            raise LayoutError(f"ImagerLink names know no {image.kind}.")
        extension = "png" if image.modality is Modality.UV else "jpg"
        return (
            f"Web/{image.plate_key}/{image.plate_key}-{row_letters(image.row)}{image.column:02d}-{image.drop}"
            f"-R{image.region or 0}{_TYPES[image.kind].format(image.profile or 1)}-zN"
            f"-{image.inspection_key}.{extension}"
        )

    def own_folders(self, folders: Sequence[str], image: DropImage) -> int:
        for own, folder in enumerate(reversed(folders[-3:])):
            if folder.lower() in _STORES:
                return own
        return super().own_folders(folders, image)


def _kind(area: str, image_type: str) -> ImageKind:
    if image_type in ("DL", "DROPLOCATION"):
        return ImageKind.DROP_LOCATION
    if image_type not in ("EF", "EXTENDEDFOCUS"):
        return ImageKind.SLICE
    return ImageKind.OVERVIEW if area in ("OV", "OVERVIEW") else ImageKind.COMPOSITE


def _refusal(name: str) -> Aside:
    expected = "an ImagerLink name such as 441312000010-A01-2-R0DRP1-EF-z20-20100316-083621.jpg"
    return unreadable(name, expected) if _OUTLINE.search(name) else not_mine(expected)


def _with_sidecar(image: DropImage, content: bytes) -> DropImage:
    """Return the image corrected by its XML. What the XML contradicts, or an XML that cannot be read, is a warning."""
    try:
        told = _leaves(content)
    except (expat.ExpatError, ValueError, LookupError) as error:
        unused = LayoutWarning(WarningKind.SIDECAR_UNREADABLE, f"the XML sidecar was not used: {error}")
        return replace(image, warnings=(*image.warnings, unused))
    warnings = list(image.warnings)
    if (plate := told.get("PlateId")) and not same_name(plate, image.plate_key):
        warnings.append(_differs(f"is of plate {quoted(plate)}"))
    if (drop := told.get("Drop")) and not _same_drop(drop, image):
        warnings.append(_differs(f"is of drop {quoted(drop)}"))
    taken = image.captured_at
    if imaged_at := told.get("ImagedAt"):
        try:
            taken = _utc(imaged_at)
        except (ValueError, OverflowError):
            warnings.append(_differs(f"gives the time {quoted(imaged_at)}, which cannot be read"))
    kind = ImageKind.SLICE if told.get("ImageType") == "S" else image.kind
    return replace(image, kind=kind, captured_at=taken, warnings=tuple(warnings))


def _differs(how: str) -> LayoutWarning:
    return LayoutWarning(WarningKind.SIDECAR_DIFFERS, f"the XML sidecar {how}; the name was believed")


def _leaves(content: bytes) -> dict[str, str]:
    """Text of the elements by their name without namespace.

    Raises ValueError for a file that is too large or declares a document type: entities are how a small XML
    file becomes a huge one, and the format needs none.
    """
    if len(content) > LONGEST_SIDECAR:
        raise ValueError(f"it is larger than {LONGEST_SIDECAR >> 10} KiB")
    texts: dict[str, str] = {}
    open_elements: list[str] = []

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type, which ImageInfo files never do")

    def collect(data: str) -> None:
        if open_elements:
            texts[open_elements[-1]] = texts.get(open_elements[-1], "") + data

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, _: open_elements.append(name.rpartition(" ")[2])
    parser.EndElementHandler = lambda _: open_elements.pop()
    parser.CharacterDataHandler = collect
    parser.Parse(content, True)
    return {name: text.strip() for name, text in texts.items()}


def _same_drop(text: str, image: DropImage) -> bool:
    well, _, drop = text.rpartition(".")
    try:
        return parse_well(well) == (image.row, image.column) and drop.lstrip("0") == str(image.drop)
    except ValueError:
        return False


def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if not 1980 <= time.year <= 2100:
        raise ValueError("no imager took images in that year")
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
