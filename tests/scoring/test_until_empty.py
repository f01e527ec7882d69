"""Workers that end by themselves: when nothing is left for them, and with nothing in hand when there is no time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import factories
import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from test_campaign_scores import begin
from test_leases import Model, real
from test_score import Lab, photograph
from waiting import wait_until

from marcod.database.engine import Database
from marcod.database.schema import job
from marcod.model.registry import Registry
from marcod.scoring.scorer import Scorer
from marcod.settings import ScoreSettings
from marcod.store import queue, ranges
from marcod.store.versions import Version

IDLE_S = 0.05


@pytest.fixture
def lab(db: Database, registry: Registry, tmp_path: Path) -> Lab:
    return Lab(db, registry, tmp_path / "root")


def scorer(lab: Lab, model: Model | None = None, lease_s: float = 60.0) -> Scorer:
    settings = ScoreSettings(batch_size=4, decode_threads=1, lease_s=lease_s, idle_s=IDLE_S)
    return Scorer(
        lab.db,
        (lambda version: lab.registry.load(version, 4)) if model is None else (lambda _: model),  # type: ignore[arg-type, return-value]
        settings,
        worker="pilot",
        roots={"imager": lab.root},
        on_batch=lab.reports.append,
    )


def deliver(lab: Lab, *names: str) -> None:
    for name in names:
        lab.deliver(name, photograph(len(name)), lab.db.now())


@contextmanager
def running(lab: Lab, pilot: Scorer, idle_s: float = 0.0) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=pilot.until_empty, args=(stop, idle_s))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def held(lab: Lab) -> int:
    found = sa.select(sa.func.count()).select_from(job).where(job.c.lease.is_not(None))
    return int(factories.rows(lab.db, found)[0][0])


def test_what_comes_while_it_scores_is_scored_too(lab: Lab) -> None:
    later = threading.Event()

    def predict(batch: NDArray[np.float32]) -> None:
        if not later.is_set():
            later.set()
            deliver(lab, "later.jpg")

    deliver(lab, "first.jpg")
    assert scorer(lab, Model(real(lab), predict=predict)).until_empty(threading.Event()).scored == 2
    assert sorted(lab.scores()) == ["first.jpg", "later.jpg"]


def test_images_of_a_worker_that_died_are_waited_for(lab: Lab) -> None:
    deliver(lab, "a.jpg", "b.jpg")
    lab.db.write(queue.claim, "dead", limit=9, lease_s=1.0, max_attempts=5, now=lab.db.now())
    pilot = scorer(lab)
    assert not pilot.is_done()
    assert pilot.until_empty(threading.Event()).scored == 2
    assert pilot.is_done()


def test_one_that_waits_for_another_try_is_not_waited_for(lab: Lab) -> None:
    deliver(lab, "a.jpg")
    [held_up] = factories.claimed(lab.db, lab.db.now()).claims
    later = lab.db.now() + timedelta(hours=1)
    change = sa.update(job).where(job.c.id == held_up.job_id).values(lease=None, available_at=later)
    lab.db.write(lambda c: c.execute(change))
    assert scorer(lab).until_empty(threading.Event()).scored == 0


def test_it_stays_as_long_as_it_should_wait_for_more(lab: Lab) -> None:
    deliver(lab, "a.jpg")
    with running(lab, scorer(lab), idle_s=600.0):
        wait_until(lambda: "a.jpg" in lab.scores() and not held(lab), "the first score")
        deliver(lab, "b.jpg")
        wait_until(lambda: "b.jpg" in lab.scores(), "the second score")


def test_what_cannot_be_finished_in_time_is_given_back_and_changes_nothing_later(lab: Lab) -> None:
    """Both batches that a worker holds: the one on the device and the one that is read ahead."""
    on_device, go_on = threading.Event(), threading.Event()

    def predict(batch: NDArray[np.float32]) -> None:
        on_device.set()
        assert go_on.wait(60)

    deliver(lab, *(f"{n}.jpg" for n in range(8)))
    pilot = scorer(lab, Model(real(lab), predict=predict))
    with running(lab, pilot) as thread:
        assert on_device.wait(60)
        wait_until(lambda: held(lab) == 8, "both batches to be claimed")
        pilot.abandon()
        assert held(lab) == 0
        assert {row.attempts for row in factories.rows(lab.db, sa.select(job.c.attempts))} == {0}
        assert scorer(lab).until_empty(threading.Event()).scored == 8
        go_on.set()
        thread.join(60)
    assert {len(labels) for labels in lab.scores().values()} == {1}
    assert len(lab.scores()) == 8


def test_a_campaign_is_scored_to_its_end(lab: Lab, second: Version) -> None:
    """A range in the hands of a worker that died is waited for, as its images are."""
    deliver(lab, *(f"{n}.jpg" for n in range(6)))
    lab.drain(lab.db.now())
    begin(lab, second)
    lab.db.write(ranges.claim, "dead", limit=2, lease_s=1.0, now=lab.db.now())
    pilot = scorer(lab)
    assert not pilot.is_done()
    assert pilot.until_empty(threading.Event()).scored == 6
    assert pilot.is_done()
