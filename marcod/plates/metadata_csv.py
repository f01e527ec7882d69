"""Plate metadata from a lab's own CSV table, with a sentence for every wrong line."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from marcod import tabular
from marcod.domain import PLATE_FORMATS, composed, folded, path_text
from marcod.plates.metadata import TEXTS, Grid, MetadataError, PlateRecord

TEXT_LIMIT: Final = 300
"""Characters of a name."""

GRID: Final = ("rows", "columns", "drops")
FIELDS: Final = ("source", "plate", *TEXTS, "format", *GRID, "reservoir")
"""Columns of a table of plates.

``plate`` is the plate's key within its source; a format is ``96x2`` or three columns; ``reservoir`` is a subwell
without a drop, several of them, or ``none``.
"""

NO_RESERVOIR: Final = frozenset({"0", "-", "no", "none"})
"""Words for a plate all of whose subwells hold drops."""

_MOST: Final = 99
_GRID_TEXT: Final = re.compile(r"([0-9]{1,4})\s*[xX×*]\s*([0-9]{1,2})(?:\s*[xX×*]\s*([0-9]{1,2}))?")


@dataclass(frozen=True, slots=True)
class Table:
    """A table as read: its records, and the headings of columns that were not used."""

    records: tuple[PlateRecord, ...]
    unused: tuple[str, ...]


def grid_of(text: str) -> Grid:
    """Parse a format written as wells x drops (``96x2``) or rows x columns x drops (``8x12x3``). Raises ValueError."""
    match = _GRID_TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a plate format; write wells x drops, as 96x2, or 8x12x2")
    first, second = int(match[1]), int(match[2])
    if match[3] is not None:
        return _checked(Grid(first, second, int(match[3])))
    wells = PLATE_FORMATS.get(first)
    if wells is None:
        known = ", ".join(map(str, PLATE_FORMATS))
        raise ValueError(f"{text!r} is not clear: {first} is none of {known} wells; write rows x columns x drops")
    return _checked(Grid(wells.rows, wells.columns, second))


def _checked(grid: Grid) -> Grid:
    for name in GRID:
        if not 1 <= getattr(grid, name) <= _MOST:
            raise ValueError(f"a plate has 1 to {_MOST} {name}, not {getattr(grid, name)}")
    return grid


class WrongLinesError(MetadataError):
    """Lines that cannot be read; ``records`` are the others, which may be wrong in another way."""

    def __init__(self, problems: Sequence[str], records: Sequence[PlateRecord]) -> None:
        super().__init__(problems)
        self.records = tuple(records)


Known = Callable[[str], Collection[tuple[str, str]]]
"""Source and key of each plate that answers to a key or a barcode."""


def read(data: bytes, columns: Mapping[str, str], source_name: str | None, known: Known = lambda name: ()) -> Table:
    """Read the lines of a table in any form that :mod:`marcod.tabular` reads.

    ``columns`` maps headings to :data:`FIELDS`, where they do not bear a field's name; ``source_name`` is the source
    of lines that name none. Without it they mean the one plate that is ``known`` by their key or barcode.

    Raises:
        MetadataError: the table cannot be read; :class:`WrongLinesError` where only lines are wrong.
    """
    try:
        text = tabular.text_of(data)
    except tabular.TableError as error:
        raise MetadataError([str(error)]) from error
    return _Reading(columns, source_name, known).table(tabular.lines_of(text))


@dataclass
class _Reading:
    """One pass over a table, which continues after a wrong line to report all of them."""

    columns: Mapping[str, str]
    source_name: str | None
    known: Known
    problems: list[str] = field(default_factory=list)

    def table(self, lines: Iterable[tuple[int, list[str]]]) -> Table:
        found: dict[tuple[str, str], PlateRecord] = {}
        fields: list[str | None] | None = None
        unused: tuple[str, ...] = ()
        try:
            for line, cells in lines:
                if fields is None:
                    fields, unused = self._fields(line, cells)
                elif (record := self._record(line, fields, cells)) is not None:
                    self._keep(found, record)
        except tabular.TableError as error:
            self.problems.append(str(error))
        if not found and not self.problems:
            self.problems.append("the table has no line with a plate")
        if self.problems:
            raise WrongLinesError(self.problems, tuple(found.values()))
        return Table(tuple(found.values()), unused)

    def _fields(self, line: int, heading: list[str]) -> tuple[list[str | None], tuple[str, ...]]:
        """Find the field of each column, and the headings of the others."""
        places = tabular.match_headings(line, heading, {name: (name,) for name in FIELDS}, self.columns)
        if "plate" not in places:
            problems = [f"line {line}: no column is called 'plate'; name the one that is with --map COLUMN=plate"]
            if "source" not in places and self.source_name is None:
                problems.append(
                    f"line {line}: no column is called 'source'; name one, or give --source, for new plates"
                )
            raise MetadataError(problems)
        at = {place: name for name, place in places.items()}
        unused = tuple(text for place, text in enumerate(heading) if text and place not in at)
        return [at.get(place) for place in range(len(heading))], unused

    def _record(self, line: int, fields: list[str | None], cells: list[str]) -> PlateRecord | None:
        named = zip(fields, cells, strict=False)
        given = {name: cell for name, cell in named if name is not None and cell}
        try:
            if any(cells[len(fields) :]):
                raise ValueError(f"has {len(cells)} cells under {len(fields)} headings")
            for name, cell in given.items():
                _check_text(name, cell)
            if "plate" not in given:
                raise ValueError("names no plate")
            place = given.get("source") or self.source_name
            if place is not None:
                return _record_of(line, place, given)
            place, key = self._only_known(given["plate"])
            return replace(_record_of(line, place, given), plate=key)
        except ValueError as error:
            self.problems.append(f"line {line}: {error}")
            return None

    def _only_known(self, name: str) -> tuple[str, str]:
        """Return source and key of the only plate that answers to a name. Raises ValueError."""
        plates = self.known(name)
        if len(plates) == 1:
            return next(iter(plates))
        if not plates:
            raise ValueError(
                f"names no source, and no plate {name} is there yet; add a column 'source' or give --source"
            )
        there = " and ".join(f"{key} of {place}" for place, key in plates)
        raise ValueError(f"names no source, and {name} may be {there}; add a column 'source' or give --source")

    def _keep(self, found: dict[tuple[str, str], PlateRecord], record: PlateRecord) -> None:
        before = found.setdefault((record.source, folded(record.plate)), record)
        if before.values() != record.values():
            self.problems.append(
                f"line {record.line}: says other things of plate {record.plate} than line {before.line}"
            )


def _record_of(line: int, place: str, given: Mapping[str, str]) -> PlateRecord:
    """Make a line's record, with names as layouts give them. Raises ValueError."""
    barcode = path_text(composed(given["barcode"])) if "barcode" in given else None
    return PlateRecord(
        line,
        place,
        path_text(composed(given["plate"])),
        barcode=barcode,
        project=given.get("project"),
        screen=given.get("screen"),
        grid=_grid(given),
        reservoirs=_reservoirs(given["reservoir"]) if "reservoir" in given else None,
    )


