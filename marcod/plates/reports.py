"""Read-only reports: plates, their inspections and the hits over all plates."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import select_in
from marcod.database.schema import UtcDateTime, image, inspection, job, plate, score, source
from marcod.domain import text_path
from marcod.errors import NotFoundError
from marcod.store import known_names, plate_names, sources


@dataclass(frozen=True, slots=True)
class Plate:
    """One plate of one source."""

    id: int
    source: str
    key: str
    barcode: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of ``lims_plate_summary_v1``; docs/lims.md describes the columns."""

    inspection_id: int
    source: str
    plate_key: str
    barcode: str | None
    inspection_key: str
    inspection_ordinal: int | None
    model: str
    model_version: str
    model_synthetic: bool
    n_clear: int
    n_crystals: int
    n_other: int
    n_precipitate: int
    hits: int
    best_wells: str
    expected: int | None
    seen: int
    scored: int
    failed: int
    complete: bool
    complete_rule: str | None
    first_image_at: datetime | None
    last_image_at: datetime | None
    crystal_threshold: float


_TYPES: Final[dict[str, Any]] = {
    "first_image_at": UtcDateTime(),
    "last_image_at": UtcDateTime(),
    "complete": sa.Boolean(),
    "model_synthetic": sa.Boolean(),
}
_SUMMARY: Final = sa.table("lims_plate_summary_v1", *(sa.column(f.name, _TYPES.get(f.name)) for f in fields(Summary)))


@dataclass(frozen=True, slots=True)
class Hit:
    """A row of ``lims_hit_v1``; docs/lims.md describes the columns."""

    hit_id: int
    source: str
    plate_key: str
    barcode: str | None
    project: str | None
    screen: str | None
    well: str
    drop_number: int
    p_crystals: float | None
    label: str | None
    label_person: str | None
    threshold: float
    cause: str
    found_at: datetime
    first_hit_inspection_key: str
    trend: str
    best_path: str | None
    model: str
    model_version: str
    model_synthetic: bool
    harvested: bool


_HIT_TYPES: Final[dict[str, Any]] = {
    "found_at": UtcDateTime(),
    "model_synthetic": sa.Boolean(),
    "harvested": sa.Boolean(),
}
_HIT: Final = sa.table("lims_hit_v1", *(sa.column(f.name, _HIT_TYPES.get(f.name)) for f in fields(Hit)))


@dataclass(frozen=True, slots=True)
class Located:
    """Location of an image: ``path`` is relative to ``root``; and the SHA-256 of the scored bytes, hexadecimal."""

    root: str
    path: str
    content_hash: str | None


def located(connection: Connection, image_id: int) -> Located:
    """Locate the file of an image, as paths of the file system."""
    root, path, content_hash = connection.execute(
        sa.select(sources.root_of(connection), image.c.path, image.c.content_hash)
        .join(source, source.c.id == image.c.source_id)
        .where(image.c.id == image_id)
    ).one()
    return Located(text_path(root), text_path(path), content_hash)


def find_plates(connection: Connection, text: str, source_name: str | None = None) -> list[Plate]:
    """Find plates by key or barcode, in any case, given as it is or as marcod shows it.

    Raises NotFoundError when there is none, and when the end of a key is that of several.
    """
    statement = (
        sa.select(plate.c.id, source.c.name, plate.c.key, plate.c.barcode)
        .join(source, source.c.id == plate.c.source_id)
        .order_by(source.c.name, plate.c.id)
    )
    if source_name is not None:
        statement = statement.where(source.c.name == source_name)
    plates = [Plate(*row) for row in plate_names.select_named(connection, statement, text)]
    if not plates:
        offered = known_names.plates(connection, text, source_name)
        more = "; `marcod plate list` shows more" if offered.endswith(" more") else ""
        raise NotFoundError(f"no plate has the key or barcode {text!r}; {offered}{more}")
    if len(plates) > 1 and (keys := plate_names.whole_keys(text, [found.key for found in plates])) is not None:
        raise NotFoundError(f"several plates answer to {text!r}; give the key of one of them: {keys}")
    return plates


