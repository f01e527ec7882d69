"""Label recorder: finds the drop of a label by its natural keys, and stores the label.

All labels are written here. The drops and summaries that a label changes are updated in its transaction; the cost is
bounded by the inspections touched.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import layouts, tabular
from marcod.catalog import plate_setups
from marcod.database.rows import select_in
from marcod.database.schema import UtcDateTime, drop, image, inspection, label, plate, source
from marcod.domain import PLATE_FORMATS, DropClass, PlateFormat, names_stored, parse_well, well_name
from marcod.errors import LabelError
from marcod.store import derived, plate_names, votes
from marcod.store.votes import NewLabel
from marcod.text import quoted

LONGEST: Final = 1000
"""Characters of a natural key or a person's name."""

LARGEST_GRID: Final = PLATE_FORMATS[1536]
ONE_GRID: Final = {"hwi": PLATE_FORMATS[1536]}
"""Grids of the layouts whose plates all have the same one."""

_MACHINE: Final = re.compile(
    r"(?:marco|model|classifier|autoscorer?)[\s_:/.-]*(?:v(?:ersion)?[\s.]*)?\d[\w.]*"
    r"|autoscorer?|automatic|machine|model|classifier|algorithm",
    re.IGNORECASE | re.ASCII,
)
"""Names of models, which some tables have in the column of the person."""

NO_PLATE: Final = "no plate"
"""Start of the reason for a plate that is not known."""


@dataclass(frozen=True, slots=True)
class DropReference:
    """Natural keys of a labelled drop or image, as they were written; ``at`` is the label's time, and aware.

    ``plate`` is a key or a barcode, ``inspection`` a key or a number, ``path`` an image's below its source's root.
    Either a path or a plate and a well are needed.
    """

    plate: str | None = None
    well: str | None = None
    drop: int | None = None
    inspection: str | None = None
    source: str | None = None
    path: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LabelTarget:
    """A drop at an inspection, or one image of it."""

    drop_id: int
    inspection_id: int
    image_id: int | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    drop_id: int
    drop_number: int
    inspection_id: int
    key: str
    ordinal: int | None
    taken_at: datetime


class _PlateFound(NamedTuple):
    """A plate found by a key or barcode."""

    id: int
    key: str
    source: str


_LOOKS: Final = (
    sa.select(
        drop.c.id,
        drop.c.drop_number,
        inspection.c.id,
        inspection.c.key,
        inspection.c.ordinal,
        sa.func.min(sa.func.coalesce(image.c.captured_at, image.c.seen_at), type_=UtcDateTime()),
    )
    .join(image, image.c.drop_id == drop.c.id)
    .join(inspection, inspection.c.id == image.c.inspection_id)
    .where(
        drop.c.plate_id == sa.bindparam("plate"),
        drop.c.well_row == sa.bindparam("row"),
        drop.c.well_column == sa.bindparam("column"),
    )
    .group_by(drop.c.id, inspection.c.id)
    .order_by(inspection.c.order_key, inspection.c.id)
)
"""Built once: thousands of labels ask it."""


