"""The promotion of a version that has scored a million images in silence: what it costs, and who waits for it.

The work is done by processes that are killed. Meanwhile a LIMS asks the views, and images arrive.
"""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import Any, Final

import sqlalchemy as sa

from benchmarks import history, plates
from benchmarks.bench import Bench, Subject, register, timed, utc_now
from benchmarks.history import FIRST_PLATE, Size
from benchmarks.plates import INSPECTIONS_A_PLATE
from benchmarks.queue import claim
from benchmarks.tables import Cell, Spread, Table
from marcod.catalog import deliveries
from marcod.database.engine import Database
from marcod.database.schema import drop_summary, hit, image, job
from marcod.settings.environment import child_environment
from marcod.store import promotions, queue, results, serving, versions
from marcod.store.results import Scored
from marcod.store.versions import Version

IMAGES: Final = 1_000_000
KILLS: Final = 5
SEED: Final = 11
BATCH: Final = 64
BATCHES: Final = 20
DROPS: Final = (1,)
PROBABILITIES: Final = (0.7, 0.1, 0.1, 0.1), (0.1, 0.7, 0.1, 0.1)
ARRIVE_EVERY_S: Final = 2.0
ASK_EVERY_S: Final = 0.1

VIEWS: Final = (
    "select distinct model_version from lims_plate_summary_v1 where source = 'bench' and plate_key = :plate",
    "select distinct model_version from lims_drop_v1 where source = 'bench' and plate_key = :plate",
    "select distinct model_version from lims_image_score_v1"
    " where source = 'bench' and plate_key = :plate and is_current",
)


def run(bench: Bench) -> Iterator[Table]:
    """The promotion on both databases, then what a batch costs in silence."""
    rows: list[list[Cell]] = []
    costs: list[list[Cell]] = []
    size = Size(bench.size(IMAGES, 20_000), waiting=0, former=0, drops=DROPS)
    for kind in bench.kinds:
        with bench.subject(kind) as subject:
            bench.say(f"filling {kind} with {size.images:,} images, scored by two versions")
            version = _filled(subject, size)
            rows += [[kind, *row] for row in _promoted(bench, subject, version, size)]
            costs += [[kind, *row] for row in _in_silence(subject, bench.size(BATCHES, 5))]
    yield _table(size, rows)
    yield Table("A batch in silence", _ABOUT_BATCH, ["database", "the version", "finish ms"], costs)


_ABOUT_BATCH: Final = (
    f"Finishing a batch of {BATCH} old images that a version scores again, in the same database, {BATCHES} times each. "
    "One that was champion makes its plate summaries, drops and hits; one that never was has scores alone."
)


def _filled(subject: Subject, size: Size) -> Version:
    """A history, and the scores of a version that never was champion for all of its images."""
    history.fill(subject, size)
    version = register(subject.db, "bench", "3")
    history.score_all(subject, version, size)
    return version


def _table(size: Size, rows: list[list[Cell]]) -> Table:
    about = (
        f"{size.images:,} images of {size.plates:,} plates, ten inspections of 96 drops each, every tenth drop a hit. "
        "The champion has scored all of them, and so has the version that is promoted, in silence. Processes work its "
        f"rows out, and {KILLS} are killed by kill -9 at random moments (seed {SEED}). Meanwhile a LIMS asks three "
        f"views for a random plate every {ASK_EVERY_S:g} s, and an inspection of 96 images arrives every "
        f"{ARRIVE_EVERY_S:g} s."
    )
    return Table("Promotion", about, ["database", "what", "value"], rows)


def _promoted(bench: Bench, subject: Subject, version: Version, size: Size) -> Iterator[list[Cell]]:
    db = subject.db
    before = _Arrivals(subject, size, first=0)
    for _ in range(bench.size(10, 2)):
        before.bring()
    quiet = _Lims(db, size)
    for _ in range(bench.size(50, 5)):
        quiet.ask()
    promote = partial(serving.promote, version=version, actor="bench", now=utc_now())
    asked_s, _ = timed(lambda: db.write(promote))
    arriving, lims = _Arrivals(subject, size, first=1_000), _Lims(db, size)
    begun = time.perf_counter()
    with _going_on(arriving.bring, ARRIVE_EVERY_S), _going_on(lims.ask, ASK_EVERY_S):
        kills = _work_out(bench, db)
        worked_s = time.perf_counter() - begun
        change_s, left = timed(lambda: serving.advance(db, utc_now))
        assert left is None
        time.sleep(5 * ASK_EVERY_S)
    yield ["the command's transaction, s", asked_s]
    yield ["rows worked out, s, with the killed processes' starts", worked_s]
    yield ["processes killed", kills]
    yield ["the change of the champion, s", change_s]
    yield from _seen(db, version, lims)
    yield ["a LIMS's question before, ms", Spread.of(s * 1e3 for s in quiet.took)]
    yield ["a LIMS's question meanwhile, ms", Spread.of(s * 1e3 for s in lims.took)]
    yield ["recording 96 new images before, ms", Spread.of(s * 1e3 for s in before.took)]
    yield ["recording 96 new images meanwhile, ms", Spread.of(s * 1e3 for s in arriving.took)]