def summaries(connection: Connection, plate_ids: Sequence[int] | None = None, limit: int = 100) -> list[Summary]:
    """List inspections: of all plates the latest image first, of some plates the latest inspection first."""
    statement = sa.select(*_SUMMARY.c)
    arrived = (_SUMMARY.c.last_image_at.desc(), _SUMMARY.c.inspection_id.desc())
    if plate_ids is None:
        statement = statement.order_by(*arrived)
    else:
        # A late file of an early inspection does not make it the latest one.
        statement = (
            statement.join(inspection, inspection.c.id == _SUMMARY.c.inspection_id)
            .where(inspection.c.plate_id.in_(list(plate_ids)))
            .order_by(inspection.c.order_key.desc(), *arrived)
        )
    return [Summary(*row) for row in connection.execute(statement.limit(limit))]


def count_summaries(connection: Connection) -> int:
    """Count the inspections of all plates that :func:`summaries` lists without a limit."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(_SUMMARY)).scalar_one())


def hits(
    connection: Connection,
    since: datetime | None,
    limit: int,
    *,
    new: bool = False,
    project: str | None = None,
    source_name: str | None = None,
    harvested: bool | None = None,
) -> list[Hit]:
    """List hits over all plates, the most crystalline first.

    ``since`` looks at when they were seen first. ``new`` leaves out what a former champion had found before;
    ``harvested`` takes those alone whose crystals were harvested, or with False the others.
    """
    chosen = _chosen(since, new=new, project=project, source_name=source_name, harvested=harvested)
    order = (_HIT.c.p_crystals.desc().nulls_last(), _HIT.c.hit_id)
    statement = sa.select(*_HIT.c).where(*chosen).order_by(*order).limit(limit)
    return [Hit(*row) for row in connection.execute(statement)]


def inspected_once(connection: Connection, found: Sequence[Hit]) -> set[tuple[str, str]]:
    """Return source and key of those plates of the hits that have one inspection alone, of which no trend is known."""
    of_one = (
        sa.select(source.c.name, plate.c.key)
        .join(source, source.c.id == plate.c.source_id)
        .join(inspection, inspection.c.plate_id == plate.c.id)
        .group_by(source.c.name, plate.c.key)
        .having(sa.func.count() == 1)
    )
    rows = select_in(connection, of_one, plate.c.key, sorted({hit.plate_key for hit in found}))
    return {(row.name, row.key) for row in rows}


def count_hits(
    connection: Connection,
    since: datetime | None = None,
    *,
    new: bool = False,
    project: str | None = None,
    source_name: str | None = None,
    harvested: bool | None = None,
) -> int:
    """Count what :func:`hits` lists without a limit."""
    chosen = _chosen(since, new=new, project=project, source_name=source_name, harvested=harvested)
    return int(connection.execute(sa.select(sa.func.count()).select_from(_HIT).where(*chosen)).scalar_one())


def _chosen(
    since: datetime | None, *, new: bool, project: str | None, source_name: str | None, harvested: bool | None
) -> list[sa.ColumnElement[bool]]:
    conditions = []
    if since is not None:
        conditions.append(_HIT.c.found_at >= since)
    if new:
        from marcod.store.drops import Cause  # with much that no other report needs

        conditions.append(_HIT.c.cause != str(Cause.CONFIRMED))
    if project is not None:
        conditions.append(_HIT.c.project == project)
    if source_name is not None:
        conditions.append(_HIT.c.source == source_name)
    if harvested is not None:
        conditions.append(_HIT.c.harvested if harvested else sa.not_(_HIT.c.harvested))
    return conditions


def unfinished(connection: Connection, version_id: int, plate_ids: Sequence[int]) -> int:
    """Count the images of these plates that wait for this version, without quarantined ones."""
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(job)
        .join(image, image.c.id == job.c.image_id)
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .where(
            job.c.model_version_id == version_id,
            job.c.failed_at.is_(None),
            inspection.c.plate_id.in_(list(plate_ids)),
        )
    ).scalar_one()


def scored_at(connection: Connection, source_name: str) -> dict[str, datetime]:
    """Read when each image of a source was first scored, by its path as stored, to measure latency."""
    rows = connection.execute(
        sa.select(image.c.path, sa.func.min(score.c.scored_at, type_=UtcDateTime()))
        .join(score, score.c.image_id == image.c.id)
        .join(source, source.c.id == image.c.source_id)
        .where(source.c.name == source_name)
        .group_by(image.c.path)
    )
    return {row[0]: row[1] for row in rows}
