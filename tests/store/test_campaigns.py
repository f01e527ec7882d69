"""Archives that are scored again in ranges: every image once, whoever dies, whatever changes meanwhile."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from factories import (
    CLEAR,
    LEASE_S,
    MAX_ATTEMPTS,
    RETRY_S,
    drain,
    record,
    register,
    register_source,
    rows,
    sightings,
    utc,
)

from marcod.database.engine import Database
from marcod.database.schema import campaign_range, image, job, score
from marcod.store import campaigns, queue, ranges, results
from marcod.store.campaigns import Archive, State
from marcod.store.ranges import RangeLease
from marcod.store.versions import Version

ALL = Archive()


@pytest.fixture
def archive(db: Database, champion: Version) -> dict[str, int]:
    """Three plates of two sources, each inspected twice, scored by the champion; the ids of the sources."""
    sources = {name: register_source(db, name) for name in ("old", "new")}
    for name, plates in (("old", ("A", "B")), ("new", ("C",))):
        for key in plates:
            for number in (1, 2):
                files = sightings(2, plate=key, inspection=str(number))
                record(db, sources[name], files, utc(days=number))
    drain(db, champion, utc(days=3))
    return sources


@pytest.fixture
def second(db: Database, champion: Version) -> Version:
    return register(db, version="2")


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "RANGE_IMAGES", 5)


def surveyed(db: Database, version: Version, archive: Archive = ALL, limit: int = 2) -> list[campaigns.Owed]:
    """What a version owes in each inspection, counted in parts."""
    found: list[campaigns.Owed] = []
    last = 0
    while (part := db.read(campaigns.survey, version.id, archive, last, limit)) is not None:
        found += part.owed
        last = part.last
    return found


def begin(db: Database, version: Version, archive: Archive = ALL, now: datetime | None = None) -> int:
    owed = surveyed(db, version, archive)
    return db.write(campaigns.begin, version.id, archive, owed, "test", now or utc(days=4))


def take(db: Database, now: datetime, limit: int = 3, **more: Any) -> RangeLease | None:
    """Claim images of a campaign, past the ranges in which nothing is left."""
    while (lease := db.write(ranges.claim, "w", limit=limit, lease_s=LEASE_S, now=now, **more)) is not None:
        if lease.claims:
            return lease
    return None


def taken(db: Database, now: datetime, limit: int = 3) -> RangeLease:
    lease = take(db, now, limit)
    assert lease is not None
    return lease


def write(
    db: Database,
    lease: RangeLease,
    version: Version,
    now: datetime,
    failures: Iterable[queue.Failure] = (),
    **more: Any,
) -> results.Finished:
    """Finish a lease: what is not in ``failures`` is scored."""
    failed = list(failures)
    bad = {f.claim.image_id for f in failed}
    good = [results.Scored(c, f"hash of {c.path}", CLEAR) for c in lease.claims if c.image_id not in bad]
    rules = {"now": now, "retry_s": RETRY_S, "max_attempts": MAX_ATTEMPTS}
    return db.write(lambda c: results.finish_range(c, lease, version, good, failed, **rules, **more))


def work_off(db: Database, version: Version, now: datetime, limit: int = 3) -> int:
    """Score what campaigns have to do. Returns how many images."""
    images = 0
    while (lease := take(db, now, limit)) is not None:
        images += write(db, lease, version, now).scored
    return images


def scored(db: Database, version: Version) -> Counter[str]:
    """Paths of the images that a version has scored, with how often."""
    found = sa.select(image.c.path).join(score, score.c.image_id == image.c.id)
    return Counter(path for (path,) in rows(db, found.where(score.c.model_version_id == version.id)))


def only(db: Database) -> campaigns.Campaign:
    """The only campaign there is."""
    (one,) = db.read(campaigns.listed, utc(days=5), every=True)
    return one


def test_everything_is_scored_once_and_no_row_is_left(db: Database, archive: dict[str, int], second: Version) -> None:
    begin(db, second)
    assert [r.images for r in rows(db, sa.select(campaign_range).order_by(campaign_range.c.id))] == [4, 4, 4]
    assert rows(db, sa.select(job)) == []
    assert (only(db).left, only(db).state) == (12, State.RUNNING)
    assert work_off(db, second, utc(days=5)) == 12
    assert set(scored(db, second).values()) == {1}
    assert len(scored(db, second)) == 12
    assert rows(db, sa.select(campaign_range)) == rows(db, sa.select(job)) == []
    assert (only(db).left, only(db).state, only(db).scored, only(db).done) == (0, State.FINISHED, 12, 12)
    assert surveyed(db, second) == []


def test_a_worker_that_dies_loses_what_it_held_and_another_goes_on_from_the_mark(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    begin(db, second)
    write(db, taken(db, utc(days=5)), second, utc(days=5))
    lost = taken(db, utc(days=5), 1)
    others = taken(db, utc(days=5), 4)
    assert {c.path[0] for c in others.claims} == {"B"}, "its range is in its hands"
    later = utc(LEASE_S + 1, days=5)
    again = taken(db, later, 4)
    assert [c.path for c in again.claims] == [c.path for c in lost.claims]
    assert all(c.lapsed for c in again.claims)
    assert write(db, lost, second, later).stale == 1
    assert write(db, again, second, later).scored == 1
    write(db, others, second, later)
    assert work_off(db, second, later) == 4
    assert set(scored(db, second).values()) == {1}
    assert only(db).state is State.FINISHED
