"""Leases in hand: a slow batch keeps them, a dead worker does not, and what could not be given back is given back."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import factories
import numpy as np
import pytest
import sqlalchemy as sa
from doubles import OneNetwork
from factories import MAX_ATTEMPTS, record, sightings, utc
from numpy.typing import NDArray
from test_score import SETTINGS, Lab, lab, photograph  # noqa: F401 - the fixture
from waiting import wait_until

from marcod.database.engine import Database
from marcod.database.schema import job
from marcod.errors import StoreError
from marcod.health import snapshot
from marcod.model.predictor import Predictor
from marcod.scoring.decode import NO_MEMORY
from marcod.scoring.leases import Leases
from marcod.scoring.scorer import ModelFaultError, Scorer, ShortOfMemoryError
from marcod.settings import ScoreSettings
from marcod.store import queue, results, versions
from marcod.store.versions import Version

LEASE_S = 3.0
"""Long enough that a busy machine does not hold up the renewing thread for three quarters of it."""
ONE_DATABASE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
"""What is the device's business, whatever the database."""


class Model(OneNetwork):
    """The real small model behind a prepare and a predict of the test's own."""

    def __init__(
        self,
        real: Predictor,
        prepare: Callable[[bytes], None] = lambda data: None,
        predict: Callable[[NDArray[np.float32]], None] = lambda batch: None,
        after: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda vectors: vectors,
    ) -> None:
        self._real, self._prepare, self._predict, self._after = real, prepare, predict, after
        self.record, self.fold = real.record, real.fold

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        self._prepare(data)
        return self._real.prepare(data)

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._predict(batch)
        return self._after(self._real.predict(batch))


def real(lab: Lab) -> Predictor:  # noqa: F811
    return lab.registry.load(lab.db.read(versions.champion), 4)


def deliver(lab: Lab, count: int) -> None:  # noqa: F811
    for number in range(count):
        lab.deliver(f"{number}.jpg", photograph(number))


def test_a_batch_that_takes_longer_than_its_lease_is_scored_once_and_nothing_is_lost(lab: Lab) -> None:  # noqa: F811
    deliver(lab, 8)
    db, slow = lab.db, threading.Event()

    def ends() -> dict[int, datetime]:
        held = sa.select(job.c.id, job.c.available_at).where(job.c.lease.is_not(None))
        return dict(factories.rows(db, held))

    def outlast(batch: NDArray[np.float32]) -> None:
        if slow.is_set():
            return
        slow.set()
        first = ends()
        last = max(first.values())
        wait_until(lambda: db.now() > last, "the first lease to be over")
        now_held = ends()  # the next batch may have been claimed ahead
        assert all(now_held[number] > last for number in first)
        assert factories.claim(db, db.now(), max_attempts=MAX_ATTEMPTS) is None
        assert db.write(lambda c: results.give_up_exhausted(c, max_attempts=1, now=db.now())) == 0

    settings = ScoreSettings(batch_size=4, decode_threads=2, lease_s=LEASE_S, max_attempts=1, idle_s=0.01)
    model = Model(real(lab), predict=outlast)
    scorer = Scorer(
        db,
        lambda _: model,
        settings,
        worker="slow",
        roots={"imager": lab.root},
        on_batch=lab.reports.append,  # type: ignore[arg-type, return-value]
    )
    scorer.drain(threading.Event())
    assert {path: len(labels) for path, labels in lab.scores().items()} == {f"{n}.jpg": 1 for n in range(8)}
    assert sum(report.stale for report in lab.reports) == 0


