"""Random stories of a lab on a real database: deliveries, rewrites, moves, leases, labels, promotions, in any order.

One seed is one story. After each the queue is drained and the oracle compares every derived row with a recomputation.
Everything here is synthetic: a file is a path, a content and what its path says.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import factories
import oracle
import sqlalchemy as sa
from factories import utc

from marcod.catalog import registration
from marcod.catalog.deliveries import Sighting
from marcod.database import schema
from marcod.database.engine import Database
from marcod.domain import DropClass, DropImage, Modality
from marcod.errors import StoreError
from marcod.labels import recorder
from marcod.plates import metadata
from marcod.store import queue, results, serving, summaries, versions
from marcod.store.versions import Version
from marcod.store.votes import NewLabel

STEPS: Final = 40
PEOPLE: Final = ("ann", "bob")
QUIET_S: Final = 600.0
LIGHTS: Final = (Modality.VISIBLE, Modality.VISIBLE, Modality.VISIBLE, Modality.UV)


@dataclass(slots=True)
class File:
    """A file on the imager's share. ``state`` is what a worker meets: fine, damaged (not decodable) or unreadable."""

    path: str
    content: str
    size: int
    mtime_ns: int
    image: DropImage
    state: str = "fine"
    there: bool = True

    def sighting(self) -> Sighting:
        return Sighting(self.path, self.size, self.mtime_ns, self.image)


@dataclass(slots=True)
class Held:
    """A lease in a worker's hands, and the content of each file as the worker read it."""

    lease: queue.Lease
    read: dict[int, tuple[str, str]]


