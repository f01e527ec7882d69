"""Metadata of plates: whole or not at all, twice as good as once, before or after the images."""

import csv
import io
from typing import Any

import pytest
import sqlalchemy as sa
from factories import drain, record, register_source, rows, sightings, utc
from hypothesis import given
from hypothesis import strategies as st

from marcod.database.engine import Database
from marcod.database.schema import audit, inspection_summary, plate
from marcod.domain import folded
from marcod.plates import metadata
from marcod.plates.metadata import Grid, MetadataError, MetadataPlan
from marcod.plates.metadata_csv import grid_of, read
from marcod.store import summaries
from marcod.store.versions import Version


def take_in(db: Database, text: str, **columns: str) -> MetadataPlan:
    """A table, through the parts that the command uses."""
    table = read(text.encode(), columns, "imager")
    plan = db.write(lambda c: metadata.import_metadata(c, table.records, "ann", utc()))
    while db.write(lambda c: metadata.catch_up(c, utc(), limit=2)):
        pass
    return plan


def problems(text: str, **columns: str) -> list[str]:
    with pytest.raises(MetadataError) as caught:
        read(text.encode(), columns, "imager")
    return list(caught.value.problems)


def of(db: Database, key: str) -> dict[str, Any]:
    (row,) = rows(db, sa.select(plate).where(plate.c.key == key))
    return dict(row._mapping)


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("96x2", Grid(8, 12, 2)),
        ("8x12x3", Grid(8, 12, 3)),
        (" 1536 X 1 ", Grid(32, 48, 1)),
        ("16×24×1", Grid(16, 24, 1)),
    ],
)
def test_formats_are_read(text: str, grid: Grid) -> None:
    assert grid_of(text) == grid


@pytest.mark.parametrize("text", ["96", "8x12", "0x12x1", "8x12x0", "x", "8x12x100", "٨x12x1", "96x2x", ""])
def test_unclear_formats_are_not_guessed(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the sentence differs
        grid_of(text)


@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 99))
def test_every_format_reads_as_it_is_written(row_count: int, column_count: int, drops: int) -> None:
    grid = Grid(row_count, column_count, drops)
    assert grid_of(str(grid)) == grid


_CELL = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)


_KEYS = _CELL.map(str.strip).filter(bool)
_TABLES = st.dictionaries(_KEYS, _CELL, min_size=1, max_size=4).filter(lambda t: len({*map(folded, t)}) == len(t))


@given(_TABLES, st.sampled_from(",;\t"))
def test_any_table_that_a_csv_writer_made_is_read(barcodes: dict[str, str], delimiter: str) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("plate", "barcode", "note"), *((key, code, "n") for key, code in barcodes.items())])
    table = read(out.getvalue().encode("utf-8-sig"), {}, "imager")
    assert len(table.records) == len(barcodes)
    assert table.unused == ("note",)