class Finder:
    """Look-up of labelled drops within one transaction; each plate is looked up once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._plates: dict[tuple[str, str | None], list[_PlateFound]] = {}
        self._grids: dict[int, _Grid] = {}

    def find(self, named: DropReference) -> LabelTarget:
        """Find a drop or an image.

        Raises LabelError, with ``may_come`` where the plate or its images may still arrive.
        """
        if named.path is not None:
            return self._image(named)
        if named.plate is None or named.well is None:
            raise LabelError("it names no plate and well, and no image; give plate and well")
        written = _well(named.well)
        plate_id = self._plate_of(named)
        row, column = self._position(plate_id, written)
        where = f"{well_name(row, column)} of plate {quoted(named.plate)}"
        looks = self._looks(plate_id, row, column)
        if not looks:
            raise LabelError(f"no image of well {where} has arrived yet", may_come=True)
        chosen = _at(_of_drop(looks, named.drop, where), named, where)
        return LabelTarget(chosen.drop_id, chosen.inspection_id)

    def inspections(self, named: DropReference) -> int:
        """Count the inspections of the plate so far. Raises LabelError as ``find`` does."""
        of_plate = inspection.c.plate_id == self._plate_of(named)
        counted = sa.select(sa.func.count()).select_from(inspection).where(of_plate)
        return int(self._connection.execute(counted).scalar_one())

    def _plate_of(self, named: DropReference) -> int:
        source_name = None if named.source is None else plain("source", named.source)
        name = plain("plate", named.plate or "")
        if (name, source_name) not in self._plates:
            self._plates[name, source_name] = self._look_plate_up(name, source_name)
        found = self._plates[name, source_name]
        if not found:
            raise self._no_plate(name, source_name)
        if len(found) > 1:
            raise LabelError(f"several plates answer to {quoted(name)} ({_described(name, found)}")
        return found[0].id

    def _no_plate(self, name: str, source_name: str | None) -> LabelError:
        """Make the error for a plate that is not recorded, with what a spreadsheet has done to its name."""
        below = f" in source {quoted(source_name)}" if source_name else ""
        if damage := tabular.damage(name):
            return LabelError(f"{NO_PLATE} is called {quoted(name)}{below}: {damage}")
        text = f"{NO_PLATE} has the key or barcode {quoted(name)}{below} yet"
        if before := tabular.before_zeros_were_lost(name):
            whole = next((each for each in before if self._look_plate_up(each, source_name)), None)
            if whole is not None:
                text += f", but {quoted(whole)} is there: a spreadsheet removes leading zeros; {tabular.AS_TEXT}"
        return LabelError(text, may_come=True)

    def _position(self, plate_id: int, written: tuple[int, int] | int) -> tuple[int, int]:
        """Find row and column of a well, or of its number. Raises LabelError outside the plate."""
        if plate_id not in self._grids:
            self._grids[plate_id] = self._grid(plate_id)
        grid = self._grids[plate_id]
        if isinstance(written, int):
            return grid.position(written)
        if grid.given is not None and not grid.given.holds(*written):
            raise LabelError(f"well {well_name(*written)} is outside the plate's {grid.size} wells")
        return written

    def _grid(self, plate_id: int) -> "_Grid":
        columns = (*plate_setups.COLUMNS, source.c.layout, source.c.reading)
        statement = sa.select(*columns).join(source, source.c.id == plate.c.source_id).where(plate.c.id == plate_id)
        row = self._connection.execute(statement).one()
        setup = plate_setups.setup_of(row)
        given = None if setup.inferred else setup.format
        read = layouts.options_of(row.reading, lambda _: setup).grid_of("")
        return _Grid(given, given or ONE_GRID.get(row.layout) or read)

    def _look_plate_up(self, name: str, source_name: str | None) -> list["_PlateFound"]:
        columns = (plate.c.id, plate.c.key, source.c.name)
        statement = sa.select(*columns).join(source, source.c.id == plate.c.source_id).order_by(plate.c.id)
        if source_name is not None:
            statement = statement.where(source.c.name == source_name)
        return [_PlateFound(*row) for row in plate_names.select_named(self._connection, statement, name)]

    def _looks(self, plate_id: int, row: int, column: int) -> list[_Look]:
        """List the drops of a well at their inspections, in the inspections' order."""
        where = {"plate": plate_id, "row": row, "column": column}
        return [_Look(*found) for found in self._connection.execute(_LOOKS, where)]

    def _image(self, named: DropReference) -> LabelTarget:
        path = plain("path", named.path or "").replace("\\", "/").removeprefix("./")
        statement = (
            sa.select(
                image.c.drop_id, image.c.inspection_id, image.c.id, drop.c.well_row, drop.c.well_column, drop.c.plate_id
            )
            .join(source, source.c.id == image.c.source_id)
            .join(drop, drop.c.id == image.c.drop_id)
            .where(image.c.path.in_({path, *names_stored(named.path or "")}))
        )
        if named.source is not None:
            statement = statement.where(source.c.name == plain("source", named.source))
        found = self._connection.execute(statement).all()
        if not found:
            raise LabelError(f"no image {quoted(path)} has arrived yet", may_come=True)
        if len(found) > 1:
            raise LabelError(f"several sources have an image {quoted(path)}; name the source")
        drop_id, inspection_id, image_id, row, column, plate_id = found[0]
        if named.well is not None and self._position(plate_id, _well(named.well)) != (row, column):
            raise LabelError(f"image {quoted(path)} shows another well than {quoted(named.well)}; correct one of them")
        return LabelTarget(drop_id, inspection_id, image_id)


