"""Findings of the sources: rows that a scan replaces, adds to, and forgets."""

from dataclasses import replace

import pytest
import sqlalchemy as sa
from factories import record, register_source, rows, sightings, utc

from marcod.catalog import deliveries, findings, registration
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import image, source, source_finding
from marcod.domain import LayoutWarning, WarningKind
from marcod.errors import ConfigError
from marcod.health import snapshot
from marcod.layouts.findings import SourceFinding
from marcod.store.versions import Version


def ignored(files: int, reason: str = "not_this_layout", **more: object) -> SourceFinding:
    values: dict[str, object] = {"of_files": 500, "example": "a.jpg", "hint": "crims", "hint_files": 3, "asked": 9}
    return SourceFinding("imager", "rigaku", "ignored", reason, files, **(values | more))  # type: ignore[arg-type]


def kept(db: Database) -> dict[str, int]:
    return {one.reason: one.files for one in db.read(findings.read)}


def test_a_whole_count_replaces_what_was_there(db: Database) -> None:
    imager, other = register_source(db, "imager"), register_source(db, "other")
    first = [ignored(288), ignored(3, "out_of_range", accepted=True)]
    db.write(lambda c: findings.replace(c, imager, first, utc(1)))
    db.write(lambda c: findings.replace(c, other, [ignored(1)], utc(1)))
    seen = db.read(findings.read)
    assert seen[:2] == [replace(one, updated_at=utc(1)) for one in first]
    assert [(one.source, one.attention) for one in seen] == [("imager", True), ("imager", False), ("other", False)]
    assert db.read(lambda c: snapshot.take_snapshot(c, utc(2))).findings == tuple(seen)

    fewer = ignored(2, "out_of_range", example="b.jpg")
    db.write(lambda c: findings.replace(c, imager, [fewer], utc(3)))
    assert db.read(findings.read)[0] == replace(fewer, updated_at=utc(3))
    db.write(lambda c: findings.replace(c, imager, [], utc(4)))
    assert [one.source for one in db.read(findings.read)] == ["other"]


def test_a_count_under_way_only_adds(db: Database) -> None:
    imager = register_source(db)
    db.write(lambda c: findings.add(c, imager, [ignored(10)], utc(1)))
    db.write(lambda c: findings.add(c, imager, [ignored(5), ignored(2, "out_of_range")], utc(2)))
    assert kept(db) == {"not_this_layout": 10, "out_of_range": 2}
    db.write(lambda c: findings.add(c, imager, [ignored(11, of_files=900, example="c.jpg")], utc(3)))
    (more, _) = db.read(findings.read)
    assert (more.files, more.of_files, more.example, more.updated_at) == (11, 900, "c.jpg", utc(3))
    db.write(lambda c: findings.add(c, imager, [], utc(4)))


def test_what_no_scan_confirms_is_forgotten(db: Database) -> None:
    imager, other = register_source(db, "imager"), register_source(db, "other")
    db.write(lambda c: findings.replace(c, imager, [ignored(1)], utc(days=1)))
    db.write(lambda c: findings.replace(c, other, [ignored(1)], utc(days=3)))
    db.write(lambda c: findings.forget_gone(c, utc(days=9)))
    assert [one.source for one in db.read(findings.read)] == ["other"]


def register(db: Database, layout: str) -> int:
    return db.write(lambda c: registration.register_source(c, "s", "/a", layout, None, utc(9)))


def test_a_source_of_which_nothing_was_read_may_change_its_layout(db: Database, champion: Version) -> None:
    first = register(db, "xchem")
    db.write(lambda c: findings.replace(c, first, [ignored(288)], utc(1)))
    assert register(db, "xchem") == first
    assert kept(db) == {"not_this_layout": 288}
    assert register(db, "rigaku") == first
    assert rows(db, sa.select(source.c.layout)) == [("rigaku",)]
    assert rows(db, sa.select(source_finding)) == []
    record(db, first, sightings(1))
    with pytest.raises(
        ConfigError, match=r"was recorded with layout rigaku and has images; give .* `marcod source forget s`"
    ):
        register(db, "xchem")


def warned(sighting: Sighting, *kinds: WarningKind) -> Sighting:
    return replace(sighting, image=replace(sighting.image, warnings=tuple(LayoutWarning(k, "because") for k in kinds)))


def test_an_image_keeps_the_kinds_of_its_warnings(db: Database, champion: Version) -> None:
    source_id = register_source(db)
    plain, odd = sightings(2)
    lost, differs = WarningKind.DROP_NUMBER_LOST, WarningKind.BARCODE_DIFFERS
    record(db, source_id, [plain, warned(odd, lost, differs, lost)])
    assert rows(db, sa.select(image.c.warnings).order_by(image.c.id)) == [
        (None,),
        ("drop_number_lost,barcode_differs",),
    ]
    known = db.read(lambda c: deliveries.known(c, source_id, [plain.path, odd.path]))
    assert [known[file.path].warnings for file in (plain, odd)] == [None, "drop_number_lost,barcode_differs"]
    record(db, source_id, [replace(odd, mtime_ns=odd.mtime_ns + 1)])
    assert rows(db, sa.select(image.c.warnings).order_by(image.c.id)) == [(None,), (None,)]
