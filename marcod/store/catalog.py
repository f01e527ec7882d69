"""Taking in what the imagers delivered: plates, drops, inspections and images by their natural keys.

A path seen twice changes nothing; a path whose size or time changed is queued again. Everything one call
records, jobs and summaries included, is one transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.domain import DropImage, path_text
from marcod.errors import ConfigError
from marcod.store import queue, summaries, versions
from marcod.store.engine import insert
from marcod.store.schema import drop, image, inspection, job, plate, source

CHUNK = 500
"""Rows a statement carries; below the parameter limits of both databases."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One settled file: its path relative to the source's root, its stat, and what the path says."""

    path: str
    size: int
    mtime_ns: int
    image: DropImage


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one call of :func:`record` changed. ``unscored`` are new images of another modality."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    queued: int = 0
    unscored: int = 0

    def __add__(self, other: "Recorded") -> "Recorded":
        return Recorded(
            self.new + other.new,
            self.changed + other.changed,
            self.unchanged + other.unchanged,
            self.queued + other.queued,
            self.unscored + other.unscored,
        )


def register_source(
    connection: Connection, name: str, root: str, layout: str, expected_drops: int | None, now: datetime
) -> int:
    """The id of a source, made or brought up to date. Raises ConfigError when its layout would change."""
    connection.execute(
        insert(connection, source)
        .values(name=name, root=path_text(root), layout=layout, expected_drops=expected_drops, created_at=now)
        .on_conflict_do_nothing()
    )
    row = connection.execute(sa.select(source).where(source.c.name == name)).one()
    if row.layout != layout:
        raise ConfigError(
            f"source {name!r} was recorded with layout {row.layout}; give a new source name to read it as {layout}"
        )
    if row.root != path_text(root) or row.expected_drops != expected_drops:
        values = {"root": path_text(root), "expected_drops": expected_drops}
        connection.execute(sa.update(source).where(source.c.id == row.id).values(values))
    return int(row.id)


