"""Scoring an archive again: as a campaign and as a job for every image, in one run on PostgreSQL.

What a worker does with the database is real: claims and writes of a campaign, durable commits. Reading, decoding,
hashing and the network are left out: every image gets the hash that it had and one of two results.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks import history
from benchmarks.bench import Bench, Subject, register, timed, utc_now
from benchmarks.history import Size
from benchmarks.queue import claim
from benchmarks.tables import Cell, Spread, Table
from marcod.database.engine import Database
from marcod.database.rows import parts
from marcod.database.schema import model_version, score
from marcod.settings import ScoreSettings
from marcod.store import campaigns, queue, ranges, results, versions
from marcod.store.campaigns import Archive, Owed
from marcod.store.results import Scored
from marcod.store.versions import Version

CLAIM: Final = 1024
"""Images that a worker takes of a campaign: ``scoring.range_work.MOST``."""

BATCH: Final = 64
"""Images that a worker takes of the queue."""

WORKERS: Final = (1, 2, 4)
REPORT_S: Final = 15.0

GIGABYTES_A_MILLION: Final = 1.6
"""Disk that a million images with their scores take, with the log that the database keeps."""

TABLES: Final = ("image", "score", "job", "campaign", "campaign_range")
_SETTINGS: Final = ScoreSettings()
_RESULTS: Final = (0.7, 0.1, 0.1, 0.1), (0.1, 0.7, 0.1, 0.1)


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one process: the database, the version, and if a campaign is worked off or jobs are."""

    url: str
    version_id: int
    campaign: bool


def run(bench: Bench) -> Iterator[Table]:
    """Both ways with several workers; with ``--large`` small and large tables too."""
    yield _ways(bench)
    if bench.large:
        yield _flat(bench)


def _ways(bench: Bench) -> Table:
    size = Size(bench.size(1_000_000, 20_000), waiting=0, former=0, drops=(1,))
    rows: list[list[Cell]] = []
    with bench.subject("PostgreSQL") as subject:
        bench.say(f"filling PostgreSQL with {size.images:,} images")
        history.fill(subject, size)
        rows.append(_measured(bench, subject, "a job an image, speaking", WORKERS[-1], bench.size(5_000, 1_000)))
        for workers in WORKERS:
            images = bench.size(60_000, 2_000)
            rows.append(_measured(bench, subject, "a job an image", workers, images))
        for workers in WORKERS:
            images = size.images if workers == WORKERS[-1] else bench.size(250_000, 5_000)
            rows.append(_measured(bench, subject, "campaign", workers, images))
        rows.append(_measured(bench, subject, "campaign, speaking", WORKERS[-1], bench.size(100_000, 5_000)))
    columns = [
        "way", "workers", "images", "queued in s", "images/s", "CPU ms an image",
        "statements a million", "commits a million", "WAL a million, GB",
        *(f"{name} a million, MB" for name in ("score", "job")),
    ]  # fmt: skip
    about = (
        f"{size.images:,} synthetic images, 96 an inspection, whose champion has scored all. Further versions score "
        f"them again: with a job an image in batches of {BATCH}, the way of before, and as a campaign in claims of "
        f"{CLAIM}. Each worker is a process with a connection; commits are durable. Reading, decoding, hashing and the "
        "network are left out. Processor time is of the workers and of their server processes. A version that speaks "
        "has its plate summaries, drops and hits written as well, as every version had."
    )
    return Table("Scoring an archive again", about, columns, rows)


def _measured(bench: Bench, subject: Subject, way: str, workers: int, images: int) -> list[Cell]:
    """Let a new version score so many images."""
    bench.say(f"{way}, {workers} workers, {images:,} images")
    version = _new_version(subject, speaks="speaking" in way)
    before = _state(subject.db)
    as_campaign = way.startswith("campaign")
    enqueue_s, _ = timed(partial(_begin if as_campaign else _enqueue, subject.db, version, images))
    work = Work(_url(subject.db), version.id, as_campaign)
    done = _work_off(bench, work, workers, images)
    after = _state(subject.db)
    per = 1e6 / done.images
    grown = {name: (after[name] - before[name]) * per for name in before}
    history.settle(subject.db)
    return [
        way, workers, done.images, enqueue_s, done.rate, done.cost_ms, done.statements * per, grown["commits"],
        grown["wal"] / 1e9,        grown["score"] / 1e6, grown["job"] / 1e6,
    ]  # fmt: skip


