"""History of one plate through all its inspections. Nothing here writes.

Returns the inspections in order of time and the drops in plate order, each inspection as the plate map shows it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import UtcDateTime, drop_summary, image, inspection
from marcod.store import drops, verdicts, versions
from marcod.store.verdicts import DropVerdict
from marcod.store.versions import Version


@dataclass(frozen=True, slots=True)
class Inspection:
    """One inspection; ``first_image_at`` is when its first image was taken, else when marcod saw it."""

    id: int
    key: str
    ordinal: int | None
    first_image_at: datetime | None


@dataclass(frozen=True, slots=True)
class DropHistory:
    """A drop through the plate's inspections: its verdict at each, None where it has no image.

    The other fields are those of ``lims_drop_v1``: whether it was a hit when last scored or labelled, and the key of
    the inspection of its first hit; None and False while nothing is known.
    """

    looks: tuple[DropVerdict | None, ...]
    hit: bool
    trend: str | None
    first_hit: str | None
    highest_p_crystals: float | None

    @property
    def last(self) -> DropVerdict:
        """The latest verdict of the drop."""
        return next(look for look in reversed(self.looks) if look is not None)


@dataclass(frozen=True, slots=True)
class PlateHistory:
    """A plate's inspections in order of time, and its drops in plate order, for one model version."""

    version: Version
    inspections: tuple[Inspection, ...]
    drops: tuple[DropHistory, ...]

    def ever_hit(self) -> tuple[DropHistory, ...]:
        """List the drops that are or were a hit at any inspection."""
        return tuple(d for d in self.drops if any(look is not None and look.hit for look in d.looks))


def of_plate(connection: Connection, plate_id: int, version: Version) -> PlateHistory:
    """Read every drop of a plate at every inspection with images for this version."""
    inspections = _inspections(connection, plate_id, version)
    looks: dict[int, dict[int, DropVerdict]] = {}
    for seen in inspections:
        for verdict in verdicts.drops_at(connection, seen.id, version):
            looks.setdefault(verdict.image.drop_id, {})[seen.id] = verdict
    lives = _lives(connection, looks, version, {i.id: i.key for i in inspections})
    found = [_drop([its.get(i.id) for i in inspections], lives.get(drop_id)) for drop_id, its in looks.items()]
    ordered = sorted(found, key=lambda d: d.last.image.place)
    return PlateHistory(version, tuple(inspections), tuple(ordered))


def _inspections(connection: Connection, plate_id: int, version: Version) -> list[Inspection]:
    taken = sa.func.min(sa.func.coalesce(image.c.captured_at, image.c.seen_at), type_=UtcDateTime())
    rows = connection.execute(
        sa.select(inspection.c.id, inspection.c.key, inspection.c.ordinal, taken)
        .join(image, image.c.inspection_id == inspection.c.id)
        .where(inspection.c.plate_id == plate_id, image.c.modality == version.modality)
        .group_by(inspection.c.id, inspection.c.key, inspection.c.ordinal, inspection.c.order_key)
        .order_by(inspection.c.order_key, inspection.c.id)
    )
    return [Inspection(*row) for row in rows]


def _lives(
    connection: Connection, drop_ids: Iterable[int], version: Version, keys: Mapping[int, str]
) -> dict[int, tuple[bool, str, str | None, float | None]]:
    """Read hit, trend, the key of the first hit's inspection and the highest crystal probability, by drop.

    Of a version that never was champion they are worked out from its scores, since no rows of it are kept.
    """
    names = ("hit", "trend", "first_hit_inspection_id", "highest_p_crystals")
    if not versions.speaks(connection, version):
        found = drops.worked_out(connection, drop_ids, version)
        rows: list[Any] = [(drop_id, *(row[name] for name in names)) for drop_id, row in found.items()]
    else:
        its = sa.select(drop_summary.c.drop_id, *(drop_summary.c[name] for name in names))
        its = its.where(drop_summary.c.model_version_id == version.id, drop_summary.c.drop_id.in_(list(drop_ids)))
        rows = list(connection.execute(its))
    return {row[0]: (row[1], row[2], keys.get(row[3]), row[4]) for row in rows}


def _drop(looks: list[DropVerdict | None], life: tuple[Any, ...] | None) -> DropHistory:
    return DropHistory(tuple(looks), *(life or (False, None, None, None)))