@dataclass
class Story:
    """One lab and what happens to it."""

    db: Database
    seed: int
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now = utc()
        self.files: list[File] = []
        self.held: list[Held] = []
        self.contents = 0
        self.reading = 0
        self.versions = [
            factories.register(self.db, version=str(n), crystal_threshold=0.4 + 0.1 * n) for n in (1, 2, 3)
        ]
        factories.promote(self.db, self.versions[0])
        expected = self.rng.choice([None, None, 3, 6])
        self.source = factories.register_source(self.db, expected_drops=expected)

    def run(self) -> list[str]:
        """Tell the story, drain it, and return the oracle's faults."""
        actions = self.weighted()
        for _ in range(STEPS):
            self.live(actions)
        self.settle()
        return oracle.faults(self.db) + self.lies()

    def lies(self) -> list[str]:
        """Images that are said to consist of bytes that their files do not have."""
        rows = {row.path: row for row in factories.rows(self.db, sa.select(schema.image))}
        seen = [(file, rows[file.path]) for file in self.files if file.there and file.path in rows]
        return [
            f"image {row.id} is {file.content} and said to be {row.content_hash}"
            for file, row in seen
            if row.gone_at is None and not row.unread and row.content_hash not in (None, file.content)
        ]

    def weighted(self) -> list[Callable[[], None]]:
        """Every event, as often as it is likely."""
        return [action for action, weight in self._actions() for _ in range(weight)]

    def live(self, actions: list[Callable[[], None]]) -> None:
        """Let some time pass and one event happen."""
        self.now += self.rng.choice([timedelta(seconds=1), timedelta(seconds=30), timedelta(minutes=15)])
        action = self.rng.choice(actions)
        self.log.append(action.__name__)
        action()

    def _actions(self) -> Iterator[tuple[Callable[[], None], int]]:
        yield self.deliver, 5
        yield self.rewrite, 4
        yield self.touch, 1
        yield self.read_again, 2
        yield self.move, 1
        yield self.copy, 1
        yield self.lose, 2
        yield self.bring_back, 1
        yield self.claim, 8
        yield self.finish, 8
        yield self.drop_lease, 1
        yield self.label, 4
        yield self.withdraw, 1
        yield self.promote, 2
        yield self.work_on, 3
        yield self.score_in_silence, 2
        yield self.rollback, 1
        yield self.challenge, 1
        yield self.rescore, 2
        yield self.tend, 3
        yield self.retry, 1
        yield self.expect, 1
        yield self.scan, 2
        yield self.clock_back, 1

    # What the imager does.

    def deliver(self) -> None:
        inspection = self.rng.choice(["1", "2", "10"])
        for _ in range(self.rng.randint(1, 4)):
            self.contents += 1
            well, light = self.rng.randint(1, 4), self.rng.choice(LIGHTS)
            image = DropImage(
                "rigaku", "P1", inspection, 1, well, self.rng.randint(1, 2), light, inspection_ordinal=int(inspection)
            )
            path = f"P1/{inspection}/{well}_{image.drop}_{light}_{self.contents}.jpg"
            self.files.append(File(path, f"c{self.contents}", 1000, 10**18 + self.contents, image))
        self._record(self.files[-4:])

    def rewrite(self) -> None:
        if file := self._file():
            self.contents += 1
            file.content = f"c{self.contents}"
            file.size += self.rng.choice([0, 1])
            file.mtime_ns = 10**18 + self.contents
            file.state = self.rng.choice(["fine", "fine", "damaged", "unreadable"])
            if self.rng.random() < 0.8:
                self._record([file])

    def touch(self) -> None:
        if file := self._file():
            self.contents += 1
            file.mtime_ns = 10**18 + self.contents
            self._record([file])

    def read_again(self) -> None:
        """The reading of the source changes: some files turn out to show another drop, inspection or light."""
        self.reading += 1
        for file in self.files:
            change = self.rng.random()
            if change < 0.15:
                file.image = replace(file.image, column=self.rng.randint(1, 4))
            elif change < 0.25:
                inspection = self.rng.choice(["1", "2", "10"])
                file.image = replace(file.image, inspection_key=inspection, inspection_ordinal=int(inspection))
            elif change < 0.4:
                file.image = replace(file.image, modality=self.rng.choice(LIGHTS))
        self._register()
        self.scan()

    def move(self) -> None:
        if file := self._file():
            self.files.append(replace(file, path=f"archive/{self.contents}/{file.path}"))
            file.there = False
            self._record([self.files[-1]])

    def copy(self) -> None:
        if file := self._file():
            self.contents += 1
            self.files.append(replace(file, path=f"copy/{self.contents}/{file.path}", mtime_ns=10**18 + self.contents))
            self._record([self.files[-1]])

    def lose(self) -> None:
        if file := self._file():
            file.there = False

    def bring_back(self) -> None:
        away = [f for f in self.files if not f.there]
        if away:
            file = self.rng.choice(away)
            file.there = True
            self._record([file])

    def scan(self) -> None:
        self._record(self.files)

    # What workers do.

    def claim(self) -> None:
        lease = factories.claim(self.db, self.now, limit=self.rng.choice([1, 3, 100]))
        if lease is not None:
            by_path = {f.path: f for f in self.files}
            read = {}
            for c in lease.claims:
                file = by_path[c.path]
                read[c.job_id] = (file.content, file.state if file.there else "gone")
            self.held.append(Held(lease, read))

    def finish(self) -> None:
        if self.held:
            self._finish(self.held.pop(self.rng.randrange(len(self.held))))

    def drop_lease(self) -> None:
        """A worker dies: its lease lapses."""
        if self.held:
            self.held.pop(self.rng.randrange(len(self.held)))
            self.now += timedelta(seconds=factories.LEASE_S + 1)

    def _finish(self, held: Held) -> None:
        version = next(v for v in self.versions if v.id == held.lease.model_version_id)
        failures = []
        for c in held.lease.claims:
            content, state = held.read[c.job_id]
            if state == "gone":
                failures.append(queue.Failure(c, queue.GONE, retryable=True))
            elif state == "damaged":
                failures.append(queue.Failure(c, "damaged", retryable=False, content_hash=content))
            elif state == "unreadable":
                failures.append(queue.Failure(c, "cannot be read", retryable=True))
        factories.finish(
            self.db, held.lease, version, self.now, failures=failures,
            hashes=lambda c: held.read[c.job_id][0],
            scores=lambda c: _scores(version, held.read[c.job_id][0]),
        )  # fmt: skip

    # What people do.

    def label(self) -> None:
        self._label(self.rng.choice([*DropClass]))

    def withdraw(self) -> None:
        self._label(None)

    def _label(self, label: DropClass | None) -> None:
        images = factories.rows(self.db, sa.select(schema.image))
        if not images:
            return
        image = self.rng.choice(images)
        own = image.id if self.rng.random() < 0.4 else None
        given = NewLabel(
            image.drop_id, image.inspection_id, label, self.rng.choice(PEOPLE), self.now, "story", image_id=own
        )
        self.db.write(lambda c: recorder.add(c, [given], self.now))

    def promote(self) -> None:
        version = self.rng.choice([*self.versions, self.versions[-1]])
        self.db.write(lambda c: serving.promote(c, version, actor="story", now=self.now))

    def work_on(self) -> None:
        """One step of what lies between a promotion and its end."""
        asked = itertools.count()
        serving.advance(self.db, lambda: self.now, stop=lambda: next(asked) > 0)

    def rollback(self) -> None:
        def work(connection: sa.Connection) -> None:
            serving.rollback(connection, versions.previous(connection), actor="story", now=self.now)

        self._allow(work)

    def challenge(self) -> None:
        version = self.rng.choice([*self.versions, None])
        self._allow(lambda c: serving.challenge(c, version, actor="story", now=self.now))

    def rescore(self) -> None:
        version = self.rng.choice(self.versions)
        self.db.write(lambda c: queue.enqueue_rescore(c, version.id, self.now))

    def score_in_silence(self) -> None:
        """A new version scores what is there, and mostly it is promoted at once."""
        number = len(self.versions) + 1
        version = factories.register(self.db, version=str(number), crystal_threshold=0.4 + 0.1 * (number % 4))
        self.versions.append(version)
        self.db.write(lambda c: queue.enqueue_rescore(c, version.id, self.now))
        for _ in range(4):
            self.claim()
        while self.held:
            self.finish()
        if self.rng.random() < 0.7:
            self.db.write(lambda c: serving.promote(c, version, actor="story", now=self.now))

    def tend(self) -> None:
        attempts = factories.MAX_ATTEMPTS
        self.db.write_portions(lambda c: results.give_up_exhausted(c, max_attempts=attempts, now=self.now))
        self.db.write_portions(lambda c: metadata.catch_up(c, self.now))
        self.db.write_portions(lambda c: summaries.complete_quiet(c, self.now, QUIET_S))

    def retry(self) -> None:
        self.db.write_portions(lambda c: results.retry_failed(c, self.now))

    def expect(self) -> None:
        values = {"expected_drops": self.rng.choice([None, 2, 5, 9])}
        self.db.write(lambda c: c.execute(sa.update(schema.source).values(values)))

    def clock_back(self) -> None:
        self.now -= timedelta(seconds=20)

    # What all of it rests on.

    def _allow(self, work: Callable[[sa.Connection], object]) -> None:
        try:
            self.db.write(work)
        except StoreError:
            self.log.append("refused")

    def _file(self) -> File | None:
        there = [f for f in self.files if f.there]
        return self.rng.choice(there) if there else None

    def _register(self) -> None:
        def work(connection: sa.Connection) -> int:
            row = connection.execute(sa.select(schema.source)).one()
            return registration.register_source(
                connection,
                row.name,
                "/plates/imager",
                "rigaku",
                row.expected_drops,
                self.now,
                f"reading {self.reading}",
            )

        self.db.write(work)

    def _record(self, files: list[File]) -> None:
        factories.record(self.db, self.source, [f.sighting() for f in files if f.there], self.now)

    def settle(self) -> None:
        """All settles: a full scan, leases lapse, everything queued ends one way or the other, and time passes."""
        self.held.clear()
        self.now += timedelta(hours=1)
        self.scan()
        for _ in range(200):
            self.now += timedelta(hours=2)
            self.work_on()
            self.tend()
            self.claim()
            if not self.held:
                break
            while self.held:
                self.finish()
        else:
            self.log.append("the queue never ends")
        serving.advance(self.db, lambda: self.now)
        self.now += timedelta(days=1)
        self.tend()


def _scores(version: Version, content: str) -> tuple[float, float, float, float]:
    """Probabilities that follow from the version and the bytes alone."""
    crystals = random.Random(f"{version.version} {content}").choice([0.02, 0.3, 0.55, 0.65, 0.9])
    return (0.98 - crystals, crystals, 0.01, 0.01)
