"""A version scores in silence; when it is promoted its rows are made plate by plate while the former one speaks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import factories
import oracle
import pytest
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
    rewritten,
    rows,
    sightings,
    utc,
)
from waiting import wait_until

from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import (
    audit,
    drop,
    drop_summary,
    event,
    hit,
    image,
    inspection,
    inspection_summary,
    job,
    plate,
    score,
)
from marcod.domain import DropClass
from marcod.errors import StoreError
from marcod.store import derived, locks, promotions, queue, results, serving, summaries, versions, votes
from marcod.store.versions import Version

on_postgres = pytest.mark.parametrize("backend", ["postgres"], indirect=True)

DERIVED = (inspection_summary, drop_summary, hit)
SPOKEN = "select distinct model_version from {view} order by 1"
VIEWS = ("lims_plate_summary_v1", "lims_drop_v1", "lims_hit_v1")
WELLS = 4


def bright(claim: queue.Claim) -> tuple[float, float, float, float]:
    """Crystals in the first well, nothing elsewhere."""
    return CRYSTALS if "A01" in claim.path else CLEAR


def rows_of(db: Database, version: Version) -> list[int]:
    """How many summaries, drops and hits a version has."""
    return [len(rows(db, sa.select(t.c.model_version_id).where(t.c.model_version_id == version.id))) for t in DERIVED]


def spoken(db: Database) -> set[str]:
    """The versions that the views show."""
    return {row[0] for view in VIEWS for row in rows(db, sa.text(SPOKEN.format(view=view)))}


def begin(db: Database, version: Version, now: float = 10, **more: Any) -> Version | None:
    return db.write(lambda c: serving.promote(c, version, actor="ann", now=utc(now), **more))


def step(db: Database, version: Version, now: float = 11) -> bool:
    return db.write(lambda c: promotions.step(c, version, utc(now)))


def end(db: Database, now: float = 20) -> None:
    assert serving.advance(db, lambda: utc(now)) is None


def faults(db: Database) -> list[str]:
    """What is not as the facts say, once all that came a day ago is complete."""
    db.write_portions(summaries.complete_quiet, utc(days=1), 60.0)
    return oracle.faults(db)


def scored_in_silence(db: Database, version: Version, now: float = 5) -> None:
    """Queue all there is for a version, and score it."""
    db.write(lambda c: queue.enqueue_rescore(c, version.id, utc(now)))
    assert drain(db, version, utc(now), scores=bright)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plate in each step."""
    monkeypatch.setattr(promotions, "PORTION", 1)


@pytest.fixture
def files(db: Database, source_id: int, champion: Version) -> list[Sighting]:
    """Five plates that the champion has scored."""
    found = [s for key in "ABCDE" for s in sightings(WELLS, plate=key)]
    record(db, source_id, found)
    drain(db, champion, utc(1))
    return found


@pytest.fixture
def silent(db: Database, files: list[Sighting]) -> Version:
    """small:2, which has scored them all and never was champion."""
    version = register(db, version="2")
    scored_in_silence(db, version)
    return version


def test_a_version_that_never_was_champion_has_scores_and_no_rows(
    db: Database, silent: Version, files: list[Sighting]
) -> None:
    assert len(rows(db, sa.select(score.c.id).where(score.c.model_version_id == silent.id))) == len(files)
    assert rows_of(db, silent) == [0, 0, 0]
    assert faults(db) == []


def test_a_challenger_has_none_either_and_its_promotion_makes_them(
    db: Database, source_id: int, champion: Version
) -> None:
    second = register(db, version="2")
    db.write(lambda c: serving.challenge(c, second, actor="ann", now=utc()))
    record(db, source_id, sightings(WELLS))
    finish(db, claimed(db), champion, utc(1))
    finish(db, claimed(db), second, utc(2), scores=bright)
    assert rows_of(db, second) == [0, 0, 0]
    promote(db, second, utc(3))
    assert rows_of(db, second) == [1, WELLS, 1]
    assert faults(db) == []