def test_every_wrong_line_is_named() -> None:
    assert problems(
        "plate,format,rows,columns,drops\n,96x1\nA,96x1,8,12,2\nB,,8\nC,96\nD,96x1\nD,96x2\nE,,,,,x,y\n"
    ) == [
        "line 2: names no plate",
        "line 3: format 96x1 contradicts 8x12x2 in its other columns",
        "line 4: gives rows without columns and drops",
        "line 5: '96' is not a plate format; write wells x drops, as 96x2, or 8x12x2",
        "line 7: says other things of plate D than line 6",
        "line 8: has 7 cells under 5 headings",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no line with a plate"),
        ("barcode\nB\n", "no column is called 'plate'"),
        ("plate,Plate\nA,B\n", "'plate' and 'Plate' could each be the plate"),
        ("plate\nA\x00B\n", "cannot be printed"),
        ("plate\n" + "A" * 301 + "\n", "301 characters"),
        ('plate\n"A\n', "a quotation mark before the end of the file is never closed"),
        ("plate,drops\nA,two\n", "without rows and columns"),
        ("plate,rows,columns,drops\nA,8,12,two\n", "drops 'two' is no number"),
        ("plate,rows,columns,drops\nA,8,1200,1\n", "1 to 99 columns, not 1200"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(text: str, sentence: str) -> None:
    assert any(sentence in problem for problem in problems(text))


def test_a_table_in_another_encoding_names_the_line() -> None:
    (_, record) = read("plate,project\nA,x\nB,Müller\n".encode("cp1252"), {}, "imager").records
    assert record.project == "Müller"
    with pytest.raises(MetadataError, match=r"line 3: its letters .* cannot be told; save it as CSV UTF-8"):
        read("plate,project\nA,x\nB,Müller\n".encode("cp850"), {}, "imager")


def test_columns_are_mapped() -> None:
    text = "Plate ID;Code;barcode\n7;B7;elsewhere\n"
    (record,) = read(text.encode(), {"plate id": "plate", "Code": "barcode"}, "imager").records
    assert (record.plate, record.barcode) == ("7", "B7")
    assert problems(text, Nothing="barcode") == [
        "line 1: there is no column 'Nothing'; there are 'Plate ID', 'Code', 'barcode'"
    ]


def test_records_may_come_before_the_images(db: Database, source_id: int, champion: Version) -> None:
    assert [c.new for c in take_in(db, "plate,barcode,format,project,screen\nP1,B1,8x12x1,PHIPA,Index\n").changes] == [
        True
    ]
    record(db, source_id, sightings(96, barcode="of the path"))
    assert (of(db, "P1")["barcode"], of(db, "P1")["project"]) == ("B1", "PHIPA")
    drain(db, champion)
    (summary,) = rows(db, sa.select(inspection_summary))
    assert (summary.expected, summary.complete, summary.complete_rule) == (96, True, "expected")


@pytest.mark.slow
def test_records_may_come_after_the_images(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(3, barcode="of the path"))
    record(db, source_id, sightings(3, inspection="2"))
    drain(db, champion)
    db.write(lambda c: summaries.complete_quiet(c, utc(days=1), 60))
    record(db, source_id, sightings(3, inspection="3"))
    drain(db, champion)
    plan = take_in(db, "plate,barcode,format\nP1,B1,8x12x1\n")
    assert plan.changes[0].values["barcode"] == ("of the path", "B1")
    found = rows(db, sa.select(inspection_summary).order_by(inspection_summary.c.inspection_id))
    # The third had as many as the earlier ones and was complete by that; the format knows better.
    assert [(s.expected, s.complete_rule) for s in found] == [(96, "quiet"), (96, "quiet"), (96, None)]
    view = "select barcode, expected, project from lims_plate_summary_v1"
    assert {tuple(row) for row in rows(db, sa.text(view))} == {("B1", 96, None)}


def test_taking_in_twice_changes_nothing(db: Database, source_id: int) -> None:
    text = "plate,barcode,project,format\nP1,B1,PHIPA,96x2\nP2,B2,,\n"
    take_in(db, text)
    before = rows(db, sa.select(plate))
    plan = take_in(db, text)
    assert (plan.changes, plan.unchanged) == ((), 2)
    assert rows(db, sa.select(plate)) == before
    assert rows(db, sa.select(audit)) == []


def test_an_empty_cell_leaves_what_is_known(db: Database, source_id: int) -> None:
    take_in(db, "plate,barcode,project\nP1,B1,PHIPA\n")
    take_in(db, "plate,barcode,screen\nP1,,Index\n")
    assert [of(db, "P1")[name] for name in ("barcode", "project", "screen")] == ["B1", "PHIPA", "Index"]


def test_another_barcode_is_written_to_the_audit(db: Database, source_id: int) -> None:
    take_in(db, "plate,barcode\nP1,B1\n")
    take_in(db, "plate,barcode\nP1,B2\n")
    (row,) = rows(db, sa.select(audit.c.actor, audit.c.action, audit.c.subject, audit.c.detail))
    assert tuple(row) == ("ann", "plate barcode", "imager P1", {"from": "B1", "to": "B2"})


def test_one_barcode_of_two_plates_only_warns(db: Database, source_id: int) -> None:
    take_in(db, "plate,barcode\nP1,B1\n")
    assert take_in(db, "plate,barcode\nP2,B1\n").warnings == ("source imager: barcode B1 is that of plates P1, P2",)
    register_source(db, "other")
    assert take_in(db, "plate,source,barcode\nP1,other,B1\n").warnings == ()
    assert take_in(db, "plate,barcode\nP1,B3\nP2,B1\n").warnings == ()


def test_a_format_smaller_than_what_was_seen_is_refused_whole(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(13))
    with pytest.raises(MetadataError) as caught:
        take_in(db, "plate,format,project\nP9,96x1,new\nP1,1x12x1,PHIPA\n")
    assert caught.value.problems == (
        "line 3: plate P1 is said to be 1x12x1, but its drops seen so far take 2 rows, 12 columns and 1 drop per well",
    )
    assert rows(db, sa.select(plate.c.key, plate.c.project)) == [("P1", None)]


def test_subwells_are_counted_and_not_read_as_numbers(db: Database, source_id: int, champion: Version) -> None:
    """A three-lens plate whose second subwell is the reservoir has the drops 1, 3 and 4."""
    (sighting,) = sightings(1)
    for number in (1, 3, 4):
        changed = type(sighting)(f"{number}.jpg", 1, 1, type(sighting.image)(
            "rigaku", "P1", "1", 1, 1, number, sighting.image.modality
        ))  # fmt: skip
        record(db, source_id, [changed])
    take_in(db, "plate,format\nP1,8x12x3\n")
    with pytest.raises(MetadataError, match="3 drops per well"):
        take_in(db, "plate,format\nP1,8x12x2\n")


def test_an_unknown_source_is_named_and_a_configured_one_is_left_to_be_made(db: Database, source_id: int) -> None:
    table = read(b"plate,source\nP1,elsewhere\nP2,imager\n", {}, None)
    with pytest.raises(MetadataError, match="line 2: there is no source 'elsewhere'; configured or seen: imager"):
        db.read(lambda c: metadata.plan(c, table.records, ()))
    assert db.read(lambda c: metadata.plan(c, table.records, ["elsewhere"])).missing == ("elsewhere",)


def test_a_barcode_of_the_path_fills_in_where_records_say_none(db: Database, source_id: int, champion: Version) -> None:
    take_in(db, "plate,barcode,project\nP1,,PHIPA\nP2,B2,\n")
    record(db, source_id, sightings(1, plate="P1", barcode="path"))
    record(db, source_id, sightings(1, plate="P2", barcode="path"))
    assert (of(db, "P1")["barcode"], of(db, "P2")["barcode"]) == ("path", "B2")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_a_spreadsheet_damaged_is_refused(db: Database, source_id: int) -> None:
    take_in(db, "plate,barcode\n0045,0012\n01-Mar-x,B2\n")
    with pytest.raises(MetadataError) as caught:
        take_in(db, 'plate,barcode\n45,\n"4,41312E+11",\nNew,01-Mar\n0045,12\n01-Mar-x,4.41312E+11\nFine,7\n')
    words = ["line 2: plate '45': '0045' has lost", "line 3: plate '4,41312E+11': a spreadsheet has rounded"]
    words += ["line 4: barcode '01-Mar': a spreadsheet has made a date", "line 5: barcode '12': '0012' has lost"]
    words += ["line 6: barcode '4.41312E+11': a spreadsheet has rounded"]
    assert [problem.startswith(word) for problem, word in zip(caught.value.problems, words, strict=True)] == [True] * 5
    assert of(db, "0045")["barcode"] == "0012"


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_name_that_a_plate_really_has_is_sound(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1, plate="01-Mar"), utc())
    assert len(take_in(db, "plate,project\n01-Mar,x\n").changes) == 1
