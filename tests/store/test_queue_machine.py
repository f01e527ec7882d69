"""The queue against a model of it that fits on a page, under any order of events (SQLite)."""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from factories import (
    CLEAR,
    LEASE_S,
    MAX_ATTEMPTS,
    RETRY_S,
    claim,
    promote,
    record,
    register,
    register_source,
    rows,
    sightings,
    utc,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import image, job, model_alias, score
from marcod.errors import StoreError
from marcod.store import queue, results, serving, versions
from marcod.store.versions import Version

FILES = sightings(8)


@dataclass
class Job:
    """What the queue should hold for one path and version."""

    priority: int
    available_at: datetime
    attempts: int = 0
    token: str | None = None
    failed: bool = False
    enqueued_at: datetime | None = None

    def __post_init__(self) -> None:
        self.enqueued_at = self.enqueued_at or self.available_at

    def start_over(self, now: datetime) -> None:
        self.available_at, self.enqueued_at, self.attempts, self.token, self.failed = now, now, 0, None, False

    @property
    def lapsed(self) -> bool:
        return self.token is not None and self.attempts >= queue.LAPSES_BEFORE_ALONE


@dataclass
class Held:
    """A lease in a worker's hands, and the bytes it read when it took it."""

    lease: queue.Lease
    read: dict[str, str]


class QueueMachine(RuleBasedStateMachine):
    """Files change on a disk; scans record them; workers claim, finish, fail, die; versions change places."""

    template: ClassVar[Path]
    folder: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        path = shutil.copy(self.template, self.folder / "machine.sqlite")
        self.db = Database(f"sqlite:///{path}")
        self.now_s = 0.0
        self.versions: dict[int, Version] = {v.id: v for v in (register(self.db, version=n) for n in "123")}
        self.champion = min(self.versions)
        promote(self.db, self.versions[self.champion])
        self.promoted = {self.champion}
        self.previous: int | None = None
        self.challenger: int | None = None
        self.challenged_at = self.now
        self.source_id = register_source(self.db)
        self.disk: dict[str, Sighting] = {}
        self.bytes: dict[str, str] = {}
        self.recorded: dict[str, Sighting] = {}
        self.jobs: dict[tuple[str, int], Job] = {}
        self.scores: set[tuple[str, int, str]] = set()
        self.wanted: dict[str, int] = {}
        self.held: list[Held] = []
        self.summarised: set[int] = set()

    def teardown(self) -> None:
        self.db.close()

    @property
    def now(self) -> datetime:
        return utc(self.now_s)

    @rule(seconds=st.sampled_from([1.0, RETRY_S, LEASE_S / 2, LEASE_S, 2 * LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(number=st.integers(0, len(FILES) - 1), touched=st.booleans())
    def a_file_is_written(self, number: int, touched: bool) -> None:
        path = FILES[number].path
        before = self.disk.get(path, FILES[number])
        self.disk[path] = replace(before, mtime_ns=before.mtime_ns + 1)
        if path not in self.bytes or not touched:
            self.disk[path] = replace(self.disk[path], size=before.size + 1)
            self.bytes[path] = f"bytes {self.disk[path].mtime_ns}"

    @rule()
    def the_disk_is_scanned(self) -> None:
        new = self.disk.keys() - self.recorded.keys()
        changed = {p for p in self.recorded if self.recorded[p] != self.disk[p]}
        hashes = self._hashes()
        touched = {p for p in changed if self.recorded[p].size == self.disk[p].size and hashes[p] is not None}
        done = record(self.db, self.source_id, self.disk.values(), self.now)
        assert (done.new, done.changed, done.queued) == (len(new), len(changed), len(new | changed))
        self.recorded = dict(self.disk)
        for (path, _), waiting in self.jobs.items():
            if path in changed:
                waiting.start_over(self.now)
        serving = {self.champion, self.challenger} - {None}
        for path in new | changed:
            self.wanted[path] = self.champion
            for version in serving:
                behind = version == self.challenger or path in touched
                self.jobs[path, version] = Job(queue.RESCORE if behind else queue.NEW, self.now)
        if new | changed:
            if (self.summarised & self.promoted) - serving:
                self._queue_what_lacks(self.champion)
            self.summarised |= serving

    @rule(limit=st.integers(1, 6))
    def a_worker_claims(self, limit: int) -> None:
        ready = {
            key: j
            for key, j in self.jobs.items()
            if not j.failed and j.available_at <= self.now and j.attempts < MAX_ATTEMPTS
        }
        steady = {key: j for key, j in ready.items() if not j.lapsed}
        new = {key: j for key, j in steady.items() if j.priority == queue.NEW}
        alone = {key: j for key, j in ready.items() if j.lapsed}
        pool = new or alone or steady
        if pool is alone:
            limit = 1
        lease = claim(self.db, self.now, limit=limit)
        if lease is None:
            assert pool == {}
            return
        version = lease.model_version_id
        taken = {(c.path, version) for c in lease.claims}
        assert taken <= pool.keys()
        assert len(taken) == len(lease.claims) == min(limit, sum(v == version for _, v in pool))
        order = {key: (0 if pool is alone else j.priority, j.available_at) for key, j in pool.items()}
        assert min(order[key] for key in taken) == min(order.values())
        left = [order[key] for key in pool if key[1] == version and key not in taken]
        assert not left or max(order[key] for key in taken) <= min(left)
        for taken_claim in lease.claims:
            held = self.jobs[taken_claim.path, version]
            held.token, held.attempts = lease.token, held.attempts + 1
            held.available_at = utc(self.now_s + LEASE_S)
            assert taken_claim.attempts == held.attempts
        self.held.append(Held(lease, {c.path: self.bytes[c.path] for c in lease.claims}))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_worker_finishes(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1), label="which lease"))
        version = self.versions[held.lease.model_version_id]
        scored, failures, mine = [], [], 0
        for c in held.lease.claims:
            outcome = data.draw(st.sampled_from(["scored", "scored", "torn", "bomb"]), label=c.path)
            here = self.jobs.get((c.path, version.id))
            ours = here is not None and here.token == held.lease.token
            mine += ours
            if outcome == "scored":
                scored.append(results.Scored(c, held.read[c.path], CLEAR))
                if ours:
                    del self.jobs[c.path, version.id]
                    self.scores.add((c.path, version.id, held.read[c.path]))
                continue
            failures.append(queue.Failure(c, outcome, retryable=outcome == "torn"))
            if ours and here is not None:
                here.token = None
                here.failed = outcome == "bomb" or c.attempts >= MAX_ATTEMPTS
                here.available_at = utc(self.now_s + RETRY_S * 2 ** (c.attempts - 1))

        def work(connection: sa.Connection) -> results.Finished:
            return results.finish(
                connection,
                held.lease.token,
                version,
                scored,
                failures,
                now=self.now,
                retry_s=RETRY_S,
                max_attempts=MAX_ATTEMPTS,
            )

        done = self.db.write(work)
        assert done.scored + done.failed == mine
        if mine:
            self.summarised.add(version.id)
        assert done.stale == len(held.lease.claims) - mine

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_worker_releases(self, data: st.DataObject) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1), label="which lease")).lease
        ours = [j for j in self.jobs.values() if j.token == lease.token]
        for j in ours:
            j.token, j.attempts, j.available_at = None, j.attempts - 1, self.now
        assert self.db.write(lambda c: queue.release(c, lease, self.now)) == len(ours)

    @precondition(lambda self: self.held)
    @rule()
    def every_worker_dies(self) -> None:
        self.held.clear()

    @rule()
    def the_exhausted_are_given_up(self) -> None:
        ended = [
            j
            for j in self.jobs.values()
            if j.token is not None and j.available_at <= self.now and j.attempts >= MAX_ATTEMPTS and not j.failed
        ]
        for j in ended:
            j.token, j.failed = None, True
        done = self.db.write(lambda c: results.give_up_exhausted(c, max_attempts=MAX_ATTEMPTS, now=self.now))
        assert done == len(ended)

    @rule()
    def somebody_retries(self) -> None:
        failed = [j for j in self.jobs.values() if j.failed]
        for j in failed:
            j.start_over(self.now)
        assert self.db.write(lambda c: results.retry_failed(c, self.now)) == len(failed)

    @rule(data=st.data())
    def another_version_is_promoted(self, data: st.DataObject) -> None:
        old = self.champion
        new = data.draw(st.sampled_from(sorted(self.versions.keys() - {old})), label="version")
        promote(self.db, self.versions[new], self.now)
        self.previous = old
        self._crown(old, new)

    @rule()
    def somebody_rolls_back(self) -> None:
        if self.previous is None:
            with pytest.raises(StoreError, match="no previous champion"):
                self.db.read(versions.previous)
            return
        old, new = self.champion, self.previous
        found = self.db.read(versions.previous)
        assert found == self.versions[new]
        self.db.write(lambda c: serving.rollback(c, found, actor="test", now=self.now))
        self.previous = None
        self._crown(old, new)

    def _crown(self, old: int, new: int) -> None:
        """The work of new images moves to another champion, and what is still arriving is queued for it."""
        self.champion = new
        self.promoted.add(new)
        if self.challenger == new:
            self.challenger = None
        for (path, version), j in list(self.jobs.items()):
            if version != old or j.priority != queue.NEW:
                continue
            moved = Job(queue.NEW, self.now, enqueued_at=self.now if j.failed else j.enqueued_at)
            self.jobs.setdefault((path, new), moved).priority = queue.NEW
            if self.wanted[path] == old:
                self.wanted[path] = new
            if j.token is None:
                del self.jobs[path, old]
        if self.summarised & {old, new}:
            self._queue_what_lacks(new)

    @rule(data=st.data())
    def the_challenger_changes(self, data: st.DataObject) -> None:
        new = data.draw(st.sampled_from([None, *sorted(self.versions.keys() - {self.champion})]), label="challenger")
        version = None if new is None else self.versions[new]
        self.db.write(lambda c: serving.challenge(c, version, actor="test", now=self.now))
        if new == self.challenger:
            return
        for (path, of), j in list(self.jobs.items()):
            waits = j.priority == queue.RESCORE and j.token is None and not j.failed
            if of == self.challenger and waits and j.enqueued_at >= self.challenged_at:
                del self.jobs[path, of]
        self.challenger, self.challenged_at = new, self.now

    @rule(data=st.data())
    def everything_is_scored_again(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)), label="version")
        queued = self._queue_what_lacks(version)
        assert self.db.write(lambda c: queue.enqueue_rescore(c, version, self.now)) == queued

    def _queue_what_lacks(self, version: int) -> int:
        """What a version has not scored waits for it; returns how many were not waiting yet."""
        current = self._hashes()
        lacking = {p for p in self.recorded if (p, version, current[p]) not in self.scores}
        new = [(p, version) for p in lacking if (p, version) not in self.jobs]
        for key in new:
            self.jobs[key] = Job(queue.RESCORE, self.now)
        return len(new)

    def _hashes(self) -> dict[str, str | None]:
        return dict(tuple(row) for row in rows(self.db, sa.select(image.c.path, image.c.content_hash)))

    @invariant()
    def the_queue_is_as_it_should_be(self) -> None:
        columns: tuple[Any, ...] = (job.c.priority, job.c.available_at, job.c.attempts, job.c.lease)
        more = (job.c.failed_at.is_not(None), job.c.enqueued_at)
        found = rows(
            self.db,
            sa.select(image.c.path, job.c.model_version_id, *columns, *more).join(image, image.c.id == job.c.image_id),
        )
        assert {(row[0], row[1]): Job(*row[2:]) for row in found} == self.jobs

    @invariant()
    def the_aliases_are_as_they_should_be(self) -> None:
        told = {"champion": self.champion, "challenger": self.challenger, "previous": self.previous}
        found = rows(self.db, sa.select(model_alias.c.alias, model_alias.c.model_version_id))
        assert dict(tuple(row) for row in found) == {alias: v for alias, v in told.items() if v is not None}

    @invariant()
    def every_score_is_there_once(self) -> None:
        columns = (image.c.path, score.c.model_version_id, score.c.content_hash)
        found = Counter(
            tuple(r) for r in rows(self.db, sa.select(*columns).join(image, image.c.id == score.c.image_id))
        )
        assert found == Counter(self.scores)

    @invariant()
    def no_image_is_lost(self) -> None:
        hashes = self._hashes()
        for path, seen in self.recorded.items():
            if seen != self.disk[path]:
                continue
            version, content = self.wanted[path], self.bytes[path]
            assert (path, version) in self.jobs or (path, version, content) in self.scores
            if not any(p == path for p, _ in self.jobs):
                assert hashes[path] == content


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.slow
def test_the_queue_does_what_its_model_says(backend: str, sqlite_template: Path, tmp_path: Path) -> None:
    QueueMachine.template, QueueMachine.folder = sqlite_template, tmp_path
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            # Shrinking a long story lasts minutes; the failure is printed as it came, and its seed with it.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