@pytest.mark.usefixtures("small_steps")
def test_the_former_champion_speaks_until_all_plates_are_there_and_then_the_new_one(
    db: Database, champion: Version, silent: Version
) -> None:
    assert begin(db, silent) == champion
    steps = 0
    while True:
        found = db.read(promotions.pending)
        assert found is not None
        assert (found.done, found.plates, str(found)) == (steps, 5, f"{steps} of 5 plates")
        assert (spoken(db), db.read(versions.champion)) == ({"1"}, champion)
        if found.ready:
            break
        step(db, silent)
        steps += 1
        assert rows_of(db, silent)[0] == steps
    end(db)
    assert (spoken(db), db.read(versions.champion), db.read(promotions.pending)) == ({"2"}, silent, None)
    assert rows_of(db, silent) == [5, 5 * WELLS, 5]
    assert faults(db) == []
    notes = rows(db, sa.select(audit.c.action, audit.c.subject, audit.c.actor, audit.c.at).order_by(audit.c.id))
    assert tuple(notes[-1]) == ("promote", "small:2", "ann", utc(20))


def test_hits_are_notified_at_the_end_and_each_once(db: Database, champion: Version, silent: Version) -> None:
    begin(db, silent)
    step(db, silent)
    assert rows(db, sa.select(event.c.id).where(event.c.kind == "hits")) == []
    end(db)
    found = rows(db, sa.select(hit.c.cause, hit.c.found_at).where(hit.c.model_version_id == silent.id))
    assert set(map(tuple, found)) == {("model", utc(20))}, "the champion had seen the images"


def test_crystals_in_a_new_image_that_the_champion_had_not_scored_yet_are_notified(
    db: Database, source_id: int, champion: Version, silent: Version
) -> None:
    begin(db, silent)
    record(db, source_id, sightings(WELLS, plate="A", inspection="2"), utc(12))
    in_hand = claimed(db, utc(12))
    finish(db, claimed(db, utc(12)), silent, utc(13), scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR)
    end(db)
    (told,) = rows(db, sa.select(event.c.detail).where(event.c.kind == "hits"))
    assert [well["well"] for well in told.detail["wells"]] == ["A02"]
    finish(db, in_hand, champion, utc(30), scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR)
    assert len(rows(db, sa.select(event.c.id).where(event.c.kind == "hits"))) == 1


def test_what_the_former_champion_completed_is_complete_at_once(
    db: Database, champion: Version, silent: Version
) -> None:
    db.write(lambda c: summaries.complete_quiet(c, utc(8), 1.0))
    told = rows(db, sa.select(event.c.subject).where(event.c.kind == "complete"))
    begin(db, silent)
    end(db)
    view = rows(db, sa.text("select model_version, complete, complete_rule from lims_plate_summary_v1"))
    assert {(row[0], bool(row[1]), row[2]) for row in view} == {("2", True, "quiet")}
    assert rows(db, sa.select(event.c.subject).where(event.c.kind == "complete")) == told
    assert rows(db, sa.select(job.c.id)) == [], "nothing is owed"


@pytest.mark.usefixtures("small_steps")
def test_images_that_arrive_meanwhile_are_scored_by_both_and_the_change_misses_none(
    db: Database, source_id: int, champion: Version, silent: Version
) -> None:
    begin(db, silent)
    step(db, silent)
    more = [*sightings(2, plate="NEW"), *sightings(WELLS, plate="A", inspection="2"), *sightings(6, plate="E")]
    record(db, source_id, more, utc(12))
    for lease in factories.leases(db, utc(13)):
        version = db.read(lambda c, v=lease.model_version_id: versions.get(c, v))
        finish(db, lease, version, utc(13), scores=bright)
    assert spoken(db) == {"1"}
    end(db)
    assert spoken(db) == {"2"}
    assert len(rows(db, sa.select(score.c.id).where(score.c.model_version_id == silent.id))) == 5 * WELLS + 8
    assert rows(db, sa.select(job.c.id)) == []
    assert faults(db) == []


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("after", [0, 2, 5])
def test_labels_and_rewritten_files_meanwhile_leave_every_row_right(
    db: Database, source_id: int, champion: Version, silent: Version, files: list[Sighting], after: int
) -> None:
    """Of a plate whose rows are there and of one whose rows are to come."""
    begin(db, silent)
    for _ in range(after):
        step(db, silent)
    for place in (1, 4 * WELLS):
        record(db, source_id, [rewritten(files[place])], utc(12))
    give_label(db, "A", "A02")
    give_label(db, "E", "A03")
    for lease in factories.leases(db, utc(13)):
        version = db.read(lambda c, v=lease.model_version_id: versions.get(c, v))
        finish(db, lease, version, utc(13), hashes=lambda c: f"new {c.path}", scores=bright)
    end(db)
    assert spoken(db) == {"2"}
    assert faults(db) == []