def _seen(db: Database, version: Version, lims: "_Lims") -> Iterator[list[Cell]]:
    assert db.read(versions.champion) == version
    assert not lims.mixed, lims.mixed
    drops, hits = (db.read(_rows, table, version) for table in (drop_summary, hit))
    yield ["rows of drops, and hits", f"{drops:,}, {hits:,}"]
    yield ["questions with an answer from two versions", len(lims.mixed)]
    yield ["versions that answered, in turn", " then ".join(lims.spoke)]


def _rows(connection: sa.Connection, table: sa.Table, version: Version) -> int:
    its = sa.select(sa.func.count()).select_from(table).where(table.c.model_version_id == version.id)
    return int(connection.execute(its).scalar_one())


def _work_out(bench: Bench, db: Database) -> int:
    """Have processes work until all rows are there, and kill some of them. Returns how many were killed."""
    rng, killed = random.Random(SEED), 0
    command = [sys.executable, "-m", "benchmarks.promotion", db.url.render_as_string(hide_password=False)]
    while (found := db.read(promotions.pending)) is not None and not found.ready:
        bench.say(f"{found.sentence}")
        process = subprocess.Popen(command, env=child_environment())
        try:
            process.wait(rng.uniform(3.0, 15.0) if killed < KILLS else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    return killed


@contextmanager
def _going_on(work: Any, every_s: float) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(every_s):
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass
class _Lims:
    """Somebody who asks the views which version answers for a plate."""

    db: Database
    size: Size
    took: list[float] = field(default_factory=list)
    spoke: list[str] = field(default_factory=list)
    mixed: list[list[str]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))

    def ask(self) -> None:
        plate = str(FIRST_PLATE + self.rng.randrange(self.size.plates - 1))
        for view in VIEWS:
            seconds, found = timed(partial(self.db.read, _ask, view, plate))
            self.took.append(seconds)
            if len(found) != 1:
                self.mixed.append(found)
            elif found != self.spoke[-1:]:
                self.spoke += found


def _ask(connection: sa.Connection, view: str, plate: str) -> list[str]:
    return list(connection.execute(sa.text(view), {"plate": plate}).scalars())


@dataclass
class _Arrivals:
    """Inspections of plates that were not there before."""

    subject: Subject
    size: Size
    first: int
    took: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = count((self.size.plates + self.first) * INSPECTIONS_A_PLATE)

    def bring(self) -> None:
        files = list(islice(plates.sightings(DROPS, next(self.numbers)), 96 * len(DROPS)))
        work = partial(deliveries.record, source_id=self.subject.source_id, sightings=files, now=utc_now())
        seconds, _ = timed(lambda: self.subject.db.write(work))
        self.took.append(seconds)


def _in_silence(subject: Subject, batches: int) -> Iterator[list[Cell]]:
    """One that was champion, and one that never was, score old images in turns."""
    db = subject.db
    db.write(lambda c: c.execute(sa.delete(job)))
    spoke, silent = db.read(lambda c: versions.find(c, "bench", "1")), register(db, "bench", "4")
    took: dict[Version, list[float]] = {spoke: [], silent: []}
    for turn in range(batches):
        for version, seconds in took.items():
            db.write(queue.enqueue_rescore, version.id, utc_now(), [turn + 1])
            lease = claim(db, BATCH)
            assert lease is not None
            seconds.append(timed(partial(_finish, db, lease, version))[0])
            db.write(lambda c: c.execute(sa.delete(job)))
    for version, name in ((spoke, "was champion"), (silent, "never was champion")):
        yield [name, Spread.of(s * 1e3 for s in took[version])]


def _finish(db: Database, lease: queue.Lease, version: Version) -> None:
    """Score every claim, of the bytes that it is known to have; one in twenty as a hit."""
    known = sa.select(image.c.id, image.c.content_hash).where(image.c.id.in_([c.image_id for c in lease.claims]))
    hashes = {int(row[0]): str(row[1]) for row in db.read(lambda c: c.execute(known).all())}
    scored = [Scored(c, hashes[c.image_id], PROBABILITIES[c.image_id % 20 == 0]) for c in lease.claims]
    db.write(results.finish, lease.token, version, scored, [], now=utc_now(), retry_s=1.0, max_attempts=4)


def _work_here(url: str) -> None:
    """Work until every row is there, and leave the change of the champion."""
    db = Database(url)

    def stop() -> bool:
        found = db.read(promotions.pending)
        return found is None or found.ready

    serving.advance(db, utc_now, stop=stop)
    db.close()


if __name__ == "__main__":
    _work_here(sys.argv[1])
