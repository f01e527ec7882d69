"""Versions: names are for ever, promotion is one transaction, and no image falls between two champions."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import Any

import factories
import pytest
import sqlalchemy as sa
from factories import claimed, drain, finish, promote, record, register, rows, sightings, utc
from waiting import wait_until

from marcod.catalog import deliveries
from marcod.database.engine import Database
from marcod.database.schema import audit, hit, image, inspection, job, model_alias, score
from marcod.domain import Modality, TrainedOn
from marcod.drift import days
from marcod.errors import BundleError, NotFoundError, StoreError
from marcod.store import audit_log, backlog, queue, results, serving, versions
from marcod.store.versions import Version

on_postgres = pytest.mark.parametrize("backend", ["postgres"], indirect=True)


def spoken(db: Database, champion: Version, number: str) -> Version:
    """A version that was champion once, so that its promotion is one transaction."""
    version = register(db, version=number)
    promote(db, version)
    promote(db, champion)
    return version


def jobs(db: Database) -> list[tuple[int, int, int]]:
    """Image, version and priority of every job."""
    found = rows(
        db, sa.select(job.c.image_id, job.c.model_version_id, job.c.priority).order_by(job.c.image_id, job.c.id)
    )
    return [tuple(row) for row in found]


def aliases(db: Database) -> dict[Version, tuple[str, ...]]:
    """The aliases of every version."""
    return {r.version: r.aliases for r in db.read(versions.listed)}


def test_the_same_bundle_registered_twice_is_one_version(db: Database) -> None:
    first = register(db)
    assert register(db, now=utc(days=1)) == first
    assert str(first) == "small:1"
    assert db.read(lambda c: versions.find(c, "small", "1")) == first
    assert db.read(lambda c: versions.get(c, first.id)) == first


def test_what_a_bundle_says_it_learned_from_replaces_a_guess(db: Database) -> None:
    """A version of before the column has none, or what an upgrade took it for."""
    first = register(db)
    assert (first.trained_on, first.synthetic) == ((), True)
    told = register(db, synthetic=False, trained_on=(TrainedOn.RENDERED, TrainedOn.LAB))
    assert (told.trained_on, told.synthetic, told.id) == (("rendered", "lab"), False, first.id)
    assert register(db, synthetic=False, trained_on=(TrainedOn.RENDERED, TrainedOn.LAB)) == told
    assert [r.version for r in db.read(versions.listed)] == [told]


def test_a_name_cannot_be_given_to_other_weights(db: Database) -> None:
    register(db)
    with pytest.raises(BundleError, match="bundle small:1 differs from the one that scored under this name"):
        register(db, digest="other")
    assert len(db.read(versions.listed)) == 1


def test_what_is_not_there_is_named(db: Database) -> None:
    with pytest.raises(NotFoundError, match="model small:9 is not registered"):
        db.read(lambda c: versions.find(c, "small", "9"))
    with pytest.raises(StoreError, match="no model is champion yet"):
        db.read(versions.champion)
    assert not db.read(versions.has_champion)


def test_promotions_are_written_down(db: Database) -> None:
    one, two = register(db), register(db, version="2")
    assert promote(db, one, utc(1)) is None
    assert promote(db, two, utc(2)) == one
    assert promote(db, two, utc(3)) == two
    assert db.read(versions.champion) == two
    assert db.read(versions.has_champion)
    assert aliases(db) == {one: ("previous",), two: ("champion",)}
    assert promote(db, one, utc(4)) == two
    assert aliases(db) == {one: ("champion",), two: ("previous",)}
    notes = rows(
        db, sa.select(audit.c.at, audit.c.actor, audit.c.action, audit.c.subject, audit.c.detail).order_by(audit.c.id)
    )
    assert [tuple(row) for row in notes] == [
        (utc(1), "test", "promote", "small:1", {"from": None}),
        (utc(2), "test", "promote", "small:2", {"from": "small:1"}),
        (utc(4), "test", "promote", "small:1", {"from": "small:2"}),
    ]


def test_a_failed_promotion_leaves_everything(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(3))
    newer = spoken(db, champion, "2")
    before = [rows(db, sa.select(table)) for table in (job, model_alias, audit)]

    def halfway(connection: sa.Connection) -> None:
        serving.promote(connection, newer, actor="test", now=utc(1))
        raise NotFoundError

    with pytest.raises(NotFoundError):
        db.write(halfway)
    assert [rows(db, sa.select(table)) for table in (job, model_alias, audit)] == before


def test_promotion_moves_new_images_and_leaves_rescoring_and_what_is_in_hand(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(6, plate="OLD"))
    newer = register(db, version="2")
    drain(db, newer)
    db.write(lambda c: queue.enqueue_rescore(c, champion.id, utc(1)))
    record(db, source_id, sightings(6, plate="NEW"), utc(2))
    in_hand = claimed(db, utc(3), limit=2)
    assert promote(db, newer, utc(4)) == champion
    rescored, held = range(1, 7), {c.image_id for c in in_hand.claims}
    expected = [(i, champion.id, queue.RESCORE) for i in rescored]
    for number in range(7, 13):
        expected += [(number, champion.id, queue.NEW)] if number in held else []
        expected.append((number, newer.id, queue.NEW))
    assert jobs(db) == expected
    assert finish(db, in_hand, champion, utc(5)).scored == 2
    assert drain(db, newer, utc(6), limit=6) == 12
    assert jobs(db) == []
    oldest = rows(db, sa.select(sa.func.count(image.c.id)).where(image.c.content_hash.is_(None)))
    assert oldest == [(0,)]


def test_moved_images_keep_their_age(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2), utc(3))
    promote(db, register(db, version="2"), utc(days=1))
    assert rows(db, sa.select(job.c.enqueued_at).distinct()) == [(utc(3),)]


def test_a_quarantined_image_gets_a_try_with_the_next_champion(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    lease = claimed(db, limit=1)
    finish(db, lease, champion, failures=[queue.Failure(lease.claims[0], "bomb", retryable=False)])
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    assert [version for _, version, _ in jobs(db)] == [newer.id, newer.id]
    assert db.read(lambda c: backlog.status(c, utc(1))).failed == 0


def test_a_new_image_that_already_waits_to_be_rescored_becomes_urgent(
    db: Database, source_id: int, champion: Version
) -> None:
    """The challenger was told to score everything before it was promoted."""
    record(db, source_id, sightings(3))
    newer = register(db, version="2")
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1))) == 3
    promote(db, newer, utc(2))
    assert {(version, priority) for _, version, priority in jobs(db)} == {(newer.id, queue.NEW)}


def test_a_champion_for_other_light_gets_no_images_it_was_not_made_for(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(3))
    uv = register(db, name="uv", modality="uv")
    promote(db, uv, utc(1))
    assert {version for _, version, _ in jobs(db)} == {champion.id}
    assert record(db, source_id, sightings(2, modality=Modality.UV)).queued == 2


@pytest.mark.slow
def test_recording_while_champions_change_loses_no_image(db: Database, source_id: int, champion: Version) -> None:
    newer = register(db, version="2")
    together = Barrier(2)
    plates = 30

    def take_in() -> None:
        together.wait()
        for number in range(plates):
            assert record(db, source_id, sightings(4, plate=f"P{number}")).queued == 4

    def change() -> None:
        together.wait()
        for number in range(plates):
            promote(db, (newer, champion)[number % 2])

    with ThreadPoolExecutor(2) as pool:
        for future in (pool.submit(take_in), pool.submit(change)):
            future.result(timeout=60)
    last = db.read(versions.champion)
    assert len(rows(db, sa.select(image.c.id))) == plates * 4
    assert {version for _, version, _ in jobs(db)} == {last.id}
    assert len(jobs(db)) == plates * 4


def _somebody_waits(db: Database) -> bool:
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    return bool(rows(db, sa.text(waiting))[0][0])


def _while_held(
    db: Database,
    first: Callable[[sa.Connection], Any],
    second: Callable[[], Any],
    last: Callable[[sa.Connection], Any] = lambda connection: None,
) -> Any:
    """The answer of ``second``, which had to wait for the transaction of ``first`` and, while it waits, ``last``."""
    with ThreadPoolExecutor(1) as pool:
        with db.engine.begin() as connection:
            first(connection)
            future: Future[Any] = pool.submit(second)
            wait_until(lambda: _somebody_waits(db) or future.done(), "a lock", 10)
            assert not future.done()
            last(connection)
        return future.result(timeout=60)


@on_postgres
def test_a_promotion_holds_the_jobs_of_both_versions_by_id(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    newer = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc()))
    first, second = (
        sa.select(job.c.id).where(job.c.id == row.id).with_for_update() for row in sorted(rows(db, sa.select(job.c.id)))
    )
    errors: list[Any] = []
    sa.event.listen(db.engine, "handle_error", lambda context: errors.append(context.original_exception))
    _while_held(db, lambda c: c.execute(first), lambda: promote(db, newer, utc(1)), lambda c: c.execute(second))
    assert errors == []
    assert {version for _, version, _ in jobs(db)} == {newer.id}


@on_postgres
def test_recording_waits_for_a_promotion_and_queues_for_the_winner(
    db: Database, source_id: int, champion: Version
) -> None:
    newer = spoken(db, champion, "2")
    done = _while_held(
        db,
        lambda c: serving.promote(c, newer, actor="test", now=utc(1)),
        lambda: record(db, source_id, sightings(4), utc(2)),
    )
    assert done.queued == 4
    assert {version for _, version, _ in jobs(db)} == {newer.id}


@on_postgres
def test_a_promotion_waits_for_recording_and_moves_what_it_queued(
    db: Database, source_id: int, champion: Version
) -> None:
    newer = register(db, version="2")
    former = _while_held(
        db,
        lambda c: deliveries.record(c, source_id, sightings(4), utc(1)),
        lambda: promote(db, newer, utc(2)),
    )
    assert former == champion
    assert {version for _, version, _ in jobs(db)} == {newer.id}


@on_postgres
def test_a_promotion_that_waits_for_a_job_holds_no_inspection(db: Database, source_id: int, champion: Version) -> None:
    """Who finishes a batch holds its jobs and then wants the inspections; both would wait in a ring."""
    newer = register(db, version="2")
    record(db, source_id, sightings(2))
    lease = claimed(db)
    finish(db, lease, champion, failures=[queue.Failure(lease.claims[0], "damaged", retryable=False)])
    db.write(queue.enqueue_rescore, newer.id, utc(1))
    held = sa.delete(job).where(job.c.model_version_id == newer.id, job.c.image_id == lease.claims[1].image_id)
    every = [row.id for row in rows(db, sa.select(inspection.c.id))]
    wanted = sa.select(inspection.c.id).where(inspection.c.id.in_(every)).with_for_update(nowait=True)
    _while_held(db, lambda c: c.execute(held), lambda: promote(db, newer, utc(2)), lambda c: c.execute(wanted).all())
    assert aliases(db)[newer] == ("champion",)


@on_postgres
def test_two_promotions_follow_one_another(db: Database, source_id: int, champion: Version) -> None:
    two, three = spoken(db, champion, "2"), register(db, version="3")
    record(db, source_id, sightings(4))
    former = _while_held(
        db, lambda c: serving.promote(c, two, actor="test", now=utc(1)), lambda: promote(db, three, utc(2))
    )
    assert former == two
    assert {version for _, version, _ in jobs(db)} == {three.id}
    assert aliases(db) == {champion: (), two: ("previous",), three: ("champion",)}


def test_a_plate_that_is_still_arriving_is_queued_whole_for_the_new_champion(
    db: Database, champion: Version, source_id: int
) -> None:
    files = factories.sightings(6)
    factories.record(db, source_id, files[:4])
    factories.drain(db, champion)
    second = factories.register(db, version="2")
    factories.promote(db, second, utc(1))
    factories.record(db, source_id, files[4:], utc(2))
    assert factories.drain(db, second, utc(3)) == 6


def rollback(db: Database, version: Version, now: float = 0) -> Version:
    return db.write(lambda c: serving.rollback(c, version, actor="test", now=utc(now)))


def remove(db: Database, version: Version, *, force: bool = False, now: float = 0) -> bool:
    return db.write(lambda c: serving.remove(c, version, force=force, actor="test", now=utc(now)))


def last_note(db: Database) -> tuple[str, str, dict[str, Any]]:
    columns = (audit.c.action, audit.c.subject, audit.c.detail)
    return tuple(rows(db, sa.select(*columns).order_by(audit.c.id.desc()).limit(1))[0])


def test_a_rollback_goes_back_once(db: Database, source_id: int, champion: Version) -> None:
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    record(db, source_id, sightings(3), utc(2))
    assert db.read(versions.previous) == champion
    assert rollback(db, champion, 3) == newer
    assert aliases(db) == {champion: ("champion",), newer: ()}
    assert {version for _, version, _ in jobs(db)} == {champion.id}
    assert last_note(db) == ("rollback", "small:1", {"from": "small:2", "to": "small:1"})
    with pytest.raises(StoreError, match="no previous champion to go back to; `marcod model promote"):
        db.read(versions.previous)
    with pytest.raises(StoreError, match="no previous champion"):
        rollback(db, champion, 4)


def test_a_rollback_to_what_is_not_previous_any_more_changes_nothing(db: Database, champion: Version) -> None:
    two, three = register(db, version="2"), register(db, version="3")
    promote(db, two)
    promote(db, three)
    with pytest.raises(StoreError, match="small:1 is not the previous champion any more"):
        rollback(db, champion)
    assert aliases(db) == {champion: (), two: ("previous",), three: ("champion",)}


def test_a_version_without_scores_is_forgotten(db: Database, source_id: int, champion: Version) -> None:
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    record(db, source_id, sightings(3), utc(2))
    rollback(db, champion, 3)
    db.write(lambda c: days.put_days(c, newer, [days.Day(source_id, newer.id, utc().date(), 0, 3, {})], utc(3)))
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(4)))
    assert remove(db, newer, now=5) is False
    assert aliases(db) == {champion: ("champion",)}
    assert {version for _, version, _ in jobs(db)} == {champion.id}
    assert last_note(db) == ("remove", "small:2", {"digest": newer.digest, "scores_kept": False, "withdrawn": 3})
    with pytest.raises(NotFoundError, match="small:2 was removed already"):
        remove(db, newer)
    with pytest.raises(NotFoundError, match="small:2 was removed meanwhile"):
        promote(db, newer)
    assert register(db, version="2", digest="other weights").digest == "other weights"


def test_a_version_with_scores_keeps_them(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(3))
    drain(db, champion, scores=lambda c: factories.CRYSTALS)
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    with pytest.raises(StoreError, match="small:1 has scored images; --force removes its bundle"):
        remove(db, champion)
    db.write(lambda c: queue.reset(c, [1], utc(2)))
    assert remove(db, champion, force=True, now=3) is True
    [gone, _] = db.read(versions.listed)
    assert (gone.version, gone.aliases, gone.removed_at, gone.has_scores) == (champion, (), utc(3), True)
    kept = {table.name: rows(db, sa.select(sa.func.count()).select_from(table))[0][0] for table in (score, hit)}
    assert kept == {"score": 3, "hit": 3}
    for attempt in (promote, lambda db, v: db.write(lambda c: serving.challenge(c, v, actor="test", now=utc()))):
        with pytest.raises(NotFoundError, match="was removed meanwhile"):
            attempt(db, champion)
    with pytest.raises(BundleError, match="differs from the one that scored under this name"):
        register(db, digest="other")
    assert register(db) == champion
    assert db.read(versions.listed)[0].removed_at is None


def test_a_removed_version_is_shown_until_the_champion_has_scored_a_plate(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(2))
    drain(db, champion)
    promote(db, register(db, version="2"), utc(1))
    remove(db, champion, force=True, now=2)
    assert rows(db, sa.text("select model_version from lims_plate_summary_v1")) == [("1",)]


def test_a_worker_with_images_of_a_removed_version_changes_nothing(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(2))
    newer = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1)))
    finish(db, claimed(db), champion)
    in_hand = claimed(db, utc(1))
    remove(db, newer)
    assert finish(db, in_hand, newer).stale == 2
    with pytest.raises(NotFoundError, match="was removed"):
        db.read(lambda c: versions.get(c, newer.id))


@pytest.mark.parametrize("force", [False, True])
def test_who_serves_cannot_be_removed(db: Database, champion: Version, force: bool) -> None:
    newer = register(db, version="2")
    db.write(lambda c: serving.challenge(c, newer, actor="test", now=utc()))
    with pytest.raises(StoreError, match="small:1 is champion and cannot be removed; `marcod model promote`"):
        remove(db, champion, force=force)
    with pytest.raises(StoreError, match=r"small:2 is challenger .*; `marcod model challenge --none`"):
        remove(db, newer, force=force)


def test_the_history_of_a_version_tells_what_came_and_what_went(db: Database, champion: Version) -> None:
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    rollback(db, champion, 2)
    told = [(n.action, n.subject, n.at) for n in db.read(lambda c: audit_log.history(c, "small:2"))]
    assert told == [("rollback", "small:1", utc(2)), ("promote", "small:2", utc(1))]


@on_postgres
def test_a_removal_waits_for_scores_that_are_being_written(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    newer = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1)))
    finish(db, claimed(db), champion)
    lease = claimed(db, utc(1))
    scored = [results.Scored(c, "hash", factories.CLEAR) for c in lease.claims]

    def write(connection: sa.Connection) -> None:
        results.finish(connection, lease.token, newer, scored, [], now=utc(2), retry_s=1, max_attempts=1)

    with pytest.raises(StoreError, match="has scored images"):
        _while_held(db, write, lambda: remove(db, newer))


def test_processes_that_begin_together_on_a_new_database_agree_on_a_champion(db: Database, db_url: str) -> None:
    version, together = register(db), Barrier(6)

    def begin(_: int) -> None:
        own = Database(db_url, patience_s=0.0 if not db.is_sqlite else 10.0)
        own.read(lambda c: c.execute(sa.select(1)))
        together.wait(30)
        own.write(lambda c: serving.promote(c, version, actor="test", now=utc()))
        own.close()

    with ThreadPoolExecutor(6) as processes:
        list(processes.map(begin, range(6)))
    assert db.read(versions.champion).id == version.id
    assert len(rows(db, sa.select(audit.c.id).where(audit.c.action == "promote"))) == 1
