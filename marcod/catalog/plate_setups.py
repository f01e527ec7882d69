"""Grid and reservoirs of each plate: imported from a table of plates, or inferred from the wells of its images.

A layout asks for them by :class:`Lookup` before it reads a path. What changes them marks the plate's images to be read
again, which :mod:`marcod.catalog.rereading` does in bounded portions.

Guarantees:

* Images are recorded with the setup that their plate has then: :meth:`Lookup.hold` lets nobody change one meanwhile.
* An imported grid is never replaced by an inferred one, and an inferred one only grows.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import layouts
from marcod.catalog import source_changes
from marcod.database.engine import Database, insert
from marcod.database.rows import select_in
from marcod.database.schema import image, inspection, plate, source
from marcod.domain import DropImage, NotADrop, PlateFormat, PlateSetup, composed, folded, path_text, text_path
from marcod.store import plate_names, versions

UNKNOWN: Final = PlateSetup()
"""The setup of a plate of which nothing is known yet."""

COLUMNS: Final = (plate.c.format_rows, plate.c.format_columns, plate.c.format_drops, plate.c.reservoirs)
"""Columns that decide the setup of a plate."""


def setup_of(row: Any) -> PlateSetup:
    """Read the setup from the columns of a plate's row."""
    grid = None if row.format_rows is None else PlateFormat(int(row.format_rows), int(row.format_columns))
    reservoirs = None
    if row.reservoirs is not None:
        reservoirs = frozenset(int(number) for number in row.reservoirs.split(",") if number)
    return PlateSetup(grid, reservoirs, inferred=grid is not None and row.format_drops is None)


def joined(mine: Any, theirs: Any) -> dict[str, Any]:
    """Merge the setup columns of one plate in two sources: imported before inferred, theirs first."""
    known = theirs if theirs.format_drops is not None or mine.format_rows is None else mine
    if known is mine and mine.format_drops is None and theirs.format_rows is not None:
        known = max(mine, theirs, key=lambda row: row.format_rows * row.format_columns)
    values = {name: getattr(known, name) for name in ("format_rows", "format_columns", "format_drops")}
    values["reservoirs"] = mine.reservoirs if theirs.reservoirs is None else theirs.reservoirs
    pending = mine.reread_after is not None or theirs.reread_after is not None
    values["reread_after"] = 0 if pending or setup_of(mine) != setup_of(theirs) else None
    return values


def hold(connection: Connection, source_id: int) -> None:
    """Let nobody change the setups of a source's plates until the transaction ends.

    Taken after the champion and before anything else of the source, as those who change setups do.
    """
    versions.champion(connection, lock=True)
    held = sa.select(source.c.id).where(source.c.id == source_id).with_for_update(read=True, key_share=True)
    connection.execute(held).all()


class Lookup:
    """Setups of the plates of one source, each asked for once until :meth:`forget`. Not thread-safe."""

    def __init__(self, db: Database, source_id: int) -> None:
        self._db = db
        self.source_id = source_id
        self._known: dict[str, PlateSetup] = {}

    def __call__(self, plate_key: str) -> PlateSetup:
        """Look a plate up by its key. Raises StoreError."""
        name = folded(path_text(plate_key))
        if name not in self._known:
            found = self._db.read(_setups, self.source_id, [name])
            self._known[name] = found.get(name, UNKNOWN)
        return self._known[name]

    def forget(self) -> None:
        """Ask for every plate again."""
        self._known = {}

    def hold(self, connection: Connection) -> bool:
        """Let nobody change setups until the transaction ends. Returns whether all are still as they were asked for.

        Called before anything else of the source is held.
        """
        hold(connection, self.source_id)
        found = _setups(connection, self.source_id, self._known)
        return all(found.get(name, UNKNOWN) == setup for name, setup in self._known.items())


def _setups(connection: Connection, source_id: int, names: Iterable[str]) -> dict[str, PlateSetup]:
    return {name: setup_of(row) for name, row in plate_names.by_key(connection, source_id, names).items()}


def infer(connection: Connection, source_id: int, grids: Mapping[str, PlateFormat], now: datetime) -> None:
    """Keep the grids that the wells of plates ask for, by key; their earlier images are to be read again."""
    source_changes.hold(connection, source_id)
    wanted = {folded(key): (key, grid) for key, grid in ((composed(path_text(k)), g) for k, g in grids.items())}
    new = wanted.keys() - plate_names.by_key(connection, source_id, wanted).keys()
    rows = [{"source_id": source_id, "key": wanted[name][0], "first_seen_at": now} for name in sorted(new)]
    if rows:
        connection.execute(insert(connection, plate), rows)
    there = plate_names.by_key(connection, source_id, wanted)
    for name, row in sorted(there.items(), key=lambda item: item[1].id):
        grid = wanted[name][1]
        smaller = sa.or_(plate.c.format_rows.is_(None), plate.c.format_rows * plate.c.format_columns < grid.wells)
        where = (plate.c.id == row.id, plate.c.format_drops.is_(None), smaller)
        values = {"format_rows": grid.rows, "format_columns": grid.columns, "reread_after": 0}
        connection.execute(sa.update(plate).where(*where).values(values))


def follow_reading(connection: Connection, source_id: int, former: str, reading: str) -> None:
    """Let the images of a source be read again where other subwells are reservoirs now; no scan records those."""
    before, after = (layouts.options_of(text).reservoir_subwells for text in (former, reading))
    if before != after:
        its = sa.select(plate.c.id).where(plate.c.source_id == source_id).order_by(plate.c.id)
        held = plate.c.id.in_(its.with_for_update(key_share=True))
        connection.execute(sa.update(plate).where(held).values(reread_after=0))


def numbered(connection: Connection, plate_ids: Collection[int]) -> set[int]:
    """Choose the plates whose wells may be numbered, so that their grid decides what their paths mean."""
    wanted = sa.select(plate.c.id, source.c.layout).join(source, source.c.id == plate.c.source_id)
    rows = select_in(connection, wanted, plate.c.id, plate_ids)
    return {int(row.id) for row in rows if layouts.numbers_wells(row.layout)}


def read_as(connection: Connection, plate_id: int, known: PlateSetup) -> Iterator[tuple[str, DropImage | NotADrop]]:
    """Read the paths of a plate's images as if it had that setup. Raises LayoutError for settings of no layout."""
    of_source = sa.select(source.c.layout, source.c.reading).join(plate, plate.c.source_id == source.c.id)
    row = connection.execute(of_source.where(plate.c.id == plate_id)).one()
    layout = layouts.make(row.layout, layouts.options_of(row.reading, lambda _: known))
    of_plate = sa.select(image.c.path).join(inspection, inspection.c.id == image.c.inspection_id)
    for (path,) in connection.execute(of_plate.where(inspection.c.plate_id == plate_id).order_by(image.c.id)):
        yield str(path), layout.parse(text_path(path))
