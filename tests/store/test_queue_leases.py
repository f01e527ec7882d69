"""Leases: what lapses comes back, who comes late changes nothing, what kills workers is set apart."""

from datetime import datetime

import pytest
import sqlalchemy as sa
from factories import (
    LEASE_S,
    MAX_ATTEMPTS,
    RETRY_S,
    claim,
    claimed,
    finish,
    promote,
    record,
    register,
    rewritten,
    rows,
    sightings,
    utc,
)

from marcod.database.engine import Database
from marcod.database.schema import inspection_summary, job, score
from marcod.health import snapshot
from marcod.store import backlog, queue, results
from marcod.store.versions import Version


@pytest.fixture
def waiting(db: Database, source_id: int, champion: Version) -> int:
    """Six jobs of one plate."""
    return record(db, source_id, sightings(6)).queued


def test_nothing_is_ready_while_the_lease_runs_and_all_is_after_it(db: Database, waiting: int) -> None:
    first = claimed(db)
    assert [c.attempts for c in first.claims] == [1] * waiting
    assert claim(db, utc(59)) is None
    second = claimed(db, utc(60))
    assert {c.job_id for c in second.claims} == {c.job_id for c in first.claims}
    assert [c.attempts for c in second.claims] == [2] * waiting
    assert second.token != first.token


def renewed(db: Database, leases: list[queue.Lease], now: float) -> int:
    return db.write(lambda c: queue.renew(c, leases, now=utc(now), lease_s=LEASE_S))


def test_a_renewed_lease_lasts_from_then_on(db: Database, waiting: int, champion: Version) -> None:
    lease = claimed(db, utc(0), limit=4)
    ahead = claimed(db, utc(0))
    assert renewed(db, [lease, ahead], 40) == waiting
    assert claim(db, utc(99)) is None
    assert db.write(lambda c: results.give_up_exhausted(c, max_attempts=1, now=utc(99))) == 0
    assert finish(db, lease, champion, utc(99)).scored == 4
    # A worker that died renews no more, and what it held comes back after one lease.
    assert [c.job_id for c in claimed(db, utc(100)).claims] == [c.job_id for c in ahead.claims]
    assert renewed(db, [lease, ahead], 101) == 0


def test_what_was_restarted_or_taken_over_is_not_renewed(db: Database, source_id: int, waiting: int) -> None:
    lease = claimed(db)
    record(db, source_id, [rewritten(sightings(6)[0])], utc(1))
    assert renewed(db, [lease], 2) == waiting - 1
    over = claimed(db, utc(62))
    assert renewed(db, [lease], 63) == 0
    assert renewed(db, [over], 63) == waiting


def test_a_claim_that_is_given_back_says_what_held_it_up(db: Database, waiting: int) -> None:
    lease = claimed(db, limit=2)
    db.write(lambda c: queue.release(c, lease, utc(1), "no memory"))
    assert rows(db, sa.select(job.c.error, job.c.attempts).order_by(job.c.id))[:3] == [
        ("no memory", 0), ("no memory", 0), (None, 0),
    ]  # fmt: skip
    assert db.read(lambda c: snapshot.take_snapshot(c, utc(1))).held_up == (snapshot.HeldUp("no memory", 2),)
    claimed(db, utc(2))
    assert db.read(lambda c: snapshot.take_snapshot(c, utc(2))).held_up == ()


def test_a_late_finisher_changes_nothing(db: Database, waiting: int, champion: Version) -> None:
    late = claimed(db)
    punctual = claimed(db, utc(61))
    assert finish(db, punctual, champion, utc(62)).scored == waiting
    tables = (score, job, inspection_summary)
    before = [rows(db, sa.select(table)) for table in tables]
    failure = queue.Failure(late.claims[0], "torn file", retryable=False)
    done = finish(db, late, champion, utc(63), hashes=lambda c: "another", failures=[failure])
    assert (done.scored, done.failed, done.quarantined, done.stale) == (0, 0, 0, waiting)
    assert [rows(db, sa.select(table)) for table in tables] == before


def test_a_late_finisher_changes_nothing_while_the_next_worker_is_at_it(
    db: Database, waiting: int, champion: Version
) -> None:
    late = claimed(db)
    claimed(db, utc(61))
    before = rows(db, sa.select(job))
    failures = [queue.Failure(c, "torn file", retryable=True) for c in late.claims]
    assert finish(db, late, champion, utc(62), failures=failures).stale == waiting
    assert rows(db, sa.select(job)) == before
    assert rows(db, sa.select(score)) == []


def test_a_late_finisher_still_counts_when_nobody_took_over(db: Database, waiting: int, champion: Version) -> None:
    lease = claimed(db)
    assert finish(db, lease, champion, utc(hours=1)).scored == waiting


