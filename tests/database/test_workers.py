"""Heartbeats: who is alive."""

from factories import utc

from marcod import __version__
from marcod.database import revisions, workers
from marcod.database.engine import Database
from marcod.database.workers import Needs, Worker


def beat(db: Database, name: str, seconds: float) -> None:
    db.write(lambda c: workers.beat(c, name, "host", 42, "watch,score", utc(seconds)))


def alive(db: Database, seconds: float) -> list[str]:
    return [w.name for w in db.read(lambda c: workers.alive(c, utc(seconds)))]


def test_a_worker_is_alive_while_it_beats(db: Database) -> None:
    beat(db, "b", 0)
    beat(db, "a", 30)
    assert alive(db, 60) == ["a", "b"]
    assert alive(db, 61) == ["a"]
    beat(db, "b", 61)
    assert alive(db, 62) == ["a", "b"]
    found = db.read(lambda c: workers.alive(c, utc(62)))[1]
    assert found == Worker("b", "host", 42, "watch,score", __version__, utc(0), utc(61), revisions.known().newest)
    assert db.read(lambda c: workers.needs(c, utc(62)))[1] == Needs("b", "host", found.revision)


def test_a_worker_that_ends_in_order_leaves(db: Database) -> None:
    beat(db, "a", 0)
    beat(db, "b", 0)
    db.write(lambda c: workers.leave(c, "a"))
    db.write(lambda c: workers.leave(c, "never there"))
    assert alive(db, 1) == ["b"]


def test_the_gone_are_forgotten_after_a_day(db: Database) -> None:
    beat(db, "old", 0)
    beat(db, "new", 3600)
    db.write(lambda c: workers.forget_gone(c, utc(days=1, hours=0.5)))
    assert alive(db, 0) == ["new"]
