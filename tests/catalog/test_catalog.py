"""Taking in: the same file twice changes nothing, a rewritten one is scored again, every name survives."""

import os
from dataclasses import replace

import pytest
import sqlalchemy as sa
from factories import (
    CRYSTALS,
    claim,
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marcod.catalog import deliveries, registration
from marcod.catalog.deliveries import Recorded, Sighting
from marcod.database.engine import Database
from marcod.database.schema import drop, image, inspection, inspection_summary, job, plate, score, source
from marcod.domain import DropImage, Modality, folded, path_text
from marcod.errors import ConfigError, StoreError
from marcod.store import backlog, queue, sources, versions
from marcod.store.versions import Version

TABLES = (source, plate, drop, inspection, image, job, score)


@pytest.mark.slow
def test_the_same_files_twice_change_nothing(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(96)
    assert record(db, source_id, files) == Recorded(new=96, queued=96)
    before = [rows(db, sa.select(table)) for table in TABLES]
    assert record(db, source_id, files, utc(5)) == Recorded(unchanged=96)
    assert [rows(db, sa.select(table)) for table in TABLES] == before


def test_a_path_twice_in_one_call_is_one_image(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(3)
    assert record(db, source_id, files + files) == Recorded(new=3, queued=3)


@pytest.mark.slow
def test_more_files_than_one_statement_carries(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(1200)
    assert record(db, source_id, files[:700]).new == 700
    assert record(db, source_id, files) == Recorded(new=500, unchanged=700, queued=500)
    (counts,) = rows(db, sa.select(inspection_summary.c.seen, inspection_summary.c.scored))
    assert tuple(counts) == (1200, 0)


def test_one_transaction_records_a_portion_at_most(db: Database, source_id: int, champion: Version) -> None:
    """Two portions in one would lock images of the second after jobs of the first."""
    with pytest.raises(ValueError, match="1001 images for one transaction; 1000 are allowed"):
        db.write(deliveries.record, source_id, sightings(1_001), utc())
    assert not rows(db, sa.select(image.c.id))


def test_two_sources_may_hold_the_same_path(db: Database, source_id: int, champion: Version) -> None:
    other = register_source(db, "other")
    record(db, source_id, sightings(3))
    assert record(db, other, sightings(3)) == Recorded(new=3, queued=3)
    assert len(rows(db, sa.select(plate))) == 2


def test_known_tells_the_size_and_time_of_recorded_paths(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(700)
    record(db, source_id, files)
    asked = [f.path for f in files] + ["P1/never/seen.jpg"]
    expected = {f.path: (f.size, f.mtime_ns, None) for f in files}
    assert db.read(lambda c: deliveries.known(c, source_id, asked)) == expected
    assert db.read(lambda c: deliveries.known(c, source_id + 1, asked)) == {}


def test_a_rewritten_file_is_scored_again_and_its_old_score_stays(
    db: Database, source_id: int, champion: Version
) -> None:
    files = sightings(3)
    record(db, source_id, files)
    drain(db, champion)
    changed = [rewritten(files[0]), *files[1:]]
    assert record(db, source_id, changed, utc(10)) == Recorded(changed=1, unchanged=2, queued=1)
    assert len(rows(db, sa.select(score))) == 3
    lease = claimed(db, utc(10))
    assert [(c.path, c.attempts) for c in lease.claims] == [(files[0].path, 1)]
    finish(db, lease, champion, utc(11), hashes=lambda c: "second", scores=lambda c: CRYSTALS)
    history = rows(
        db, sa.select(score.c.content_hash, score.c.label).where(score.c.image_id == lease.claims[0].image_id)
    )
    assert sorted(tuple(row) for row in history) == [
        (f"hash of {files[0].path}", "Clear"),
        ("second", "Crystals"),
    ]
    (now,) = rows(db, sa.select(image.c.content_hash, image.c.size).where(image.c.path == files[0].path))
    assert tuple(now) == ("second", changed[0].size)


def test_a_touched_file_gets_no_second_score(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(2)
    record(db, source_id, files)
    drain(db, champion)
    before = rows(db, sa.select(score))
    touched = replace(files[0], mtime_ns=files[0].mtime_ns + 1)
    assert record(db, source_id, [touched], utc(10)).queued == 1
    assert drain(db, champion, utc(11)) == 1
    assert rows(db, sa.select(score)) == before
    assert rows(db, sa.select(job)) == []


def test_a_change_while_a_worker_has_the_file_shuts_that_worker_out(
    db: Database, source_id: int, champion: Version
) -> None:
    files = sightings(2)
    record(db, source_id, files)
    running = claimed(db)
    record(db, source_id, [rewritten(files[0])], utc(1))
    done = finish(db, running, champion, utc(2), hashes=lambda c: "old bytes")
    assert (done.scored, done.stale) == (1, 1)
    assert drain(db, champion, utc(3), hashes=lambda c: "new bytes") == 1
    found = dict(tuple(row) for row in rows(db, sa.select(image.c.path, image.c.content_hash)))
    assert found == {files[0].path: "new bytes", files[1].path: "old bytes"}
    assert len(rows(db, sa.select(score))) == 2


def test_a_change_shuts_out_the_workers_of_other_versions_too(db: Database, source_id: int, champion: Version) -> None:
    """Else one that read the old bytes would, finishing last, make the old score the current one."""
    (seen,) = sightings(1)
    record(db, source_id, [seen])
    drain(db, champion, hashes=lambda c: "old bytes")
    challenger = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, challenger.id, utc(1)))
    slow = claimed(db, utc(1))
    record(db, source_id, [rewritten(seen)], utc(2))
    finish(db, claimed(db, utc(3)), champion, utc(3), hashes=lambda c: "new bytes")
    assert finish(db, slow, challenger, utc(4), hashes=lambda c: "old bytes").stale == 1
    assert rows(db, sa.select(image.c.content_hash)) == [("new bytes",)]
    assert drain(db, challenger, utc(5), hashes=lambda c: "new bytes") == 1


def test_a_change_frees_a_quarantined_file(db: Database, source_id: int, champion: Version) -> None:
    (seen,) = sightings(1)
    record(db, source_id, [seen])
    lease = claimed(db)
    finish(db, lease, champion, failures=[queue.Failure(lease.claims[0], "bomb", retryable=False)])
    assert record(db, source_id, [seen], utc(1)).queued == 0
    assert record(db, source_id, [rewritten(seen)], utc(2)).queued == 1
    (row,) = rows(db, sa.select(job.c.attempts, job.c.error, job.c.failed_at, job.c.lease))
    assert tuple(row) == (0, None, None, None)


def test_other_modalities_are_recorded_and_not_queued(db: Database, source_id: int, champion: Version) -> None:
    uv = sightings(4, modality=Modality.UV)
    assert record(db, source_id, uv) == Recorded(new=4, unscored=4)
    assert record(db, source_id, [rewritten(uv[0])]) == Recorded(changed=1)
    assert claim(db) is None


def test_without_a_champion_nothing_is_recorded(db: Database, source_id: int) -> None:
    register(db)
    with pytest.raises(StoreError, match="no model is champion yet"):
        record(db, source_id, sightings(1))
    assert rows(db, sa.select(plate)) == []


def test_a_source_keeps_its_layout_and_may_move(db: Database, champion: Version) -> None:
    def again(root: str, layout: str, drops: int | None) -> int:
        return db.write(lambda c: registration.register_source(c, "s", root, layout, drops, utc(9)))

    first = again("/a", "rigaku", None)
    assert again("/b", "rigaku", 96) == first
    (row,) = rows(db, sa.select(source.c.expected_drops, source.c.created_at))
    assert tuple(row) == (96, utc(9))
    assert db.read(sources.roots) == {"s": "/b"}
    record(db, first, sightings(1))
    with pytest.raises(
        ConfigError, match=r"was recorded with layout rigaku and has images; give .* `marcod source forget s`"
    ):
        again("/b", "formulatrix", 96)


ODD = [
    "back\\slash",
    'quo\'te and "double"',
    "100% %s %(name)s :name {brace} $1",
    "crystal \U0001f48e 蛋白 é e\u0301",
    os.fsdecode(b"latin \xe9 torn \xf0\x9f"),
    "\\x41 looks escaped",
    " spaces\tand\nlines ",
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_survive(db: Database, source_id: int, champion: Version, odd: str) -> None:
    seen = DropImage("rigaku", odd, odd, 1, 1, 1, Modality.VISIBLE, barcode=odd, profile=odd, inspection_ordinal=None)
    files = [Sighting(f"{odd}/{number}/{odd}.jpg", 5, 5, replace(seen, drop=number)) for number in (1, 2)]
    assert record(db, source_id, files) == Recorded(new=2, queued=2)
    assert record(db, source_id, files) == Recorded(unchanged=2)
    assert db.read(lambda c: deliveries.known(c, source_id, [f.path for f in files])).keys() == {f.path for f in files}
    lease = claimed(db)
    assert [c.path for c in lease.claims] == [f.path for f in files]
    finish(db, lease, champion, hashes=lambda c: "h")
    view = sa.text(
        "select plate_key, barcode, inspection_key, path, score_id from lims_image_score_v1 order by score_id"
    )
    shown = rows(db, view)
    assert [tuple(row[:4]) for row in shown] == [(path_text(odd),) * 3 + (path_text(f.path),) for f in files]


def test_odd_bytes_in_the_name_of_a_root_survive(db: Database, champion: Version) -> None:
    root = os.fsdecode(b"/plates/\xff\\")
    where = db.write(lambda c: registration.register_source(c, "odd", root, "rigaku", None, utc()))
    assert db.write(lambda c: registration.register_source(c, "odd", root, "rigaku", None, utc())) == where
    record(db, where, sightings(1))
    assert claimed(db).claims[0].root == root


FILE_NAMES = st.binary(min_size=1, max_size=40).map(lambda b: os.fsdecode(b.replace(b"\0", b"0")))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(FILE_NAMES, min_size=1, max_size=8, unique=True))
def test_any_bytes_a_file_system_gives_survive(db: Database, names: list[str]) -> None:
    if not rows(db, sa.select(source)):
        promote(db, register(db))
    where = register_source(db, f"example {len(rows(db, sa.select(source)))}")
    files = [
        Sighting(name, 1, 1, DropImage("rigaku", name, name, 1, 1, 1, Modality.VISIBLE, barcode=name)) for name in names
    ]
    assert record(db, where, files).new == len(names)
    assert record(db, where, files).unchanged == len(names)
    # Keys that differ in case alone are one plate.
    made = rows(db, sa.select(plate.c.key_folded).where(plate.c.source_id == where))
    assert sorted(row.key_folded for row in made) == sorted({folded(path_text(name)) for name in names})
    lease = claimed(db)
    assert sorted(c.path for c in lease.claims) == sorted(names)
    finish(db, lease, db.read(versions.champion), hashes=lambda c: "h")


def test_a_file_that_was_gone_and_came_back_is_recorded_once(db: Database, source_id: int, champion: Version) -> None:
    (seen,) = sightings(1)
    record(db, source_id, [seen])
    lease = claimed(db)
    finish(db, lease, champion, failures=[queue.Failure(lease.claims[0], queue.GONE, retryable=False)])
    assert record(db, source_id, [seen], utc(1)) == Recorded(changed=1, queued=1)
    assert record(db, source_id, [seen], utc(2)) == Recorded(unchanged=1)
    assert drain(db, champion, utc(3)) == 1
    assert record(db, source_id, [seen], utc(4)) == Recorded(unchanged=1)


def test_a_newer_champion_scores_a_file_that_was_gone_and_is_back(
    db: Database, source_id: int, champion: Version
) -> None:
    (seen,) = sightings(1)
    record(db, source_id, [seen])
    lease = claimed(db)
    finish(db, lease, champion, failures=[queue.Failure(lease.claims[0], queue.GONE, retryable=False)])
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    assert record(db, source_id, [seen], utc(2)) == Recorded(changed=1, queued=1)
    status = db.read(lambda c: backlog.status(c, utc(3)))
    assert (status.waiting, status.failed) == (1, 0)


def test_a_source_that_reads_its_paths_otherwise_has_its_images_read_again(db: Database, champion: Version) -> None:
    """A profile was taken for UV; the lab corrects it, and the images are scored at last."""

    def register(reading: str, seconds: float) -> int:
        return db.write(lambda c: registration.register_source(c, "s", "/s", "rigaku", None, utc(seconds), reading))

    source_id = register("uv", 0)
    wrong = sightings(3, modality=Modality.UV)
    assert record(db, source_id, wrong) == Recorded(new=3, unscored=3)
    assert register("uv", 1) == source_id
    assert record(db, source_id, wrong, utc(1)) == Recorded(unchanged=3)
    assert register("visible", 2) == source_id
    right = [replace(s, image=replace(s.image, modality=Modality.VISIBLE)) for s in wrong]
    assert record(db, source_id, right, utc(2)) == Recorded(changed=3, queued=3)
    assert drain(db, champion, utc(3)) == 3
    assert record(db, source_id, right, utc(4)) == Recorded(unchanged=3)


def test_images_read_again_move_to_their_wells_and_are_not_scored_again(
    db: Database, source_id: int, champion: Version
) -> None:
    files = sightings(4)
    record(db, source_id, files)
    drain(db, champion)
    db.write(lambda c: registration.register_source(c, "imager", "/plates/imager", "rigaku", None, utc(1), "wells"))
    moved = [replace(s, image=replace(s.image, inspection_key="2", column=s.image.column + 1)) for s in files]
    assert record(db, source_id, moved, utc(2)) == Recorded(changed=4, queued=0)
    found = rows(db, sa.text("select inspection_key, seen, scored from lims_plate_summary_v1"))
    assert [tuple(row) for row in found] == [("2", 4, 4)]


def test_a_file_rewritten_at_its_size_while_its_source_was_corrected_is_scored_again(
    db: Database, source_id: int, champion: Version
) -> None:
    files = sightings(2)
    record(db, source_id, files)
    drain(db, champion)
    db.write(lambda c: registration.register_source(c, "imager", "/plates/imager", "rigaku", None, utc(1), "wells"))
    later = [replace(files[0], mtime_ns=files[0].mtime_ns + 1), files[1]]
    assert record(db, source_id, later, utc(2)) == Recorded(changed=2, queued=1)


def test_a_touched_file_waits_behind_everything_new(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(2)
    record(db, source_id, files)
    drain(db, champion)
    record(db, source_id, [replace(files[0], mtime_ns=files[0].mtime_ns + 1), rewritten(files[1])], utc(1))
    priorities = rows(db, sa.select(job.c.priority).order_by(job.c.image_id))
    assert [row[0] for row in priorities] == [queue.RESCORE, queue.NEW]


def test_an_inspection_in_uv_light_alone_has_no_summary(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(3, modality=Modality.UV))
    assert rows(db, sa.text("select * from lims_plate_summary_v1")) == []


def test_a_late_image_of_a_plate_that_a_former_champion_completed_brings_the_plate_to_the_new_one(
    db: Database, champion: Version
) -> None:
    source_id = db.write(lambda c: registration.register_source(c, "s", "/s", "rigaku", 4, utc()))
    files = sightings(5)
    record(db, source_id, files[:4])
    drain(db, champion)
    newer = register(db, version="2")
    promote(db, newer, utc(1))
    shown = sa.text("select model_version, seen, scored, complete from lims_plate_summary_v1")
    assert [tuple(r) for r in rows(db, shown)] == [("1", 4, 4, True)]
    record(db, source_id, files[4:], utc(2))
    assert [row.model_version for row in rows(db, shown)] == ["1"]
    assert drain(db, newer, utc(3)) == 5
    assert [tuple(r) for r in rows(db, shown)] == [("2", 5, 5, True)]
