"""What claiming and finishing a batch cost, in a small database and in a large one: they must not grow."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import sqlalchemy as sa

from benchmarks import history
from benchmarks.bench import KINDS, Bench, Kind, Subject, register, timed, utc_now
from benchmarks.tables import Cell, Spread, Table
from marcod.database.engine import Database
from marcod.database.schema import job
from marcod.settings import ScoreSettings
from marcod.store import queue, results, versions
from marcod.store.results import Scored
from marcod.store.versions import Version

BATCHES = {16: 20, 64: 10}
"""Batch sizes and how often each is taken; together just within the jobs that wait."""

WAITING = 1_000
_SETTINGS = ScoreSettings()
_PROBABILITIES = (0.7, 0.1, 0.1, 0.1), (0.1, 0.7, 0.1, 0.1)


@dataclass(slots=True)
class Costs:
    """Seconds of each call."""

    claim: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)


def run(bench: Bench) -> Iterator[Table]:
    """Both sizes on both databases: with new images alone, before a rescore of everything, and in that rescore."""
    sizes = (bench.size(10_000, 2_000), bench.size(1_000_000, 20_000))
    rows = [row for kind in KINDS for row in _compare(bench, kind, sizes)]
    small, large = (f"{size:,}" for size in sizes)
    columns = ["database", "what waits", "batch"]
    columns += [
        f"{what} ms, {size}" if size else f"{what} ratio" for what in ("claim", "finish") for size in (small, large, "")
    ]
    about = (
        f"A synthetic history of {small} and of {large} images (two scores each, summaries, labels, hits). The calls "
        "on both take turns, each with its commit; a ratio is that of the medians, large over small, and should stay "
        f"near 1. A rescore of everything puts as many jobs as there are images behind the {WAITING:,} new ones. At "
        "last all jobs wait for another try, and a claim finds nothing."
    )
    yield Table("Claiming and finishing a batch", about, columns, rows)


def _compare(bench: Bench, kind: Kind, sizes: tuple[int, int]) -> Iterator[list[Cell]]:
    with ExitStack() as stack:
        pair = [stack.enter_context(bench.subject(kind)) for _ in sizes]
        for subject, size in zip(pair, sizes, strict=True):
            bench.say(f"filling {kind} with {size:,} images")
            history.fill(subject, history.Size(size, WAITING, former=size))
        yield from _rows(kind, "new", pair)
        for subject in pair:
            bench.say(f"queueing a rescore of everything on {kind}")
            rescore_all(subject)
        yield from _rows(kind, "new, rescore behind", pair)
        for subject in pair:
            _drain(subject)
        yield from _rows(kind, "rescore alone", pair)
        for subject in pair:
            _postpone(subject)
        yield _empty(kind, pair)


def rescore_all(subject: Subject) -> None:
    """Let a further version score every image again, and the newest images wait before them."""
    other = register(subject.db, "bench", "3")
    subject.db.write(lambda c: queue.enqueue_rescore(c, other.id, utc_now()))
    history.enqueue_newest(subject, WAITING)
    history.settle(subject.db)


def _rows(kind: Kind, what: str, pair: list[Subject]) -> Iterator[list[Cell]]:
    for batch, times in BATCHES.items():
        small, large = Costs(), Costs()
        for _ in range(times):
            for subject, costs in zip(pair, (small, large), strict=True):
                once(subject, batch, costs)
        yield [kind, what, batch, *_cells(small.claim, large.claim), *_cells(small.finish, large.finish)]


def _empty(kind: Kind, pair: list[Subject]) -> list[Cell]:
    """An idle scorer asks this every few seconds."""
    small, large = Costs(), Costs()
    for _ in range(10):
        for subject, costs in zip(pair, (small, large), strict=True):
            seconds, lease = timed(partial(claim, subject.db, 16))
            assert lease is None
            costs.claim.append(seconds)
    return [kind, "retries only", 16, *_cells(small.claim, large.claim), "", "", ""]


def _postpone(subject: Subject) -> None:
    """Every job failed once and waits for tomorrow, as when a share is away for the night."""
    tomorrow = utc_now() + timedelta(days=1)
    values = {"priority": queue.NEW, "available_at": tomorrow, "lease": None, "attempts": 0, "error": "source is away"}
    subject.db.write(lambda c: c.execute(sa.update(job).values(values)))
    history.settle(subject.db)


def once(subject: Subject, batch: int, costs: Costs) -> None:
    """Claim a batch and finish it."""
    claim_s, lease = timed(lambda: claim(subject.db, batch))
    assert lease is not None
    assert len(lease.claims) == batch
    version = subject.db.read(lambda c: versions.get(c, lease.model_version_id))
    finish_s, done = timed(lambda: finish(subject.db, lease, version))
    assert done.scored == batch
    costs.claim.append(claim_s)
    costs.finish.append(finish_s)


def claim(db: Database, batch: int) -> queue.Lease | None:
    """With the default settings."""
    return db.write(
        lambda c: queue.claim(
            c, "bench", limit=batch, lease_s=_SETTINGS.lease_s, max_attempts=_SETTINGS.max_attempts, now=utc_now()
        )
    )


def finish(db: Database, lease: queue.Lease, version: Version) -> results.Finished:
    """Score every claim; one in twenty as a hit, and each as new content, so that a score row is written."""
    scored = [Scored(c, f"{lease.token}/{c.image_id}", _PROBABILITIES[c.image_id % 20 == 0]) for c in lease.claims]
    return db.write(
        lambda c: results.finish(
            c,
            lease.token,
            version,
            scored,
            [],
            now=utc_now(),
            retry_s=_SETTINGS.retry_s,
            max_attempts=_SETTINGS.max_attempts,
        )
    )


def _drain(subject: Subject) -> None:
    """Finish the new images that are left."""
    while (lease := claim(subject.db, 64)) is not None and lease.model_version_id == subject.champion.id:
        finish(subject.db, lease, subject.champion)
    if lease is not None:
        subject.db.write(lambda c: queue.release(c, lease, utc_now()))


def _cells(small: list[float], large: list[float]) -> list[Cell]:
    spreads = [Spread.of(s * 1e3 for s in seconds) for seconds in (small, large)]
    return [*spreads, spreads[1].median / spreads[0].median]
