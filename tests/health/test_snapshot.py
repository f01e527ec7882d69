"""How everything stands, from one look; and how the watching stands, as its watchers write it."""

from dataclasses import replace
from datetime import timedelta

import factories
import pytest
import sqlalchemy as sa
import standings
from factories import utc

from marcod.database.engine import Database
from marcod.errors import NotFoundError
from marcod.health import snapshot
from marcod.health.snapshot import Jobs, Outbox, Serving, StatusSnapshot
from marcod.store import queue
from marcod.store.versions import Version
from marcod.watch import status

NOW = utc(days=1)


def take(db: Database, seconds: float = 0.0) -> StatusSnapshot:
    return db.read(lambda c: snapshot.take_snapshot(c, NOW + timedelta(seconds=seconds)))


def test_everything_is_seen(db: Database) -> None:
    standings.populate(db, NOW)
    seen = take(db)
    assert seen.taken_at == NOW
    # One of the minstrel and two of the other wait, one is held, one will be tried again.
    assert seen.new == Jobs(3, 1, 1, NOW - timedelta(hours=1))
    assert seen.rescore == Jobs(8, 0, 0, NOW - timedelta(minutes=2))
    assert (seen.failed, seen.quarantined, seen.lapsed) == (1, {"minstrel": 1}, 0)
    assert (seen.last_scored_at, seen.last_minute) == (NOW - timedelta(seconds=2), 2)
    assert [w.host for w in seen.workers] == ["gpu", "imaging"]
    assert snapshot.roles(seen.workers) == {"score": 1, "watch": 1, "schedule": 1}
    assert seen.champion == Serving("marco:1", True, NOW - timedelta(days=4))
    assert seen.challenger == Serving("lab:2", True, NOW)
    assert [(a.source, a.signal) for a in seen.alarms] == [("minstrel", "brightness")]
    assert seen.sources == ("minstrel", "rock-imager")
    assert [(w.source, w.root_there, w.pending) for w in seen.watched] == [
        ("minstrel", True, 3),
        ("rock-imager", False, 0),
    ]
    assert seen.outbox == {"lims": Outbox(1, NOW - timedelta(minutes=90), 1)}
    assert seen.untold == 1
    assert seen.training is not None
    assert (seen.training.state, seen.training.error) == ("failed", "out of memory")


def test_time_goes_by(db: Database) -> None:
    standings.populate(db, NOW)
    later = take(db, factories.LEASE_S + 60)
    assert (later.new.waiting, later.new.leased, later.new.retrying, later.lapsed) == (5, 0, 0, 1)
    assert (later.last_minute, later.workers) == (0, ())
    assert take(db, 8 * 86_400).outbox["lims"].given_up == 0


def test_an_empty_database_has_nothing(db: Database) -> None:
    seen = take(db)
    assert seen.new == seen.rescore == Jobs(0, 0, 0, None)
    assert (seen.champion, seen.challenger, seen.training, seen.last_scored_at) == (None, None, None, None)
    assert (seen.sources, seen.watched, seen.outbox, seen.alarms) == ((), (), {}, ())


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("new", "rescore"), [(3, 9), (9, 3), (9, 8), (4, 5)])
def test_a_long_queue_is_counted_by_what_is_left(
    db: Database, champion: Version, source_id: int, monkeypatch: pytest.MonkeyPatch, new: int, rescore: int
) -> None:
    """Beyond MOST of one kind the size of the table tells; beyond MOST of both only the sum is right."""
    monkeypatch.setattr(snapshot, "MOST", 5)
    factories.record(db, source_id, factories.sightings(new + rescore + 2), NOW)
    lease = factories.claimed(db, NOW, limit=1)
    unreadable = queue.Failure(lease.claims[0], "truncated", retryable=False)
    factories.finish(db, lease, champion, NOW, failures=[unreadable])
    behind = sa.text("update job set priority = 10 where failed_at is null and id > (select max(id) from job) - :n")
    db.write(lambda c: c.execute(behind, {"n": rescore}))
    factories.claimed(db, NOW, limit=1)
    seen = take(db, 1)
    found = (seen.new.waiting, seen.rescore.waiting)
    assert (seen.new.leased, seen.failed) == (1, 1)
    assert sum(found) == new + rescore
    if min(new, rescore) < 5:
        assert found == (new, rescore)


def test_a_watcher_that_begins_keeps_when_the_last_one_saw_everything(db: Database) -> None:
    factories.register_source(db, "minstrel")
    first = standings.state("minstrel", NOW, pending=5, trouble="no \udcff\x00 folder")
    db.write(lambda c: status.write(c, [first], NOW))
    [seen] = db.read(status.read)
    assert seen == replace(first, trouble="no \\udcff\\x00 folder", updated_at=NOW)

    begun = standings.state("minstrel", utc(days=2), walked_at=None, walked_whole_at=None, round_at=None, walking=True)
    db.write(lambda c: status.write(c, [begun], utc(days=2)))
    [seen] = db.read(status.read)
    kept = replace(begun, walked_at=first.walked_at, walked_whole_at=first.walked_whole_at, updated_at=utc(days=2))
    assert seen == kept


def test_states_are_written_for_sources_that_there_are(db: Database) -> None:
    for name in ("b", "a"):
        factories.register_source(db, name)
    db.write(lambda c: status.write(c, [], NOW))
    db.write(lambda c: status.write(c, [standings.state(name, NOW) for name in ("b", "a")], NOW))
    assert [seen.source for seen in db.read(status.read)] == ["a", "b"]
    with pytest.raises(NotFoundError, match="'nobody'"):
        db.write(lambda c: status.write(c, [standings.state("nobody", NOW)], NOW))

    db.write(lambda c: status.write(c, [standings.state("a", NOW)], NOW + timedelta(days=5)))
    db.write(lambda c: status.forget_gone(c, NOW + timedelta(days=8)))
    assert [seen.source for seen in db.read(status.read)] == ["a"]