def test_quick_batches_and_dead_workers_renew_nothing(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    lease = factories.claimed(db)
    with Leases(db, 60.0, lambda: utc(59)) as leases:
        leases.hold(lease)
        leases._renew(0.0)
    assert factories.claim(db, utc(59)) is None
    assert factories.claimed(db, utc(60)).claims


def test_what_the_database_does_not_take_back_is_owed(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(2))
    lease = factories.claimed(db)
    leases = Leases(db, 60.0, lambda: utc(1))
    leases.hold(lease)
    write = db.write

    def full(*work: object) -> object:
        raise StoreError("the disk is full")

    db.write = full  # type: ignore[method-assign, assignment]
    leases.give_back(lease, "the disk is full")
    with pytest.raises(StoreError):
        leases.settle()
    db.write = write  # type: ignore[method-assign]
    leases.settle()
    leases.settle()
    assert factories.rows(db, sa.select(job.c.lease, job.c.attempts, job.c.error)) == 2 * [
        (None, 0, "the disk is full")
    ]


@ONE_DATABASE
def test_a_host_without_memory_halves_its_batches_and_then_says_so_and_waits(lab: Lab) -> None:  # noqa: F811
    deliver(lab, 8)
    taken: list[int] = []
    now = [utc(1)]

    def poor(data: bytes) -> None:
        raise MemoryError

    model = Model(real(lab), prepare=poor)
    scorer = Scorer(
        lab.db, lambda _: model, SETTINGS, worker="poor", roots={"imager": lab.root},  # type: ignore[arg-type, return-value]
        on_batch=lambda report: taken.append(report.failed), clock=lambda: now[0],
    )  # fmt: skip
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(ShortOfMemoryError):
            scorer.drain(threading.Event())
        now[0] += timedelta(minutes=1)
    assert taken == [4, 2, 1, 1, 1]
    assert not lab.failed()
    assert {attempts for attempts, _ in lab.waiting().values()} == {0}
    held_up = lab.db.read(lambda c: snapshot.take_snapshot(c, now[0])).held_up
    assert {one.error for one in held_up} == {NO_MEMORY}
    lab.drain(utc(days=1))
    assert len(lab.scores()) == 8


@ONE_DATABASE
def test_a_device_that_has_memory_for_some_images_scores_all(lab: Lab) -> None:  # noqa: F811
    deliver(lab, 8)

    def room_for_two(batch: NDArray[np.float32]) -> None:
        if len(batch) > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")

    lab.scorer(load=lambda _: Model(real(lab), predict=room_for_two)).drain(threading.Event())
    assert len(lab.scores()) == 8
    assert [report.scored for report in lab.reports][:2] == [4, 4]


@ONE_DATABASE
def test_a_device_without_memory_for_one_costs_no_image_an_attempt(lab: Lab) -> None:  # noqa: F811
    deliver(lab, 3)

    def none(batch: NDArray[np.float32]) -> None:
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")

    for hour in range(2):
        with pytest.raises(ShortOfMemoryError):
            lab.scorer(utc(hours=hour), load=lambda _: Model(real(lab), predict=none)).drain(threading.Event())
    assert set(lab.waiting().values()) == {(0, str(ShortOfMemoryError()))}
    assert not lab.failed()


@ONE_DATABASE
@pytest.mark.parametrize("fault", ["nan", "raises"])
def test_a_model_that_fails_on_every_image_quarantines_none(lab: Lab, fault: str) -> None:  # noqa: F811
    deliver(lab, 4)

    def breaks(batch: NDArray[np.float32]) -> None:
        if fault == "raises" and batch.any():
            raise ValueError("unsupported operation")

    def numbers(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return vectors * np.nan if fault == "nan" else vectors

    broken = Model(real(lab), predict=breaks, after=numbers)
    for hour in range(2):
        with pytest.raises(ModelFaultError, match="random:1 fails on every image"):
            lab.scorer(utc(hours=hour), load=lambda _: broken).drain(threading.Event())
    assert not lab.failed()
    assert {attempts for attempts, _ in lab.waiting().values()} == {0}
    [held_up] = lab.db.read(lambda c: snapshot.take_snapshot(c, utc(1))).held_up
    assert held_up.error.startswith("random:1 fails on every image: the model")
    lab.drain(utc(days=1))
    assert len(lab.scores()) == 4


@ONE_DATABASE
def test_a_challenger_that_fails_on_every_image_holds_up_nothing(lab: Lab, second: Version) -> None:  # noqa: F811
    deliver(lab, 4)
    lab.drain()
    lab.db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(2)))
    lab.deliver("new.jpg", photograph(9))

    def load(version: Version) -> object:
        found = lab.registry.load(version, 4)
        return Model(found, after=lambda vectors: vectors * np.nan) if version.id == second.id else found

    lab.scorer(utc(3), load=load).drain(threading.Event())
    assert set(lab.scores()) == {*(f"{n}.jpg" for n in range(4)), "new.jpg"}
    assert not lab.failed()
    assert {attempts for attempts, _ in lab.waiting().values()} == {0}


@ONE_DATABASE
def test_a_single_image_is_blamed_only_where_the_model_scores_another(lab: Lab) -> None:  # noqa: F811
    lab.deliver("odd.jpg", photograph(2))
    odd = real(lab).prepare(photograph(2))

    def fails_on_it(batch: NDArray[np.float32]) -> None:
        if any(np.array_equal(pixels, odd) for pixels in batch):
            raise ValueError("odd")

    scorer = lab.scorer(load=lambda _: Model(real(lab), predict=fails_on_it))
    scorer.drain(threading.Event())
    assert lab.waiting() == {"odd.jpg": (1, "the model cannot score it")}
    lab.deliver("good.jpg", photograph(3))
    scorer.drain(threading.Event())
    assert set(lab.scores()) == {"good.jpg"}
    lab.deliver("also.jpg", photograph(2))
    scorer.drain(threading.Event())
    assert lab.failed() == {"also.jpg": "the model cannot score it"}


@ONE_DATABASE
def test_threads_that_cannot_be_started_cost_no_image_an_attempt(lab: Lab, tmp_path: Path) -> None:  # noqa: F811
    deliver(lab, 2)
    scorer = lab.scorer()
    begin = scorer._decoders.__class__.begin

    def none(self: object, predictor: object, claims: object, known: object) -> object:
        raise RuntimeError("can't start new thread")

    try:
        scorer._decoders.__class__.begin = none  # type: ignore[method-assign, assignment]
        with pytest.raises(RuntimeError, match="thread"):
            scorer.drain(threading.Event())
    finally:
        scorer._decoders.__class__.begin = begin  # type: ignore[method-assign]
    assert set(lab.waiting().values()) == {(0, "RuntimeError: can't start new thread")}
    lab.drain()
    assert len(lab.scores()) == 2
