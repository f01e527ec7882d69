"""An idle scorer is woken by what is queued, and needs no notice to find it in the end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import factories
import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from test_leases import Model, real
from test_score import Lab, photograph
from waiting import wait_until

from marcod.database.engine import Database
from marcod.database.schema import job
from marcod.model.registry import Registry
from marcod.scoring.scorer import Scorer
from marcod.settings import ScoreSettings
from marcod.store import queue, results, versions
from marcod.store.versions import Version

on_postgres = pytest.mark.parametrize("backend", ["postgres"], indirect=True)

BATCH = 4
LONG_S = 60.0
"""Time in which a notice must have woken a scorer that would look by itself ten times later."""

LISTENERS = "select pid from pg_stat_activity where datname = current_database() and query like 'listen %'"


@pytest.fixture
def lab(db: Database, registry: Registry, tmp_path: Path) -> Lab:
    return Lab(db, registry, tmp_path / "root")


@contextmanager
def idle_scorer(
    lab: Lab, idle_s: float = 10 * LONG_S, load: Callable[[Version], object] | None = None
) -> Iterator[None]:
    """A scorer in a thread that has found nothing to do."""
    stop, turns = threading.Event(), list[int]()
    scorer = Scorer(
        lab.db,
        load or (lambda version: lab.registry.load(version, BATCH)),  # type: ignore[arg-type]
        ScoreSettings(batch_size=BATCH, decode_threads=1, idle_s=idle_s),
        worker="idle",
        roots={"imager": lab.root},
        on_batch=lab.reports.append,
    )
    thread = threading.Thread(target=scorer.run, args=(stop, lambda: turns.append(1)))
    thread.start()
    try:
        # The second turn comes when the line is open; from then on it waits.
        wait_until(lambda: len(turns) >= 2, "an idle scorer")
        yield
    finally:
        stop.set()
        thread.join(LONG_S)
        assert not thread.is_alive()


def scored(lab: Lab, *names: str) -> None:
    wait_until(lambda: set(names) <= set(lab.scores()), "a score without the poll", LONG_S)


def test_a_queued_image_is_scored_without_waiting_for_the_poll(lab: Lab) -> None:
    with idle_scorer(lab):
        lab.deliver("one.jpg", photograph(1), lab.db.now())
        scored(lab, "one.jpg")
        lab.deliver("two.jpg", photograph(2), lab.db.now())
        scored(lab, "two.jpg")


def test_what_another_process_queues_wakes_a_scorer(lab: Lab, registry: Registry, db_url: str) -> None:
    with closing(Database(db_url)) as other, idle_scorer(lab):
        (lab.root / "one.jpg").write_bytes(photograph(1))
        mine, lab.db = lab.db, other
        lab.record("one.jpg", mine.now())
        lab.db = mine
        scored(lab, "one.jpg")


def test_what_a_worker_gives_back_wakes_a_scorer(lab: Lab) -> None:
    lab.deliver("one.jpg", photograph(1), lab.db.now())
    lease = factories.claimed(lab.db, lab.db.now())
    with idle_scorer(lab):
        assert lab.db.write(queue.release, lease, lab.db.now()) == 1
        scored(lab, "one.jpg")


def test_what_is_tried_again_wakes_a_scorer(lab: Lab) -> None:
    lab.deliver("one.jpg", photograph(1)[:-600], lab.db.now())
    lease = factories.claimed(lab.db, lab.db.now())
    failure = queue.Failure(lease.claims[0], "broken", retryable=False)
    champion = lab.db.read(versions.champion)
    more = {"now": lab.db.now(), "retry_s": 1.0, "max_attempts": 5}
    lab.db.write(lambda c: results.finish(c, lease.token, champion, [], [failure], **more))
    (lab.root / "one.jpg").write_bytes(photograph(1))
    with idle_scorer(lab):
        assert lab.db.write(results.retry_failed, lab.db.now()) == 1
        scored(lab, "one.jpg")


def test_what_another_version_owes_wakes_a_scorer(lab: Lab, second: Version) -> None:
    with idle_scorer(lab):
        lab.deliver("one.jpg", photograph(1), lab.db.now())
        scored(lab, "one.jpg")
        assert lab.db.write(queue.enqueue_rescore, second.id, lab.db.now()) == 1
        wait_until(lambda: len(lab.scores()["one.jpg"]) == 2, "the score of another version", LONG_S)


def test_a_promotion_wakes_a_scorer(lab: Lab, registry: Registry, second: Version) -> None:
    lab.deliver("one.jpg", photograph(1), lab.db.now())
    factories.claimed(lab.db, lab.db.now())
    with idle_scorer(lab):
        registry.promote(second, actor="test", now=lab.db.now())
        scored(lab, "one.jpg")


@on_postgres
def test_work_is_taken_with_a_broken_line_and_the_line_comes_back(lab: Lab) -> None:
    def listening() -> list[int]:
        return list(lab.db.read(lambda c: c.execute(sa.text(LISTENERS)).scalars().all()))

    with idle_scorer(lab):
        (first,) = listening()
        lab.db.write(lambda c: c.execute(sa.text(f"select pg_terminate_backend({first}, 5000)")))
        lab.deliver("one.jpg", photograph(1), lab.db.now())
        scored(lab, "one.jpg")
        wait_until(lambda: listening() not in ([], [first]), "the line to come back", LONG_S)
        lab.deliver("two.jpg", photograph(2), lab.db.now())
        scored(lab, "two.jpg")
    wait_until(lambda: not listening(), "the line to be closed", LONG_S)


@on_postgres
def test_work_is_taken_by_the_poll_where_nobody_announces_it(lab: Lab) -> None:
    """As of a program that announces nothing, or behind a pooler that lends its connections by the transaction."""
    lab.deliver("one.jpg", photograph(1), lab.db.now())
    factories.claimed(lab.db, lab.db.now())
    with idle_scorer(lab, idle_s=0.05):
        ready = sa.update(job).values(lease=None, available_at=lab.db.now())
        lab.db.write(lambda c: c.execute(ready))
        scored(lab, "one.jpg")


def test_a_plate_that_comes_at_once_is_scored_in_batches(lab: Lab) -> None:
    """The first image wakes the scorer, and the rest comes while it is scored; there is no second batch of one."""
    names = [f"{number}.jpg" for number in range(25)]
    for number, name in enumerate(names):
        (lab.root / name).write_bytes(photograph(number))
    begun, arrived = threading.Event(), threading.Event()

    def held(batch: NDArray[np.float32]) -> None:
        begun.set()
        assert arrived.wait(LONG_S)

    with idle_scorer(lab, load=lambda _: Model(real(lab), predict=held)):
        lab.record(names[0], lab.db.now())
        assert begun.wait(LONG_S)
        # The claim of the batch after it found nothing, or a few.
        for name in names[1:]:
            lab.record(name, lab.db.now())
        arrived.set()
        scored(lab, *names)
    sizes = [report.scored for report in lab.reports]
    assert sum(sizes) == len(names)
    assert len(sizes) <= 1 + 1 + len(names) / BATCH + 1, sizes
