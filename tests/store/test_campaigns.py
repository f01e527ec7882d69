"""Archives that are scored again in ranges: every image once, whoever dies, whatever changes meanwhile."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from factories import (
    CLEAR,
    LEASE_S,
    MAX_ATTEMPTS,
    RETRY_S,
    claim,
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
from marcod.database.schema import campaign, campaign_range, image, inspection_summary, job, score
from marcod.domain import Modality
from marcod.errors import NotFoundError, StoreError
from marcod.store import backlog, campaigns, known_names, queue, ranges, results, serving
from marcod.store.campaigns import Archive, State
from marcod.store.ranges import RangeLease
from marcod.store.versions import Version

ALL = Archive()
SUPPORT = Path(__file__).resolve().parents[1] / "support"


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


@pytest.mark.slow
def test_a_process_that_is_killed_in_the_middle_of_a_range_costs_no_image(
    db: Database, db_url: str, archive: dict[str, int], second: Version
) -> None:
    begin(db, second)
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SUPPORT / "range_process.py"), db_url, str(second.id), utc(days=5).isoformat()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=here) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"two of four are written\n"
        process.kill()
    assert len(scored(db, second)) == 2
    assert {c.path[0] for c in taken(db, utc(1, days=5), 4).claims} == {"B"}
    later = utc(2 * LEASE_S, days=5)
    again = taken(db, later, 4)
    assert [c.path[:3] for c in again.claims] == ["A/2", "A/2"]
    write(db, again, second, later)
    assert work_off(db, second, later) == 8
    assert set(scored(db, second).values()) == {1}
    assert (only(db).state, only(db).scored) == (State.FINISHED, 12)


def test_a_campaign_is_of_what_was_asked_for(db: Database, archive: dict[str, int], second: Version) -> None:
    of_source = Archive(source_id=archive["new"])
    assert db.read(campaigns.count_inspections, of_source) == 2
    begin(db, second, of_source)
    begin(db, second, Archive(since=utc(days=2)))
    assert [c.images for c in db.read(campaigns.listed, utc(days=4))] == [4, 6]
    assert surveyed(db, second, Archive(since=utc(days=2, seconds=1))) == []
    assert work_off(db, second, utc(days=5)) == 8, "two images are in both"
    assert Counter(path[:3] for path in scored(db, second)) == {"C/1": 2, "C/2": 2, "A/2": 2, "B/2": 2}
    assert {c.state for c in db.read(campaigns.listed, utc(days=5), every=True)} == {State.FINISHED}


def test_two_that_counted_the_same_begin_one_campaign(db: Database, archive: dict[str, int], second: Version) -> None:
    owed, since = surveyed(db, second), Archive(since=utc(days=2))
    start = Barrier(4)

    def begun(archive: Archive) -> int:
        start.wait()
        return db.write(campaigns.begin, second.id, archive, owed, "test", utc(days=4))

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(begun, (ALL, since, ALL, since)))
    assert (numbers[0], numbers[1], len(set(numbers))) == (numbers[2], numbers[3], 2)
    assert len(rows(db, sa.select(campaign_range))) == 6


def test_images_in_another_light_or_with_a_score_are_left_out(
    db: Database, archive: dict[str, int], champion: Version, second: Version
) -> None:
    record(db, archive["old"], sightings(3, plate="U", modality=Modality.UV))
    record(db, archive["old"], sightings(3, plate="N"), utc(days=4))
    drain(db, champion, utc(days=4))
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(days=4), inspection_ids=[1]))
    drain(db, second, utc(days=4))
    assert sum(one.images for one in surveyed(db, second)) == 13
    begin(db, second)
    assert work_off(db, second, utc(days=5)) == 13
    assert set(scored(db, second).values()) == {1}


def test_images_that_others_scored_meanwhile_are_passed(db: Database, archive: dict[str, int], second: Version) -> None:
    begin(db, second)
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(days=4), inspection_ids=[1, 2, 3]))
    assert drain(db, second, utc(days=4)) == 6
    assert work_off(db, second, utc(days=5)) == 6
    assert (only(db).scored, only(db).done, only(db).state) == (6, 12, State.FINISHED)


def test_a_job_of_an_image_goes_first(db: Database, archive: dict[str, int], second: Version) -> None:
    begin(db, second)
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(days=4), inspection_ids=[1]))
    assert work_off(db, second, utc(days=5)) == 10
    held = taken_job(db, utc(days=5))
    assert finish(db, held, second).scored == 2
    assert set(scored(db, second).values()) == {1}


def taken_job(db: Database, now: datetime) -> queue.Lease:
    lease = claim(db, now)
    assert lease is not None
    return lease


def test_a_paused_campaign_is_given_to_nobody_and_what_is_held_is_finished(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    number = begin(db, second)
    held = taken(db, utc(days=5))
    db.write(campaigns.pause, number, "ann", utc(days=5))
    assert take(db, utc(days=6)) is None
    assert write(db, held, second, utc(days=5)).scored == 3
    assert (only(db).state, only(db).left) == (State.PAUSED, 9)
    db.write(campaigns.resume, number, "ann", utc(days=5))
    assert work_off(db, second, utc(days=5)) == 9
    for act in (campaigns.pause, campaigns.resume, campaigns.cancel):
        with pytest.raises(StoreError, match="rescore 1 is finished already"):
            db.write(act, number, "ann", utc(days=5))
        with pytest.raises(NotFoundError, match="there is no rescore 77"):
            db.write(act, 77, "ann", utc(days=5))


def test_a_cancelled_campaign_keeps_its_scores_and_shuts_workers_out(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    number = begin(db, second)
    write(db, taken(db, utc(days=5)), second, utc(days=5))
    held = taken(db, utc(days=5))
    db.write(campaigns.cancel, number, "ann", utc(days=5))
    assert write(db, held, second, utc(days=5)).stale == len(held.claims)
    assert take(db, utc(days=6)) is None
    assert (only(db).state, only(db).scored, only(db).left) == (State.CANCELLED, 3, 0)
    assert rows(db, sa.select(campaign_range)) == []
    begin(db, second)
    assert work_off(db, second, utc(days=7)) == 9
    assert set(scored(db, second).values()) == {1}


def test_what_fails_becomes_a_job_that_is_tried_again(db: Database, archive: dict[str, int], second: Version) -> None:
    begin(db, second)
    lease = taken(db, utc(days=5), 4)
    torn, bomb = lease.claims[:2]
    failures = [queue.Failure(torn, "torn", retryable=True), queue.Failure(bomb, "bomb", retryable=False)]
    done = write(db, lease, second, utc(days=5), failures)
    assert (done.scored, done.failed, done.given_up) == (2, 2, frozenset({bomb.image_id}))
    columns = (job.c.image_id, job.c.priority, job.c.attempts, job.c.available_at, job.c.failed_at, job.c.lease)
    assert [tuple(row) for row in rows(db, sa.select(*columns).order_by(job.c.image_id))] == [
        (torn.image_id, queue.RESCORE, 1, utc(RETRY_S, days=5), None, None),
        (bomb.image_id, queue.RESCORE, 1, utc(RETRY_S, days=5), utc(days=5), None),
    ]
    assert work_off(db, second, utc(days=5)) == 8
    assert only(db).state is State.FINISHED
    assert drain(db, second, utc(RETRY_S, days=5)) == 1
    assert len(scored(db, second)) == 11


@pytest.mark.parametrize(("cancelled", "left"), [(False, 1), (True, 0)])
def test_what_failed_is_tried_again_also_when_the_version_is_challenger_no_more(
    db: Database, archive: dict[str, int], second: Version, cancelled: bool, left: int
) -> None:
    db.write(lambda c: serving.challenge(c, second, actor="ann", now=utc(days=3)))
    begin(db, second)
    lease = taken(db, utc(days=5))
    write(db, lease, second, utc(days=5), [queue.Failure(lease.claims[0], "torn", retryable=True)])
    if cancelled:
        db.write(campaigns.cancel, only(db).id, "ann", utc(days=5))
    db.write(lambda c: serving.challenge(c, None, actor="ann", now=utc(days=6)))
    assert db.read(queue.count_unfinished, second.id) == left


def test_images_that_wait_for_no_fault_of_theirs_put_the_range_off(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    begin(db, second)
    for turn in (1, 2):
        now = utc(turn * 1000, days=5)
        lease = taken(db, now, 4)
        late = [queue.Failure(lease.claims[-1], "source is offline", retryable=True, counts=False)]
        assert write(db, lease, second, now, late).failed == 1
        first = rows(db, sa.select(campaign_range).order_by(campaign_range.c.id))[0]
        wait_s = RETRY_S if turn == 1 else 2 * RETRY_S
        assert (first.error, first.pauses, first.available_at) == (
            "source is offline",
            turn,
            utc(turn * 1000 + wait_s, days=5),
        )
        assert db.read(campaigns.held_up) == {"source is offline": 1}
        work_off(db, second, now)
    assert rows(db, sa.select(job)) == []
    assert (len(scored(db, second)), only(db).left) == (11, 1)
    assert work_off(db, second, utc(days=6)) == 1
    assert (only(db).state, db.read(campaigns.held_up)) == (State.FINISHED, {})


def test_a_range_that_kills_its_workers_is_given_to_jobs(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    begin(db, second)
    for turn in range(queue.LAPSES_BEFORE_ALONE + 1):
        now = utc(turn * 2 * LEASE_S, days=5)
        first = taken(db, now, 3)
        if first.claims[0].path[0] != "A":
            write(db, first, second, now)
    found = sa.select(image.c.path).join(job, job.c.image_id == image.c.id).order_by(image.c.id)
    assert [path[:3] for (path,) in rows(db, found)] == ["A/1", "A/1", "A/2"]
    later = utc(days=6)
    drain(db, second, later)
    work_off(db, second, later)
    assert set(scored(db, second).values()) == {1}
    assert len(scored(db, second)) == 12


def test_files_that_change_or_go_meanwhile_are_not_scored_by_their_old_bytes(
    db: Database, archive: dict[str, int], second: Version, champion: Version
) -> None:
    begin(db, second)
    lease = taken(db, utc(days=5), 4)
    changed, gone = lease.claims[:2]
    file = next(f for f in sightings(2, plate="A") if f.path == changed.path)
    record(db, archive["old"], [rewritten(file)], utc(days=5))
    db.write(lambda c: results.mark_gone(c, [gone.image_id], utc(days=5)))
    done = write(db, lease, second, utc(days=5))
    assert (done.scored, done.stale) == (2, 2)
    assert {path for path in scored(db, second) if path in (changed.path, gone.path)} == set()
    found = sa.select(job.c.image_id, job.c.model_version_id).order_by(job.c.model_version_id)
    assert [tuple(r) for r in rows(db, found)] == [(changed.image_id, champion.id), (changed.image_id, second.id)]
    work_off(db, second, utc(days=5))
    new = {"hashes": lambda c: f"new hash of {c.path}"}
    assert finish(db, taken_job(db, utc(days=5)), champion, **new).scored == 1  # type: ignore[arg-type]
    assert finish(db, taken_job(db, utc(days=5)), second, **new).scored == 1  # type: ignore[arg-type]
    assert set(scored(db, second).values()) == {1}
    assert len(scored(db, second)) == 11


def test_a_file_that_was_read_by_others_meanwhile_counts(
    db: Database, archive: dict[str, int], second: Version, champion: Version
) -> None:
    file = next(iter(sightings(2, plate="A")))
    record(db, archive["old"], [rewritten(file)], utc(days=4))
    begin(db, second)
    lease = taken(db, utc(days=5), 4)
    drain(db, champion, utc(days=5))
    assert write(db, lease, second, utc(days=5)).scored == 4


@pytest.mark.parametrize("has_scores", [True, False])
def test_a_version_that_is_removed_takes_its_campaigns_along(
    db: Database, archive: dict[str, int], second: Version, has_scores: bool
) -> None:
    begin(db, second)
    if has_scores:
        write(db, taken(db, utc(days=5)), second, utc(days=5))
    held = taken(db, utc(days=5))
    db.write(lambda c: serving.remove(c, second, force=True, actor="test", now=utc(days=5)))
    assert write(db, held, second, utc(days=5)).stale == len(held.claims)
    assert take(db, utc(days=6)) is None
    assert rows(db, sa.select(campaign_range)) == []
    ended = [row.state for row in rows(db, sa.select(campaign))]
    assert ended == (["cancelled"] if has_scores else [])
    with pytest.raises(NotFoundError):
        begin(db, second)


def test_a_version_that_is_promoted_meanwhile_is_scored_to_the_end(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    begin(db, second)
    write(db, taken(db, utc(days=5)), second, utc(days=5))
    held = taken(db, utc(days=5))
    promote(db, second, utc(days=5))
    serving.advance(db, lambda: utc(days=5))
    record(db, archive["new"], sightings(1, plate="NEW"), utc(days=5))
    assert write(db, held, second, utc(days=6)).scored == len(held.claims)
    work_off(db, second, utc(days=6))
    drain(db, second, utc(days=6))
    assert set(scored(db, second).values()) == {1}
    assert len(scored(db, second)) == 13
    assert only(db).state is State.FINISHED
    summary = inspection_summary.c
    its = sa.select(summary.scored).where(summary.model_version_id == second.id)
    assert sum(row.scored for row in rows(db, its)) == 13


def test_two_campaigns_are_worked_off_one_after_the_other(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    third = register(db, version="3")
    first, other = begin(db, second), begin(db, third)
    versions = []
    while (lease := take(db, utc(days=5), 100)) is not None:
        versions.append(lease.model_version_id)
        write(db, lease, second if lease.model_version_id == second.id else third, utc(days=5))
    assert versions == [second.id] * 3 + [third.id] * 3
    assert [c.id for c in db.read(campaigns.listed, utc(days=5), every=True)] == [first, other]
    assert len(scored(db, second)) == len(scored(db, third)) == 12
    assert take(db, utc(days=5), without=[second.id]) is None


def test_a_worker_that_lacks_a_version_takes_another_campaign(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    third = register(db, version="3")
    begin(db, second)
    begin(db, third)
    lease = take(db, utc(days=5), without=[second.id])
    assert lease is not None
    assert lease.model_version_id == third.id


def test_new_images_are_counted_apart_and_what_is_left_is_never_nothing(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    begin(db, second)
    assert db.read(backlog.status, utc(days=5)) == backlog.QueueStatus(0, 0, 0, 0, None, rescore_left=12)
    record(db, archive["new"], sightings(1, plate="NEW"), utc(days=5))
    status = db.read(backlog.status, utc(days=5))
    assert (status.waiting, status.rescore_left, db.read(backlog.new)) == (1, 12, 1)
    held = [taken(db, utc(days=5), 100) for _ in range(3)]
    for one in held[:2]:
        write(db, one, second, utc(days=5))
    assert db.read(backlog.status, utc(days=5)).rescore_left == 4
    write(db, held[2], second, utc(days=5))
    assert db.read(backlog.status, utc(days=5)).rescore_left == 0


def test_the_rate_and_the_time_left_are_of_the_last_minutes(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    begin(db, second)
    write(db, taken(db, utc(days=5), 4), second, utc(days=5))
    (now,) = db.read(campaigns.listed, utc(2, days=5))
    assert (now.images_per_s, now.left, now.left_s) == (2.0, 8, 4.0)
    (later,) = db.read(campaigns.listed, utc(hours=1, days=5))
    assert (later.images_per_s, later.left_s) == (None, None)


def test_a_source_is_found_by_its_name(db: Database, archive: dict[str, int]) -> None:
    assert db.read(lambda c: known_names.find_source(c, "new")) == archive["new"]
    with pytest.raises(NotFoundError, match="no source is recorded as 'odl'; the sources are old, new"):
        db.read(lambda c: known_names.find_source(c, "odl"))


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_next_images_are_found_by_an_index(db: Database, archive: dict[str, int], second: Version) -> None:
    """Whatever the size of the archive, a claim reads the images that it takes and those that it passes."""
    begin(db, second)
    statements: list[tuple[str, object]] = []
    sa.event.listen(db.engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    taken(db, utc(days=5))
    text, values = next(one for one in statements if "FROM image JOIN source" in one[0])
    plan = [row[-1] for row in db.read(lambda c: c.exec_driver_sql(f"explain query plan {text}", values).all())]
    assert "SEARCH image USING INDEX ix_image_inspection_id (inspection_id>? AND inspection_id<?)" in plan
    whole = [step for step in plan if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"]
    assert not whole, plan
    assert not [step for step in plan if "TEMP B-TREE" in step], plan
