"""A database that has worked for years, filled in bulk: plates, drops, inspections, images, scores, labels, hits.

Every image but the newest ones has a score of the champion, and the oldest ones have one of a former champion too;
every inspection and every drop has its summary, every tenth drop is a hit. The newest images wait to be scored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks.bench import Subject, register, utc_now
from benchmarks.plates import DROPS, INSPECTIONS_A_PLATE
from marcod.database.engine import Database
from marcod.database.schema import drop, drop_summary, hit, image, inspection, inspection_summary, label, plate, score
from marcod.domain import PLATE_FORMATS, well_name
from marcod.store import queue, serving
from marcod.store.versions import Version

Columns = dict[str, Any]

DAYS: Final = 100
"""How far back hits, scores and inspections reach, as many a day."""

FIRST_PLATE: Final = 2000
FIRST_INSPECTION: Final = 8000
"""Keys count on from these, over all plates."""

_HIT_EVERY: Final = 10
_LABEL_EVERY: Final = 50
_OPEN_EVERY: Final = 500


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is: ``former`` of the oldest images were scored by a former champion too.

    ``drops`` are the numbers of the drops in each of 96 wells.
    """

    images: int
    waiting: int
    former: int
    drops: tuple[int, ...] = DROPS

    @property
    def an_inspection(self) -> int:
        """Drops of a plate, and images of an inspection."""
        return 96 * len(self.drops)

    @property
    def inspections(self) -> int:
        """The last one may lack images."""
        return -(-self.images // self.an_inspection)

    @property
    def plates(self) -> int:
        """The last one may lack inspections."""
        return -(-self.inspections // INSPECTIONS_A_PLATE)

    @property
    def a_plate(self) -> int:
        """Images of a plate."""
        return self.an_inspection * INSPECTIONS_A_PLATE


def fill(subject: Subject, size: Size) -> None:
    """Fill an empty database; the newest images get a job for the champion."""
    former = register(subject.db, "bench", "1")
    for version in (former, subject.champion):
        subject.db.write(partial(serving.promote, version=version, actor="bench", now=utc_now()))
        serving.advance(subject.db, utc_now)
    subject.db.write(lambda c: _fill(c, subject.source_id, size, former, subject.champion))
    enqueue_newest(subject, size.waiting)
    settle(subject.db)


def _fill(connection: Connection, source_id: int, size: Size, former: Version, champion: Version) -> None:
    _trust(connection)
    scored = size.images - size.waiting
    _many(connection, plate, size.plates, _plate(source_id))
    rows = [row for number in range(1, size.plates + 1) for row in _drops(number, size.drops)]
    connection.execute(sa.insert(drop), rows)
    _many(connection, inspection, size.inspections, _inspection())
    _many(connection, image, size.images, _image(source_id, scored, size))
    _many(connection, label, len(rows) // _LABEL_EVERY, _label(size))
    for version, images in ((former, size.former), (champion, scored)):
        plates = -(-images // size.a_plate)
        _many(connection, score, images, _score(version.id, size))
        _many(connection, inspection_summary, -(-images // size.an_inspection), _summary(version.id, size))
        _many(connection, drop_summary, plates * size.an_inspection, _life(version.id, size))
        _many(connection, hit, plates * size.an_inspection // _HIT_EVERY, _hit(version.id, size))


def fill_bare(subject: Subject, size: Size) -> None:
    """Fill an empty PostgreSQL with plates, inspections, images and the champion's scores alone, as fast as it can."""

    def work(connection: Connection) -> None:
        _trust(connection)
        connection.execute(sa.text("set local maintenance_work_mem = '1GB'"))
        _many(connection, plate, size.plates, _plate(subject.source_id))
        _many(connection, inspection, size.inspections, _inspection())
        with _indexed_afterwards(connection, image):
            _many(connection, image, size.images, _image(subject.source_id, size.images, size))
        with _indexed_afterwards(connection, score):
            _many(connection, score, size.images, _score(subject.champion.id, size))

    subject.db.write(work)
    settle(subject.db)


@contextmanager
def _indexed_afterwards(connection: Connection, table: sa.Table) -> Iterator[None]:
    """Drop the indexes of a table, but that of its key, and make them again at the end."""
    given = {"name": table.name}
    unique = sa.text(
        "select conname, pg_get_constraintdef(oid) from pg_constraint"
        " where conrelid = cast(:name as regclass) and contype = 'u'"
    )
    plain = sa.text(
        "select indexname, indexdef from pg_indexes"
        " where tablename = :name and indexname not in (select conname from pg_constraint)"
    )
    constraints = connection.execute(unique, given).all()
    indexes = connection.execute(plain, given).all()
    for name, _ in constraints:
        connection.execute(sa.text(f"alter table {table.name} drop constraint {name}"))
    for name, _ in indexes:
        connection.execute(sa.text(f"drop index {name}"))
    yield
    for name, definition in constraints:
        connection.execute(sa.text(f"alter table {table.name} add constraint {name} {definition}"))
    for _, definition in indexes:
        connection.execute(sa.text(definition))


def score_all(subject: Subject, version: Version, size: Size) -> None:
    """Let one more version have scored every image, without rows of its own."""

    def work(connection: Connection) -> None:
        _trust(connection)
        _many(connection, score, size.images, _score(version.id, size))

    subject.db.write(work)
    settle(subject.db)


def _trust(connection: Connection) -> None:
    """Foreign keys of millions of rows need not be looked up one by one, where the user may say so."""
    if connection.dialect.name == "postgresql":
        allowed = connection.execute(sa.text("select current_setting('is_superuser')")).scalar_one()
        if allowed == "on":
            connection.execute(sa.text("set local session_replication_role = replica"))


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
    if not count:
        return
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
    return sa.literal(utc_now() - timedelta(days=DAYS), image.c.seen_at.type)


def _some_day(number: sa.ColumnElement[int]) -> sa.ColumnElement[Any]:
    """Spread over the days; those of 0 are half a day old."""
    days = {n: sa.literal(utc_now() - timedelta(days=n + 0.5), image.c.seen_at.type) for n in range(DAYS)}
    return sa.case(days, value=number % DAYS)


def _plate(source_id: int) -> Columns:
    # Digits are their own folded form.
    name = _text(_i() + FIRST_PLATE)
    return {"source_id": sa.literal(source_id), "key": name, "key_folded": name, "first_seen_at": _long_ago()}


def _drops(plate_id: int, drops: tuple[int, ...]) -> list[Columns]:
    grid = PLATE_FORMATS[96]
    places = [(*grid.position(number), lens) for number in range(1, grid.wells + 1) for lens in drops]
    return [
        {"plate_id": plate_id, "well": well_name(r, c), "well_row": r, "well_column": c, "drop_number": lens}
        for r, c, lens in places
    ]


def _inspection() -> Columns:
    return {
        "plate_id": _i() // INSPECTIONS_A_PLATE + 1,
        "key": _text(_i() + FIRST_INSPECTION),
        "first_seen_at": _long_ago(),
        "order_key": sa.literal("0" * 12) + _text(_i() + 10_000_000),
    }


def _image(source_id: int, scored: int, size: Size) -> Columns:
    of_inspection = _i() // size.an_inspection
    of_plate = of_inspection // INSPECTIONS_A_PLATE
    place = _i() % size.an_inspection
    lenses = len(size.drops)
    path = (
        "WellImages/" + _text(of_plate) + "/plateID_" + _text(of_plate + FIRST_PLATE) + "/batchID_"
        + _text(of_inspection + FIRST_INSPECTION) + "/wellNum_" + _text(place // lenses + 1) + "/profileID_1/d"
        + _text(place % lenses + 1) + "_r" + _text(place) + "_ef.jpg"
    )  # fmt: skip
    return {
        "source_id": sa.literal(source_id),
        "path": path,
        "drop_id": of_plate * size.an_inspection + place + 1,
        "inspection_id": of_inspection + 1,
        "modality": sa.literal("visible"),
        "profile": sa.literal("1"),
        "region": place,
        "size": place + 100_000,
        "mtime_ns": sa.literal(1_700_000_000_000_000_000, sa.BigInteger) + _i(),
        "content_hash": sa.case((_i() < scored, _hash()), else_=None),
        "seen_at": _some_day(of_inspection),
    }


def _hash() -> sa.ColumnElement[str]:
    """As long as a SHA-256."""
    return sa.literal("0" * 54) + _text(_i() + 1_000_000_000)


def _score(version_id: int, size: Size) -> Columns:
    return {
        "image_id": _i() + 1,
        "model_version_id": sa.literal(version_id),
        "content_hash": _hash(),
        "p_clear": sa.literal(0.0),
        "p_crystals": _p_crystals(_i() // size.a_plate * size.an_inspection + _i() % size.an_inspection),
        "p_other": sa.literal(0.03),
        "p_precipitate": sa.literal(0.02),
        "label": sa.literal("Clear"),
        "scored_at": _some_day(_i() // size.an_inspection),
    }


def _p_crystals(of_drop: sa.ColumnElement[int]) -> sa.ColumnElement[Any]:
    """Above a half in every drop that is a hit, below in the others; drops count from 0."""
    apart = sa.cast(_i() % 997, sa.Float) / 2000
    return sa.case((of_drop % _HIT_EVERY == 0, apart + 0.5), else_=apart)


def _summary(version_id: int, size: Size) -> Columns:
    counts = ("n_crystals", "n_other", "n_precipitate", "hits", "failed")
    full = ("n_clear", "seen", "scored", "expected")
    is_open = _i() % _OPEN_EVERY == 0
    return {
        "inspection_id": _i() + 1,
        "model_version_id": sa.literal(version_id),
        **dict.fromkeys(counts, sa.literal(0)),
        **dict.fromkeys(full, sa.literal(size.an_inspection)),
        "best_wells": sa.literal("[]"),
        "complete": sa.not_(is_open),
        "complete_rule": sa.case((is_open, None), else_="expected"),
        "first_image_at": _some_day(_i()),
        "last_image_at": _some_day(_i()),
        "updated_at": _some_day(_i()),
    }


def _life(version_id: int, size: Size) -> Columns:
    """Drops as they are at their plate's last inspection, or at the first of a plate that lacks some."""
    first = _i() // size.an_inspection * size.a_plate + _i() % size.an_inspection
    last = first + size.a_plate - size.an_inspection
    shown = sa.case((last < size.images, last), else_=first)
    is_hit = _i() % _HIT_EVERY == 0
    return {
        "drop_id": _i() + 1,
        "model_version_id": sa.literal(version_id),
        **dict.fromkeys(("inspections", "scored_inspections"), sa.literal(INSPECTIONS_A_PLATE)),
        "inspection_id": shown // size.an_inspection + 1,
        "image_id": shown + 1,
        "p_clear": sa.literal(0.0),
        "p_crystals": _p_crystals(_i()),
        "p_other": sa.literal(0.03),
        "p_precipitate": sa.literal(0.02),
        "label": sa.case((is_hit, "Crystals"), else_="Clear"),
        "label_disputed": sa.false(),
        "highest_p_crystals": _p_crystals(_i()),
        "best_image_id": shown + 1,
        "hit": is_hit,
        "first_hit_inspection_id": sa.case((is_hit, first // size.an_inspection + 1), else_=None),
        "first_hit_image_id": sa.case((is_hit, first + 1), else_=None),
        "trend": sa.case((is_hit, "steady"), else_="none"),
        "updated_at": _long_ago(),
    }


def _label(size: Size) -> Columns:
    """A word on every fiftieth drop, in its plate's first inspection."""
    of_drop = _i() * _LABEL_EVERY
    return {
        "drop_id": of_drop + 1,
        "inspection_id": of_drop // size.an_inspection * INSPECTIONS_A_PLATE + 1,
        "label": sa.literal("Clear"),
        "original": sa.literal("Clear"),
        "vocabulary": sa.literal("marco"),
        "person": sa.literal("ann"),
        "origin": sa.literal("cli"),
        "labelled_at": _long_ago(),
        "recorded_at": _long_ago(),
        "key": _hash(),
    }


def _hit(version_id: int, size: Size) -> Columns:
    """Every tenth drop, in its plate's first inspection."""
    of_plate = _i() * _HIT_EVERY // size.an_inspection
    place = _i() * _HIT_EVERY % size.an_inspection
    return {
        "drop_id": _i() * _HIT_EVERY + 1,
        "inspection_id": of_plate * INSPECTIONS_A_PLATE + 1,
        "image_id": of_plate * size.a_plate + place + 1,
        "model_version_id": sa.literal(version_id),
        "p_crystals": sa.literal(0.8),
        "threshold": sa.literal(0.5),
        "found_at": _some_day(_i()),
    }
