"""Barcodes used again years later: inspections that are dated far after the one before of their plate.

Plates live for months, so such an inspection may show another plate under an old barcode. Its images get a warning, and
nothing else happens: only a person can tell. Dates are those of the paths; images without one say nothing. The warning
follows from all dates of the plate, so that the order in which an archive arrives does not matter.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import select_in, update_rows
from marcod.database.schema import UtcDateTime, image, inspection, plate
from marcod.domain import WarningKind
from marcod.store import locks

PAUSE: Final = timedelta(days=2 * 365)
"""Time between two inspections after which a plate may be another one."""


_MARKED: Final = image.c.warnings.contains(WarningKind.BARCODE_REUSED)
_COLUMNS: Final = sa.select(image.c.id, image.c.warnings, image.c.path)


def warn(
    connection: Connection, inserted: Mapping[int, int], altered: Iterable[tuple[Any, Any]] = ()
) -> tuple[int, str | None]:
    """Warn of images that were just inserted, by their inspections, and of others that are far from one before by them.

    ``altered`` are images as they were and as they are, which may be dated otherwise now. Returns how many of the
    inserted are warned of, and the path of one.
    """
    redated = {row.inspection_id for pair in altered if _dated(pair[0]) != _dated(pair[1]) for row in pair}
    if not inserted and not redated:
        return 0, None
    inspection_ids = set(inserted.values())
    new = _dated_first(connection, inserted) | redated
    of_plates = sa.select(inspection.c.plate_id, inspection.c.id).join(plate, plate.c.id == inspection.c.plate_id)
    named = select_in(connection, of_plates.where(plate.c.barcode.is_not(None)), inspection.c.id, new)
    late: set[int] = set()
    for plate_id in sorted({int(row.plate_id) for row in named}):
        late |= _judge(connection, plate_id)
    late |= _warned(connection, inspection_ids - new)
    marked = [image_id for image_id, inspection_id in inserted.items() if inspection_id in late]
    rows = list(select_in(connection, _COLUMNS, image.c.id, marked))
    _mark(connection, marked, reused=True)
    return len(rows), min((str(row.path) for row in rows), default=None)


def _dated(row: Any) -> tuple[int, datetime | None]:
    """Return the inspection and date of an image."""
    return row.inspection_id, row.captured_at


def _dated_first(connection: Connection, inserted: Mapping[int, int]) -> set[int]:
    """Choose the inspections that have no images with a date but these."""
    first = sa.select(image.c.inspection_id, sa.func.min(image.c.id)).group_by(image.c.inspection_id)
    first = first.where(image.c.captured_at.is_not(None))
    rows = select_in(connection, first, image.c.inspection_id, inserted.values())
    return {int(row[0]) for row in rows if row[1] in inserted}


def _warned(connection: Connection, inspection_ids: Collection[int]) -> set[int]:
    """Choose the inspections that are warned of already."""
    known = sa.select(image.c.inspection_id).where(_MARKED).distinct()
    return {int(row[0]) for row in select_in(connection, known, image.c.inspection_id, inspection_ids)}


def _judge(connection: Connection, plate_id: int) -> set[int]:
    """Warn of the inspections of a plate that follow a long pause, and of no others. Returns the former."""
    taken = sa.func.min(image.c.captured_at, type_=UtcDateTime()).label("taken")
    dates = (
        sa.select(inspection.c.id, taken)
        .join(image, image.c.inspection_id == inspection.c.id)
        .where(inspection.c.plate_id == plate_id, image.c.captured_at.is_not(None))
        .group_by(inspection.c.id)
        .order_by(taken, inspection.c.id)
    )
    ordered = [(int(row[0]), row[1]) for row in connection.execute(dates)]
    late = {number for (_, before), (number, at) in pairwise(ordered) if at - before > PAUSE}
    unmarked = _COLUMNS.where(sa.or_(image.c.warnings.is_(None), sa.not_(_MARKED)))
    _mark(connection, _ids(connection, unmarked, late), reused=True)
    others = [number for number, _ in ordered if number not in late]
    _mark(connection, _ids(connection, _COLUMNS.where(_MARKED), others), reused=False)
    return late


def _ids(connection: Connection, images: sa.Select[Any], inspection_ids: Iterable[int]) -> list[int]:
    return [int(row.id) for row in select_in(connection, images, image.c.inspection_id, inspection_ids)]


def _mark(connection: Connection, image_ids: Iterable[int], *, reused: bool) -> None:
    ids = list(image_ids)
    locks.hold_more_images(connection, ids)
    # Read once they are held: a worker may have noted what their bytes warn of since they were found.
    changed = []
    for row in select_in(connection, _COLUMNS, image.c.id, ids):
        after = [kind for kind in (row.warnings or "").split(",") if kind and kind != WarningKind.BARCODE_REUSED]
        after += [WarningKind.BARCODE_REUSED] if reused else []
        changed.append({"row_id": int(row.id), "warnings": ",".join(after) or None})
    update_rows(connection, image, changed)
