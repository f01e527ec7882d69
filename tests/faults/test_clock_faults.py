"""Clocks that are wrong, that jump, and hosts that do not agree: at most an hour is lost, and never an image."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from factories import (
    LEASE_S,
    MAX_ATTEMPTS,
    RETRY_S,
    claim,
    claimed,
    finish,
    record,
    rows,
    sightings,
    utc,
)
from watched_site import Site, set_time, well_image

from marcod.database.engine import Database
from marcod.database.schema import job, score
from marcod.labels import inbox, vocabularies
from marcod.store import queue
from marcod.store.versions import Version

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)

HOUR = timedelta(hours=1)
YEARS = timedelta(days=3650)


def repair_schedule(db: Database, now: datetime) -> int:
    return db.write(queue.repair_schedule, now=now, lease_s=LEASE_S, retry_s=RETRY_S, max_attempts=MAX_ATTEMPTS)


def scores(db: Database) -> int:
    return int(rows(db, sa.select(sa.func.count()).select_from(score))[0][0])


def test_hosts_whose_clocks_are_an_hour_apart_score_every_image_once(
    db: Database, source_id: int, champion: Version
) -> None:
    """Whoever is ahead takes what the other holds; whoever finishes without the lease changes nothing."""
    record(db, source_id, sightings(6))
    here = claimed(db, utc(1), worker="here")
    ahead = claimed(db, utc(2) + HOUR, worker="ahead")
    assert {c.job_id for c in here.claims} == {c.job_id for c in ahead.claims}
    assert finish(db, here, champion, utc(3)).stale == 6
    assert claim(db, utc(4), worker="here") is None
    assert finish(db, ahead, champion, utc(5) + HOUR).scored == 6
    assert (scores(db), rows(db, sa.select(job))) == (6, [])


def test_the_clock_that_counts_is_the_server_s(server_url: str) -> None:
    here = Database(server_url)
    assert abs(here.now() - datetime.now(UTC)) < timedelta(minutes=1)
    later = "create function public.clock_timestamp() returns timestamptz language sql as "
    later += "'select pg_catalog.clock_timestamp() + interval ''10 years'''"
    name = here.url.database
    here.write(lambda c: [c.exec_driver_sql(later), c.exec_driver_sql(ahead_first(name))])
    here.close()
    here.read(lambda c: None)
    first = here.now()
    assert abs(first - datetime.now(UTC) - YEARS) < timedelta(days=9)
    assert timedelta(0) <= here.now() - first < timedelta(minutes=1)
    assert first.tzinfo is UTC
    here.close()


def ahead_first(name: str | None) -> str:
    """Let new sessions find a function of ours before the server's own."""
    return f'alter database "{name}" set search_path = public, pg_catalog'


@on_sqlite
def test_without_a_server_it_is_this_host_s(db: Database) -> None:
    db.read(lambda c: None)
    assert abs(db.now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_what_was_queued_claimed_and_failed_while_the_clock_was_years_ahead(
    db: Database, source_id: int, champion: Version
) -> None:
    """New, held by a worker that is gone, held by one that lives, waiting for its next try, and one of today."""
    future = utc() + YEARS
    record(db, source_id, sightings(12, plate="P1"), future)
    dead = claimed(db, future, limit=3)
    living = claimed(db, future, limit=3)
    failing = claimed(db, future, limit=3)
    failures = [queue.Failure(c, "torn", retryable=True) for c in failing.claims]
    assert finish(db, failing, champion, future, failures=failures).failed == 3
    record(db, source_id, sightings(1, plate="P2"))
    today = claimed(db, utc(1))
    assert len(today.claims) == 1
    assert repair_schedule(db, utc(2)) == 12
    assert repair_schedule(db, utc(2)) == 0
    assert finish(db, living, champion, utc(3)).scored == 3
    again = claimed(db, utc(3))
    assert len(again.claims) == 9
    assert finish(db, dead, champion, utc(4)).stale == 3
    assert finish(db, again, champion, utc(4)).scored + finish(db, today, champion, utc(4)).scored == 10
    assert (scores(db), rows(db, sa.select(job))) == (13, [])


@on_sqlite
def test_leases_and_pauses_that_are_right_are_left(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(3))
    claimed(db, limit=1)
    worst = claimed(db, limit=1)
    db.write(lambda c: c.execute(sa.update(job).where(job.c.id == worst.claims[0].job_id).values(attempts=9)))
    failure = queue.Failure(replace(worst.claims[0], attempts=MAX_ATTEMPTS - 1), "torn", retryable=True)
    assert finish(db, worst, champion, utc(), failures=[failure]).failed == 1
    # Seen from a host that is most of an hour behind.
    assert repair_schedule(db, utc(minutes=-55)) == 0
    bad = claimed(db, limit=1)
    torn = queue.Failure(bad.claims[0], "a bomb", retryable=False)
    assert finish(db, bad, champion, utc() + YEARS, failures=[torn]).quarantined == 1
    assert repair_schedule(db, utc(minutes=-55)) == 0


@on_sqlite
def test_a_pause_is_a_day_at_most_after_any_number_of_tries(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    db.write(lambda c: c.execute(sa.update(job).values(attempts=5000)))
    lease = claimed(db, max_attempts=9999)
    failure = queue.Failure(lease.claims[0], "torn", retryable=True)
    db.write(lambda c: queue.fail(c, lease.token, failure, now=utc(), retry_s=30.0, max_attempts=9999))
    assert claim(db, utc(days=1), max_attempts=9999) is not None


@on_sqlite
def test_a_label_that_was_tried_while_the_clock_was_ahead_is_tried_again(db: Database) -> None:
    fields = "insert into lims_label_inbox_v1 (plate, well, label, person) values ('P1', 'A1', 'Crystals', 'lims')"
    db.write(lambda c: c.exec_driver_sql(fields))
    tables, now = vocabularies.load(), datetime.now(UTC)

    def waiting(at: datetime) -> int:
        return db.write(lambda c: inbox.resolve(c, tables, "marco", at, limit=9)).waiting

    assert [waiting(now + YEARS), waiting(now), waiting(now)] == [1, 1, 0]


def test_files_of_any_time_are_recorded(site: Site) -> None:
    """An imager whose clock is centuries wrong; beyond 2262 the nanoseconds fit no database."""
    times = (-(10**18), 0, 2**63 - 1, 2**63, 15 * 10**18)
    wells = [well_image(well) for well in range(1, len(times) + 1)]
    for path, mtime_ns in zip(wells, times, strict=True):
        set_time(site.put(path), mtime_ns)
    site.settle()
    assert sorted(site.images()) == wells
    site.step(86_400.0)
    assert (site.status.pending, site.jobs()) == (0, len(times))