def give_label(db: Database, key: str, well: str) -> None:
    """Crystals, by a person."""
    place = sa.select(image.c.drop_id, image.c.inspection_id).join(drop, drop.c.id == image.c.drop_id)
    place = place.join(plate, plate.c.id == drop.c.plate_id).where(plate.c.key == key, drop.c.well == well)
    ((drop_id, inspection_id),) = rows(db, place)
    given = votes.NewLabel(
        drop_id=drop_id, inspection_id=inspection_id, image_id=None, label=DropClass.CRYSTALS, original="Crystals",
        vocabulary="marcod", person="ann", origin="test", labelled_at=utc(12),
    )  # fmt: skip

    def work(connection: sa.Connection) -> None:
        votes.add(connection, [given], utc(12))
        derived.refresh(connection, [drop_id], [inspection_id], utc(12))

    db.write(work)
    assert rows(db, sa.select(inspection.c.id)) != []


def test_a_second_promotion_takes_the_place_of_the_first(db: Database, champion: Version, silent: Version) -> None:
    third = register(db, version="3")
    scored_in_silence(db, third, 6)
    begin(db, silent)
    step(db, silent)
    assert begin(db, third) == champion
    assert step(db, silent) is False, "who still works on the first one finds that out"
    end(db)
    assert db.read(versions.champion) == third
    assert spoken(db) == {"3"}
    assert faults(db) == []
    notes = rows(db, sa.select(audit.c.action, audit.c.subject, audit.c.detail).order_by(audit.c.id))
    assert tuple(notes[-2]) == ("withdraw", "small:2", {"for": "small:3"})


def test_rows_of_a_promotion_that_was_withdrawn_stay_right(db: Database, champion: Version, silent: Version) -> None:
    begin(db, silent)
    step(db, silent)
    assert begin(db, champion) == champion
    assert db.read(promotions.pending) is None
    assert rows_of(db, silent) == [5, 5 * WELLS, 5]
    give_label(db, "B", "A02")
    assert faults(db) == []
    begin(db, silent)
    end(db)
    assert spoken(db) == {"2"}
    assert faults(db) == []


def test_the_same_promotion_again_goes_on(db: Database, champion: Version, silent: Version) -> None:
    begin(db, silent)
    first = db.read(promotions.pending)
    step(db, silent)
    begin(db, silent, 12)
    found = db.read(promotions.pending)
    assert first is not None
    assert found is not None
    assert (found.begun_at, found.done) == (first.begun_at, 5)


def test_a_rollback_is_done_at_once_and_ends_a_promotion(db: Database, champion: Version, silent: Version) -> None:
    newer = register(db, version="3")
    promote(db, newer, utc(7))
    begin(db, silent)
    back = db.write(lambda c: serving.rollback(c, versions.previous(c), actor="ann", now=utc(12)))
    assert back == newer
    assert (db.read(versions.champion), db.read(promotions.pending)) == (champion, None)
    end(db)
    assert db.read(versions.champion) == champion


def test_a_former_champion_is_promoted_in_one_transaction(db: Database, champion: Version, silent: Version) -> None:
    promote(db, silent, utc(10))
    begin(db, champion, 30)
    assert db.read(versions.champion) == champion
    begin(db, silent, 31)
    assert db.read(versions.champion) == silent
    assert faults(db) == []


def test_a_gate_does_not_take_the_place_of_what_a_person_wants(
    db: Database, champion: Version, silent: Version
) -> None:
    third = register(db, version="3")
    begin(db, silent)
    with pytest.raises(StoreError, match="small:2 is becoming champion meanwhile, instead of small:1"):
        begin(db, third, instead_of="small:1")
    begin(db, silent, instead_of="small:1")
    found = db.read(promotions.pending)
    assert found is not None
    assert found.version == silent


