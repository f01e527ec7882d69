"""Files of the same bytes at one place: one counts through touches, re-readings, losses and merges, with its labels."""

from dataclasses import replace
from typing import Any

import oracle
import pytest
import sqlalchemy as sa
from factories import (
    CRYSTALS,
    MAX_ATTEMPTS,
    claimed,
    drain,
    finish,
    leases,
    promote,
    record,
    register,
    register_source,
    rows,
    sightings,
    utc,
)

from marcod.catalog import deliveries, merging
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import event, image, job
from marcod.domain import DropClass, Modality
from marcod.drift import days
from marcod.labels import recorder
from marcod.review import queue as review_queue
from marcod.store import derived, queue, results, serving, summaries, votes
from marcod.store.versions import Version
from marcod.store.votes import NewLabel
from marcod.training import shadow_counts, snapshot_rows

FILE = sightings(1)[0]
COPY = replace(FILE, path="copy/A01.jpg")


def score(db: Database, version: Version, seconds: float) -> None:
    drain(db, version, utc(seconds), hashes=lambda c: "the bytes", scores=lambda c: CRYSTALS)


def counting(db: Database) -> list[str]:
    """Paths of the images that count."""
    return [
        row.path for row in rows(db, sa.select(image.c.path).where(image.c.same_as_id.is_(None)).order_by(image.c.id))
    ]


def hits(db: Database) -> list[bool]:
    return [bool(row.hit) for row in rows(db, sa.text("select hit from lims_drop_v1"))]


def say(db: Database, file: Sighting, label: DropClass, seconds: float) -> None:
    def work(connection: sa.Connection) -> None:
        row = connection.execute(sa.select(image).where(image.c.path == file.path)).one()
        given = NewLabel(row.drop_id, row.inspection_id, label, "ann", utc(seconds), "cli", image_id=row.id)
        votes.add(connection, [given], utc(seconds))
        derived.refresh_images(connection, [row.id], utc(seconds))

    db.write(work)


def say_clear(db: Database, file: Sighting) -> None:
    say(db, file, DropClass.CLEAR, 5)


def lose(db: Database, version: Version, seconds: float) -> None:
    """Give up all that waits because the files are gone."""
    lease = claimed(db, utc(seconds))
    finish(db, lease, version, utc(seconds), failures=[queue.Failure(c, queue.GONE, False) for c in lease.claims])


@pytest.fixture
def copied(db: Database, source_id: int, champion: Version) -> Database:
    """A file and, later, its copy, which counts."""
    for seconds, file in ((1, FILE), (2, COPY)):
        record(db, source_id, [file], utc(seconds))
        score(db, champion, seconds)
    assert counting(db) == [COPY.path]
    return db


@pytest.mark.parametrize("touched", [FILE, COPY])
def test_a_copy_that_is_touched_stays_one(
    copied: Database, source_id: int, champion: Version, touched: Sighting
) -> None:
    say_clear(copied, COPY)
    assert hits(copied) == [False]
    record(copied, source_id, [replace(touched, mtime_ns=touched.mtime_ns + 1)], utc(10))
    score(copied, champion, 11)
    assert (counting(copied), hits(copied)) == ([touched.path], [False])


def test_copies_that_are_read_again_together_stay_copies(copied: Database, source_id: int, champion: Version) -> None:
    elsewhere = [replace(file, image=replace(file.image, row=2)) for file in (FILE, COPY)]
    copied.write(lambda c: deliveries.reread(c, source_id, elsewhere, utc(10)))
    assert counting(copied) == [COPY.path]
    assert queue_length(copied) == 0


def queue_length(db: Database) -> Any:
    return rows(db, sa.text("select count(*) from job"))[0][0]


def test_a_copy_that_was_gone_and_comes_back_counts_alone(copied: Database, source_id: int) -> None:
    newer = register(copied, version="2")
    promote(copied, newer, utc(10))
    copied.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(10)))
    lose(copied, newer, 11)
    assert counting(copied) == [FILE.path]
    record(copied, source_id, [COPY], utc(12))
    score(copied, newer, 13)
    assert counting(copied) == [COPY.path]