def _described(name: str, found: Sequence[_PlateFound]) -> str:
    """Describe plates of one name, with the next step; the end of a sentence with one bracket open."""
    if (keys := plate_names.whole_keys(name, [each.key for each in found])) is not None:
        return f"{keys}); name the key"
    sources = list(dict.fromkeys(each.source for each in found))
    # In one source two plates can share a barcode, not a key.
    which = "name the key" if len(sources) == 1 else "name the source, with --source or in the column source"
    return f"{', '.join(sources)}); {which}"


def _of_drop(looks: list[_Look], number: int | None, where: str) -> list[_Look]:
    numbers = sorted({look.drop_number for look in looks})
    if number is None and len(numbers) > 1:
        raise LabelError(f"well {where} has drops {', '.join(map(str, numbers))}; say which")
    chosen = [look for look in looks if number in (None, look.drop_number)]
    if not chosen:
        raise LabelError(f"no image of drop {number} in well {where} has arrived yet", may_come=True)
    return chosen


def _at(looks: list[_Look], named: DropReference, where: str) -> _Look:
    """Choose the inspection named; else the last one at the time of the label; else the last one."""
    if named.inspection is not None:
        text = plain("inspection", named.inspection)
        numbers = (*names_stored(text), text.lstrip("0"))
        by_key = [look for look in looks if look.key in names_stored(text)]
        # A key is what the views show, so it goes before another inspection's number.
        for look in by_key or [look for look in looks if str(look.ordinal) in numbers]:
            return look
        if damage := tabular.damage(text):
            raise LabelError(f"no inspection is called {quoted(text)}: {damage}")
        raise LabelError(f"no image of well {where} at inspection {quoted(text)} has arrived yet", may_come=True)
    at = named.at
    before = [look for look in looks if at is not None and look.taken_at <= at]
    return (before or looks)[-1]


@dataclass(frozen=True, slots=True)
class _Grid:
    """Grid of a plate as its metadata gives it, and the grid on which its well numbers are read."""

    given: PlateFormat | None
    read: PlateFormat

    @property
    def size(self) -> str:
        return f"{self.read.rows} x {self.read.columns}"

    def position(self, number: int) -> tuple[int, int]:
        """Return row and column of a well's number. Raises LabelError."""
        if not 1 <= number <= self.read.wells:
            raise LabelError(
                f"well number {number} is outside the plate's {self.size} wells; correct it, or "
                "give the plate's format with `marcod plate import`"
            )
        return self.read.position(number)


_NUMBER: Final = re.compile(r"\d{1,4}(?:\.0+)?", re.ASCII)


def _well(text: str) -> tuple[int, int] | int:
    """Parse a well such as A1 into row and column, or a well's number, row by row from 1. Raises LabelError."""
    well = plain("well", text)
    if _NUMBER.fullmatch(well):
        return int(well.partition(".")[0])
    if damage := tabular.damage(well):
        raise LabelError(f"{quoted(text)} is not a well: {damage}")
    try:
        row, column = parse_well(well)
    except ValueError as error:
        raise LabelError(f"{quoted(text)} is not a well; write it like A1 or AF48, or as its number") from error
    if row > LARGEST_GRID.rows or column > LARGEST_GRID.columns:
        raise LabelError(f"{quoted(text)} is not a well of any plate; correct it")
    return row, column


def person_named(text: str) -> str:
    """Return a person's name without surrounding blanks. Raises LabelError for a model's name."""
    person = plain("person", text)
    if _MACHINE.fullmatch(person):
        raise LabelError(f"{quoted(person)} is a model and not a person; name who labelled the drop")
    return person


def plain(what: str, text: str) -> str:
    """Strip a text. Raises LabelError unless it can be printed and is of a sane length."""
    kept = text.strip()
    if not kept:
        raise LabelError(f"{what} is empty; fill it in")
    if len(kept) > LONGEST:
        raise LabelError(f"{what} has more than {LONGEST} characters; shorten it")
    if not kept.isprintable():
        raise LabelError(f"{what} {quoted(kept)} holds characters that cannot be printed; correct it")
    return kept


def add(connection: Connection, givens: Iterable[NewLabel], now: datetime) -> int:
    """Store labels and update what they change. Returns how many are new."""
    with following(connection, now) as add_labels:
        return add_labels(list(givens))


@contextmanager
def following(connection: Connection, now: datetime) -> Iterator[Callable[[list[NewLabel]], int]]:
    """Yield a function that stores labels and returns how many are new; update what they change once, at the end."""
    new: list[NewLabel] = []

    def add_labels(givens: list[NewLabel]) -> int:
        count = votes.add(connection, givens, now)
        if count:
            new.extend(givens)
        return count

    yield add_labels
    if new:
        derived.refresh(connection, {given.drop_id for given in new}, {given.inspection_id for given in new}, now)