def test_after_two_lapses_a_job_is_claimed_alone_and_behind_the_others(
    db: Database, source_id: int, waiting: int
) -> None:
    claimed(db)
    claimed(db, utc(61))
    record(db, source_id, sightings(3, plate="P2"), utc(100))
    healthy = claimed(db, utc(122))
    assert len(healthy.claims) == 3
    assert [c.attempts for c in healthy.claims] == [1, 1, 1]
    alone = [claimed(db, utc(122)) for _ in range(waiting)]
    assert [len(lease.claims) for lease in alone] == [1] * waiting
    assert {c.attempts for lease in alone for c in lease.claims} == {3}
    assert claim(db, utc(122)) is None


def swept(db: Database, now: datetime, max_attempts: int = MAX_ATTEMPTS) -> list[int]:
    """The images whose exhausted jobs are quarantined now."""

    def work(connection: sa.Connection) -> list[int]:
        found = queue.exhausted(connection, max_attempts=max_attempts, now=now, limit=100)
        return queue.quarantine_exhausted(connection, found, max_attempts=max_attempts, now=now)

    return db.write(work)


def test_the_one_that_kills_its_workers_is_quarantined_and_its_neighbours_go_free(
    db: Database, waiting: int, champion: Version
) -> None:
    first = claimed(db).claims[0]
    killer, killer_image = first.job_id, first.image_id
    claimed(db, utc(61))
    now, deaths = utc(200), 2
    while (lease := claim(db, now)) is not None:
        if lease.claims[0].job_id == killer:
            deaths += 1
        else:
            finish(db, lease, champion, now)
        now = now.replace(minute=now.minute + 2)
    assert deaths == MAX_ATTEMPTS
    assert len(rows(db, sa.select(score))) == waiting - 1
    assert swept(db, now) == [killer_image]
    assert swept(db, now) == []
    (entry,) = db.read(lambda c: backlog.quarantined(c, 10))
    assert (entry.attempts, entry.failed_at) == (MAX_ATTEMPTS, now)
    assert "stopped before it had finished" in entry.error


def test_an_exhausted_job_stays_with_the_worker_that_still_holds_it(db: Database, waiting: int) -> None:
    claim(db, max_attempts=1)
    assert swept(db, utc(59), max_attempts=1) == []
    assert claim(db, utc(60), max_attempts=1) is None
    assert len(swept(db, utc(60), max_attempts=1)) == waiting


def test_release_gives_the_attempts_back(db: Database, waiting: int, champion: Version) -> None:
    lease = claimed(db)
    assert db.write(lambda c: queue.release(c, lease, utc(1))) == waiting
    assert finish(db, lease, champion, utc(1)).stale == waiting
    again = claimed(db, utc(1))
    assert [c.attempts for c in again.claims] == [1] * waiting
    assert db.write(lambda c: queue.release(c, lease, utc(2))) == 0


def test_release_of_a_lease_that_was_taken_over_gives_nothing_back(db: Database, waiting: int) -> None:
    lapsed = claimed(db)
    claimed(db, utc(60))
    assert db.write(lambda c: queue.release(c, lapsed, utc(61))) == 0
    assert claim(db, utc(61)) is None


def test_a_failed_image_waits_twice_as_long_each_time_and_then_rests_in_quarantine(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(1))
    now_s = 0.0
    for attempt in range(1, MAX_ATTEMPTS):
        lease = claimed(db, utc(now_s))
        failure = queue.Failure(lease.claims[0], f"truncated, try {attempt}", retryable=True)
        done = finish(db, lease, champion, utc(now_s), failures=[failure])
        assert (done.failed, done.quarantined) == (1, 0)
        now_s += RETRY_S * 2 ** (attempt - 1)
        assert claim(db, utc(now_s - 0.001)) is None
        assert db.read(lambda c, now=now_s: backlog.status(c, utc(now - 0.001))).retrying == 1
    lease = claimed(db, utc(now_s))
    done = finish(
        db, lease, champion, utc(now_s), failures=[queue.Failure(lease.claims[0], "truncated", retryable=True)]
    )
    assert (done.failed, done.quarantined) == (1, 1)
    assert claim(db, utc(days=400)) is None
    (entry,) = db.read(lambda c: backlog.quarantined(c, 10))
    assert (entry.error, entry.attempts) == ("truncated", MAX_ATTEMPTS)


