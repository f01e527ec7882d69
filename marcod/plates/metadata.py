"""Plate metadata: the barcode, format, project and screen that a lab gives to plates by their keys.

Guarantees:
- An import is whole or changes nothing, and a second one of the same records changes nothing.
- Each wrong line has its sentence.
- A value that a record does not give stays as it is. Its barcode wins over one that the path carries.
- Records may come before the plate's first image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.catalog import plate_setups, source_changes
from marcod.database.engine import insert
from marcod.database.rows import parts, select_in
from marcod.database.schema import drop, inspection_summary, plate, source
from marcod.domain import DropImage, IgnoreReason, PlateFormat, PlateSetup, folded
from marcod.errors import MarcodError
from marcod.store import audit_log, derived, locks, plate_names, summaries
from marcod.store.selects import at_inspection
from marcod.tabular import AS_TEXT, before_zeros_were_lost, damage
from marcod.text import count

TEXTS: Final = ("barcode", "project", "screen")
READ_BY: Final = ("format_rows", "format_columns", "format_drops", "reservoirs")
"""Columns that decide what the paths of a plate's images mean."""


class MetadataError(MarcodError):
    """Metadata that cannot be imported. ``problems`` has a sentence for every wrong line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Grid:
    """Wells in rows and columns, and the drops in each."""

    rows: int
    columns: int
    drops: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.drops}"

    def columns_of_plate(self) -> dict[str, int]:
        """Return the values of the plate's row."""
        return {"format_rows": self.rows, "format_columns": self.columns, "format_drops": self.drops}


@dataclass(frozen=True, slots=True)
class PlateRecord:
    """One line's values of one plate; None where it gives none. Texts are as the database keeps them."""

    line: int
    source: str
    plate: str
    barcode: str | None = None
    project: str | None = None
    screen: str | None = None
    grid: Grid | None = None
    reservoirs: frozenset[int] | None = None

    def values(self) -> dict[str, Any]:
        """Return the columns of the plate's row that this line decides."""
        texts = {name: getattr(self, name) for name in TEXTS if getattr(self, name) is not None}
        if self.reservoirs is not None:
            texts["reservoirs"] = ",".join(map(str, sorted(self.reservoirs)))
        return texts | (self.grid.columns_of_plate() if self.grid else {})


@dataclass(frozen=True, slots=True)
class Change:
    """Changes of one plate, as ``(before, after)`` by column; ``new`` when the plate had no row."""

    line: int
    source: str
    plate: str
    new: bool
    values: dict[str, tuple[Any, Any]]

    @property
    def rereads(self) -> bool:
        """True if images of the plate that are there may show other wells, or none, by this change."""
        return not self.new and not self.values.keys().isdisjoint(READ_BY)


@dataclass(frozen=True, slots=True)
class MetadataPlan:
    """Effect of an import. ``missing`` names the sources that have no row yet."""

    changes: tuple[Change, ...]
    unchanged: int
    warnings: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlateMetadata:
    """Project, screen and format of one plate; ``grid`` is None while its format is not known."""

    project: str | None
    screen: str | None
    grid: Grid | None


def plan(connection: Connection, records: Sequence[PlateRecord], configured: Iterable[str]) -> MetadataPlan:
    """Plan an import. Raises MetadataError for unknown sources and formats that the drops contradict."""
    ids = _source_ids(connection)
    missing = {p.source for p in records if p.source not in ids}
    problems = _unknown_sources(records, missing - set(configured), {*ids, *configured})
    known = _plates(connection, records, ids)
    changes = [c for record in records if (c := _change(record, known.get(_place(record))))]
    problems += _damaged(connection, records, known, ids)
    problems += _contradicted(connection, records, known)
    if problems:
        raise MetadataError(problems)
    warnings = _shared_barcodes(connection, records, ids)
    return MetadataPlan(tuple(changes), len(records) - len(changes), tuple(warnings), tuple(sorted(missing)))


def import_metadata(connection: Connection, records: Sequence[PlateRecord], actor: str, now: datetime) -> MetadataPlan:
    """Write the records, with an audit row for every changed barcode of a known plate.

    Every source must have its row. Raises MetadataError as :func:`plan` does, before anything is written. The
    summaries follow by :func:`catch_up`, and what the paths of images mean by :func:`rereading.catch_up`.
    """
    ids = _source_ids(connection)
    source_changes.hold(connection, *{ids[record.source] for record in records if record.source in ids})
    locks.hold(connection, plates=[int(row.id) for row in _plates(connection, records, ids).values()])
    planned = plan(connection, records, ())
    fresh = [
        {"source_id": ids[c.source], "key": c.plate, "first_seen_at": now, **_after(c)}
        for c in planned.changes
        if c.new
    ]
    # Rows of one statement have the same columns.
    for part in parts(fresh):
        rows = [{name: row.get(name) for name in _INSERTED} for row in part]
        statement = insert(connection, plate)
        # A watcher may have recorded the plate since it was looked up.
        names = (*_INSERTED[3:], "barcode_folded")
        given = {name: sa.func.coalesce(statement.excluded[name], plate.c[name]) for name in names}
        connection.execute(statement.on_conflict_do_update(index_elements=["source_id", "key"], set_=given), rows)
    for change in planned.changes:
        if not change.new:
            _alter(connection, ids[change.source], change, actor, now)
    return planned


