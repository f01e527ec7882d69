"""Claims: every job once, in the right order, whoever asks and how many ask at a time."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import sqlalchemy as sa
from factories import (
    claim,
    claimed,
    drain,
    finish,
    leases,
    promote,
    record,
    register,
    rewritten,
    rows,
    sightings,
    utc,
)

from marcod.database.engine import Database
from marcod.database.schema import image, inspection_summary, job, plate, score
from marcod.store import backlog, queue
from marcod.store.versions import Version

JOBS = 1200


def _assert_all_done(db: Database, got: list[int], version: Version) -> None:
    assert Counter(got) == Counter(set(got))
    assert len(got) == JOBS
    assert rows(db, sa.select(job.c.id)) == []
    per_image = Counter(row[0] for row in rows(db, sa.select(score.c.image_id)))
    assert sorted(per_image) == sorted(row[0] for row in rows(db, sa.select(image.c.id)))
    assert set(per_image.values()) == {1}
    summary = inspection_summary.c
    counted = rows(db, sa.select(summary.seen, summary.scored, summary.n_clear, summary.model_version_id))
    assert [tuple(row) for row in counted] == [(300, 300, 300, version.id)] * 4


def _fill(db: Database, source_id: int) -> None:
    for number in range(4):
        assert record(db, source_id, sightings(JOBS // 4, plate=f"P{number}")).queued == JOBS // 4


@pytest.mark.slow
def test_threads_share_the_queue_and_no_job_is_lost_or_doubled(db: Database, source_id: int, champion: Version) -> None:
    _fill(db, source_id)
    together = Barrier(4)

    def work(number: int) -> list[int]:
        together.wait()
        got = []
        for lease in leases(db, limit=37, worker=f"thread {number}"):
            assert 1 <= len(lease.claims) <= 37
            got.extend(c.job_id for c in lease.claims)
            assert finish(db, lease, champion).stale == 0
        return got

    with ThreadPoolExecutor(4) as pool:
        got = [job_id for part in pool.map(work, range(4)) for job_id in part]
    _assert_all_done(db, got, champion)


@pytest.mark.slow
def test_processes_share_the_queue_and_no_job_is_lost_or_doubled(
    db: Database, db_url: str, source_id: int, champion: Version
) -> None:
    _fill(db, source_id)
    script = Path(__file__).parents[1] / "support" / "drain_process.py"
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), db_url, f"process {number}", "41", str(champion.id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    got: list[int] = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, _ = worker.communicate(timeout=60)
        assert worker.returncode == 0
        got.extend(json.loads(out))
    _assert_all_done(db, got, champion)


def test_nothing_waits_in_an_empty_queue(db: Database, champion: Version) -> None:
    assert claim(db) is None
    assert db.read(lambda c: backlog.status(c, utc())) == backlog.QueueStatus(0, 0, 0, 0, None)


def test_a_claim_says_what_a_worker_needs(db: Database, source_id: int, champion: Version) -> None:
    (seen,) = sightings(1)
    record(db, source_id, [seen], utc(7))
    lease = claimed(db, utc(9), worker="host/1")
    (got,) = lease.claims
    assert lease.model_version_id == champion.id
    assert lease.token.startswith("host/1/")
    assert (got.source, got.root, got.path) == ("imager", "/plates/imager", seen.path)
    assert (got.attempts, got.enqueued_at) == (1, utc(7))
    ((image_id, inspection_id),) = rows(db, sa.select(image.c.id, image.c.inspection_id))
    assert (got.image_id, got.inspection_id) == (image_id, inspection_id)


def test_the_oldest_come_first_and_no_more_than_asked_for(db: Database, source_id: int, champion: Version) -> None:
    for number, plate_key in enumerate(("P3", "P1", "P2")):
        record(db, source_id, sightings(10, plate=plate_key), utc(number))
    order = [{c.path[:2] for c in claimed(db, utc(9), limit=10).claims} for _ in range(3)]
    assert order == [{"P3"}, {"P1"}, {"P2"}]


def test_within_one_moment_the_first_recorded_come_first(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(9)
    record(db, source_id, files)
    got = [[c.path for c in claimed(db, limit=4).claims] for _ in range(3)]
    assert got == [[f.path for f in files[start : start + 4]] for start in (0, 4, 8)]


def test_new_images_come_before_rescored_ones_however_old(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(6, plate="OLD"))
    drain(db, champion)
    newer = register(db, version="2")
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1))) == 6
    record(db, source_id, sightings(6, plate="NEW"), utc(100))
    seen = [(lease.model_version_id, {c.path[:3] for c in lease.claims}) for lease in leases(db, utc(200), limit=4)]
    assert seen == [(champion.id, {"NEW"})] * 2 + [(newer.id, {"OLD"})] * 2


def test_a_lease_is_of_one_version_even_where_the_next_jobs_are_of_another(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(3, plate="A"), utc(1))
    next_one = register(db, version="2")
    claimed(db, utc(1), limit=1)
    promote(db, next_one, utc(2))
    record(db, source_id, sightings(2, plate="B"), utc(0))
    seen = [(lease.model_version_id, len(lease.claims)) for lease in leases(db, utc(3))]
    assert seen == [(next_one.id, 5)]
    lapsed = [(lease.model_version_id, len(lease.claims)) for lease in leases(db, utc(61))]
    assert lapsed == [(champion.id, 1)]


def test_rescore_takes_only_what_the_version_has_not_scored(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(8)
    record(db, source_id, files)
    drain(db, champion)
    assert db.write(lambda c: queue.enqueue_rescore(c, champion.id, utc(1))) == 0
    newer = register(db, version="2")
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1))) == 8
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(2))) == 0
    finish(db, claimed(db, utc(3), limit=5), newer, utc(3))
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(4))) == 0
    assert drain(db, newer, utc(5)) == 3
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(6))) == 0
    assert len(rows(db, sa.select(score))) == 16
    record(db, source_id, [rewritten(files[0])], utc(7))
    drain(db, champion, utc(8), hashes=lambda c: "rewritten")
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(9))) == 1


def test_rescore_of_one_plate_leaves_the_others(db: Database, source_id: int, champion: Version) -> None:
    for plate_key in ("P1", "P2"):
        record(db, source_id, sightings(4, plate=plate_key))
    drain(db, champion)
    newer = register(db, version="2")
    (plate_id,) = rows(db, sa.select(plate.c.id).where(plate.c.key == "P2"))[0]
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1), [plate_id])) == 4
    lease = claimed(db, utc(2))
    assert {c.path[:2] for c in lease.claims} == {"P2"}
    assert rows(db, sa.select(job.c.priority).distinct()) == [(queue.RESCORE,)]
    assert db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(1), [])) == 0


def test_rescore_leaves_a_job_that_is_already_there(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(4))
    before = rows(db, sa.select(job))
    assert db.write(lambda c: queue.enqueue_rescore(c, champion.id, utc(1))) == 0
    assert rows(db, sa.select(job)) == before


def test_rescore_leaves_images_of_another_modality(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(4))
    uv = register(db, name="uv", modality="uv")
    assert db.write(lambda c: queue.enqueue_rescore(c, uv.id, utc(1))) == 0


PLAN_JOBS = 20_000


def _many_jobs(db: Database, source_id: int, champion: Version) -> None:
    """10,000 images, each a job for two versions, made by the database itself."""
    newer = register(db, version="2")
    record(db, source_id, sightings(1))
    series = "with recursive n(i) as (select 2 union all select i + 1 from n where i < :half) "
    columns = "source_id, drop_id, inspection_id, modality, size, mtime_ns, seen_at"

    def work(connection: sa.Connection) -> None:
        copies = f"insert into image (path, {columns}) {series} select 'f' || i, {columns} from image, n"
        connection.execute(sa.text(copies), {"half": PLAN_JOBS // 2})
        connection.execute(sa.delete(job))
        for version, priority in ((champion, queue.NEW), (newer, queue.RESCORE)):
            connection.execute(
                sa.text(
                    "insert into job (image_id, model_version_id, priority, available_at, attempts, enqueued_at)"
                    " select id, :version, :priority, seen_at, 0, seen_at from image"
                ),
                {"version": version.id, "priority": priority},
            )
        connection.execute(sa.text("analyze"))

    db.write(work)
    assert rows(db, sa.select(sa.func.count()).select_from(job)) == [(PLAN_JOBS,)]


def _plans(db: Database, now_s: float) -> list[str]:
    """The database's plan for every statement that one claim runs on the jobs."""
    prefix = "explain query plan " if db.is_sqlite else "explain "
    plans: list[str] = []

    def explain(conn, cursor, statement, parameters, context, executemany):  # type: ignore[no-untyped-def]
        if statement.startswith("WITH"):
            cursor.execute(prefix + statement, parameters)
            plans.append("\n".join(str(row[-1]) for row in cursor.fetchall()))

    sa.event.listen(db.engine, "before_cursor_execute", explain)
    try:
        claim(db, utc(now_s), limit=64)
    finally:
        sa.event.remove(db.engine, "before_cursor_execute", explain)
    return plans


@pytest.mark.slow
@pytest.mark.parametrize("held", [0, 128])
def test_a_claim_goes_by_the_indexes(db: Database, source_id: int, champion: Version, held: int) -> None:
    _many_jobs(db, source_id, champion)
    for _ in range(held // 64):
        claimed(db, limit=64)
    plans = _plans(db, 1)
    assert plans
    for plan in plans:
        assert "ix_job_next" in plan
        assert "Seq Scan on job" not in plan
        assert not any(line.startswith("SCAN job") and "USING" not in line for line in plan.splitlines()), plan
        assert "Sort" not in plan
        assert "TEMP B-TREE" not in plan
