"""A layout of the site's own: a regular expression with named groups, searched in the relative path.

Groups: ``plate`` or ``barcode`` (one is needed); ``well`` (``A1`` or a number row by row) or ``row`` and ``col``
(needed); ``drop`` (a number or a letter; 1 without it), ``inspection`` (the date without it, else one inspection
a plate), ``date``, ``modality``. Letter case is ignored; separators are always ``/``.
"""

import re
from dataclasses import replace
from datetime import datetime
from typing import Final

from marcod.domain import DropImage, IgnoreReason, Modality, parse_well, row_number
from marcod.errors import LayoutError
from marcod.layouts.base import Aside, Companions, DropPosition, Grammar, LayoutOptions, check_drop, not_mine
from marcod.text import quoted

_GROUPS: Final = ("plate", "barcode", "well", "row", "col", "drop", "inspection", "date", "modality")
_LONGEST_ORDINAL: Final = 4
"""Digits; a longer number is a date or a database key and not a count of inspections."""


class UserRegex(Grammar):
    """Raises LayoutError at once for a pattern or a date format that cannot work."""

    name = "regex"
    title = "the site's own paths"
    has_levels = True
    numbers_wells = True

    def __init__(self, options: LayoutOptions) -> None:
        super().__init__(options)
        self._pattern = _compiled(options.pattern)
        _check_date_format(options.date_format)

    def read(self, path: str, companions: Companions) -> DropImage:
        match = self._pattern.search(path)
        if match is None:
            raise not_mine("a path that the configured pattern matches")
        found = {group: text for group, text in match.groupdict().items() if text}
        plate = found.get("plate") or found.get("barcode")
        if plate is None:
            raise _unusable("plate or barcode", "")
        where = self._place(plate, found)
        drop = _drop(found.get("drop", "1"))
        taken = self._date(found.get("date"))
        key, ordinal = _inspection(found, taken)
        return self.image(
            replace(where, drop=drop),
            key,
            self._modality(found.get("modality")),
            barcode=found.get("barcode"),
            inspection_ordinal=ordinal,
            captured_at=taken,
        )

    def write(self, image: DropImage) -> str:
        raise LayoutError("A regular expression can be read but not written; use another layout to write paths.")

    def _place(self, plate: str, found: dict[str, str]) -> DropPosition:
        well = found.get("well")
        if well is not None and well.isascii() and well.isdigit():
            return self.place_numbered(plate, _number(well, "well"))
        if well is not None:
            try:
                row, column = parse_well(well)
            except ValueError as error:
                raise _unusable("well", well) from error
        elif "row" in found and "col" in found:
            row, column = _row(found["row"]), _number(found["col"], "col")
        else:
            raise _unusable("well, or row and col", "")
        return self.place(plate, row, column)

    def _date(self, text: str | None) -> datetime | None:
        if text is None:
            return None
        shape = self.options.date_format
        try:
            taken = datetime.strptime(text, shape) if shape else datetime.fromisoformat(text)  # noqa: DTZ007
            if not 1980 <= taken.year <= 2100:
                raise ValueError("no imager took images in that year")
        except ValueError as error:
            raise Aside(
                IgnoreReason.OUT_OF_RANGE, f"the date {quoted(text)} cannot be: {quoted(str(error))}"
            ) from error
        return taken.replace(tzinfo=self.options.timezone) if taken.tzinfo is None else taken

    def _modality(self, text: str | None) -> Modality:
        if text is None:
            return self.options.light or Modality.VISIBLE
        return self.options.light_named(str(int(text)) if text.isascii() and text.isdigit() else text)


def _compiled(pattern: str | None) -> re.Pattern[str]:
    if not pattern:
        raise LayoutError("The regex layout needs a pattern, such as (?P<plate>[^/]+)/(?P<well>[A-H]\\d+)\\.jpg.")
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise LayoutError(f"The pattern {quoted(pattern)} is not a regular expression: {error}.") from error
    groups = compiled.groupindex
    if unknown := sorted(set(groups) - set(_GROUPS)):
        raise LayoutError(f"The pattern names the unknown group {unknown[0]}; groups are {', '.join(_GROUPS)}.")
    if not {"plate", "barcode"} & set(groups):
        raise LayoutError("The pattern has no group that names the plate; add (?P<plate>...) or (?P<barcode>...).")
    if "well" not in groups and not {"row", "col"} <= set(groups):
        raise LayoutError("The pattern has no group that names the well; add (?P<well>...), or both row and col.")
    return compiled


def _check_date_format(date_format: str | None) -> None:
    if date_format is None:
        return
    known = datetime(2001, 2, 3, 4, 5, 6)  # noqa: DTZ001
    try:
        datetime.strptime(known.strftime(date_format), date_format)  # noqa: DTZ007
    except (ValueError, re.error) as error:
        problem = f"The date format {quoted(date_format)} cannot be used: {error}."
        raise LayoutError(f"{problem} Write it like %Y-%m-%d.") from error


def _inspection(found: dict[str, str], taken: datetime | None) -> tuple[str, int | None]:
    text = found.get("inspection")
    if text is None:
        return (f"{taken:%Y-%m-%d}" if taken else "1"), None
    if text.isascii() and text.isdigit() and len(text) <= _LONGEST_ORDINAL:
        return str(int(text)), int(text)
    return text, None


def _row(text: str) -> int:
    letters = text.isascii() and text.isalpha() and len(text) <= 2
    return row_number(text) if letters else _number(text, "row")


def _drop(text: str) -> int:
    letter = len(text) == 1 and text.isascii() and text.isalpha()
    drop = row_number(text) if letter else _number(text, "drop")
    check_drop(drop)
    return drop


def _number(text: str, group: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise _unusable(group, text)
    return int(text)


def _unusable(group: str, text: str) -> Aside:
    found = f"found {quoted(text)}" if text else "found nothing"
    return Aside(IgnoreReason.UNREADABLE_NAME, f"the pattern's group {group} {found}, which cannot be used")
