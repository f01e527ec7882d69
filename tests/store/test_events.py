"""What a LIMS hears: real notifications on a second connection, each fact once, and only what is committed."""

import json
import select
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from factories import (
    CLEAR,
    CRYSTALS,
    drain,
    promote,
    record,
    register,
    register_source,
    sightings,
    utc,
)

from marcod.database.engine import Database
from marcod.database.schema import drop, inspection, plate
from marcod.domain import DropClass
from marcod.labels import recorder
from marcod.store import derived, events, queue, summaries
from marcod.store.versions import Version
from marcod.store.votes import NewLabel

pytestmark = pytest.mark.parametrize("backend", ["postgres"], indirect=True)

PATIENCE_S = 20.0


class Lims:
    """A program that listens, as docs/lims.md shows it."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://"))
        self._connection.autocommit = True
        self._do("listen marcod_plate_scored")

    def _do(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def heard(self) -> list[dict[str, Any]]:
        """Everything sent until now: whatever was committed before this connection's own message comes before it."""
        self._do("notify marcod_plate_scored, 'end'")
        told: list[str] = []
        while True:
            told += [note.payload for note in self._connection.notifies]
            self._connection.notifies.clear()
            if "end" in told:
                break
            assert select.select([self._connection], [], [], PATIENCE_S)[0], "nothing came"
            self._connection.poll()
        return [json.loads(payload) for payload in told if payload != "end"]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def lims(db_url: str, db: Database) -> Iterator[Lims]:
    """Listens from before the first fact."""
    listening = Lims(db_url)
    yield listening
    listening.close()


@pytest.fixture
def three(db: Database) -> int:
    """A source whose plates have three drops."""
    return register_source(db, "imager", expected_drops=3)


def brief(told: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(t["inspection"], t["hits"], t["new_hits"], t["complete"]) for t in told]


def test_complete_and_new_hits_are_reported_once(db: Database, three: int, champion: Version, lims: Lims) -> None:
    record(db, three, sightings(3, barcode="BC"), utc(1))
    assert lims.heard() == []
    drain(db, champion, utc(2), scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR, limit=1)
    told = lims.heard()
    assert brief(told) == [("1", 1, 1, False), ("1", 1, 0, True)]
    assert {key: told[1][key] for key in ("source", "plate", "barcode", "model")} == {
        "source": "imager", "plate": "P1", "barcode": "BC", "model": "small:1",
    }  # fmt: skip
    key = db.read(lambda c: c.execute(sa.select(inspection.c.id)).scalar_one())
    assert {t["inspection_id"] for t in told} == {key}
    db.write(lambda c: summaries.refresh(c, [key], champion, utc(3)))
    db.write(lambda c: derived.refresh(c, (), [key], utc(3)))
    assert lims.heard() == []


def test_one_message_for_all_that_one_batch_brings(db: Database, three: int, champion: Version, lims: Lims) -> None:
    record(db, three, sightings(3) + sightings(3, inspection="2"), utc(1))
    drain(db, champion, utc(2), scores=lambda c: CRYSTALS if "A01" not in c.path else CLEAR)
    assert brief(lims.heard()) == [("1", 2, 2, True), ("2", 2, 0, True)]


def test_silence_completes_once(db: Database, source_id: int, champion: Version, lims: Lims) -> None:
    record(db, source_id, sightings(1), utc(1))
    drain(db, champion, utc(2))
    assert lims.heard() == []
    for seconds in (100, 200):
        db.write(lambda c, s=seconds: summaries.complete_quiet(c, utc(s), 60))
    assert brief(lims.heard()) == [("1", 0, 0, True)]
    key = db.read(lambda c: c.execute(sa.select(inspection.c.id)).scalar_one())
    db.write(lambda c: summaries.refresh(c, [key], champion, utc(300)))
    db.write(lambda c: summaries.complete_quiet(c, utc(400), 60))
    assert lims.heard() == []
    record(db, source_id, sightings(2)[1:], utc(500))
    drain(db, champion, utc(501))
    db.write(lambda c: summaries.complete_quiet(c, utc(600), 60))
    assert brief(lims.heard()) == [("1", 0, 0, True)], "it was open again"


def test_what_is_undone_was_never_reported(db: Database, three: int, champion: Version, lims: Lims) -> None:
    record(db, three, sightings(3), utc(1))
    drain(db, champion, utc(2))
    lims.heard()
    key = db.read(lambda c: c.execute(sa.select(inspection.c.id)).scalar_one())

    def work(connection: sa.Connection) -> None:
        events.plates_scored(connection, {key: 1}, champion.id)
        raise LookupError

    with pytest.raises(LookupError):
        db.write(work)
    assert lims.heard() == []


def test_only_the_champion_is_reported(db: Database, three: int, champion: Version, lims: Lims) -> None:
    record(db, three, sightings(3), utc(1))
    drain(db, champion, utc(2), scores=lambda c: CRYSTALS if "A01" in c.path else CLEAR)
    lims.heard()
    other = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, other.id, utc(3)))
    drain(db, other, utc(4), scores=lambda c: CRYSTALS)
    assert lims.heard() == []
    third = register(db, version="3")
    promote(db, third, utc(5))
    assert lims.heard() == []
    db.write(lambda c: queue.enqueue_rescore(c, third.id, utc(6)))
    drain(db, third, utc(7), scores=lambda c: CRYSTALS if "A03" not in c.path else CLEAR)
    (told,) = lims.heard()
    assert (told["model"], told["hits"], told["new_hits"], told["complete"]) == ("small:3", 2, 1, True)


def test_a_person_finds_a_hit(db: Database, three: int, champion: Version, lims: Lims) -> None:
    record(db, three, sightings(3), utc(1))
    drain(db, champion, utc(2))
    lims.heard()

    def work(connection: sa.Connection) -> int:
        key = connection.execute(sa.select(inspection.c.id)).scalar_one()
        well = connection.execute(sa.select(drop.c.id).where(drop.c.well == "A02")).scalar_one()
        return recorder.add(connection, [NewLabel(well, key, DropClass.CRYSTALS, "ann", utc(3), "test")], utc(3))

    assert (db.write(work), db.write(work)) == (1, 0)
    assert brief(lims.heard()) == [("1", 1, 1, True)]


def test_names_that_do_not_fit_are_left_out(db: Database, three: int, champion: Version, lims: Lims) -> None:
    record(db, three, sightings(3, barcode="ü"), utc(1))
    db.write(lambda c: c.execute(sa.update(plate).values(barcode="ü" * 3900)))
    drain(db, champion, utc(2))
    (told,) = lims.heard()
    assert told["barcode"] == "ü" * 3900
    db.write(lambda c: c.execute(sa.update(plate).values(barcode="ü" * 4000)))
    db.write(lambda c: events.plates_scored(c, {told["inspection_id"]: 0}, champion.id))
    (cut,) = lims.heard()
    assert cut == told | dict.fromkeys(("source", "plate", "barcode", "inspection", "model"))
