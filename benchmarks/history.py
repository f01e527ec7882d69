"""A database that has worked for years, filled in bulk: plates, drops, inspections, images, scores, hits.

Every image has a score of a retired version and, but the newest ones, one of the champion; every inspection has its
summary. The newest images wait to be scored.
"""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks.bench import Subject, register, utc_now
from benchmarks.plates import DROPS, IMAGES_AN_INSPECTION, INSPECTIONS_A_PLATE
from marcod.domain import PLATE_FORMATS, well_name
from marcod.store import queue
from marcod.store.engine import Database
from marcod.store.schema import drop, hit, image, inspection, inspection_summary, plate, score

Columns = dict[str, Any]


def fill(subject: Subject, images: int, waiting: int) -> None:
    """Fill an empty database; the newest ``waiting`` images get a job for the champion."""
    retired = register(subject.db, "bench", "1")
    scored = images - waiting
    inspections = -(-images // IMAGES_AN_INSPECTION)
    plates = -(-inspections // INSPECTIONS_A_PLATE)

    def work(connection: Connection) -> None:
        _many(connection, plate, plates, _plate(subject.source_id))
        connection.execute(sa.insert(drop), [row for number in range(1, plates + 1) for row in _drops(number)])
        _many(connection, inspection, inspections, _inspection())
        _many(connection, image, images, _image(subject.source_id, scored))
        _many(connection, score, images, _score(retired.id))
        _many(connection, score, scored, _score(subject.champion.id))
        _many(connection, inspection_summary, inspections, _summary(subject.champion.id))
        _many(connection, hit, plates * IMAGES_AN_INSPECTION // 20, _hit(subject.champion.id))

    subject.db.write(work)
    enqueue_newest(subject, waiting)
    settle(subject.db)


def enqueue_newest(subject: Subject, waiting: int) -> None:
    """Let the newest images wait for the champion, whether it has scored them or not."""

    def work(connection: Connection) -> None:
        newest = connection.execute(sa.select(image.c.id).order_by(image.c.id.desc()).limit(waiting)).scalars()
        queue.enqueue(connection, sorted(newest), subject.champion.id, utc_now())

    subject.db.write(work)


def settle(db: Database) -> None:
    """What the database does by itself, sooner or later, after so many rows."""
    connection = db.engine.raw_connection()
    try:
        if not db.is_sqlite:
            connection.driver_connection.autocommit = True  # type: ignore[union-attr]
        cursor = connection.cursor()
        for statement in ("pragma wal_checkpoint(truncate)",) if db.is_sqlite else ("vacuum analyze", "checkpoint"):
            cursor.execute(statement)
        cursor.close()
    finally:
        connection.invalidate()


def _many(connection: Connection, table: sa.Table, count: int, columns: Columns) -> None:
    """Insert ``count`` rows; :func:`_i` in a column counts from 0. Ids follow the order, from 1."""
    first: sa.CTE = sa.select(sa.literal(0).label("i")).cte("n", recursive=True)
    following = first.union_all(sa.select(first.c.i + 1).where(first.c.i < count - 1))
    rows = sa.select(*(sa.type_coerce(value, table.c[name].type) for name, value in columns.items()))
    ordered = rows.select_from(following).order_by(_i())
    connection.execute(sa.insert(table).from_select(list(columns), ordered))


def _i() -> sa.ColumnElement[int]:
    return sa.column("i", sa.Integer)


def _text(value: sa.ColumnElement[int]) -> sa.ColumnElement[str]:
    return sa.cast(value, sa.Text)


def _long_ago() -> sa.ColumnElement[Any]:
    return sa.literal(utc_now() - timedelta(days=30), image.c.seen_at.type)


def _plate(source_id: int) -> Columns:
    return {"source_id": sa.literal(source_id), "key": _text(_i() + 2000), "first_seen_at": _long_ago()}


def _drops(plate_id: int) -> list[Columns]:
    grid = PLATE_FORMATS[96]
    places = [(*grid.position(number), lens) for number in range(1, grid.wells + 1) for lens in DROPS]
    return [
        {"plate_id": plate_id, "well": well_name(r, c), "well_row": r, "well_column": c, "drop_number": lens}
        for r, c, lens in places
    ]


def _inspection() -> Columns:
    return {"plate_id": _i() // INSPECTIONS_A_PLATE + 1, "key": _text(_i() + 8000), "first_seen_at": _long_ago()}


def _image(source_id: int, scored: int) -> Columns:
    of_inspection = _i() // IMAGES_AN_INSPECTION
    of_plate = of_inspection // INSPECTIONS_A_PLATE
    place = _i() % IMAGES_AN_INSPECTION
    path = (
        "WellImages/" + _text(of_plate) + "/plateID_" + _text(of_plate + 2000) + "/batchID_"
        + _text(of_inspection + 8000) + "/wellNum_" + _text(place // 3 + 1) + "/profileID_1/d" + _text(place % 3 + 1)
        + "_r" + _text(place) + "_ef.jpg"
    )  # fmt: skip
    return {
        "source_id": sa.literal(source_id),
        "path": path,
        "drop_id": of_plate * IMAGES_AN_INSPECTION + place + 1,
        "inspection_id": of_inspection + 1,
        "modality": sa.literal("visible"),
        "profile": sa.literal("1"),
        "region": place,
        "size": place + 100_000,
        "mtime_ns": sa.literal(1_700_000_000_000_000_000, sa.BigInteger) + _i(),
        "content_hash": sa.case((_i() < scored, _hash()), else_=None),
        "seen_at": _long_ago(),
    }


def _hash() -> sa.ColumnElement[str]:
    """As long as a SHA-256."""
    return sa.literal("0" * 54) + _text(_i() + 1_000_000_000)


def _score(version_id: int) -> Columns:
    return {
        "image_id": _i() + 1,
        "model_version_id": sa.literal(version_id),
        "content_hash": _hash(),
        "p_clear": sa.literal(0.9),
        "p_crystals": sa.literal(0.05),
        "p_other": sa.literal(0.03),
        "p_precipitate": sa.literal(0.02),
        "label": sa.literal("Clear"),
        "scored_at": _long_ago(),
    }


def _summary(version_id: int) -> Columns:
    counts = ("n_crystals", "n_other", "n_precipitate", "hits", "failed")
    full = ("n_clear", "seen", "scored", "expected")
    return {
        "inspection_id": _i() + 1,
        "model_version_id": sa.literal(version_id),
        **dict.fromkeys(counts, sa.literal(0)),
        **dict.fromkeys(full, sa.literal(IMAGES_AN_INSPECTION)),
        "best_wells": sa.literal("[]"),
        "complete": sa.true(),
        "complete_rule": sa.literal("expected"),
        "first_image_at": _long_ago(),
        "last_image_at": _long_ago(),
        "updated_at": _long_ago(),
    }


def _hit(version_id: int) -> Columns:
    """Every twentieth drop, in its plate's first inspection."""
    of_plate = _i() * 20 // IMAGES_AN_INSPECTION
    return {
        "drop_id": _i() * 20 + 1,
        "inspection_id": of_plate * INSPECTIONS_A_PLATE + 1,
        "image_id": of_plate * INSPECTIONS_A_PLATE * IMAGES_AN_INSPECTION + 1,
        "model_version_id": sa.literal(version_id),
        "p_crystals": sa.literal(0.8),
        "threshold": sa.literal(0.5),
        "found_at": _long_ago(),
    }
