"""When the trainer trains: by the clock and the labels, for a drift alarm, and to go on with what was killed."""

import os
import socket
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from factories import record, sightings, utc

from marcod.database.engine import Database
from marcod.database.schema import drift_alarm, drop, inspection, training_run
from marcod.domain import CLASSES, DropClass
from marcod.errors import ConfigError, MarcodError
from marcod.evaluate.label_issues import LabelIssues, PersonNoise
from marcod.settings import TrainSettings
from marcod.store import votes
from marcod.store.versions import Version
from marcod.store.votes import NewLabel
from marcod.training import shadow, trainer
from marcod.training.shadow_counts import Both
from marcod.training.trainer import Trainer

NIGHTLY = TrainSettings(schedule="0 2 * * *", min_new_labels=2)
EVENING = datetime(2026, 5, 1, 20, 0, tzinfo=UTC)
TWO = datetime(2026, 5, 2, 2, 0, 5, tzinfo=UTC)


def say(db: Database, count: int, person: str = "ann") -> None:
    def work(connection: sa.Connection) -> None:
        drops = connection.execute(sa.select(drop.c.id).order_by(drop.c.id).limit(count)).scalars().all()
        where = connection.execute(sa.select(inspection.c.id)).scalar_one()
        votes.add(connection, [NewLabel(d, where, DropClass.CLEAR, person, utc(1), "test") for d in drops], utc(1))

    db.write(work)


def running(db: Database, **more: object) -> None:
    row = {
        "active": True, "state": "running", "cause": "person", "actor": "ann", "recipe": "adapt", "options": {},
        "folder": "/", "host": socket.gethostname(), "pid": os.getpid(), "token": "t",
        "started_at": EVENING, "beat_at": EVENING,
    }  # fmt: skip
    db.write(lambda c: c.execute(sa.insert(training_run).values(row | more)))


def test_at_its_time_and_with_enough_labels(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(3))
    looks = Trainer(db, NIGHTLY, [], now=EVENING)
    say(db, 1)
    assert looks.reason(EVENING) is None
    assert looks.reason(TWO) is None
    say(db, 3)
    assert looks.reason(TWO + timedelta(minutes=1)) is None, "the next time is tomorrow"
    found = looks.reason(TWO + timedelta(days=1))
    assert found is not None
    assert (found.cause, found.detail) == ("labels", "3 new labels")


def test_a_drift_alarm_that_labels_may_help_against(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    looks = Trainer(db, NIGHTLY, [], now=EVENING)

    def alarm(signal: str) -> None:
        row = {
            "source_id": source_id, "modality": "visible", "model_version_id": champion.id, "signal": signal,
            "day": date(2026, 5, 1), "p_value": 1e-9, "detail": "", "raised_at": EVENING,
        }  # fmt: skip
        db.write(lambda c: c.execute(sa.insert(drift_alarm).values(row)))

    alarm("brightness")
    say(db, 1)
    assert looks.reason(EVENING) is None
    alarm("confidence")
    found = looks.reason(EVENING)
    assert found is not None
    assert found.cause == "drift"
    assert Trainer(db, NIGHTLY.model_copy(update={"on_drift": False}), [], now=EVENING).reason(EVENING) is None
    running(db, active=None, state="refused", started_at=EVENING + timedelta(hours=1))
    assert looks.reason(EVENING + timedelta(hours=2)) is None, "it was trained for already"


def test_a_run_that_was_killed_is_resumed_and_one_that_lives_is_left_alone(db: Database) -> None:
    looks = Trainer(db, NIGHTLY, [], now=EVENING)
    running(db)
    assert looks.reason(EVENING) is None
    db.write(lambda c: c.execute(sa.update(training_run).values(pid=2**22 + 1)))
    assert looks.reason(EVENING) is not None
    db.write(lambda c: c.execute(sa.update(training_run).values(host="elsewhere")))
    assert looks.reason(EVENING) is None
    assert looks.reason(EVENING + timedelta(seconds=trainer.SILENCE_S + 1)) is not None


def test_a_schedule_that_is_not_a_cron_expression() -> None:
    with pytest.raises(ConfigError, match="is not a cron expression such as"):
        trainer.check(TrainSettings(schedule="every night"))
    trainer.check(TrainSettings(schedule=None))


@pytest.mark.slow
def test_the_child_is_stopped_in_order_and_its_failure_is_reported(db: Database, tmp_path: Path) -> None:
    running(db, pid=2**22 + 1)
    stop, noted = threading.Event(), tmp_path / "noted"
    told = f"import signal, sys, pathlib; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); \
pathlib.Path({str(noted)!r}).write_text(' '.join(sys.argv[1:])); signal.pause()"

    def alive() -> None:
        if noted.exists() and noted.read_text():
            stop.set()

    Trainer(db, NIGHTLY, [sys.executable, "-c", told], now=EVENING).run(stop, alive)
    assert noted.read_text() == "retrain --cause schedule"
    failing = Trainer(db, NIGHTLY, [sys.executable, "-c", "raise SystemExit(7)"], now=EVENING)
    with pytest.raises(MarcodError, match="ended with 7"):
        failing.run(threading.Event())


@pytest.mark.parametrize(
    ("both", "problem"),
    [
        (Both(200, 10, 12, 0, 4, 3, 4), None),
        (Both(200, 10, 12, 5, 0, 0, 0), "could not score 5 images"),
        (Both(200, 10, 90, 0, 0, 0, 0), "calls 90 of 200 new images hits"),
        (Both(200, 10, 12, 0, 10, 9, 7), "found 7 of the 10 drops that people called crystals"),
    ],
)
def test_what_a_shadow_must_not_show(both: Both, problem: str | None) -> None:
    found = shadow._problems(both, TrainSettings())
    assert (found == []) if problem is None else (problem in found[0])


@pytest.mark.slow
def test_a_person_who_swaps_two_classes_fails_the_gate() -> None:
    from marcod.training import assess

    swapped = ((2, 20, 0, 0), (18, 1, 0, 0), (0, 0, 3, 0), (0, 0, 0, 30))
    fine = ((20, 2, 0, 0), (1, 18, 0, 0), (0, 0, 3, 0), (0, 0, 0, 30))
    people = tuple(
        PersonNoise(name, 74, 74, share, (0.0, 1.0), table)
        for name, share, table in (("ann", 0.04, fine), ("bob", 0.5, swapped))
    )
    (check,) = assess.people_checks(LabelIssues((), 148, 0.2, people))
    assert not check.passed
    assert "bob seems to say" in check.sentence
    assert {str(CLASSES[0]), str(CLASSES[1])} <= set(check.sentence.split())
    assert assess.people_checks(None) == []
