r"""Thermo Rhombix: ``{barcode}/{YYMMDD}/{barcode}_{A01}-{drop}_{light}_{YYMMDD}_{HHMMSS}_{n}.jpg``.

Known from chrishmorris/PiMS' tests alone (Rhombix_Impl ImporterTest.java). The barcode may hold dashes, the
extension may be missing. ``BRITE`` is bright field; no other light is known, so others
are not scored until the source's ``profiles`` names them. The short names of 2006
(``ZZA00123_A01-1_BRITE_110.jpg``) carry no date and cannot be placed.
"""

import re
from typing import Final

from marcod.domain import DropImage, LayoutWarning, Modality, row_letters, row_number
from marcod.layouts.base import Aside, Companions, Grammar, disagreement, not_mine, same_name, unknown_light, unreadable
from marcod.layouts.paths import folder_above, split

_NAME: Final = re.compile(
    r"(?P<barcode>[^/]+)_(?P<row>[A-Z]{1,2})(?P<column>\d\d)-(?P<drop>\d{1,2})_(?P<light>[A-Z]+)"
    r"_(\d\d)(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)_\d+(?:\.(?:jpe?g|bmp))?",
    re.IGNORECASE | re.ASCII,
)
_OUTLINE: Final = re.compile(r"[^/]+_[A-Z]{1,2}\d\d-\d+_[A-Z]+_.*", re.IGNORECASE | re.ASCII)
_VISIBLE: Final = frozenset({"brite", "dark"})
_DATED: Final = re.compile(r"\d{6}", re.ASCII)


class Rhombix(Grammar):
    """The inspection is the dated folder, else the name's date: a run may last past midnight."""

    name = "rhombix"
    title = "Rhombix"
    revision = 2

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refusal(name)
        where = self.place(match["barcode"], row_number(match["row"]), int(match["column"]), int(match["drop"]))
        date_and_time = match.groups()[-6:]
        modality, doubt = self._light(match["light"])
        key, warnings = _inspection(folders, match["barcode"], "".join(date_and_time[:3]))
        return self.image(
            where,
            key,
            modality,
            barcode=match["barcode"],
            captured_at=self.moment(*date_and_time),
            profile=match["light"],
            warnings=warnings + doubt,
        )

    def _light(self, word: str) -> tuple[Modality, tuple[LayoutWarning, ...]]:
        """Light by its word in the name; bright and dark field and what says UV or SHG are known."""
        modality = self.options.light_named(word)
        if modality is Modality.VISIBLE and word.lower() not in {*_VISIBLE, *self.options.profiles}:
            return Modality.UNKNOWN, (unknown_light(word),)
        return modality, ()

    def write(self, image: DropImage) -> str:
        taken = self.clock_time(image)
        return (
            f"{image.plate_key}/{image.inspection_key}/{image.plate_key}_{row_letters(image.row)}"
            f"{image.column:02d}-{image.drop}_{image.profile or 'BRITE'}_{taken:%y%m%d_%H%M%S}_1.jpg"
        )


def _inspection(folders: str, barcode: str, date: str) -> tuple[str, tuple[LayoutWarning, ...]]:
    further, last = folder_above(folders)
    if _DATED.fullmatch(last) is None:
        return date, ()
    plate = folder_above(further)[1]
    if plate and not same_name(plate, barcode):
        return last, (disagreement("barcode", plate, barcode, "name"),)
    return last, ()


def _refusal(name: str) -> Aside:
    expected = "barcode, well, drop, light, date and time, such as TG-20_A01-1_BRITE_110629_200901_1.jpg"
    return unreadable(name, expected) if _OUTLINE.fullmatch(name) else not_mine(expected)
