"""Completion of an inspection: each case of docs/derived.md is a test of when it is complete and when that is told."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from factories import (
    MAX_ATTEMPTS,
    claimed,
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

from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import event, inspection, inspection_summary, source
from marcod.plates import metadata
from marcod.store import queue, results, summaries
from marcod.store.versions import Version

QUIET_S = 600.0
DAY = timedelta(days=1)


@dataclass
class Lab:
    """One source, one champion, and a clock that goes on with what happens."""

    db: Database
    champion: Version
    source_id: int
    now: datetime

    def deliver(self, files: list[Sighting]) -> None:
        record(self.db, self.source_id, files, self.now)

    def score(self, hashes: str = "") -> None:
        drain(self.db, self.champion, self.now, hashes=lambda c: f"{hashes}{c.path}")

    def fail(self, well: str, error: str = "damaged") -> None:
        """Score what waits, and fail at the image of one well until it is given up."""
        for _ in range(MAX_ATTEMPTS):
            self.now += DAY
            lease = claimed(self.db, self.now)
            failures = [queue.Failure(c, error, retryable=True) for c in lease.claims if f"/{well}." in c.path]
            finish(self.db, lease, self.champion, self.now, failures=failures, hashes=lambda c: c.path)

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.db.write_portions(lambda c: metadata.catch_up(c, self.now))
        self.db.write_portions(lambda c: summaries.complete_quiet(c, self.now, QUIET_S))

    def standing(self, inspection_key: str = "1", version: Version | None = None) -> Any:
        of_it = sa.select(inspection_summary).join(inspection, inspection.c.id == inspection_summary.c.inspection_id)
        of_it = of_it.where(inspection.c.key == inspection_key)
        asked = of_it.where(inspection_summary.c.model_version_id == (version or self.champion).id)
        return rows(self.db, asked)[0]

    def complete(self, inspection_key: str = "1") -> bool:
        return bool(self.standing(inspection_key).complete)

    def told(self) -> int:
        return len(rows(self.db, sa.select(event.c.id).where(event.c.kind == "complete")))


@pytest.fixture
def lab(db: Database, champion: Version) -> Lab:
    """A source that says nothing of how many drops there are."""
    return Lab(db, champion, register_source(db), utc())


@pytest.fixture
def told_lab(db: Database, champion: Version) -> Lab:
    """A source of 96 drops."""
    return Lab(db, champion, register_source(db, expected_drops=96), utc())


def test_a_part_of_the_expected_drops_is_not_complete(told_lab: Lab) -> None:
    files = sightings(96)
    told_lab.deliver(files[:8])
    told_lab.score()
    told_lab.wait(QUIET_S / 2)
    assert (told_lab.complete(), told_lab.told()) == (False, 0)
    told_lab.deliver(files)
    told_lab.score()
    assert (told_lab.standing().complete_rule, told_lab.told()) == ("expected", 1)
    told_lab.wait(QUIET_S)
    assert told_lab.told() == 1


@pytest.mark.slow
def test_what_another_inspection_had_says_nothing(lab: Lab) -> None:
    lab.deliver(sightings(8))
    lab.score()
    lab.wait(QUIET_S)
    assert (lab.complete(), lab.told()) == (True, 1)
    files = sightings(96, inspection="2")
    for part in (files[:8], files[:50], files):
        lab.deliver(part)
        lab.score()
        lab.wait(QUIET_S / 2)
        assert (lab.complete("2"), lab.told()) == (False, 1)
    lab.wait(QUIET_S / 2)
    assert (lab.standing("2").complete_rule, lab.told()) == ("quiet", 2)


def test_a_failure_completes_once_it_is_final(told_lab: Lab) -> None:
    told_lab.deliver(sightings(96))
    told_lab.fail("A01")
    found = told_lab.standing()
    assert (found.scored, found.failed, found.complete_rule, told_lab.told()) == (95, 1, "expected", 1)


@pytest.mark.slow
def test_a_failed_image_that_is_put_back_is_waited_for(told_lab: Lab) -> None:
    told_lab.deliver(sightings(96))
    told_lab.fail("A01")
    told_lab.db.write_portions(lambda c: results.retry_failed(c, told_lab.now))
    told_lab.wait(QUIET_S)
    assert (told_lab.complete(), told_lab.told()) == (False, 1)
    told_lab.score()
    assert (told_lab.standing().scored, told_lab.complete(), told_lab.told()) == (96, True, 1)


def test_a_further_image_is_reported_again(lab: Lab) -> None:
    lab.deliver(sightings(8))
    lab.score()
    lab.wait(QUIET_S)
    lab.deliver(sightings(9))
    lab.wait(QUIET_S)
    assert (lab.complete(), lab.told()) == (False, 1)
    lab.score()
    lab.wait(QUIET_S)
    assert (lab.complete(), lab.told()) == (True, 2)


def again(sighting: Sighting, by: int) -> Sighting:
    """The same path later, with so many more bytes."""
    later = rewritten(sighting)
    return Sighting(later.path, sighting.size + by, later.mtime_ns, later.image)


@pytest.mark.parametrize("by", [0, 1])
def test_a_rewritten_file_leaves_what_was_expected_complete(told_lab: Lab, by: int) -> None:
    files = sightings(96)
    told_lab.deliver(files)
    told_lab.score()
    told_lab.now += DAY
    told_lab.deliver([again(files[0], by)])
    found = told_lab.standing()
    assert (found.scored, bool(found.complete)) == (96, True)
    told_lab.score("new ")
    told_lab.wait(QUIET_S)
    assert (told_lab.complete(), told_lab.told()) == (True, 1)


@pytest.mark.parametrize(("by", "complete", "told"), [(0, True, 1), (1, False, 2)])
def test_a_rewritten_file_of_another_size_must_be_quiet_again(lab: Lab, by: int, complete: bool, told: int) -> None:
    files = sightings(8)
    lab.deliver(files)
    lab.score()
    lab.wait(QUIET_S)
    lab.deliver([again(files[0], by)])
    assert (lab.standing().scored, lab.complete()) == (8, complete)
    lab.score("new ")
    assert lab.complete() == complete
    lab.wait(QUIET_S)
    assert (lab.complete(), lab.told()) == (True, told)


@pytest.mark.slow
def test_a_file_that_goes_changes_nothing(told_lab: Lab) -> None:
    files = sightings(96)
    told_lab.deliver(files)
    told_lab.score()
    told_lab.deliver([rewritten(files[0])])
    told = told_lab.told()
    told_lab.fail("A01", queue.GONE)
    told_lab.wait(QUIET_S)
    assert (told_lab.complete(), told_lab.standing().scored, told_lab.told()) == (True, 96, told)


def test_another_champion_is_complete_as_it_stands_and_not_reported_again(told_lab: Lab) -> None:
    told_lab.deliver(sightings(96))
    told_lab.score()
    newer = register(told_lab.db, version="2")
    told_lab.db.write(lambda c: queue.enqueue_rescore(c, newer.id, told_lab.now))
    drain(told_lab.db, newer, told_lab.now, hashes=lambda c: c.path)
    promote(told_lab.db, newer, told_lab.now)
    told_lab.wait(QUIET_S)
    assert bool(told_lab.standing(version=newer).complete)
    assert told_lab.told() == 1


def test_a_larger_expected_number_leaves_it_complete(told_lab: Lab) -> None:
    told_lab.deliver(sightings(96))
    told_lab.score()
    told_lab.db.write(lambda c: c.execute(sa.update(source).values(expected_drops=192)))
    told_lab.wait(1)
    found = told_lab.standing()
    assert (found.expected, found.complete_rule, told_lab.told()) == (192, "quiet", 1)


def test_an_image_that_shows_another_inspection_leaves_the_former_complete(lab: Lab) -> None:
    files = sightings(8)
    lab.deliver(files[:7])
    lab.now += timedelta(seconds=60)
    lab.deliver(files[7:])
    lab.score()
    lab.wait(QUIET_S)
    told = lab.told()
    lab.deliver([replace(again(files[7], 0), image=sightings(8, inspection="2")[7].image)])
    lab.score()
    lab.wait(QUIET_S)
    assert (lab.complete(), lab.told()) == (True, told + 1)