def _new_version(subject: Subject, *, speaks: bool) -> Version:
    number = 100 + len(subject.db.read(versions.listed))
    version = register(subject.db, "bench", str(number))
    if speaks:
        # A promotion would also queue what is incomplete.
        spoke = sa.update(model_version).where(model_version.c.id == version.id).values(promoted_at=utc_now())
        subject.db.write(lambda c: c.execute(spoke))
    return version


def _begin(db: Database, version: Version, images: int | None) -> int:
    """Begin a campaign over the first so many images, or all. Returns how many."""
    owed: list[Owed] = []
    last = 0
    while (part := db.read(campaigns.survey, version.id, Archive(), last)) is not None:
        owed += part.owed
        last = part.last
        if images is not None and sum(one.images for one in owed) >= images:
            break
    if images is not None:
        owed = owed[: max(1, images * len(owed) // sum(one.images for one in owed))]
    db.write(campaigns.begin, version.id, Archive(), owed, "bench", utc_now())
    return sum(one.images for one in owed)


def _enqueue(db: Database, version: Version, images: int) -> int:
    """Make a job for each of the first so many images, inspections in parts."""
    of_inspections = range(1, images // 96 + 1)
    return sum(
        db.write(partial(queue.enqueue_rescore, version_id=version.id, now=utc_now(), inspection_ids=part))
        for part in parts(of_inspections)
    )


@dataclass(frozen=True, slots=True)
class Done:
    """Images that processes scored, their statements, and the seconds: of the clock, of processors here and there."""

    images: int
    statements: int
    began: float
    ended: float
    here_s: float
    server_s: float

    @property
    def rate(self) -> float:
        """Images in a second."""
        return self.images / (self.ended - self.began)

    @property
    def cost_ms(self) -> float:
        """Processor time of an image, the server's included."""
        return 1e3 * (self.here_s + self.server_s) / self.images


def _work_off(bench: Bench, work: Work, workers: int, images: int) -> Done:
    """Let processes score until nothing waits."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_worker, work) for _ in range(workers)]
        while wait(running, REPORT_S).not_done:
            bench.say(f"  {_scored(work):,} of {images:,} images scored")
        told = [one.result() for one in running]
    scored = sum(one.images for one in told)
    # Whole inspections are taken, so that the last one may be missing.
    assert scored > images - 96, (scored, images)
    return Done(
        scored,
        sum(one.statements for one in told),
        min(one.began for one in told),
        max(one.ended for one in told),
        sum(one.here_s for one in told),
        sum(one.server_s for one in told),
    )


def _scored(work: Work) -> int:
    db = Database(work.url)
    count = sa.select(sa.func.count()).where(score.c.model_version_id == work.version_id)
    found = db.read(lambda c: int(c.execute(count).scalar_one()))
    db.close()
    return found


def _worker(work: Work) -> Done:
    """Claim and write until nothing waits."""
    db = Database(work.url)
    statements = [0]
    sa.event.listen(db.engine, "before_cursor_execute", lambda *_: statements.__setitem__(0, statements[0] + 1))
    version = db.read(lambda c: versions.get(c, work.version_id))
    step: Callable[[Database, Version], int | None] = _of_campaign if work.campaign else _of_queue
    images, began, here_s, server_s = 0, time.time(), time.process_time(), _server_s(db)
    while (done := step(db, version)) is not None:
        images += done
    ended, here_s, server_s = time.time(), time.process_time() - here_s, _server_s(db) - server_s
    db.close()
    return Done(images, statements[0], began, ended, here_s, server_s)


def _server_s(db: Database) -> float:
    """Processor time of this connection's process of the server; not a number where it runs elsewhere."""
    pid = db.read(lambda c: int(c.execute(sa.text("select pg_backend_pid()")).scalar_one()))
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _of_campaign(db: Database, version: Version) -> int | None:
    lease = db.write(ranges.claim, "bench", limit=CLAIM, lease_s=_SETTINGS.lease_s, now=utc_now())
    if lease is None or not lease.claims:
        return None if lease is None else 0
    return db.write(results.finish_range, lease, version, _scores(lease), [], **_rules()).scored


def _of_queue(db: Database, version: Version) -> int | None:
    lease = claim(db, BATCH)
    if lease is None:
        return None
    return db.write(results.finish, lease.token, version, _scores(lease), [], **_rules()).scored


def _scores(lease: queue.Lease) -> list[Scored]:
    """The hash that :mod:`benchmarks.history` gave each image, and one in twenty a hit."""
    return [
        Scored(c, f"{'0' * 54}{c.image_id + 999_999_999}", _RESULTS[c.image_id % 20 == 0], engine="none")
        for c in lease.claims
    ]


def _rules() -> dict[str, Any]:
    return {"now": utc_now(), "retry_s": _SETTINGS.retry_s, "max_attempts": _SETTINGS.max_attempts}


def _state(db: Database) -> dict[str, float]:
    """Bytes written to the log, transactions, and bytes of tables with their indexes."""

    def work(connection: Connection) -> dict[str, float]:
        def one(text: str) -> float:
            return float(connection.execute(sa.text(text)).scalar_one())

        return {
            "wal": one("select pg_current_wal_lsn() - '0/0'::pg_lsn"),
            "commits": one("select xact_commit from pg_stat_database where datname = current_database()"),
            **{name: one(f"select pg_total_relation_size('{name}')") for name in TABLES},
        }

    return db.read(work)


def _url(db: Database) -> str:
    return db.url.render_as_string(hide_password=False)


def _flat(bench: Bench) -> Table:
    """The same campaigns in a small and in a large database, in turns."""
    sizes = bench.size(100_000, 4_000), bench.size(10_000_000, 40_000)
    _need_disk(bench, sizes[1])
    images, turns, workers = bench.size(50_000, 2_000), bench.size(5, 2), 2
    with bench.subject("PostgreSQL") as small, bench.subject("PostgreSQL") as large:
        pair = small, large
        for subject, size in zip(pair, sizes, strict=True):
            bench.say(f"filling PostgreSQL with {size:,} images and scores")
            history.fill_bare(subject, Size(size, waiting=0, former=0, drops=(1,)))
        enqueued_s = [_whole(subject) for subject in pair]
        rates: tuple[list[Done], list[Done]] = ([], [])
        for turn in range(turns):
            bench.say(f"turn {turn + 1} of {turns}")
            for subject, found in zip(pair, rates, strict=True):
                found.append(_rate(bench, subject, workers, images))
    rows: list[list[Cell]] = [
        [f"{size:,}", *whole, Spread.of(one.rate for one in found), Spread.of(one.cost_ms for one in found)]
        for size, whole, found in zip(sizes, enqueued_s, rates, strict=True)
    ]
    about = (
        f"A campaign over everything is begun and cancelled; then further versions score the same {images:,} images, "
        f"{workers} workers, {turns} turns each in either database."
    )
    columns = ["images and scores", "begin s", "ranges", "tables grew, MB", "images/s", "CPU ms an image"]
    return Table("Scoring again in a small and in a large archive", about, columns, rows)


def _whole(subject: Subject) -> list[Cell]:
    """Begin a campaign over everything, and cancel it."""
    version = _new_version(subject, speaks=False)
    before = _state(subject.db)
    seconds, _ = timed(lambda: _begin(subject.db, version, None))
    after = _state(subject.db)
    (one,) = subject.db.read(campaigns.listed, utc_now())
    subject.db.write(campaigns.cancel, one.id, "bench", utc_now())
    return [seconds, one.ranges, sum(after[name] - before[name] for name in TABLES) / 1e6]


def _rate(bench: Bench, subject: Subject, workers: int, images: int) -> Done:
    version = _new_version(subject, speaks=False)
    _begin(subject.db, version, images)
    work = Work(_url(subject.db), version.id, campaign=True)
    return _work_off(bench, work, workers, images)


def _need_disk(bench: Bench, images: int) -> None:
    needed = GIGABYTES_A_MILLION * images / 1e6
    free = shutil.disk_usage(bench.folder).free / 1e9
    bench.say(f"{images:,} images take about {needed:.0f} GB; {free:.0f} GB are free")
    if free < 1.5 * needed:
        raise SystemExit(f"that is too little; {1.5 * needed:.0f} GB must be free")
