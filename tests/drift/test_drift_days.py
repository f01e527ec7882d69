"""Drift on both databases: what counts as new, when a reference freezes, and an alarm's life. All synthetic."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Barrier

import factories
import imager_days
import pytest
import sqlalchemy as sa
from factories import promote, record, register, register_source, rows, sightings, utc
from imager_days import IMAGES, at, day, delivered, score_waiting

from marcod.catalog import deliveries
from marcod.database.engine import Database
from marcod.database.schema import drift_alarm, drift_day, image
from marcod.drift import days as store
from marcod.drift import monitor
from marcod.errors import NotFoundError
from marcod.settings import DriftSettings
from marcod.store import audit_log, queue, serving
from marcod.store.versions import Version

SETTINGS = DriftSettings(reference_images=50, min_images=20, window_days=3)


def look(db: Database, number: int, hours: float = 2.0) -> monitor.DriftReport:
    return monitor.run(db, SETTINGS, at(number, hours))


def states(report: monitor.DriftReport) -> dict[str, str]:
    return {imager.source: imager.state for imager in report.imagers}


def counts(db: Database) -> list[tuple[object, ...]]:
    found = sa.select(drift_day.c.day, drift_day.c.images, drift_day.c.failures).order_by(drift_day.c.day)
    return [tuple(row) for row in rows(db, found)]


@pytest.mark.slow
def test_the_life_of_an_alarm(db: Database, source_id: int, champion: Version) -> None:
    assert look(db, 0).imagers == []
    day(db, source_id, champion, at(0))
    collecting = look(db, 0)
    assert states(collecting) == {"imager": monitor.COLLECTING}
    assert "56 of 50 images, 8 of 8 plates" in collecting.imagers[0].note
    day(db, source_id, champion, at(1))
    assert states(look(db, 1)) == {"imager": monitor.QUIET}
    day(db, source_id, champion, at(2), light=0.7)
    first = look(db, 2)
    assert "brightness" in {alarm.signal for alarm in first.new}
    assert any("the images of imager are darker" in alarm.detail for alarm in first.new)
    again = look(db, 2, hours=3)
    assert (again.new, states(again)) == ([], {"imager": monitor.ALARM})
    day(db, source_id, champion, at(3), light=0.7)
    opened = {alarm.signal for alarm in db.read(store.open_alarms)}
    assert {alarm.signal for alarm in look(db, 3).new}.isdisjoint(opened)
    for number in (4, 5):
        day(db, source_id, champion, at(number))
        look(db, number)
    assert "brightness" in {alarm.signal for alarm in db.read(store.open_alarms)}
    day(db, source_id, champion, at(6))
    assert states(look(db, 6)) == {"imager": monitor.QUIET}
    assert db.read(store.open_alarms) == []
    assert len(rows(db, sa.select(drift_alarm).where(drift_alarm.c.signal == "brightness"))) == 1


@pytest.mark.slow
def test_missed_days_are_caught_up_and_give_the_same(db: Database, source_id: int, champion: Version) -> None:
    """A second version scores everything too. A day is found among the scores by their time alone."""
    other = register(db, version="2")
    db.write(lambda c: serving.challenge(c, other, actor="test", now=utc()))
    for number in range(3):
        day(db, source_id, champion, at(number))
        score_waiting(db, other, at(number, hours=1), light=0.2)
        look(db, number)
    kept = counts(db)
    assert [row[1:] for row in kept] == [(IMAGES, 0)] * 3
    for since in (at(-5), at(1), at(2, hours=0.5), at(9)):
        found = db.read(lambda c, since=since: list(store.observations(c, champion, since, since + timedelta(days=1))))
        assert len(found) == (IMAGES if since == at(1) else 0)
    written = rows(db, sa.select(drift_day.c.statistics).order_by(drift_day.c.day))
    db.write(lambda c: c.execute(sa.delete(drift_day)))
    look(db, 2)
    assert counts(db) == kept
    assert rows(db, sa.select(drift_day.c.statistics).order_by(drift_day.c.day)) == written
    db.write(lambda c: c.execute(sa.delete(drift_day)))
    look(db, 40)
    assert counts(db) == []


@pytest.mark.slow
def test_an_archive_is_not_drift(db: Database, source_id: int, champion: Version) -> None:
    """Neither one that is taken in late, nor one that a new champion scores again, nor what an old marcod scored."""
    day(db, source_id, champion, at(0), captured_at=at(-100))
    look(db, 0)
    assert counts(db) == []
    record(db, source_id, sightings(2, "unmeasured", captured_at=at(0)), at(0, hours=1))
    factories.drain(db, champion, at(0, hours=1))
    look(db, 0)
    assert counts(db) == []
    newer = register(db, version="2")
    promote(db, newer, at(1))
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, at(1)))
    score_waiting(db, newer, at(1, hours=1), light=0.2)
    look(db, 1)
    assert counts(db) == []
    day(db, source_id, newer, at(1, hours=2), captured_at=at(-1))
    look(db, 1, hours=3)
    assert [row[1:] for row in counts(db)] == [(IMAGES, 0)]


def test_a_plates_age_counts_from_its_first_image(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(3, "old", "1", captured_at=at(-20)) + sightings(3, "old", "2", captured_at=at(0))
    record(db, source_id, files, at(0))
    record(db, source_id, sightings(3, "new", captured_at=at(0)), at(0))
    score_waiting(db, champion, at(0))
    found = db.read(lambda c: list(store.observations(c, champion, at(-1), at(1))))
    assert sorted(round(one.age_d) for one in found) == [0, 0, 0, 20, 20, 20]


@pytest.mark.slow
def test_images_that_cannot_be_read_are_counted_and_vanished_ones_are_not(
    db: Database, source_id: int, champion: Version
) -> None:
    day(db, source_id, champion, at(0))
    day(db, source_id, champion, at(1), unreadable=lambda number: number % 7 == 0)
    day(db, source_id, champion, at(2), unreadable=lambda number: number % 7 == 0, error=queue.GONE)
    report = look(db, 2)
    assert [row[1:] for row in counts(db)] == [(IMAGES, 0), (IMAGES - 8, 8), (IMAGES - 8, 0)]
    failures = next(f for f in report.imagers[0].findings if f.signal == "failures")
    assert failures.reference == 0
    assert failures.value == pytest.approx(8 / 104, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_failures_count_from_the_first_measured_score(db: Database, source_id: int, champion: Version) -> None:
    """Before, an older marcod scored, whose images do not count."""
    day(db, source_id, champion, at(0), unreadable=lambda _: True)
    look(db, 0)
    assert counts(db) == []
    day(db, source_id, champion, at(1), unreadable=lambda number: number % 7 == 0)
    day(db, source_id, champion, at(2), unreadable=lambda _: True)
    look(db, 2)
    assert [row[1:] for row in counts(db)] == [(IMAGES - 8, 8), (0, IMAGES)]


def test_names_without_a_date_are_as_old_as_their_files(db: Database, source_id: int, champion: Version) -> None:
    def undated(plate: str, when: datetime) -> list[deliveries.Sighting]:
        ns = round(when.timestamp()) * 10**9
        return [replace(file, mtime_ns=ns) for file in sightings(2, plate)]

    record(db, source_id, undated("old", at(-100)) + undated("new", at(-3)) + undated("ahead", at(5)), at(0))
    score_waiting(db, champion, at(0))

    def ages() -> list[int]:
        return [round(one.age_d) for one in db.read(lambda c: list(store.observations(c, champion, at(-1), at(1))))]

    assert ages() == [0] * 4
    record(db, source_id, sightings(1, "new", "2", captured_at=at(0)), at(0, hours=1))
    score_waiting(db, champion, at(0, hours=1))
    assert sorted(ages()) == [0] * 4 + [3]
    # To be read anew, a source has its files' times below zero.
    db.write(lambda c: c.execute(sa.update(image).values(mtime_ns=-image.c.mtime_ns - 1)))
    assert sorted(ages()) == [0] * 4 + [3]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_day_that_has_nothing_any_more_is_written_empty(db: Database, source_id: int, champion: Version) -> None:
    day(db, source_id, champion, at(0))
    look(db, 0)
    db.write(lambda c: c.execute(sa.update(image).values(content_hash="of what stands there now")))
    look(db, 0, hours=3)
    assert [row[1:] for row in counts(db)] == [(0, 0)]
    assert monitor.history(db, "imager", 1, at(0))[0].brightness is None


@pytest.mark.slow
def test_several_processes_at_once_raise_one_alarm(db: Database, source_id: int, champion: Version) -> None:
    day(db, source_id, champion, at(0))
    day(db, source_id, champion, at(1), light=0.5)
    together = Barrier(4)

    def process(_: int) -> int:
        together.wait()
        return len(look(db, 1).new)

    with ThreadPoolExecutor(4) as pool:
        new = list(pool.map(process, range(4)))
    raised = rows(db, sa.select(drift_alarm.c.signal))
    assert sum(new) == len(raised) == len({row[0] for row in raised}) >= 2


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.slow
def test_a_cleared_alarm_stays_closed_and_a_new_normal_is_learnt(
    db: Database, source_id: int, champion: Version
) -> None:
    day(db, source_id, champion, at(0))
    day(db, source_id, champion, at(1), light=0.7)
    raised = len(look(db, 1).new)
    assert raised
    assert monitor.clear(db, "imager", new_reference=False, actor="ann", now=at(1, 3)) == raised
    assert states(look(db, 1, hours=4)) == {"imager": monitor.QUIET}
    day(db, source_id, champion, at(2), light=0.7)
    assert look(db, 2).new
    monitor.clear(db, "imager", new_reference=True, actor="ann", now=at(2, 3))
    assert states(look(db, 2, hours=4)) == {"imager": monitor.COLLECTING}
    for number in (3, 4):
        day(db, source_id, champion, at(number), light=0.7)
    assert states(look(db, 4)) == {"imager": monitor.QUIET}
    notes = db.read(lambda c: audit_log.history(c, "imager"))
    assert [(n.actor, n.action, n.detail["new_reference"]) for n in notes if n.detail] == [
        ("ann", "drift-clear", True),
        ("ann", "drift-clear", False),
    ]
    with pytest.raises(NotFoundError, match="no source is recorded as 'nobody'"):
        monitor.clear(db, "nobody", new_reference=False, actor="ann", now=at(4))


def signals(db: Database) -> set[str]:
    return {alarm.signal for alarm in db.read(store.open_alarms)}


@pytest.mark.slow
def test_a_new_champion_starts_a_reference_of_scores_and_keeps_that_of_the_images(
    db: Database, source_id: int, champion: Version
) -> None:
    day(db, source_id, champion, at(0))
    day(db, source_id, champion, at(1), light=0.7, sure=0.3)
    assert {"brightness", "confidence"} <= {alarm.signal for alarm in look(db, 1).new}
    newer = register(db, version="2")
    promote(db, newer, at(1, hours=3))
    assert states(look(db, 1, hours=4)) == {"imager": monitor.ALARM}
    assert "brightness" in signals(db)
    assert "confidence" not in signals(db)
    day(db, source_id, newer, at(2), light=0.7, sure=0.3)
    report = look(db, 2)
    assert report.new == [], "it is open under the former champion, and the new one's scores have no reference"
    assert "the champion's scores not yet: 56 of 50 images" in report.imagers[0].note
    for number in (3, 4, 5, 6):
        day(db, source_id, newer, at(number), sure=0.3)
        look(db, number)
    assert signals(db) == set()
    db.write(lambda c: serving.rollback(c, champion, actor="test", now=at(7)))
    day(db, source_id, champion, at(7, hours=1), sure=0.3)
    report = look(db, 7, hours=3)
    assert "confidence" in signals(db), "the former reference of its scores counts again"
    assert signals(db).isdisjoint(store.LASTING)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.99, 1.0])
def test_slow_decay_is_found_over_many_champions_and_promotions_alone_are_no_drift(
    db: Database, source_id: int, champion: Version, decay: float
) -> None:
    """A lamp loses one part in a hundred a month, and a new model becomes champion each month."""
    seen: list[set[str]] = []
    serving_now = champion
    for month in range(14):
        for number in (30 * month, 30 * month + 1):
            day(db, source_id, serving_now, at(number), light=decay**month)
            look(db, number)
        seen.append(signals(db))
        serving_now = register(db, version=str(month + 2))
        promote(db, serving_now, at(30 * month + 1, hours=5))
    if decay == 1.0:
        assert seen == [set()] * 14
        return
    first = next(month for month, open_ones in enumerate(seen) if "brightness" in open_ones)
    assert 2 <= first <= 12
    assert all("brightness" in open_ones for open_ones in seen[first:]), "no promotion closes it"
    raised = rows(db, sa.select(drift_alarm.c.id).where(drift_alarm.c.signal == "brightness"))
    assert len(raised) == 1


@pytest.mark.slow
def test_a_reference_grows_under_several_champions(db: Database, source_id: int, champion: Version) -> None:
    """Neither of them scores enough images for one by itself."""
    settings = SETTINGS.model_copy(update={"reference_images": 100})
    day(db, source_id, champion, at(0))
    monitor.run(db, settings, at(0, 2))
    newer = register(db, version="2")
    promote(db, newer, at(0, hours=3))
    day(db, source_id, newer, at(1))
    assert states(monitor.run(db, settings, at(1, 2))) == {"imager": monitor.COLLECTING}
    day(db, source_id, newer, at(2))
    report = monitor.run(db, settings, at(2, 2))
    assert states(report) == {"imager": monitor.QUIET}
    assert {finding.signal for finding in report.imagers[0].findings} == set(store.LASTING)
    lines = monitor.history(db, "imager", 3, at(2, 3))
    assert [line.images for line in lines] == [IMAGES] * 3, "whatever champion scored them"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_focus_has_a_new_reference_when_the_model_takes_other_pixels(
    db: Database, source_id: int, champion: Version
) -> None:
    day(db, source_id, champion, at(0))
    monitor.run(db, SETTINGS, at(0, 2), "160 pixels")
    day(db, source_id, champion, at(1), light=0.7, blur=0.5)
    monitor.run(db, SETTINGS, at(1, 2), "160 pixels")
    assert {"brightness", "focus"} <= signals(db)
    promote(db, register(db, version="2"), at(1, hours=3))
    monitor.run(db, SETTINGS, at(1, 4), "160 pixels")
    assert {"brightness", "focus"} <= signals(db)
    newest = register(db, version="3")
    promote(db, newest, at(1, hours=5))
    shown = monitor.look(db, SETTINGS, at(1, 6), "599 pixels")
    assert "focus" not in {alarm.signal for alarm in shown.imagers[0].alarms}
    monitor.run(db, SETTINGS, at(1, 6), "599 pixels")
    assert "focus" not in signals(db)
    assert "brightness" in signals(db)
    for number in (2, 3, 4):
        day(db, source_id, newest, at(number), blur=-0.9)
        report = monitor.run(db, SETTINGS, at(number, 2), "599 pixels")
    assert "focus" not in signals(db)
    assert "focus not yet" not in report.imagers[0].note
    day(db, source_id, newest, at(5), blur=-0.4)
    monitor.run(db, SETTINGS, at(5, 2), "599 pixels")
    assert "focus" in signals(db)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_imagers_are_apart_and_days_can_be_read(db: Database, source_id: int, champion: Version) -> None:
    second = register_source(db, "second")
    for number in (0, 1):
        record(db, second, delivered(at(number)), at(number))
        day(db, source_id, champion, at(number), light=1.0)
    day(db, second, champion, at(2), light=0.5)
    report = look(db, 2)
    assert states(report) == {"imager": monitor.QUIET, "second": monitor.ALARM}
    lines = monitor.history(db, "second", 2, at(2))
    assert [line.day for line in lines] == [at(1).date(), at(2).date()]
    assert lines[1].brightness == pytest.approx(lines[0].brightness * 0.5, rel=0.1)
    assert (lines[1].images, lines[1].plates, lines[1].classes["Clear"]) == (IMAGES, imager_days.PLATES, IMAGES)
