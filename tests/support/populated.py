"""A small lab in which every column of every view has a value, and every documented query an answer. Synthetic."""

from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from factories import (
    CLEAR,
    CRYSTALS,
    claimed,
    drain,
    finish,
    promote,
    record,
    register,
    register_source,
    sightings,
    utc,
)

from marcod.database.engine import Database
from marcod.database.schema import drop, drop_mark, image, inspection, label_inbox, plate
from marcod.domain import DropClass
from marcod.store import derived, queue, versions, votes
from marcod.store.votes import NewLabel

PLATE, UNFINISHED = "CI022987", "CI022988"


def populate(db: Database) -> None:
    """Two imagers; a plate of three inspections scored by two versions, labelled by people; one that still arrives."""
    first = register(db, name="marco", version="1")
    promote(db, first)
    minstrel = register_source(db, "minstrel", expected_drops=3)
    for number in (1, 2, 3):
        when = utc(hours=number)
        record(db, minstrel, sightings(3, PLATE, str(number), barcode=PLATE, captured_at=when), when)
        drain(db, first, when, scores=lambda c, n=number: CRYSTALS if "A01" in c.path and n > 1 else CLEAR)
    _papers(db)
    second = register(db, name="marco", version="2", crystal_threshold=0.4)
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(hours=4)))
    drain(db, second, utc(hours=5), scores=lambda c: CRYSTALS if "A02" in c.path or "A01" in c.path else CLEAR)
    promote(db, second, utc(hours=6))
    _failing(db)
    _labels(db)
    _inbox(db)
    _marks(db)


def _failing(db: Database) -> None:
    """A plate of which one image cannot be read and one waits."""
    source_id = register_source(db, "rock-imager", expected_drops=4)
    record(db, source_id, sightings(2, UNFINISHED, barcode=UNFINISHED), utc(hours=7))
    lease = claimed(db, utc(hours=7), limit=1)
    version = db.read(versions.champion)
    finish(db, lease, version, utc(hours=7), failures=[queue.Failure(lease.claims[0], "truncated", retryable=False)])


def _papers(db: Database) -> None:
    db.write(lambda c: c.execute(sa.update(plate).values(project="kinases", screen="JCSG+")))


def _labels(db: Database) -> None:
    """Ann and Bob disagree, Ann takes one word back, and one word is about an image."""
    said = [
        ("A02", DropClass.CRYSTALS, "ann", 1),
        ("A02", DropClass.OTHER, "bob", 2),
        ("A03", DropClass.OTHER, "ann", 1),
    ]

    def work(connection: sa.Connection) -> None:
        where = _inspection(connection)
        of_well = {row.well: row.id for row in connection.execute(sa.select(drop.c.well, drop.c.id).where(_OF_PLATE))}
        givens = [NewLabel(of_well[w], where, word, who, utc(days=1, minutes=at), "test") for w, word, who, at in said]
        givens.append(NewLabel(of_well["A03"], where, None, "ann", utc(days=1, minutes=3), "test"))
        photograph = sa.select(image.c.id).where(image.c.drop_id == of_well["A01"], image.c.inspection_id == where)
        of_image = connection.execute(photograph).scalar_one()
        givens.append(
            NewLabel(of_well["A01"], where, DropClass.CRYSTALS, "bob", utc(days=1), "test", image_id=of_image)
        )
        votes.add(connection, givens, utc(days=1))
        derived.refresh(connection, list(of_well.values()), [where], utc(days=1))

    db.write(work)


_OF_PLATE = drop.c.plate_id == sa.select(plate.c.id).where(plate.c.key == PLATE).scalar_subquery()


def _inspection(connection: sa.Connection) -> int:
    last = sa.select(inspection.c.id).join(plate).where(plate.c.key == PLATE, inspection.c.key == "3")
    return int(connection.execute(last).scalar_one())


def _inbox(db: Database) -> None:
    """One row as a LIMS writes it, with an answer."""
    names = "source, plate, well, drop_number, inspection, label, person, labelled_at"
    values = f"'minstrel', '{PLATE}', 'Q99', 1, '3', 'Clear', 'ann', '2026-01-02 09:30:00.000000+00'"
    db.write(lambda c: c.exec_driver_sql(f"insert into lims_label_inbox_v1 ({names}) values ({values})"))
    db.write(lambda c: c.execute(sa.update(label_inbox).values(state="refused", reason="there is no such well")))


def _marks(db: Database) -> None:
    """A note, and crystals that were harvested."""

    def work(connection: sa.Connection) -> None:
        drop_id = connection.execute(sa.select(sa.func.min(drop.c.id)).where(_OF_PLATE)).scalar_one()
        where = {
            "drop_id": drop_id,
            "inspection_id": _inspection(connection),
            "person": "ann",
            "marked_at": utc(days=2),
        }
        marks = [{"kind": "note", "text": "small, in the skin"}, {"kind": "harvested", "text": ""}]
        connection.execute(sa.insert(drop_mark), [where | mark for mark in marks])

    db.write(work)


def reflected(db: Database) -> dict[str, sa.Table]:
    """The tables as the database has them, parents first."""
    found = sa.MetaData()
    db.read(found.reflect)
    return {table.name: table for table in found.sorted_tables if table.name != "alembic_version"}


def fill_rest(db: Database) -> None:
    """One row in every table that has none, whatever its columns are; it refers to rows that are there."""

    def work(connection: sa.Connection, table: sa.Table) -> None:
        if connection.execute(sa.select(table).limit(1)).first() is None:
            row = {column.name: _value(connection, column) for column in table.c if column.name != "id"}
            connection.execute(sa.insert(table).values(row))

    for table in reflected(db).values():
        db.write(work, table)


def _value(connection: sa.Connection, column: sa.Column[Any]) -> Any:
    for key in column.foreign_keys:
        return connection.execute(sa.select(sa.func.min(key.column))).scalar_one()
    if isinstance(column.type, sa.JSON):
        return {"a": 1}
    moment = utc() if connection.dialect.name == "postgresql" else utc().replace(tzinfo=None)
    of_type = {str: column.name, int: 1, float: 0.5, bool: True, datetime: moment, date: moment.date()}
    return of_type[column.type.python_type]
