"""Path grammars of the plate imagers: what a file's relative path says about the drop it shows.

:func:`make` gives the layout of a source by name. ``parse`` never raises and never touches a disk: it turns any
text into a :class:`~marcod.domain.DropImage` or a :class:`~marcod.domain.NotADrop` with a reason; what lies
next to an image (report.csv, an XML file) is asked for through ``companions``. ``format`` is its inverse.
:func:`explain` shows what every family makes of one path. One module holds one imager family; separators, case,
hidden files and odd bytes are dealt with here, once.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Final
from zoneinfo import ZoneInfo

from marcod.domain import PLATE_FORMATS, DropImage, IgnoreReason, Modality, NotADrop, composed, grid_of
from marcod.errors import LayoutError
from marcod.layouts.base import (
    Aside,
    Companions,
    Grammar,
    LayoutOptions,
    Plates,
    any_plates,
    no_companions,
    no_plates,
    unreadable,
)
from marcod.layouts.paths import has_image_extension, is_entered, normalise, set_aside
from marcod.text import offer, quoted

__all__ = [
    "NAMES",
    "Companions",
    "Layout",
    "LayoutOptions",
    "Plates",
    "any_plates",
    "explain",
    "has_image_extension",
    "is_entered",
    "make",
    "no_companions",
    "no_plates",
    "numbers_wells",
    "options_of",
    "readers",
    "title",
    "with_levels",
]

_GRAMMARS: Final = {
    "formulatrix": "formulatrix:Formulatrix",
    "rockmaker-export": "rockmaker_export:RockMakerExport",
    "oppf": "oppf:Oppf",
    "xchem": "xchem:XChem",
    "crims": "crims:Crims",
    "rigaku": "rigaku:Rigaku",
    "hwi": "hwi:Hwi",
    "rhombix": "rhombix:Rhombix",
    "ami": "ami:Ami",
    "regex": "regex:UserRegex",
}
"""Module and class of each family, imported when it is asked for: what only names layouts compiles no pattern."""

NAMES: Final = tuple(_GRAMMARS)

_IDENTITY: Final = ("plate_key", "inspection_key", "row", "column", "drop", "modality", "kind")
_IF_GIVEN: Final = ("barcode", "inspection_ordinal", "profile", "region")


class Layout:
    """The grammar of one source's imager. Immutable, cheap to call and safe to share between threads."""

    def __init__(self, grammar: Grammar) -> None:
        self.name: Final = grammar.name
        self._grammar = grammar

    def parse(self, path: str, companions: Companions = no_companions) -> DropImage | NotADrop:
        """Read a path, relative to the source root. Never raises, whatever the text."""
        text = normalise(path)
        try:
            set_aside(text)
            self._skip(text)
            image = self._grammar.read(text, companions)
            _check_keys(image, text)
        except Aside as aside:
            return NotADrop(self.name, aside.reason, aside.detail, aside.may_change)
        return _composed(image)

    def _skip(self, path: str) -> None:
        """Raise Aside for a path below a folder that only this family's tools make."""
        if self._grammar.skipped and (found := self._grammar.skipped.intersection(path.lower().split("/")[:-1])):
            raise Aside(IgnoreReason.WORKING_COPY, f"a working copy below {min(found)}, not what the imager delivered")

    def format(self, image: DropImage) -> str:
        """Return the canonical relative path of such an image.

        What the family's names never carry (a time of day, warnings) is left out, and a barcode, ordinal,
        profile or region of None is chosen. Raises LayoutError when parsing the path would not give the image
        back in everything else.
        """
        path = self._grammar.write(image)
        back = self.parse(path, self._grammar.sidecars([image]).get)
        if isinstance(back, NotADrop):
            raise LayoutError(f"The {self.name} layout cannot express this image: {back.detail}.")
        told = [*_IDENTITY, *(name for name in _IF_GIVEN if getattr(image, name) is not None)]
        if lost := [name for name in told if getattr(back, name) != getattr(image, name)]:
            raise LayoutError(
                f"The {self.name} layout cannot express this image's {lost[0]} "
                f"{quoted(str(getattr(image, lost[0])))}; its paths would give {quoted(str(getattr(back, lost[0])))}."
            )
        return path

    @property
    def revision(self) -> int:
        """Counts the meanings that this family's paths have had; recorded images are read again when it grows."""
        return self._grammar.revision

    def root_of(self, path: str, image: DropImage) -> str:
        """Return the folder to name as the source's root for an image read at this path; "" where it begins."""
        folders = normalise(path).split("/")[:-1]
        return "/".join(folders[: max(0, len(folders) - self._grammar.own_folders(folders, image))])

    def inspection_folder(self, path: str) -> str:
        """Return the folder that holds all images of an image's inspection, often more; "" for the root."""
        folders = normalise(path).split("/")[:-1]
        return "/".join(folders[: max(0, len(folders) - self._grammar.below_inspection)])

    def sidecars(self, images: Iterable[DropImage]) -> dict[str, bytes]:
        """Return the small files, by relative path, that must lie next to these images for ``parse`` to read them."""
        return self._grammar.sidecars(images)


