"""A source is its name: its roots are rows per host, and a new name changes neither plates nor their sides."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from factories import claimed, promote, record, register, register_source, rows, sightings, utc

from marcod.catalog import registration, source_changes
from marcod.database.engine import Database
from marcod.database.schema import audit, image, label_inbox, plate, source, source_root
from marcod.domain import split_of
from marcod.errors import ConfigError, StoreError
from marcod.plates import reports
from marcod.store import sources, votes
from marcod.store.versions import Version
from marcod.training import snapshot_rows
from marcod.watch import status
from marcod.watch.status import SourceStatus

STATE = SourceStatus("imager", "w", "east", True, True, None, 0, 0, False, 0, 0, None, None, None)


@pytest.fixture
def east(db_url: str) -> Iterator[Database]:
    """The database as a process on host east opens it."""
    database = Database(db_url, host="east")
    promote(database, register(database))
    yield database
    database.close()


@pytest.fixture
def west(db_url: str) -> Iterator[Database]:
    database = Database(db_url, host="west")
    yield database
    database.close()


def open_source(db: Database, name: str, root: str, seconds: float = 0.0) -> int:
    return db.write(lambda c: registration.register_source(c, name, root, "rigaku", None, utc(seconds)))


def test_each_host_finds_a_source_at_its_own_root(east: Database, west: Database, db_url: str) -> None:
    source_id = open_source(east, "imager", "/mnt/a")
    assert west.read(sources.roots) == {"imager": "/mnt/a"}
    assert open_source(west, "imager", "/srv/b", 1) == source_id
    assert (east.read(sources.roots), west.read(sources.roots)) == ({"imager": "/mnt/a"}, {"imager": "/srv/b"})
    record(east, source_id, sightings(2))
    (image_id, *_) = [row.id for row in rows(east, sa.select(image.c.id))]
    for db, root in ((east, "/mnt/a"), (west, "/srv/b")):
        assert db.read(lambda c: reports.located(c, image_id)).root == root
        assert {one.root for one in db.read(lambda c: snapshot_rows.sample(c, "visible", 9, 1))} <= {root}
    assert claimed(west, limit=1).claims[0].root == "/srv/b"
    assert claimed(east, limit=1).claims[0].root == "/mnt/a"
    elsewhere = Database(db_url, host="north")
    assert elsewhere.read(sources.roots) == {"imager": "/srv/b"}
    elsewhere.close()
    (listed,) = west.read(sources.listed)
    assert [(one.host, one.root) for one in listed.roots] == [("east", "/mnt/a"), ("west", "/srv/b")]


def test_hosts_with_one_mount_path_and_other_files_never_touch_each_other(east: Database, west: Database) -> None:
    a, b = open_source(east, "east-imager", "/data/images"), open_source(west, "west-imager", "/data/images")
    assert a != b
    record(east, a, sightings(3), utc(1))
    other = [replace(file, size=file.size + 7) for file in sightings(3)]
    assert record(west, b, other, utc(2)).new == 3
    assert record(east, a, sightings(3), utc(3)).unchanged == 3


def test_a_host_that_is_long_gone_is_forgotten_where_another_has_its_root(east: Database, west: Database) -> None:
    """Containers have a new name each time."""
    source_id = open_source(east, "imager", "/mnt/a")
    west.write(lambda c: sources.put_root(c, source_id, "/mnt/a", utc(days=29)))
    assert len(rows(east, sa.select(source_root))) == 2
    east.write(lambda c: status.write(c, [STATE], utc()))
    west.write(lambda c: sources.put_root(c, source_id, "/mnt/a", utc(days=31)))
    assert len(rows(east, sa.select(source_root))) == 2, "its watcher may run for months"
    east.write(lambda c: status.write(c, [replace(STATE, host="west")], utc()))
    west.write(lambda c: sources.put_root(c, source_id, "/mnt/a", utc(days=32)))
    assert [row.host for row in rows(east, sa.select(source_root))] == ["west"]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_file_has_one_host_whatever_a_container_is_called(db: Database, db_url: str) -> None:
    before = Database(db_url, host="3f2a9c")
    open_source(before, "images-3fa2b1", "/mnt/a")
    before.close()
    assert [(one.name, one.root) for one in db.read(sources.roots_here)] == [("images-3fa2b1", "/mnt/a")]
    open_source(db, "images-3fa2b1", "/mnt/b", 1)
    assert [(one.name, one.root) for one in db.read(sources.roots_here)] == [("images-3fa2b1", "/mnt/b")]


@pytest.mark.slow
def test_plates_stay_on_their_sides_under_a_new_name(db: Database, champion: Version) -> None:
    source_id = register_source(db, "images-3fa2b1")
    keys = [f"CI{number:06d}" for number in range(30)]
    record(db, source_id, [file for key in keys for file in sightings(1, key)])
    before = {key: split_of("images-3fa2b1", key) for key in keys}
    db.write(lambda c: c.execute(sa.insert(label_inbox).values(source="images-3fa2b1", plate="P1", state="waiting")))
    for name in ("minstrel", "minstrel-3"):
        db.write(lambda c, n=name: source_changes.rename(c, source_id, n, actor="ann", now=utc(1)))
    say = sa.select(image.c.drop_id, image.c.inspection_id)
    givens = [votes.NewLabel(*row, "Clear", "ann", utc(2), "cli") for row in rows(db, say)]
    db.write(lambda c: votes.add(c, givens, utc(2)))
    found = db.read(lambda c: votes.labelled_images(c, None))
    assert {one.plate_key: one.split for one in found} == before
    gathered = db.read(lambda c: snapshot_rows.gather(c, "visible"))
    assert {one.plate_key: split_of(one.source, one.plate_key) for one in gathered.past.values()} == before
    record(db, source_id, sightings(1, "NEW"))
    later = rows(db, sa.select(plate.c.split_source).where(plate.c.key == "NEW"))
    assert later == [(None,)]
    assert rows(db, sa.select(label_inbox.c.source)) == [("minstrel-3",)]
    notes = rows(db, sa.select(audit.c.subject).where(audit.c.action == "source rename").order_by(audit.c.id))
    assert notes == [("images-3fa2b1",), ("minstrel",)]


def test_a_name_that_is_taken_says_how_to_merge(db: Database) -> None:
    one, _ = register_source(db, "one"), register_source(db, "two")
    with pytest.raises(ConfigError, match="`marcod source merge one two`"):
        db.write(lambda c: source_changes.rename(c, one, "two", actor="ann", now=utc()))
    with pytest.raises(ConfigError, match="empty"):
        db.write(lambda c: source_changes.rename(c, one, " ", actor="ann", now=utc()))
    assert {row.name for row in rows(db, sa.select(source.c.name))} == {"one", "two"}


def test_a_source_counts_as_watched_until_its_watcher_ends_or_is_silent(db: Database) -> None:
    source_id = register_source(db, "imager")
    db.write(lambda c: status.write(c, [STATE], utc()))

    def require(seconds: float) -> None:
        db.read(lambda c: source_changes.require_unwatched(c, source_id, utc(seconds)))

    with pytest.raises(StoreError, match="east watches source imager now"):
        require(30)
    require(90)
    db.write(lambda c: status.leave(c, "w"))
    require(30)