_INSERTED: Final = (
    "source_id", "key", "first_seen_at", *TEXTS, "format_rows", "format_columns", "format_drops", "reservoirs",
)  # fmt: skip


def _place(record: PlateRecord) -> tuple[str, str]:
    """Return the key by which two lines are of one plate."""
    return record.source, folded(record.plate)


def _after(change: Change) -> dict[str, Any]:
    return {name: after for name, (_, after) in change.values.items()}


def _alter(connection: Connection, source_id: int, change: Change, actor: str, now: datetime) -> None:
    where = sa.and_(plate.c.source_id == source_id, plate.c.key == change.plate)
    values = _after(change)
    if change.rereads:
        values["reread_after"] = 0
    if "barcode" in values:
        values["barcode_folded"] = folded(values["barcode"])
    connection.execute(sa.update(plate).where(where).values(**values))
    if "barcode" in change.values:
        before, after = change.values["barcode"]
        subject = f"{change.source} {change.plate}"
        audit_log.write(connection, actor, "plate barcode", subject, {"from": before, "to": after}, now)


def catch_up(connection: Connection, now: datetime, limit: int = 100) -> int:
    """Count up to ``limit`` inspections again whose plate or source expects other numbers by now. Returns how many.

    Apart from :func:`import_metadata`, because an archive has many inspections, for which no import should wait.
    """
    expected = sa.func.coalesce(summaries.expected_drops(), -1)
    behind = (
        at_inspection(sa.select(inspection_summary.c.inspection_id), inspection_summary.c.inspection_id)
        .where(sa.func.coalesce(inspection_summary.c.expected, -1) != expected)
        .distinct()
        .order_by(inspection_summary.c.inspection_id)
        .limit(limit)
    )
    ids = [int(row[0]) for row in connection.execute(behind)]
    derived.refresh(connection, (), ids, now)
    return len(ids)


def metadata_of(connection: Connection, plate_id: int) -> PlateMetadata:
    """Return the metadata of one plate."""
    row = connection.execute(sa.select(plate).where(plate.c.id == plate_id)).one()
    grid = None if row.format_drops is None else Grid(row.format_rows, row.format_columns, row.format_drops)
    return PlateMetadata(row.project, row.screen, grid)


def sources(connection: Connection) -> list[str]:
    """Return the names of the sources that have a row."""
    return sorted(_source_ids(connection))


def _source_ids(connection: Connection) -> dict[str, int]:
    return {name: int(number) for name, number in connection.execute(sa.select(source.c.name, source.c.id))}


def _unknown_sources(records: Iterable[PlateRecord], unknown: set[str], known: set[str]) -> list[str]:
    there = ", ".join(sorted(known)) or "none yet"
    return [
        f"line {p.line}: there is no source {p.source!r}; configured or seen: {there}"
        for p in records
        if p.source in unknown
    ]


def _plates(
    connection: Connection, records: Sequence[PlateRecord], ids: Mapping[str, int]
) -> dict[tuple[str, str], Any]:
    """Return the rows of those plates that have one, by source and key."""
    keys: dict[str, list[str]] = {}
    for record in records:
        if record.source in ids:
            keys.setdefault(record.source, []).append(record.plate)
    found: dict[tuple[str, str], Any] = {}
    for name, wanted in keys.items():
        of_source = plate_names.by_key(connection, ids[name], wanted)
        found |= {(name, key): row for key, row in of_source.items()}
    return found


def _damaged(
    connection: Connection,
    records: Iterable[PlateRecord],
    known: Mapping[tuple[str, str], Any],
    ids: Mapping[str, int],
) -> list[str]:
    """Make a sentence for every key and barcode that a spreadsheet has damaged; what a plate has already is sound."""
    problems = []
    new = [record for record in records if _place(record) not in known]
    whole = _with_zeros(connection, new, ids)
    for record in records:
        row = known.get(_place(record))
        checks = [] if row is not None else [("plate", record.plate, whole.get((record.source, record.plate)))]
        if record.barcode is not None and (row is None or row.barcode != record.barcode):
            former = row.barcode if row is not None and row.barcode in before_zeros_were_lost(record.barcode) else None
            checks.append(("barcode", record.barcode, former))
        for name, text, before in checks:
            lost = f"{before!r} has lost its leading zeros in a spreadsheet; {AS_TEXT}" if before else None
            if reason := damage(text) or lost:
                problems.append(f"line {record.line}: {name} {text!r}: {reason}")
    return problems


def _with_zeros(
    connection: Connection, records: Iterable[PlateRecord], ids: Mapping[str, int]
) -> dict[tuple[str, str], str]:
    """Find the known keys that are keys of these records with zeros before them."""
    found = {}
    numbers = [p for p in records if p.source in ids and p.plate.isascii() and p.plate.isdigit() and p.plate[0] != "0"]
    for some in parts(numbers):
        part = {(ids[p.source], p.plate): p for p in some}
        bare = sa.func.ltrim(plate.c.key, "0")
        rows = sa.select(plate.c.source_id, plate.c.key, bare).where(
            plate.c.source_id.in_({source_id for source_id, _ in part}), bare.in_({key for _, key in part})
        )
        for source_id, key, without in connection.execute(rows):
            if (record := part.get((source_id, without))) is not None:
                found[record.source, record.plate] = str(key)
    return found


