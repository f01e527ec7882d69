"""A lab in which every figure of a standing has a value: two watched imagers, one trouble of each kind. Synthetic."""

from datetime import date, datetime, timedelta

import sqlalchemy as sa
from factories import claimed, finish, promote, record, register, register_source, sightings

from marcod.catalog import findings
from marcod.database import workers
from marcod.database.engine import Database
from marcod.database.schema import delivery, event
from marcod.drift import days
from marcod.layouts.findings import SourceFinding
from marcod.store import queue, serving, versions
from marcod.training import run_rows
from marcod.watch import status
from marcod.watch.status import SourceStatus


def state(source: str, now: datetime, **more: object) -> SourceStatus:
    """A source that is watched well."""
    values: dict[str, object] = {
        "source": source, "worker": "w", "host": "imaging", "root_there": True, "observing": True, "trouble": None,
        "pending": 0, "waiting": 0, "walking": False, "walked_files": 1200, "unreadable": 0,
        "walked_at": now - timedelta(seconds=40), "walked_whole_at": now - timedelta(hours=5), "round_at": now,
    }  # fmt: skip
    return SourceStatus(**(values | more))  # type: ignore[arg-type]


def finding(reason: str, files: int, **more: object) -> SourceFinding:
    """Files of the rock imager that its layout does not read."""
    return SourceFinding("rock-imager", "rigaku", "ignored", reason, files, 292, "a/b.jpg", **more)  # type: ignore[arg-type]


def populate(db: Database, now: datetime) -> None:
    """Two plates: 6 images of the minstrel, of which 1 failed, 1 is held, 1 tried again, 1 waits and 2 are scored."""
    champion = register(db, name="marco", version="1")
    promote(db, champion, now - timedelta(days=4))
    minstrel, rock = register_source(db, "minstrel"), register_source(db, "rock-imager")
    record(db, minstrel, sightings(6, "CI1"), now - timedelta(hours=1))
    lease = claimed(db, now - timedelta(seconds=3), limit=4)
    bad, again = lease.claims[:2]
    failures = [queue.Failure(bad, "truncated", retryable=False), queue.Failure(again, "busy", retryable=True)]
    finish(db, lease, champion, now - timedelta(seconds=2), failures=failures)
    claimed(db, now - timedelta(seconds=1), limit=1)
    record(db, rock, sightings(2, "R1"), now - timedelta(minutes=1))
    challenger = register(db, name="lab", version="2")
    db.write(lambda c: serving.challenge(c, challenger, actor="ann", now=now))
    db.write(lambda c: queue.enqueue_rescore(c, challenger.id, now - timedelta(minutes=2)))
    for name, roles in (("imaging:7:a", "watch,schedule"), ("gpu:8:b", "score")):
        host, pid, _ = name.split(":")
        db.write(lambda c, n=name, h=host, p=int(pid), r=roles: workers.beat(c, n, h, p, r, now))  # type: ignore[misc]
    seen = [
        state("minstrel", now, pending=3, waiting=1, trouble="no inotify watches left"),
        state("rock-imager", now, root_there=False, observing=False, walked_at=now - timedelta(hours=9)),
    ]
    db.write(lambda c: status.write(c, seen, now))
    read = [finding("not_this_layout", 288, hint="crims", hint_files=288, asked=288), finding("out_of_range", 2)]
    db.write(lambda c: findings.replace(c, rock, read, now))
    db.write(lambda c: _raise_alarm(c, champion, minstrel, now))
    db.write(lambda c: _outbox(c, now))
    db.write(lambda c: _training(c, now))


def _raise_alarm(connection: sa.Connection, version: versions.Version, source_id: int, now: datetime) -> None:
    days.raise_alarm(
        connection, version, source_id, signal="brightness", day=date(2026, 1, 1), value=0.4, reference=0.6,
        p_value=1e-9, detail="the images of minstrel are darker; look at its lamp", now=now,
    )  # fmt: skip


def _outbox(connection: sa.Connection, now: datetime) -> None:
    """For the LIMS one waits and one was given up, for ann one was sent; one event is not dispatched."""
    connection.execute(sa.delete(event))
    for number, minutes in enumerate((90, 60, 30)):
        row = {"kind": "hits", "subject": f"s{number}", "detail": {}, "happened_at": now - timedelta(minutes=minutes)}
        connection.execute(sa.insert(event).values(**row, dispatched_at=now if number < 2 else None))
    ids = list(connection.execute(sa.select(event.c.id).order_by(event.c.id)).scalars())
    told = ((0, "lims", {}), (1, "lims", {"failed_at": now, "error": "404"}), (0, "ann", {"sent_at": now}))
    for number, target, more in told:
        values = {"event_id": ids[number], "target": target, "attempts": 1, "available_at": now}
        connection.execute(sa.insert(delivery).values(**values, **more))


def _training(connection: sa.Connection, now: datetime) -> None:
    run = run_rows.begin(
        connection, cause="schedule", actor="trainer", recipe="adapt", options={}, parent="marco:1", folder="/runs/1",
        host="gpu", pid=9, token="t", now=now - timedelta(hours=4),
    )  # fmt: skip
    run_rows.end(connection, run.id, "t", state="failed", error="out of memory", now=now - timedelta(hours=3))
