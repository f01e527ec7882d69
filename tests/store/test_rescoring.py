"""Scoring an archive again: queued in parts, behind everything new, once."""

import pytest
import sqlalchemy as sa
from factories import claimed, drain, finish, record, register, register_source, rows, sightings, utc

from marcod.database.engine import Database
from marcod.database.schema import image, job
from marcod.domain import Modality
from marcod.errors import NotFoundError
from marcod.store import known_names, queue, serving
from marcod.store.queue import Archive
from marcod.store.versions import Version


@pytest.fixture
def archive(db: Database, champion: Version) -> dict[str, int]:
    """Three plates of two sources, each inspected twice, scored by the champion; the ids of the sources."""
    sources = {name: register_source(db, name) for name in ("old", "new")}
    for name, plates in (("old", ("A", "B")), ("new", ("C",))):
        for key in plates:
            for number in (1, 2):
                files = sightings(2, plate=key, inspection=str(number))
                record(db, sources[name], files, utc(days=number))
    drain(db, champion, utc(days=3))
    return sources


@pytest.fixture
def second(db: Database, champion: Version) -> Version:
    return register(db, version="2")


def parts(db: Database, version: Version, archive: Archive, limit: int = 2) -> list[queue.ArchivePart]:
    """Every part of a rescore."""
    done: list[queue.ArchivePart] = []
    while part := db.write(
        lambda c: queue.enqueue_archive(c, version.id, archive, done[-1].last if done else 0, utc(days=4), limit)
    ):
        done.append(part)
    return done


def waiting(db: Database) -> list[tuple[str, int]]:
    """Plate and priority of every job, in the order of the queue."""
    found = sa.select(image.c.path, job.c.priority).join(image, image.c.id == job.c.image_id).order_by(job.c.id)
    return [(path[0], priority) for path, priority in rows(db, found)]


def test_everything_is_queued_part_by_part_and_once(db: Database, archive: dict[str, int], second: Version) -> None:
    done = parts(db, second, Archive())
    assert [(p.inspections, p.queued) for p in done] == [(2, 4)] * 3
    assert waiting(db) == [(key, queue.RESCORE) for key in "AAAABBBBCCCC"]
    assert db.read(lambda c: queue.count_inspections(c, Archive())) == 6
    assert db.read(lambda c: queue.count_unfinished(c, second.id)) == 12
    assert sum(p.queued for p in parts(db, second, Archive())) == 0
    finish(db, claimed(db, utc(days=5), limit=5), second)
    assert sum(p.queued for p in parts(db, second, Archive())) == 0
    assert drain(db, second, utc(days=5)) == 7
    assert sum(p.queued for p in parts(db, second, Archive())) == 0


def test_an_interrupted_rescore_goes_on_where_it_was(db: Database, archive: dict[str, int], second: Version) -> None:
    first = db.write(lambda c: queue.enqueue_archive(c, second.id, Archive(), 0, utc(days=4), 1))
    assert first is not None
    assert first.queued == 2
    drain(db, second, utc(days=4))
    assert sum(p.queued for p in parts(db, second, Archive())) == 10


@pytest.mark.slow
def test_only_what_was_asked_for(db: Database, archive: dict[str, int], second: Version) -> None:
    of_source = Archive(source_id=archive["new"])
    assert db.read(lambda c: queue.count_inspections(c, of_source)) == 2
    assert sum(p.queued for p in parts(db, second, of_source)) == 4
    assert sum(p.queued for p in parts(db, second, Archive(since=utc(days=2)))) == 4, "two of them waited already"
    assert sum(p.queued for p in parts(db, second, Archive(utc(days=2, seconds=1)))) == 0
    assert {path for path, _ in waiting(db)} == {"A", "B", "C"}


@pytest.mark.slow
def test_images_in_another_light_are_left_alone(db: Database, archive: dict[str, int], second: Version) -> None:
    record(db, archive["old"], sightings(3, plate="U", modality=Modality.UV))
    assert sum(p.queued for p in parts(db, second, Archive())) == 12


def test_new_images_come_first(db: Database, archive: dict[str, int], champion: Version, second: Version) -> None:
    parts(db, second, Archive())
    record(db, archive["new"], sightings(1, plate="NEW"), utc(days=5))
    assert [c.path[:3] for c in claimed(db, utc(days=6), limit=100).claims] == ["NEW"]
    assert db.read(lambda c: queue.count_unfinished(c, champion.id)) == 0


def test_nothing_is_queued_for_a_version_that_was_removed_meanwhile(
    db: Database, archive: dict[str, int], second: Version
) -> None:
    db.write(lambda c: serving.remove(c, second, force=False, actor="test", now=utc()))
    with pytest.raises(NotFoundError, match="was removed meanwhile"):
        parts(db, second, Archive())
    assert waiting(db) == []


@pytest.mark.slow
def test_quarantined_images_are_not_waited_for(db: Database, archive: dict[str, int], second: Version) -> None:
    parts(db, second, Archive())
    lease = claimed(db, utc(days=5), limit=1)
    finish(db, lease, second, failures=[queue.Failure(lease.claims[0], "bomb", retryable=False)])
    assert db.read(lambda c: queue.count_unfinished(c, second.id)) == 11


def test_a_source_is_found_by_its_name(db: Database, archive: dict[str, int]) -> None:
    assert db.read(lambda c: known_names.find_source(c, "new")) == archive["new"]
    with pytest.raises(NotFoundError, match="no source is recorded as 'odl'; the sources are old, new"):
        db.read(lambda c: known_names.find_source(c, "odl"))


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_counting_what_is_left_uses_an_index(db: Database, archive: dict[str, int], second: Version) -> None:
    """A million jobs are counted every few seconds."""
    statements: list[tuple[str, object]] = []
    sa.event.listen(db.engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    db.read(lambda c: queue.count_unfinished(c, second.id))
    text, values = statements[-1]
    plan = db.read(lambda c: c.exec_driver_sql(f"explain query plan {text}", values).all())
    assert [row[-1] for row in plan] == [
        "SEARCH job USING INDEX ix_job_next_of_version (model_version_id=? AND priority=?)"
    ]