def test_the_wait_ends_after_a_day_at_most(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    lease = claimed(db)
    failure = queue.Failure(lease.claims[0], "truncated", retryable=True)
    db.write(lambda c: queue.fail(c, lease.token, failure, now=utc(), retry_s=1e9, max_attempts=9))
    assert claim(db, utc(days=1)) is not None


def test_a_failure_that_does_not_count_is_tried_again_for_ever(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    for day in range(MAX_ATTEMPTS + 2):
        lease = claimed(db, utc(days=day))
        assert lease.claims[0].attempts == 1
        failure = queue.Failure(lease.claims[0], "the imager's folder is away", retryable=True, counts=False)
        assert finish(db, lease, champion, utc(days=day), failures=[failure]).quarantined == 0


def test_what_waiting_cannot_help_is_quarantined_at_once_and_can_be_retried(
    db: Database, waiting: int, champion: Version
) -> None:
    lease = claimed(db)
    bad = lease.claims[2]
    done = finish(db, lease, champion, failures=[queue.Failure(bad, "a decompression bomb", retryable=False)])
    assert (done.scored, done.failed, done.quarantined, done.stale) == (waiting - 1, 1, 1, 0)
    status = db.read(lambda c: backlog.status(c, utc()))
    assert (status.waiting, status.leased, status.retrying, status.failed) == (0, 0, 0, 1)
    assert status.oldest_enqueued_at is None
    assert db.write(lambda c: queue.retry(c, utc(1), [bad.image_id + 1000])) == 0
    assert db.write(lambda c: queue.retry(c, utc(1), [bad.image_id])) == 1
    again = claimed(db, utc(1))
    assert [(c.image_id, c.attempts, c.enqueued_at) for c in again.claims] == [(bad.image_id, 1, utc(1))]


def test_where_fewer_attempts_are_allowed_now_the_next_failure_is_the_last(
    db: Database, source_id: int, champion: Version
) -> None:
    """Such a job must neither wait for ever nor go without the reason that people are told."""
    record(db, source_id, sightings(1))

    def fail(day: int, max_attempts: int) -> bool:
        lease = claimed(db, utc(days=day), max_attempts=max_attempts)
        torn = queue.Failure(lease.claims[0], f"torn on day {day}", retryable=True)
        when = utc(days=day)
        return db.write(
            lambda c: queue.fail(c, lease.token, torn, now=when, retry_s=RETRY_S, max_attempts=max_attempts)
        )

    assert [fail(day, max_attempts) for day, max_attempts in enumerate((9, 9, 9, 2))] == [False, False, False, True]
    assert claim(db, utc(days=400), max_attempts=2) is None
    (entry,) = db.read(lambda c: backlog.quarantined(c, 10))
    assert (entry.error, entry.attempts) == ("torn on day 3", 4)


def test_what_starts_over_waits_since_then(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(3)
    record(db, source_id, files)
    bomb = queue.Failure(claimed(db, limit=1).claims[0], "a decompression bomb", retryable=False)
    lease = sa.select(job.c.lease).where(job.c.id == bomb.claim.job_id)
    token = str(rows(db, lease)[0][0])
    db.write(lambda c: queue.fail(c, token, bomb, now=utc(), retry_s=RETRY_S, max_attempts=MAX_ATTEMPTS))
    record(db, source_id, [rewritten(next(f for f in reversed(files) if f.path != bomb.claim.path))], utc(5))
    since = sa.select(job.c.enqueued_at).order_by(job.c.enqueued_at)
    assert rows(db, since) == [(utc(),), (utc(),), (utc(5),)]
    promote(db, register(db, version="2"), utc(days=90))
    assert rows(db, since) == [(utc(),), (utc(5),), (utc(days=90),)]


def test_an_error_of_any_bytes_can_be_kept(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    lease = claimed(db)
    failure = queue.Failure(lease.claims[0], "cannot read 'a\udcff.jpg': \x00\U0001f52c", retryable=False)
    assert finish(db, lease, champion, failures=[failure]).quarantined == 1
    (entry,) = db.read(lambda c: backlog.quarantined(c, 10))
    assert entry.error == "cannot read 'a\\udcff.jpg': \\x00\U0001f52c"


def test_status_counts_every_job_once(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(10), utc())
    record(db, source_id, sightings(5, plate="P2"), utc(5))
    lease = claimed(db, utc(5), limit=4)
    failures = [
        queue.Failure(lease.claims[0], "torn", retryable=True),
        queue.Failure(lease.claims[1], "bomb", retryable=False),
    ]
    db.write(
        lambda c: [queue.fail(c, lease.token, f, now=utc(5), retry_s=10, max_attempts=MAX_ATTEMPTS) for f in failures]
    )
    status = db.read(lambda c: backlog.status(c, utc(6)))
    assert (status.waiting, status.leased, status.retrying, status.failed) == (11, 2, 1, 1)
    assert status.oldest_enqueued_at == utc()