def _reservoirs(text: str) -> frozenset[int]:
    """Parse the subwells without a drop: numbers with any separator. Raises ValueError."""
    if text.strip().lower() in NO_RESERVOIR:
        return frozenset()
    numbers = re.split(r"[\s,;+/]+", text.strip())
    if not all(re.fullmatch(r"[1-9][0-9]?", number) for number in numbers):
        raise ValueError(f"reservoir {text!r} is no subwell; write its number, several as 2;4, or none")
    return frozenset(map(int, numbers))


def _check_text(name: str, cell: str) -> None:
    if len(cell) > TEXT_LIMIT:
        raise ValueError(f"{name} has {len(cell)} characters; {TEXT_LIMIT} are the most")
    if not cell.isprintable():
        raise ValueError(f"{name} {cell!r} has a character that cannot be printed")


def _grid(given: Mapping[str, str]) -> Grid | None:
    """Return the format of a line. Raises ValueError."""
    written = grid_of(given["format"]) if "format" in given else None
    parts = {name: given[name] for name in GRID if name in given}
    if not parts:
        return written
    if len(parts) < len(GRID):
        raise ValueError(f"gives {' and '.join(parts)} without {' and '.join(n for n in GRID if n not in parts)}")
    if wrong := [name for name, number in parts.items() if not re.fullmatch(r"\d{1,4}", number, re.ASCII)]:
        raise ValueError(f"{wrong[0]} {parts[wrong[0]]!r} is no number")
    counted = _checked(Grid(*(int(parts[name]) for name in GRID)))
    if written is not None and written != counted:
        raise ValueError(f"format {given['format']} contradicts {counted} in its other columns")
    return counted