def test_a_version_that_becomes_champion_cannot_be_removed(db: Database, champion: Version, silent: Version) -> None:
    begin(db, silent)
    with pytest.raises(StoreError, match="is becoming champion and cannot be removed; `marcod model promote small:1`"):
        db.write(lambda c: serving.remove(c, silent, force=True, actor="ann", now=utc(12)))


def test_plates_without_its_scores_cost_no_rows(
    db: Database, source_id: int, champion: Version, files: list[Sighting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are too many scores to ask for their plates, all plates are looked at."""
    monkeypatch.setattr(promotions, "FEW", 1)
    monkeypatch.setattr(promotions, "PLATES", 2)
    second = register(db, version="2")
    plates_of = sa.select(plate.c.id).where(plate.c.key.in_(["A", "D"]))
    chosen = list(db.read(lambda c: c.execute(plates_of).scalars().all()))
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(5), chosen))
    drain(db, second, utc(5), scores=bright)
    promote(db, second, utc(9))
    assert rows_of(db, second) == [2, 2 * WELLS, 2]
    assert spoken(db) == {"1", "2"}
    assert faults(db) == []


@on_postgres
def test_a_promotion_waits_for_scores_that_are_being_written(
    db: Database, source_id: int, champion: Version, files: list[Sighting]
) -> None:
    """Who writes them has asked already, and makes no rows; without waiting nobody would."""
    second = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(1)))
    lease = claimed(db, utc(2))
    scored = [results.Scored(c, factories.same_hash(c), bright(c)) for c in lease.claims]

    def write(connection: sa.Connection) -> None:
        results.finish(connection, lease.token, second, scored, [], now=utc(3), retry_s=1, max_attempts=1)

    while_held(db, write, lambda: promote(db, second, utc(10)))
    assert rows_of(db, second) == [5, 5 * WELLS, 5]
    assert faults(db) == []


@on_postgres
def test_who_comes_after_a_promotion_waits_for_it(
    db: Database, source_id: int, champion: Version, files: list[Sighting]
) -> None:
    """A stream of workers that score in silence would else pass it for ever, while it holds up every delivery."""
    second = register(db, version="2")
    db.write(queue.enqueue_rescore, second.id, utc(1))
    lease = claimed(db, utc(2))
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"

    def waits(count: int) -> None:
        wait_until(lambda: rows(db, sa.text(waiting))[0][0] >= count, f"{count} who wait")

    with ThreadPoolExecutor(2) as pool:

        def work(connection: sa.Connection) -> tuple[Any, Any]:
            locks.begin_silent_writing(connection)
            promoting = pool.submit(begin, db, second)
            waits(1)
            scoring = pool.submit(finish, db, lease, second, utc(3), scores=bright)
            waits(2)
            return promoting, scoring

        promoting, scoring = db.write(work)
        assert promoting.result(60) == champion
        assert scoring.result(60).scored == 5 * WELLS
    end(db)
    assert rows_of(db, second) == [5, 5 * WELLS, 5]
    assert faults(db) == []


@on_postgres
def test_who_scores_while_rows_are_made_finds_them_or_makes_them(
    db: Database, source_id: int, champion: Version, silent: Version
) -> None:
    record(db, source_id, sightings(WELLS, plate="A", inspection="2"), utc(6))
    drain(db, champion, utc(6), scores=bright)
    db.write(lambda c: queue.enqueue_rescore(c, silent.id, utc(7)))
    lease = claimed(db, utc(7))
    begin(db, silent)

    def work(connection: sa.Connection) -> None:
        promotions.step(connection, silent, utc(11))

    while_held(db, work, lambda: finish(db, lease, silent, utc(12), scores=bright))
    end(db)
    assert rows_of(db, silent)[0] == 6
    assert faults(db) == []


def while_held(db: Database, first: Callable[[sa.Connection], None], then: Callable[[], object]) -> None:
    """Run the second while the first has written and not committed; it must wait, or not mind."""
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with ThreadPoolExecutor(1) as pool:

        def work(connection: sa.Connection) -> Any:
            first(connection)
            other = pool.submit(then)
            watcher = Database(db.url.render_as_string(hide_password=False))
            wait_until(lambda: other.done() or watcher.read(lambda c: c.execute(sa.text(waiting)).scalar_one()), "it")
            watcher.close()
            return other

        db.write(work).result(60)
