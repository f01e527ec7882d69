"""Plates answer to their names in any case and Unicode form, and to the end of a key of several levels."""

import unicodedata

import pytest
import sqlalchemy as sa
from factories import record, register_source, rows, sightings, utc

from marcod.catalog import merging, registration
from marcod.database.engine import Database, insert
from marcod.database.schema import plate
from marcod.errors import LabelError, NotFoundError
from marcod.labels.recorder import DropReference, Finder
from marcod.plates import metadata, reports
from marcod.plates.metadata_csv import read
from marcod.store import known_names, plate_names
from marcod.store.versions import Version

COMPOSED = unicodedata.normalize("NFC", "Prüf1")
DECOMPOSED = unicodedata.normalize("NFD", "Prüf1")


def keys(db: Database) -> list[str]:
    return [str(row[0]) for row in rows(db, sa.select(plate.c.key).order_by(plate.c.id))]


@pytest.mark.parametrize("name", ["CI0229", "ci0229", "Bar-Code", "BAR-CODE", " ci0229 ".strip()])
def test_a_plate_is_found_in_any_case(db: Database, source_id: int, champion: Version, name: str) -> None:
    record(db, source_id, sightings(1, plate="Ci0229", barcode="bar-code"))
    assert [found.key for found in db.read(lambda c: reports.find_plates(c, name))] == ["Ci0229"]
    assert db.read(lambda c: Finder(c).find(DropReference(name, "A1"))).drop_id == 1
    assert db.read(lambda c: known_names.meant(c, DropReference(name, "A1"))) is None


@pytest.mark.parametrize("name", [COMPOSED, DECOMPOSED, COMPOSED.upper(), DECOMPOSED.lower()])
def test_a_plate_is_found_in_any_unicode_form(db: Database, source_id: int, champion: Version, name: str) -> None:
    record(db, source_id, sightings(1, plate=COMPOSED))
    assert [found.key for found in db.read(lambda c: reports.find_plates(c, name))] == [COMPOSED]


def test_keys_that_differ_in_case_are_one_plate(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, [*sightings(1, plate="ab1"), *sightings(2, plate="AB1", inspection="2")[1:]])
    record(db, source_id, sightings(1, plate="Ab1", inspection="3"))
    assert len(keys(db)) == 1
    assert rows(db, sa.text("select count(*) from lims_plate_summary_v1")) == [(3,)]


def test_a_table_names_plates_in_any_case(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1, plate="Ab1"))
    table = read(b"plate,barcode\naB1,Code1\nnew,N1\n", {}, "imager")
    planned = db.write(lambda c: metadata.import_metadata(c, table.records, "ann", utc()))
    assert [(change.plate, change.new) for change in planned.changes] == [("Ab1", False), ("new", True)]
    assert keys(db) == ["Ab1", "new"]
    assert [found.key for found in db.read(lambda c: reports.find_plates(c, "CODE1"))] == ["Ab1"]
    assert [found.key for found in db.read(lambda c: reports.find_plates(c, "n1"))] == ["new"]
    record(db, source_id, sightings(1, plate="NEW"))
    assert keys(db) == ["Ab1", "new"]
    with pytest.raises(metadata.MetadataError, match="line 3: says other things of plate P than line 2"):
        read(b"plate,barcode\np,1A\nP,2A\n", {}, "imager")


def test_of_two_plates_that_a_former_marcod_made_the_first_goes_on(
    db: Database, source_id: int, champion: Version
) -> None:
    for key in ("ab1", "AB1"):
        values = {"source_id": source_id, "key": key, "first_seen_at": utc()}
        db.write(lambda c, values=values: c.execute(insert(c, plate).values(**values)))
    record(db, source_id, sightings(1, plate="AB1"))
    assert keys(db) == ["ab1", "AB1"]
    assert rows(db, sa.text("select plate_key from lims_plate_summary_v1")) == [("ab1",)]


def test_sources_are_merged_by_names_in_any_case(db: Database, champion: Version) -> None:
    one, other = register_source(db, "one"), register_source(db, "other")
    record(db, one, sightings(2, plate="ab1", barcode="b1"))
    record(db, other, sightings(1, plate="AB1", inspection="2"))
    db.write(lambda c: merging.merge(c, one, other, actor="ann", now=utc()))
    assert keys(db) == ["AB1"]
    assert [found.key for found in db.read(lambda c: reports.find_plates(c, "B1"))] == ["AB1"]


def test_the_end_of_a_key_is_enough_where_it_is_of_one_plate(db: Database, champion: Version) -> None:
    source = db.write(lambda c: registration.register_source(c, "ami", "/p", "ami", None, utc()))
    for key in ("kinase/hit2/plate1", "lysozyme/plate1", "lysozyme/Plate_2"):
        record(db, source, sightings(1, plate=key))
    found = db.read(lambda c: reports.find_plates(c, "plate_2"))
    assert [each.key for each in found] == ["lysozyme/Plate_2"]
    assert db.read(lambda c: reports.find_plates(c, "hit2/PLATE1"))[0].key == "kinase/hit2/plate1"
    both = "kinase/hit2/plate1, lysozyme/plate1"
    with pytest.raises(NotFoundError, match=f"several plates answer to 'plate1'; give the key of one of them: {both}"):
        db.read(lambda c: reports.find_plates(c, "plate1"))
    with pytest.raises(LabelError, match=rf"several plates answer to 'plate1' \({both}\); name the key"):
        db.read(lambda c: Finder(c).find(DropReference("plate1", "A1")))
    # A "%" or "_" of a name stands for itself, and a part of a level is no end.
    for name in ("plate%", "late1", "plateX2"):
        with pytest.raises(NotFoundError, match="no plate has the key or barcode"):
            db.read(lambda c, name=name: reports.find_plates(c, name))


def test_a_sentence_lists_few_keys() -> None:
    many = [f"p{number}/plate1" for number in range(12)]
    assert str(plate_names.whole_keys("plate1", many)).endswith("p9/plate1 and 2 more")
    assert plate_names.whole_keys("plate1", ["plate1", "a/plate1"]) is None