def test_what_was_said_of_a_moved_image_is_said_of_it_still(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, [FILE])
    score(db, champion, 1)
    say_clear(db, FILE)
    record(db, source_id, [COPY], utc(10))
    score(db, champion, 11)
    assert (counting(db), hits(db)) == ([COPY.path], [False])
    gathered = db.read(lambda c: snapshot_rows.gather(c, Modality.VISIBLE))
    assert [image.path for image in gathered.images] == [COPY.path]
    assert gathered.past[gathered.images[0].image_id].labels == ((utc(5), utc(5)),)
    subject = recorder.LabelTarget(gathered.images[0].drop_id, gathered.images[0].inspection_id, image_id_of(db, COPY))
    assert db.write(lambda c: recorder.withdraw(c, subject, person="ann", origin="cli", now=utc(20))) == 1
    assert not any(said.counts for said in db.read(lambda c: votes.listed(c)))


def image_id_of(db: Database, file: Sighting) -> int:
    return int(rows(db, sa.select(image.c.id).where(image.c.path == file.path))[0][0])


def test_the_latest_label_of_an_image_and_its_copy_counts_in_the_view(copied: Database) -> None:
    counts = "select label, counts from lims_label_v1 order by label_id"
    say_clear(copied, FILE)
    assert [(row.label, bool(row.counts)) for row in rows(copied, sa.text(counts))] == [("Clear", True)]
    say(copied, COPY, DropClass.OTHER, 6)
    assert [(row.label, bool(row.counts)) for row in rows(copied, sa.text(counts))] == [
        ("Clear", False),
        ("Other", True),
    ]


@pytest.mark.parametrize("gone", [False, True])
def test_copies_of_two_sources_that_are_merged_are_found(
    db: Database, source_id: int, champion: Version, gone: bool
) -> None:
    other = register_source(db, "other")
    record(db, source_id, [FILE])
    record(db, other, [COPY])
    score(db, champion, 1)
    if gone:
        lost = image_id_of(db, COPY)
        db.write(lambda c: results.mark_gone(c, [lost], utc(3)))
    db.write(lambda c: merging.merge(c, other, source_id, actor="ann", now=utc(9)))
    assert len(counting(db)) == 1
    assert not gone or counting(db) == [FILE.path]


@pytest.mark.slow
def test_a_file_that_is_whole_again_has_its_former_scores(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, [FILE])
    score(db, champion, 1)
    record(db, source_id, [replace(FILE, size=1)], utc(10))
    lease = claimed(db, utc(11))
    finish(db, lease, champion, utc(11), failures=[queue.Failure(c, "cannot be read", False) for c in lease.claims])
    newer = register(db, version="2")
    promote(db, newer, utc(12))
    record(db, source_id, [replace(FILE, mtime_ns=FILE.mtime_ns + 1)], utc(20))
    score(db, newer, 21)
    counted = "select model_version_id, scored, failed, waiting, hits from inspection_summary order by 1"
    assert [tuple(row) for row in rows(db, sa.text(counted))] == [(v.id, 1, 0, 0, 1) for v in (champion, newer)]


def test_copies_that_are_read_as_other_regions_count_each(copied: Database, source_id: int) -> None:
    as_region = replace(COPY, image=replace(COPY.image, region=1))
    copied.write(lambda c: deliveries.reread(c, source_id, [as_region], utc(10)))
    assert counting(copied) == [FILE.path, COPY.path]
    copied.write(lambda c: deliveries.reread(c, source_id, [replace(COPY, image=FILE.image)], utc(11)))
    assert counting(copied) == [COPY.path]


def test_bytes_that_broke_under_an_unchanged_stat_stand_for_no_copy(
    copied: Database, source_id: int, champion: Version
) -> None:
    newer = register(copied, version="2")
    promote(copied, newer, utc(10))
    copied.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(10)))
    lease = claimed(copied, utc(11))
    failures = [queue.Failure(c, "damaged", False, content_hash="other bytes") for c in lease.claims]
    finish(copied, lease, newer, utc(11), failures=failures)
    assert counting(copied) == [FILE.path, COPY.path]
    score(copied, newer, 12)
    assert hits(copied) == [True]


def test_a_question_of_an_image_is_answered_by_a_label_of_its_copy(copied: Database, champion: Version) -> None:
    first = image_id_of(copied, FILE)
    row = rows(copied, sa.select(image.c.drop_id, image.c.inspection_id))[0]
    asked = recorder.LabelTarget(row.drop_id, row.inspection_id, first)
    copied.write(lambda c: review_queue.ask(c, asked, champion, "Look.", utc(4)))
    say_clear(copied, COPY)
    assert copied.write(review_queue.reconcile) == 1


