"""Barcodes used again years later: inspections that are dated far after the one before of their plate.

Plates live for months, so such an inspection may show another plate under an old barcode. Its images get a warning, and
nothing else happens: only a person can tell. Dates are those of the paths; images without one say nothing. The warning
follows from all dates of the plate, so that the order in which an archive arrives does not matter.
"""

from collections.abc import Collection, Iterable
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.domain import WarningKind
from marcod.store.rows import parts, select_in, update_rows
from marcod.store.schema import UtcDateTime, image, inspection, plate

PAUSE: Final = timedelta(days=2 * 365)
"""Time between two inspections after which a plate may be another one."""


def warn(connection: Connection, image_ids: Collection[int], inspection_ids: Collection[int]) -> None:
    """Warn of images that were just inserted, and of others whose neighbours in time are others by them."""
    new = _new_inspections(connection, image_ids, inspection_ids)
    of_plates = sa.select(inspection.c.plate_id).join(plate, plate.c.id == inspection.c.plate_id)
    dated = of_plates.where(plate.c.barcode.is_not(None))
    for plate_id in sorted({int(row[0]) for row in select_in(connection, dated, inspection.c.id, new)}):
        _judge(connection, plate_id)
    _follow_the_first(connection, image_ids, set(inspection_ids) - new)


def _new_inspections(connection: Connection, image_ids: Collection[int], inspection_ids: Collection[int]) -> set[int]:
    """Choose the inspections that have no images but these."""
    first = sa.select(image.c.inspection_id, sa.func.min(image.c.id)).group_by(image.c.inspection_id)
    inserted = set(image_ids)
    return {
        int(row[0]) for row in select_in(connection, first, image.c.inspection_id, inspection_ids) if row[1] in inserted
    }


def _judge(connection: Connection, plate_id: int) -> None:
    """Warn of the inspections of a plate that follow a long pause, and of no others."""
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
    marked = image.c.warnings.contains(WarningKind.BARCODE_REUSED)
    columns = sa.select(image.c.id, image.c.warnings)
    fresh = select_in(
        connection, columns.where(sa.or_(image.c.warnings.is_(None), sa.not_(marked))), image.c.inspection_id, late
    )
    _mark(connection, fresh, reused=True)
    others = [number for number, _ in ordered if number not in late]
    _mark(connection, select_in(connection, columns.where(marked), image.c.inspection_id, others), reused=False)


def _follow_the_first(connection: Connection, image_ids: Collection[int], inspection_ids: Collection[int]) -> None:
    """Let further images of an inspection have the warning that those before have."""
    marked = image.c.warnings.contains(WarningKind.BARCODE_REUSED)
    known = sa.select(image.c.inspection_id).where(marked).distinct()
    warned = {int(row[0]) for row in select_in(connection, known, image.c.inspection_id, inspection_ids)}
    if warned:
        columns = sa.select(image.c.id, image.c.warnings, image.c.inspection_id)
        rows = select_in(connection, columns, image.c.id, image_ids)
        _mark(connection, [row for row in rows if row.inspection_id in warned], reused=True)


def _mark(connection: Connection, rows: Iterable[Any], *, reused: bool) -> None:
    kinds = {row.id: [kind for kind in (row.warnings or "").split(",") if kind] for row in rows}
    changed = []
    for image_id, before in kinds.items():
        after = [kind for kind in before if kind != WarningKind.BARCODE_REUSED]
        after += [WarningKind.BARCODE_REUSED] if reused else []
        changed.append({"row_id": image_id, "warnings": ",".join(after) or None})
    update_rows(connection, image, changed)


def count(connection: Connection, image_ids: Iterable[int]) -> tuple[int, str | None]:
    """Count those of the images that have the warning. Returns one of their paths as well."""
    total, example = 0, None
    for part in parts(image_ids):
        marked = sa.and_(image.c.id.in_(part), image.c.warnings.contains(WarningKind.BARCODE_REUSED))
        found, path = connection.execute(sa.select(sa.func.count(), sa.func.min(image.c.path)).where(marked)).one()
        total, example = total + int(found), example or path
    return total, example