def make(name: str, options: LayoutOptions | None = None) -> Layout:
    """Return the layout of that name. Raises LayoutError for an unknown name or options the layout cannot use."""
    if name not in _GRAMMARS:
        raise LayoutError(f"There is no layout {quoted(name)}; {offer(name, NAMES, 'layouts')}.")
    return Layout(_grammar(name)(options or LayoutOptions()))


def title(name: str) -> str:
    """Return the layout of that name as people call it."""
    return _grammar(name).title


@cache
def with_levels() -> tuple[str, ...]:
    """Return the layouts whose keys of plates may have several levels."""
    return tuple(name for name in NAMES if _grammar(name).has_levels)


def numbers_wells(name: str) -> bool:
    """Tell if paths of a layout may number their wells, so that the plate's grid decides what they mean."""
    return _grammar(name).numbers_wells


def _grammar(name: str) -> type[Grammar]:
    module, _, kind = _GRAMMARS[name].partition(":")
    grammar: type[Grammar] = getattr(import_module(f"marcod.layouts.{module}"), kind)
    return grammar


def options_of(reading: str, plates: Plates = no_plates) -> LayoutOptions:
    """Return the options that a source's recorded reading names (JSON of its settings), else defaults."""
    try:
        given = json.loads(reading)
        wells = PLATE_FORMATS[given["wells"]]
    except (ValueError, TypeError, LookupError):
        return LayoutOptions(plates=plates)
    light = given.get("light")
    return LayoutOptions(
        plate_format=grid_of(given["grid"]) if given.get("grid") else wells,
        profiles={name: Modality(lit) for name, lit in given.get("profiles", {}).items()},
        reservoir_subwells=frozenset(given.get("reservoir_subwells", ())),
        pattern=given.get("pattern"),
        date_format=given.get("date_format"),
        timezone=ZoneInfo(given.get("timezone", "UTC")),
        light=light and Modality(light),
        plates=plates,
    )


def explain(
    path: str, layouts: Iterable[Layout], companions: Companions = no_companions
) -> list[tuple[Layout, DropImage | NotADrop]]:
    """List the reading of a path by each layout: drop images first, then the near misses, then the rest."""
    verdicts = [(layout, layout.parse(path, companions)) for layout in layouts]
    return sorted(verdicts, key=lambda verdict: _distance(verdict[1]))


def readers(path: str) -> tuple[str, ...]:
    """Return the families that read a path as one of their images, for any plate format and any files next to it.

    An image that waits for its report counts; the layout of a site's own cannot be asked.
    """
    verdicts = [(family.name, family.parse(path)) for family in _families()]
    return tuple(name for name, seen in verdicts if isinstance(seen, DropImage) or (seen.may_change))


@cache
def _families() -> tuple[Layout, ...]:
    """Every family but the site's own, reading wells of any plate."""
    options = LayoutOptions(plate_format=PLATE_FORMATS[1536])
    return tuple(make(name, options) for name in NAMES if name != "regex")


def _distance(verdict: DropImage | NotADrop) -> int:
    if isinstance(verdict, DropImage):
        return 0
    return 2 if verdict.reason is IgnoreReason.NOT_THIS_LAYOUT else 1


def _composed(image: DropImage) -> DropImage:
    """Return the image with its plate's names in the one Unicode form that is kept; its path stays byte for byte."""
    if image.plate_key.isascii() and (image.barcode or "").isascii():
        return image
    return replace(image, plate_key=composed(image.plate_key), barcode=image.barcode and composed(image.barcode))


def _check_keys(image: DropImage, path: str) -> None:
    """Keys go into a database and onto screens: bytes that are no text, and blanks, cannot be plate names."""
    keys = f"{image.plate_key}{image.barcode or ''}{image.inspection_key}{image.profile or ''}"
    if not keys.isprintable() or not image.plate_key.strip():
        raise unreadable(path, "a plate name of printable characters")