def damage(db: Database, version: Version, seconds: float) -> None:
    lease = claimed(db, utc(seconds))
    failures = [queue.Failure(c, "damaged", False, content_hash="the bytes") for c in lease.claims]
    finish(db, lease, version, utc(seconds), failures=failures)


def test_of_damaged_copies_one_counts(db: Database, source_id: int, champion: Version) -> None:
    touched = replace(COPY, mtime_ns=COPY.mtime_ns + 1)
    for seconds, file in ((1, FILE), (2, COPY), (3, touched)):
        record(db, source_id, [file], utc(seconds))
        damage(db, champion, seconds)
        assert counting(db) == [FILE.path]
        assert rows(db, sa.select(job.c.image_id)) == [(image_id_of(db, FILE),)]
    assert oracle.faults(completed(db)) == []


def completed(db: Database) -> Database:
    """The lab a day later, when all that is done is complete."""
    db.write(lambda c: summaries.complete_quiet(c, utc(days=1), 60.0))
    return db


def completions(db: Database) -> int:
    return len(rows(completed(db), sa.select(event.c.id).where(event.c.kind == "complete")))


def test_a_folder_that_is_moved_is_complete_as_before(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, [FILE])
    score(db, champion, 1)
    assert completions(db) == 1
    record(db, source_id, [COPY], utc(hours=1))
    score(db, champion, 3601)
    assert (completions(db), oracle.faults(db)) == (1, [])


def test_a_copy_that_goes_leaves_it_complete(copied: Database, champion: Version) -> None:
    assert completions(copied) == 1
    newer = register(copied, version="2")
    promote(copied, newer, utc(10))
    copied.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(10)))
    lose(copied, newer, 11)
    score(copied, newer, 12)
    assert (counting(copied), completions(copied), oracle.faults(copied)) == ([FILE.path], 1, [])


def test_a_copy_that_is_gone_stays_one_when_the_other_is_rewritten(
    copied: Database, source_id: int, champion: Version
) -> None:
    newer = register(copied, version="2")
    promote(copied, newer, utc(10))
    copied.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(10)))
    lose(copied, newer, 11)
    record(copied, source_id, [replace(FILE, size=1)], utc(20))
    drain(copied, newer, utc(21), hashes=lambda c: "other bytes")
    assert (counting(copied), hits(copied)) == ([FILE.path], [False])
    assert oracle.faults(completed(copied)) == []


@pytest.mark.slow
def test_what_is_learned_from_and_measured_has_every_image_once(copied: Database, champion: Version) -> None:
    row = rows(copied, sa.select(image))[0]
    given = NewLabel(row.drop_id, row.inspection_id, DropClass.CLEAR, "ann", utc(5), "cli")
    copied.write(lambda c: recorder.add(c, [given], utc(5)))
    labelled = copied.read(lambda c: votes.labelled_images(c, champion.id))
    sampled = copied.read(lambda c: snapshot_rows.sample(c, Modality.VISIBLE, 5, 1))
    assert [found.path for found in labelled] == [found.path for found in sampled] == [COPY.path]


@pytest.mark.slow
def test_a_trial_and_drift_count_an_image_and_its_copy_once(db: Database, source_id: int, champion: Version) -> None:
    second = register(db, version="2")
    db.write(serving.challenge, second, actor="test", now=utc())
    for seconds, path in ((1, FILE.path), (2, COPY.path)):
        [file] = sightings(1, captured_at=utc())
        record(db, source_id, [replace(file, path=path)], utc(seconds))
        for lease in leases(db, utc(seconds)):
            version = champion if lease.model_version_id == champion.id else second
            scored = [results.Scored(c, "the bytes", CRYSTALS, None, 0.4, 0.2, -2.0) for c in lease.claims]
            db.write(
                results.finish,
                lease.token,
                version,
                scored,
                (),
                now=utc(seconds),
                retry_s=1.0,
                max_attempts=MAX_ATTEMPTS,
            )
    assert counting(db) == [COPY.path]
    both = db.read(shadow_counts.compare, champion, second, utc())
    assert (both.images, both.champion_hits, both.challenger_hits) == (1, 1, 1)
    assert len(db.read(lambda c: list(days.observations(c, champion, utc(), utc(60))))) == 1
