"""The verdict on a plate: counts, hits, best wells, completeness, under one writer and under two."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from factories import (
    CLEAR,
    CRYSTALS,
    MAX_ATTEMPTS,
    claimed,
    drain,
    finish,
    promote,
    record,
    register,
    register_source,
    rewritten,
    rows,
    sightings,
    utc,
)

from marcod.database.engine import Database
from marcod.database.schema import hit, image, inspection_summary
from marcod.domain import Modality
from marcod.store import queue, results, summaries
from marcod.store.versions import Version

Probabilities = tuple[float, float, float, float]
OTHER = (0.1, 0.1, 0.7, 0.1)
PRECIPITATE = (0.1, 0.2, 0.2, 0.5)


def summary(db: Database, version: Version | None = None) -> Any:
    """The only summary row, or the only one of a version."""
    statement = sa.select(inspection_summary)
    if version is not None:
        statement = statement.where(inspection_summary.c.model_version_id == version.id)
    (row,) = rows(db, statement)
    return row


def by_path(given: dict[str, Probabilities], other: Probabilities = CLEAR) -> Callable[[queue.Claim], Probabilities]:
    """Scores by a part of the path."""
    return lambda claim: next((p for part, p in given.items() if part in claim.path), other)


def test_classes_are_counted_as_scores_come_in(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(8), utc())
    row = summary(db)
    assert (row.seen, row.scored, row.n_clear, row.hits, row.best_wells) == (8, 0, 0, 0, "[]")
    scores = by_path({"A01": CRYSTALS, "A02": OTHER, "A03": PRECIPITATE, "A04": PRECIPITATE})
    finish(db, claimed(db, utc(1), limit=5), champion, utc(2), scores=scores)
    row = summary(db)
    counts = (row.n_clear, row.n_crystals, row.n_other, row.n_precipitate)
    assert counts == (1, 1, 1, 2)
    assert (row.seen, row.scored, row.failed, row.hits, row.complete) == (8, 5, 0, 1, False)
    finish(db, claimed(db, utc(3)), champion, utc(4), scores=scores)
    row = summary(db)
    assert (row.n_clear, row.scored, row.updated_at) == (4, 8, utc(4))
    assert (row.first_image_at, row.last_image_at) == (utc(), utc())


def test_a_drop_is_judged_by_its_image_with_the_highest_crystal_probability(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(2, region=1) + sightings(2, region=2))
    drain(db, champion, scores=by_path({"A01_2": CRYSTALS, "A01_1": OTHER, "A02_1": PRECIPITATE}))
    row = summary(db)
    assert (row.seen, row.scored, row.n_crystals, row.n_precipitate, row.hits) == (2, 2, 1, 1, 1)
    assert [best["p_crystals"] for best in json.loads(row.best_wells)] == [CRYSTALS[1], PRECIPITATE[1]]
    ((path,),) = rows(db, sa.select(image.c.path).join(hit, hit.c.image_id == image.c.id))
    assert "A01_2" in path


def test_images_in_other_light_do_not_count(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(4) + sightings(8, modality=Modality.UV))
    drain(db, champion)
    assert (summary(db).seen, summary(db).scored) == (4, 4)


@pytest.mark.slow
def test_a_hit_is_recorded_once_per_drop_and_version(db: Database, source_id: int, champion: Version) -> None:
    scores = by_path({"A01": (0.05, 0.5, 0.4, 0.05), "A02": (0.0, 0.49999, 0.5, 0.0)})
    for ordinal in (1, 2, 3):
        record(db, source_id, sightings(4, inspection=str(ordinal)), utc(ordinal))
        drain(db, champion, utc(10 + ordinal), scores=scores)
    ((found_at, p_crystals, threshold),) = rows(db, sa.select(hit.c.found_at, hit.c.p_crystals, hit.c.threshold))
    assert (found_at, p_crystals, threshold) == (utc(11), 0.5, 0.5)
    newer = register(db, version="2", crystal_threshold=0.4)
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(20)))
    drain(db, newer, utc(21), scores=scores)
    promote(db, newer, utc(22))
    per_version = rows(db, sa.select(hit.c.model_version_id, sa.func.count()).group_by(hit.c.model_version_id))
    assert dict(tuple(row) for row in per_version) == {champion.id: 1, newer.id: 2}


def test_best_wells_are_the_twelve_most_probable_in_order(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(20))
    ladder = {f.image.well: (0.5, n / 100, 0.5 - n / 100, 0.0) for n, f in enumerate(sightings(20))}
    drain(db, champion, scores=by_path(ladder))
    best = json.loads(summary(db).best_wells)
    wells = [f.image.well for f in reversed(sightings(20))][: summaries.BEST_WELLS]
    assert [entry["well"] for entry in best] == wells
    assert best[0] == {"well": wells[0], "drop": 1, "p_crystals": 0.19}


def test_ties_among_best_wells_go_by_well_and_drop(db: Database, source_id: int, champion: Version) -> None:
    first = sightings(14)
    second = [replace(f, path=f"d2/{f.path}", image=replace(f.image, drop=2)) for f in first]
    record(db, source_id, second + first)
    drain(db, champion)
    best = [(entry["well"], entry["drop"]) for entry in json.loads(summary(db).best_wells)]
    assert best == sorted((f.image.well, f.image.drop) for f in first + second)[: summaries.BEST_WELLS]


def test_complete_when_the_configured_number_is_done(db: Database, champion: Version) -> None:
    where = register_source(db, expected_drops=6)
    record(db, where, sightings(4))
    drain(db, champion)
    row = summary(db)
    assert (row.expected, row.scored, row.complete, row.complete_rule) == (6, 4, False, None)
    record(db, where, sightings(6), utc(1))
    assert not summary(db).complete
    lease = claimed(db, utc(2))
    failure = queue.Failure(lease.claims[0], "bomb", retryable=False)
    finish(db, lease, champion, utc(2), failures=[failure])
    row = summary(db)
    assert (row.scored, row.failed, row.complete, row.complete_rule) == (5, 1, True, "expected")


def test_more_drops_than_expected_are_waited_for(db: Database, champion: Version) -> None:
    record(db, register_source(db, expected_drops=2), sightings(4))
    finish(db, claimed(db, limit=3), champion)
    assert not summary(db).complete
    drain(db, champion)
    assert summary(db).complete


def test_another_inspection_says_nothing_of_what_to_expect(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(5, inspection="1"))
    drain(db, champion)
    assert (summary(db).expected, summary(db).complete) == (None, False)
    assert db.write(lambda c: summaries.complete_quiet(c, utc(61), 60)) == 1
    record(db, source_id, sightings(5, inspection="2"), utc(days=1))
    drain(db, champion, utc(days=1))
    second = rows(db, sa.select(inspection_summary).order_by(inspection_summary.c.inspection_id))[1]
    assert (second.expected, second.complete, second.complete_rule) == (None, False, None)


def test_quiet_completes_only_what_is_done_and_old(db: Database, source_id: int, champion: Version) -> None:
    quiet = lambda now: db.write(lambda c: summaries.complete_quiet(c, now, 60))  # noqa: E731
    record(db, source_id, sightings(3))
    assert quiet(utc(hours=5)) == 0
    drain(db, champion, utc(hours=5))
    record(db, source_id, sightings(4), utc(hours=5))
    drain(db, champion, utc(hours=5))
    assert quiet(utc(59, hours=5)) == 0
    assert quiet(utc(60, hours=5)) == 1
    row = summary(db)
    assert (row.complete, row.complete_rule, row.updated_at) == (True, "quiet", utc(60, hours=5))
    assert quiet(utc(61, hours=5)) == 0


def test_a_drop_with_a_image_still_waiting_is_not_done(db: Database, champion: Version) -> None:
    where = register_source(db, expected_drops=1)
    record(db, where, sightings(1, region=1) + sightings(1, region=2))
    first = claimed(db, limit=1)
    finish(db, first, champion, failures=[queue.Failure(first.claims[0], "bomb", retryable=False)])
    row = summary(db)
    assert (row.seen, row.scored, row.failed, row.complete) == (1, 0, 0, False)
    drain(db, champion, scores=by_path({}, CRYSTALS))
    row = summary(db)
    assert (row.seen, row.scored, row.failed, row.complete) == (1, 1, 0, True)


def test_an_inspection_with_a_image_still_waiting_is_not_complete(db: Database, champion: Version) -> None:
    where = register_source(db, expected_drops=1)
    record(db, where, sightings(1, region=1) + sightings(1, region=2))
    finish(db, claimed(db, limit=1), champion)
    row = summary(db)
    assert (row.seen, row.scored, row.n_clear, row.complete) == (1, 1, 1, False)
    assert db.write(lambda c: summaries.complete_quiet(c, utc(hours=9), 60)) == 0
    drain(db, champion, utc(hours=9))
    assert summary(db).complete


def test_a_rewritten_file_keeps_its_verdict_until_it_is_scored_again(
    db: Database, source_id: int, champion: Version
) -> None:
    files = sightings(2)
    record(db, source_id, files)
    drain(db, champion, scores=by_path({"A01": CRYSTALS}))
    record(db, source_id, [rewritten(files[0])], utc(5))
    assert (summary(db).n_crystals, summary(db).scored, summary(db).last_image_at) == (1, 2, utc(5))
    drain(db, champion, utc(6), hashes=lambda c: "new")
    assert (summary(db).n_crystals, summary(db).n_clear, summary(db).hits) == (0, 2, 0)
    assert len(rows(db, sa.select(hit))) == 1


def test_failures_and_retries_are_counted(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(3))
    lease = claimed(db)
    finish(db, lease, champion, failures=[queue.Failure(c, "bomb", retryable=False) for c in lease.claims])
    assert (summary(db).scored, summary(db).failed) == (0, 3)
    assert db.write(lambda c: results.retry_failed(c, utc(1))) == 3
    assert (summary(db).failed, summary(db).updated_at) == (0, utc(1))
    assert drain(db, champion, utc(2)) == 3
    assert (summary(db).scored, summary(db).failed) == (3, 0)


def test_what_its_workers_died_with_is_counted_as_failed(db: Database, champion: Version) -> None:
    record(db, register_source(db, expected_drops=3), sightings(3))
    claimed(db, max_attempts=1)
    give_up = lambda now: db.write(lambda c: results.give_up_exhausted(c, max_attempts=1, now=now))  # noqa: E731
    assert give_up(utc(59)) == 0
    assert give_up(utc(60)) == 3
    assert (summary(db).failed, summary(db).complete) == (3, True)


def test_a_failed_retry_that_still_waits_is_not_counted(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    lease = claimed(db)
    finish(db, lease, champion, failures=[queue.Failure(lease.claims[0], "torn", retryable=True)])
    assert summary(db).failed == 0


def test_each_version_has_its_own_summary(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(4))
    drain(db, champion)
    newer = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1)))
    drain(db, newer, utc(1), scores=by_path({}, CRYSTALS))
    promote(db, newer, utc(2))
    assert (summary(db, champion).n_clear, summary(db, champion).n_crystals) == (4, 0)
    assert (summary(db, newer).n_clear, summary(db, newer).n_crystals) == (0, 4)


def test_models_with_other_classes_keep_their_vector(db: Database, source_id: int, champion: Version) -> None:
    from marcod.database.schema import score

    record(db, source_id, sightings(1))
    lease = claimed(db)
    vector = {"needles": 0.5, "plates": 0.25, "clear": 0.25}
    scored = [results.Scored(lease.claims[0], "h", (0.25, 0.75, 0.0, 0.0), vector)]
    db.write(
        lambda c: results.finish(c, lease.token, champion, scored, [], now=utc(), retry_s=1, max_attempts=MAX_ATTEMPTS)
    )
    ((label, p_crystals, kept),) = rows(db, sa.select(score.c.label, score.c.p_crystals, score.c.vector))
    assert (label, p_crystals, kept) == ("Crystals", 0.75, vector)


@pytest.mark.slow
def test_many_writers_on_one_inspection_end_with_the_right_counts(
    db: Database, source_id: int, champion: Version
) -> None:
    files = sightings(96)
    record(db, source_id, files)
    held = [claimed(db, limit=8) for _ in range(12)]
    together = Barrier(6)

    def write(start: int) -> None:
        together.wait()
        for lease in held[start::6]:
            assert finish(db, lease, champion, scores=by_path({"A": CRYSTALS})).scored == 8

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    row = summary(db)
    assert (row.seen, row.scored, row.n_crystals, row.n_clear, row.hits) == (96, 96, 12, 84, 12)
    assert len(rows(db, sa.select(hit))) == 12


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_two_recorders_of_one_inspection_wait_for_each_other_without_deadlock(
    db: Database, source_id: int, champion: Version
) -> None:
    """Both have inserted images of the inspection before either counts it."""
    files = sightings(96)
    record(db, source_id, files[:1])
    together = Barrier(2)
    deadlocks: list[BaseException] = []
    sa.event.listen(db.engine, "handle_error", lambda context: deadlocks.append(context.original_exception))
    from marcod.catalog import deliveries

    def take_in(part: int) -> deliveries.Recorded:
        met = False

        def meet(conn, cursor, statement, parameters, context, executemany):  # type: ignore[no-untyped-def]
            nonlocal met
            if not met and "FROM inspection" in statement and "FOR " in statement and conn is mine:
                met = True
                together.wait(timeout=20)

        def work(connection: sa.Connection) -> deliveries.Recorded:
            nonlocal mine
            mine = connection
            return deliveries.record(connection, source_id, files[1 + part :: 2], utc())

        mine: sa.Connection | None = None
        sa.event.listen(db.engine, "before_cursor_execute", meet)
        return db.write(work)

    with ThreadPoolExecutor(2) as pool:
        new = [recorded.new for recorded in pool.map(take_in, range(2))]
    assert sorted(new) == [47, 48]
    assert deadlocks == []
    assert summary(db).seen == 96


def test_a_summary_follows_the_champion_that_is_promoted_amid_an_inspection(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(4))
    finish(db, claimed(db, limit=2), champion)
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    drain(db, newer, utc(2))
    assert (summary(db, champion).seen, summary(db, champion).scored) == (4, 2)
    assert (summary(db, newer).seen, summary(db, newer).scored) == (4, 4)
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(3))) == 0