def _change(record: PlateRecord, row: Any) -> Change | None:
    if row is None:
        values = {name: (None, value) for name, value in record.values().items()}
        return Change(record.line, record.source, record.plate, True, values)
    before = {name: getattr(row, name) for name in record.values()}
    values = {name: (before[name], value) for name, value in record.values().items() if before[name] != value}
    return Change(record.line, record.source, str(row.key), False, values) if values else None


def _contradicted(
    connection: Connection, records: Iterable[PlateRecord], known: Mapping[tuple[str, str], Any]
) -> list[str]:
    """Make a sentence for every format smaller than the drops seen; subwells have gaps in their numbers: count them."""
    given = {known[_place(p)].id: p for p in records if p.grid is not None and _place(p) in known}
    regridded = {row.id for row in known.values() if (p := given.get(row.id)) is not None and _alters_grid(p, row)}
    numbered = plate_setups.numbered(connection, regridded)
    problems = [
        f"line {given[plate_id].line}: plate {given[plate_id].plate} is said to be {given[plate_id].grid}, but {why}"
        for plate_id in sorted(numbered)
        if (why := _off_grid(connection, plate_id, given[plate_id])) is not None
    ]
    for part in parts(sorted(given.keys() - numbered)):
        for plate_id, *seen in connection.execute(_extent(part)):
            record = given[plate_id]
            assert record.grid is not None
            wanted = (record.grid.rows, record.grid.columns, record.grid.drops)
            if any(most > limit for most, limit in zip(seen, wanted, strict=True)):
                problems.append(
                    f"line {record.line}: plate {record.plate} is said to be {record.grid}, but its drops seen so far "
                    f"take {count(seen[0], 'row')}, {count(seen[1], 'column')} and {count(seen[2], 'drop')} per well"
                )
    return problems


def _alters_grid(record: PlateRecord, row: Any) -> bool:
    assert record.grid is not None
    return (row.format_rows, row.format_columns) != (record.grid.rows, record.grid.columns)


def _off_grid(connection: Connection, plate_id: int, record: PlateRecord) -> str | None:
    """Find a path of a plate with numbered wells that does not fit a format; None where all fit."""
    assert record.grid is not None
    told = PlateSetup(PlateFormat(record.grid.rows, record.grid.columns), record.reservoirs)
    drops: dict[tuple[int, int], set[int]] = {}
    for path, verdict in plate_setups.read_as(connection, plate_id, told):
        if isinstance(verdict, DropImage):
            drops.setdefault((verdict.row, verdict.column), set()).add(verdict.drop)
        elif verdict.reason is IgnoreReason.OUT_OF_RANGE:
            return f"{path} does not fit: {verdict.detail.partition(';')[0]}"
    most = max((len(found) for found in drops.values()), default=0)
    return None if most <= record.grid.drops else f"its drops seen so far take {count(most, 'drop')} per well"


def _extent(plate_ids: Sequence[int]) -> sa.Select[Any]:
    """Select the last row, the last column and the most drops of a well, by plate."""
    wells = (
        sa.select(drop.c.plate_id, drop.c.well_row, drop.c.well_column, sa.func.count().label("drops"))
        .where(drop.c.plate_id.in_(plate_ids))
        .group_by(drop.c.plate_id, drop.c.well_row, drop.c.well_column)
        .subquery()
    )
    return sa.select(
        wells.c.plate_id, sa.func.max(wells.c.well_row), sa.func.max(wells.c.well_column), sa.func.max(wells.c.drops)
    ).group_by(wells.c.plate_id)


def _shared_barcodes(connection: Connection, records: Iterable[PlateRecord], ids: Mapping[str, int]) -> list[str]:
    """Warn of plates of one source that would share a barcode, as imagers do give one to two plates."""
    holders: dict[tuple[str, str], set[str]] = {}
    decided = {_place(p) for p in records if p.barcode is not None}
    spelt = {folded(p.barcode): p.barcode for p in records if p.barcode is not None}
    for record in records:
        if record.barcode is not None:
            holders.setdefault((record.source, folded(record.barcode)), set()).add(record.plate)
    names = {number: name for name, number in ids.items()}
    columns = (plate.c.source_id, plate.c.key, plate.c.barcode_folded)
    barcodes = sorted({barcode for _, barcode in holders})
    for source_id, key, barcode in select_in(connection, sa.select(*columns), plate.c.barcode_folded, barcodes):
        place = names[source_id], str(barcode)
        if place in holders and (place[0], folded(str(key))) not in decided:
            holders[place].add(str(key))
    return [
        f"source {name}: barcode {spelt[barcode]} is that of plates {', '.join(sorted(keys))}"
        for (name, barcode), keys in sorted(holders.items())
        if len(keys) > 1
    ]
