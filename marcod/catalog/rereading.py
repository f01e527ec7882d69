"""Images recorded with what is known of their plates, and read again, portion by portion, after that changed.

Recorded paths are read by the settings that their source was recorded with, so no file is looked at and any host can do
it. An image that needs a companion report to be read is marked instead, for the next walk over its folder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import layouts
from marcod.catalog import deliveries, plate_setups, registration
from marcod.catalog.deliveries import Recorded, Sighting
from marcod.catalog.plate_setups import Lookup
from marcod.database.schema import image, inspection, plate, source
from marcod.domain import DropImage, IgnoreReason, Modality, NotADrop, PlateFormat, PlateSetup, text_path
from marcod.errors import LayoutError
from marcod.layouts import Layout
from marcod.store import locks

PORTION: Final = 500
"""Images that one transaction reads again."""


def record(connection: Connection, plates: Lookup, sightings: Sequence[Sighting], now: datetime) -> Recorded | None:
    """Record images that were read with these setups. Returns None where their paths have to be read again first.

    That is so where a setup is another by now, and where their wells ask for another grid, which is kept.
    """
    if not sightings:
        return Recorded()
    # Before setups are held: two who hold them and then change one would wait for each other.
    if new := {key: grid for key, grid in _grids(sightings).items() if plates(key).format != grid}:
        plate_setups.infer(connection, plates.source_id, new, now)
        return None
    if not plates.hold(connection):
        return None
    return deliveries.record(connection, plates.source_id, sightings, now)


def _grids(sightings: Iterable[Sighting]) -> dict[str, PlateFormat]:
    """Find the largest grid that the wells of each plate need, by its key."""
    found: dict[str, PlateFormat] = {}
    for sighting in sightings:
        grid, key = sighting.image.inferred, sighting.image.plate_key
        if grid is not None and (key not in found or found[key].wells < grid.wells):
            found[key] = grid
    return found


def catch_up(connection: Connection, now: datetime, limit: int = PORTION, source_id: int | None = None) -> int:
    """Read up to ``limit`` images of one plate again. Returns how many, at least 1, and 0 where no plate is left."""
    found = _next_plate(connection, source_id)
    if found is None:
        return 0
    of_plate = sa.select(image).join(inspection, inspection.c.id == image.c.inspection_id)
    following = of_plate.where(inspection.c.plate_id == found.id, image.c.id > found.reread_after)
    rows = connection.execute(following.order_by(image.c.id).limit(limit)).all()
    sightings, unsure = _read(found, rows)
    deliveries.reread(connection, found.source_id, sightings, now)
    # After the others were held by id, these come late.
    locks.hold_more_images(connection, unsure)
    registration.read_again(connection, found.source_id, unsure)
    after = int(rows[-1].id) if len(rows) == limit else None
    connection.execute(sa.update(plate).where(plate.c.id == found.id).values(reread_after=after))
    return max(len(rows), 1)


def _next_plate(connection: Connection, source_id: int | None) -> Any:
    """Claim a plate to be read again; its source is locked so that its setup stays."""
    waiting = sa.select(plate.c.id, plate.c.source_id).where(plate.c.reread_after.is_not(None)).order_by(plate.c.id)
    if source_id is not None:
        waiting = waiting.where(plate.c.source_id == source_id)
    first = connection.execute(waiting.limit(1)).first()
    if first is None:
        return None
    plate_setups.hold(connection, int(first.source_id))
    columns = (plate.c.id, plate.c.source_id, plate.c.reread_after, *plate_setups.COLUMNS)
    whole = sa.select(*columns, source.c.layout, source.c.reading).join(source, source.c.id == plate.c.source_id)
    locks.hold(connection, plates=[int(first.id)])
    # Another process may have read it to its end meanwhile.
    still = whole.where(plate.c.id == first.id, plate.c.reread_after.is_not(None))
    return connection.execute(still).first()


def _read(found: Any, rows: Iterable[Any]) -> tuple[list[Sighting], list[int]]:
    """Sightings of the images whose paths say all, and the ids of those whose paths alone do not."""
    reader = _Reader(found)
    sightings, unsure = [], []
    for row in rows:
        path = text_path(row.path)
        seen = reader.image(path)
        if seen is None:
            unsure.append(int(row.id))
        else:
            sightings.append(Sighting(path, row.size, row.mtime_ns, seen))
    return sightings, unsure


class _Reader:
    """The layout of a plate's source with the setup that the plate has now."""

    def __init__(self, found: Any) -> None:
        setup = plate_setups.setup_of(found)
        self._layout = _layout(found, setup)
        self._whole = _layout(found, replace(setup, reservoirs=frozenset()))
        self._asked = False

    def image(self, path: str) -> DropImage | None:
        """Parse the image at a path, None where unsure. A reservoir gets no modality, so no model scores it."""
        seen = self._parse(self._layout, path)
        if isinstance(seen, NotADrop) and seen.reason is IgnoreReason.RESERVOIR:
            shown = self._parse(self._whole, path)
            return replace(shown, modality=Modality.UNKNOWN) if isinstance(shown, DropImage) else None
        return seen if isinstance(seen, DropImage) else None

    def _parse(self, layout: Layout | None, path: str) -> DropImage | NotADrop | None:
        self._asked = False
        seen = None if layout is None else layout.parse(path, self._companion)
        return None if self._asked else seen

    def _companion(self, path: str) -> bytes | None:
        self._asked = True
        return None


def _layout(found: Any, setup: PlateSetup) -> Layout | None:
    try:
        return layouts.make(found.layout, layouts.options_of(found.reading, lambda _: setup))
    except LayoutError:
        return None