def known(connection: Connection, source_id: int, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Size and mtime_ns of those of the paths that are recorded, to leave unchanged files alone cheaply.

    An image that was given up because its file was gone has an impossible stat, so that a file that came back
    is taken in again.
    """
    gone = sa.exists().where(job.c.image_id == image.c.id, job.c.failed_at.is_not(None), job.c.error == queue.GONE)
    found: dict[str, tuple[int, int]] = {}
    original = {path_text(path): path for path in paths}
    texts = list(original)
    for start in range(0, len(texts), CHUNK):
        rows = connection.execute(
            sa.select(image.c.path, sa.case((gone, -1), else_=image.c.size), image.c.mtime_ns).where(
                image.c.source_id == source_id, image.c.path.in_(texts[start : start + CHUNK])
            )
        )
        found.update({original[path]: (size, mtime_ns) for path, size, mtime_ns in rows})
    return found


def record(connection: Connection, source_id: int, sightings: Sequence[Sighting], now: datetime) -> Recorded:
    """Insert what is new, queue what must be scored by the champion, refresh the summaries touched."""
    champion = versions.champion(connection, lock=True)
    total = Recorded()
    touched: set[int] = set()
    for start in range(0, len(sightings), CHUNK):
        chunk = {path_text(s.path): s for s in sightings[start : start + CHUNK]}
        recorded, inspections = _record_chunk(connection, source_id, chunk, champion, now)
        total += recorded
        touched |= inspections
    summaries.refresh(connection, touched, champion, now)
    return total


def _record_chunk(
    connection: Connection,
    source_id: int,
    chunk: dict[str, Sighting],
    champion: versions.Version,
    now: datetime,
) -> tuple[Recorded, set[int]]:
    before = known(connection, source_id, [s.path for s in chunk.values()])
    fresh = [s for s in chunk.values() if s.path not in before]
    changed = [s for s in chunk.values() if s.path in before and before[s.path] != (s.size, s.mtime_ns)]
    inserted, inspections = _insert_images(connection, source_id, fresh, now)
    altered = _update_images(connection, source_id, changed, now)
    scorable = [i for i, _, modality in inserted + altered if modality == champion.modality]
    queue.start_over(connection, [image_id for image_id, _, _ in altered], now)
    queued = queue.enqueue(connection, scorable, champion.id, now)
    touched = inspections | {inspection_id for _, inspection_id, _ in altered}
    unscored = sum(1 for _, _, modality in inserted if modality != champion.modality)
    unchanged = len(chunk) - len(inserted) - len(altered)
    return Recorded(len(inserted), len(altered), unchanged, queued, unscored), touched


_ImageRow = tuple[int, int, str]


def _text(found: str | None) -> str | None:
    """A part of a path may hold any bytes, as the path itself."""
    return None if found is None else path_text(found)


def _insert_images(
    connection: Connection, source_id: int, fresh: list[Sighting], now: datetime
) -> tuple[list[_ImageRow], set[int]]:
    if not fresh:
        return [], set()
    plates = _plates(connection, source_id, fresh, now)
    inspections = _inspections(connection, plates, fresh, now)
    drops = _drops(connection, plates, fresh)
    rows = []
    for sighting in fresh:
        seen = sighting.image
        plate_id = plates[path_text(seen.plate_key)]
        rows.append(
            {
                "source_id": source_id,
                "path": path_text(sighting.path),
                "drop_id": drops[plate_id, seen.row, seen.column, seen.drop],
                "inspection_id": inspections[plate_id, path_text(seen.inspection_key)],
                "modality": str(seen.modality),
                "profile": _text(seen.profile),
                "region": seen.region,
                "captured_at": seen.captured_at,
                "size": sighting.size,
                "mtime_ns": sighting.mtime_ns,
                "seen_at": now,
            }
        )
    statement = (
        insert(connection, image)
        .on_conflict_do_nothing()
        .returning(image.c.id, image.c.inspection_id, image.c.modality)
    )
    inserted = [(int(r[0]), int(r[1]), str(r[2])) for r in connection.execute(statement, rows)]
    return inserted, {row[1] for row in inserted}


def _update_images(connection: Connection, source_id: int, changed: list[Sighting], now: datetime) -> list[_ImageRow]:
    rows: list[_ImageRow] = []
    for sighting in changed:
        statement = (
            sa.update(image)
            .where(image.c.source_id == source_id, image.c.path == path_text(sighting.path))
            .values(size=sighting.size, mtime_ns=sighting.mtime_ns, seen_at=now)
            .returning(image.c.id, image.c.inspection_id, image.c.modality)
        )
        rows.extend((int(r[0]), int(r[1]), str(r[2])) for r in connection.execute(statement))
    return rows


def _plates(connection: Connection, source_id: int, fresh: Iterable[Sighting], now: datetime) -> dict[str, int]:
    barcodes = {path_text(s.image.plate_key): s.image.barcode for s in fresh}
    rows = [
        {"source_id": source_id, "key": key, "barcode": _text(barcode), "first_seen_at": now}
        for key, barcode in sorted(barcodes.items())
    ]
    connection.execute(insert(connection, plate).on_conflict_do_nothing(), rows)
    found = connection.execute(
        sa.select(plate.c.key, plate.c.id).where(plate.c.source_id == source_id, plate.c.key.in_(barcodes))
    )
    return {key: int(plate_id) for key, plate_id in found}


def _inspections(
    connection: Connection, plates: dict[str, int], fresh: Iterable[Sighting], now: datetime
) -> dict[tuple[int, str], int]:
    wanted = {
        (plates[path_text(s.image.plate_key)], path_text(s.image.inspection_key)): s.image.inspection_ordinal
        for s in fresh
    }
    rows = [
        {"plate_id": plate_id, "key": key, "ordinal": ordinal, "first_seen_at": now}
        for (plate_id, key), ordinal in sorted(wanted.items(), key=lambda item: item[0])
    ]
    connection.execute(insert(connection, inspection).on_conflict_do_nothing(), rows)
    found = connection.execute(
        sa.select(inspection.c.plate_id, inspection.c.key, inspection.c.id).where(
            inspection.c.plate_id.in_({plate_id for plate_id, _ in wanted}),
            inspection.c.key.in_({key for _, key in wanted}),
        )
    )
    return {(int(r[0]), str(r[1])): int(r[2]) for r in found}


def _drops(
    connection: Connection, plates: dict[str, int], fresh: Iterable[Sighting]
) -> dict[tuple[int, int, int, int], int]:
    wanted: dict[tuple[int, int, int, int], dict[str, Any]] = {}
    for sighting in fresh:
        seen = sighting.image
        plate_id = plates[path_text(seen.plate_key)]
        wanted[plate_id, seen.row, seen.column, seen.drop] = {
            "plate_id": plate_id,
            "well": seen.well,
            "well_row": seen.row,
            "well_column": seen.column,
            "drop_number": seen.drop,
        }
    connection.execute(insert(connection, drop).on_conflict_do_nothing(), [wanted[key] for key in sorted(wanted)])
    found = connection.execute(
        sa.select(drop.c.plate_id, drop.c.well_row, drop.c.well_column, drop.c.drop_number, drop.c.id).where(
            drop.c.plate_id.in_({key[0] for key in wanted}),
            drop.c.well.in_({row["well"] for row in wanted.values()}),
        )
    )
    return {(int(r[0]), int(r[1]), int(r[2]), int(r[3])): int(r[4]) for r in found}