def fresh(
    connection: Connection, givens: Sequence[NewLabel], undated: Collection[str], standing: Collection[str]
) -> list[NewLabel]:
    """Choose the labels that are not stored yet, and date some of them later.

    ``undated`` are the keys of labels without a time: they are new unless the person ever gave that label to that
    target. ``standing`` are the keys of labels dated by their image, which are the last of their file: such a label
    comes after the person's former ones of the same format, and may come back after one of another class.
    """
    kept = votes.key_ids(connection, [given.key for given in givens])
    labels = labels_of(connection, {given.drop_id for given in givens})
    found = []
    for given in givens:
        before = labels.setdefault(voter(given), [])
        latest = before[-1] if before else None
        again = [each for each in before if (each.original, each.vocabulary) == (given.original, given.vocabulary)]
        if given.key in undated:
            new = not again
        elif given.key in standing:
            known = given.key in kept or any(_same_way(given, each) for each in again)
            new = not known or (latest is not None and _replaces(given, latest))
        else:
            new = given.key not in kept
        if new:
            dated_later = given.key in undated or given.key in standing
            found.append(_after(given, latest) if dated_later and latest is not None else given)
            before.append(found[-1])
            before.sort(key=lambda each: each.labelled_at)
    return found


def labels_of(connection: Connection, drop_ids: Collection[int]) -> dict[tuple[object, ...], list[NewLabel]]:
    """Read all labels ever given to some drops by :func:`voter`, the oldest first."""
    columns = (
        label.c.drop_id, label.c.inspection_id, label.c.label, label.c.person, label.c.labelled_at, label.c.origin,
        label.c.original, label.c.vocabulary, label.c.image_id,
    )  # fmt: skip
    statement = sa.select(*columns).order_by(label.c.labelled_at, label.c.id)
    found: dict[tuple[object, ...], list[NewLabel]] = {}
    for row in select_in(connection, statement, label.c.drop_id, drop_ids):
        given = NewLabel(*row)
        given = replace(given, label=None if given.label is None else DropClass(given.label))
        found.setdefault(voter(given), []).append(given)
    return found


def voter(given: NewLabel) -> tuple[object, ...]:
    """Return the key of a person's vote: the drop, the inspection, the image if it is of one alone, and the person."""
    return given.drop_id, given.inspection_id, given.image_id, given.person


def _same_way(given: NewLabel, other: NewLabel) -> bool:
    """Return whether both came in files of one format."""
    return given.origin.partition(" ")[0] == other.origin.partition(" ")[0]


def _replaces(given: NewLabel, latest: NewLabel) -> bool:
    """Return whether a label replaces the latest; an import of the same file undoes no withdrawal or newer label."""
    return latest.label is not None and latest.label is not given.label and _same_way(given, latest)


def _after(given: NewLabel, latest: NewLabel) -> NewLabel:
    """Date a label after the person's latest one where both came the same way."""
    if not _same_way(given, latest):
        return given
    return replace(given, labelled_at=max(given.labelled_at, latest.labelled_at + timedelta(microseconds=1)))


def withdraw(connection: Connection, target: LabelTarget, *, person: str, origin: str, now: datetime) -> int:
    """Withdraw all labels of a person of a drop at an inspection, or of one image. Returns how many."""
    of_target = sa.and_(
        label.c.drop_id == target.drop_id, label.c.inspection_id == target.inspection_id, label.c.person == person
    )
    labels = sa.select(label).outerjoin(image, image.c.id == label.c.image_id).where(of_target)
    if target.image_id is not None:
        counting = sa.select(votes.COUNTING).where(image.c.id == target.image_id)
        labels = labels.where(connection.execute(counting).scalar_one() == votes.COUNTING)
    latest: dict[int | None, Any] = {}
    for row in connection.execute(labels.order_by(label.c.labelled_at, label.c.id)):
        latest[row.image_id] = row
    nothing = NewLabel(target.drop_id, target.inspection_id, None, person, now, origin)
    # A label dated after now, by a clock that was ahead, must not outlive its withdrawal.
    back = [
        replace(nothing, image_id=image_id, labelled_at=max(now, row.labelled_at + timedelta(microseconds=1)))
        for image_id, row in latest.items()
        if row.label is not None
    ]
    return add(connection, back, now)
