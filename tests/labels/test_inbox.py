"""What a LIMS writes: rows become labels, wait for their plate, or are refused, and no row holds up the others."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from factories import drain, record, register_source, rows, sightings, utc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marcod.database.engine import Database
from marcod.database.schema import inspection, inspection_summary, label, label_inbox
from marcod.domain import DropClass
from marcod.labels import inbox, recorder, vocabularies
from marcod.labels.inbox import InboxCounts, InboxState
from marcod.plates import metadata
from marcod.plates.metadata import PlateRecord
from marcod.store import votes
from marcod.store.versions import Version

TABLES = vocabularies.load()
COLUMNS = ("source", "plate", "well", "drop_number", "inspection", "label", "person", "labelled_at")
GOOD = {"plate": "P1", "well": "A1", "label": "Crystals", "person": "lims"}


def write(db: Database, **values: Any) -> None:
    """One row by the view, as a LIMS writes it."""
    names = ", ".join(values)
    places = ", ".join(f":{name}" for name in values)
    db.write(lambda c: c.execute(sa.text(f"insert into lims_label_inbox_v1 ({names}) values ({places})"), values))


def turn(db: Database, now: datetime | None = None, *, limit: int = 100, vocabulary: str = "marco") -> InboxCounts:
    return db.write(lambda c: inbox.resolve(c, TABLES, vocabulary, now or NOW, limit=limit))


def states(db: Database) -> list[tuple[str, str | None]]:
    return [tuple(row) for row in rows(db, sa.text("select state, reason from lims_label_inbox_v1 order by inbox_id"))]


def shown(db: Database) -> list[Any]:
    return rows(db, sa.text("select label, label_person, hit from lims_drop_v1 order by drop_id"))


# The database writes received_at by its own clock, so tests of the inbox live in the present.
NOW = datetime.fromisoformat("2099-01-01T00:00:00+00:00")


@pytest.fixture
def plate(db: Database, source_id: int, champion: Version) -> int:
    """Plate P1 with wells A1 to A3, all clear, at inspections 1 and 2."""
    for number in ("1", "2"):
        record(db, source_id, sightings(3, inspection=number, barcode="BC1"), utc(hours=int(number)))
    drain(db, champion, utc(hours=3))
    return source_id


def test_a_row_becomes_a_label_with_all_that_follows(db: Database, plate: int) -> None:
    write(db, **GOOD, inspection="2", labelled_at="2026-01-05 10:00:00")
    assert turn(db) == InboxCounts(resolved=1)
    assert states(db) == [(InboxState.RESOLVED, None)]
    [kept] = rows(db, sa.select(label))
    assert (kept.label, kept.original, kept.vocabulary, kept.person, kept.origin, kept.labelled_at) == (
        "Crystals", "Crystals", "marco", "lims", "inbox", datetime.fromisoformat("2026-01-05T10:00:00+00:00"),
    )  # fmt: skip
    assert rows(db, sa.select(label_inbox.c.label_id)) == [(kept.id,)]
    assert tuple(shown(db)[0]) == ("Crystals", "lims", True)
    counted = rows(db, sa.select(inspection_summary.c.labelled).order_by(inspection_summary.c.inspection_id))
    assert counted == [(0,), (1,)]
    assert turn(db) == InboxCounts()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_natural_keys(db: Database, plate: int) -> None:
    ways: list[dict[str, Any]] = [
        {"plate": "BC1"},
        {"source": "imager"},
        {"well": "a01"},
        {"drop_number": 1},
        {"label": "crystals"},
        {"label": "hwi:90"},
        {"label": "sgc:36"},
        {"inspection": "02"},
        {"inspection": "", "source": " "},
    ]
    for number, more in enumerate(ways):
        write(db, **(GOOD | more | {"person": f"person {number}"}))
    assert turn(db) == InboxCounts(resolved=len(ways))
    statement = "select distinct well, inspection_key, label from lims_label_v1"
    assert rows(db, sa.text(statement)) == [("A01", "2", "Crystals")]
    assert len(rows(db, sa.select(label))) == len(ways)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_without_an_inspection_the_one_seen_when_it_was_said(db: Database, plate: int) -> None:
    said = {"2026-01-01 13:00": "1", "2026-01-01 13:59:59": "1", "2026-01-01 15:00+01:00": "2", "2026-02-01": "2"}
    for labelled_at in said:
        write(db, **GOOD, labelled_at=labelled_at)
    turn(db)
    found = "select inspection.key from label join inspection on inspection.id = label.inspection_id order by label.id"
    assert [row[0] for row in rows(db, sa.text(found))] == list(said.values())


MAY_COME: list[tuple[dict[str, Any], str]] = [
    ({"plate": "P9"}, "no plate has the key or barcode 'P9' yet"),
    ({"source": "other"}, "no plate has the key or barcode 'P1' in source 'other' yet"),
    ({"well": "H12"}, "no image of well H12 of plate 'P1' has arrived yet"),
    ({"drop_number": 3}, "no image of drop 3 in well A01 of plate 'P1' has arrived yet"),
    ({"inspection": "7"}, "no image of well A01 of plate 'P1' at inspection '7' has arrived yet"),
]


def test_what_may_come_waits_with_its_reason(db: Database, plate: int) -> None:
    for more, _ in MAY_COME:
        write(db, **(GOOD | more))
    assert turn(db) == InboxCounts(waiting=len(MAY_COME))
    assert states(db) == [(InboxState.WAITING, reason) for _, reason in MAY_COME]


NEVER: list[tuple[dict[str, Any], str]] = [
    ({"plate": None}, "plate is missing"),
    ({"well": None}, "well is missing"),
    ({"label": None}, "label is missing"),
    ({"person": None}, "person is missing"),
    (dict.fromkeys(GOOD), "plate is missing"),
    ({"person": "  "}, "person is missing"),
    ({"well": "1A"}, "'1A' is not a well"),
    ({"well": "A0", "plate": "P9"}, "'A0' is not a well"),
    ({"label": "crystalline"}, "'crystalline' is not in the vocabulary marco"),
    ({"label": "hwi:25"}, "left open in the vocabulary hwi"),
    ({"label": "x" * 1001}, "more than 1000 characters"),
    ({"person": "y" * 2**20}, "more than 1000 characters"),
    ({"person": "\x1b[31m"}, "cannot be printed"),
    ({"plate": "P1\u200b"}, "cannot be printed"),
    ({"inspection": "\\x00\r\n'"}, "cannot be printed"),
    ({"drop_number": 0}, "'0' is no drop"),
    ({"drop_number": -4}, "'-4' is no drop"),
    ({"labelled_at": "1066-10-14"}, "before 1980"),
    ({"labelled_at": "2150-01-01"}, "in the future"),
]


def test_what_can_never_be_is_refused(db: Database, plate: int) -> None:
    for more, _ in NEVER:
        write(db, **(GOOD | more))
    write(db, **(GOOD | {"person": "'; drop table label; --\n"}))
    assert turn(db) == InboxCounts(resolved=1, refused=len(NEVER))
    for (_, expected), (state, reason) in zip(NEVER, states(db), strict=False):
        assert state == InboxState.REFUSED
        assert expected in (reason or "")
        assert (reason or "").isprintable()
    assert rows(db, sa.select(label.c.person)) == [("'; drop table label; --",)]


HOSTILE = [
    ("drop_number", "'three'"),
    ("drop_number", "1.5"),
    ("drop_number", "9e99"),
    ("drop_number", "x'00ff'"),
    ("labelled_at", "'yesterday'"),
    ("labelled_at", "12345"),
    ("labelled_at", "x'00'"),
    ("labelled_at", "'9999-12-31 23:59:59-23:59'"),
    ("person", "x'ff00fe'"),
    ("person", "cast(x'c3' as text)"),
    ("person", "'a' || char(0) || 'b'"),
    ("person", "cast(x'eda080' as text)"),
    ("label", "42"),
    ("label", "x'80'"),
    ("plate", "zeroblob(1048576)"),
    ("plate", "cast(x'ff' as text)"),
    ("well", "hex(zeroblob(1048576))"),
    ("well", "0"),
    ("inspection", "char(0)"),
    ("source", "cast(x'fe' as text)"),
]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_is_not_a_text_and_no_number_is_refused(db: Database, plate: int) -> None:
    """SQLite keeps any type in any column."""
    for column, value in HOSTILE:
        values = {name: repr(word) for name, word in GOOD.items()} | {column: value}
        statement = f"insert into lims_label_inbox_v1 ({', '.join(values)}) values ({', '.join(values.values())})"
        db.write(lambda c, statement=statement: c.exec_driver_sql(statement))
    write(db, **GOOD)
    assert turn(db) == InboxCounts(resolved=1, refused=len(HOSTILE))
    for entry in db.read(lambda c: inbox.listed(c, [InboxState.REFUSED], 100)):
        assert entry.reason
        assert entry.reason.isprintable()


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_times_that_python_cannot_say_are_refused(db: Database, plate: int) -> None:
    times = ["infinity", "-infinity", "0044-03-15 BC", "294276-01-01", "9999-12-31 23:59:59-14"]
    for value in times:
        write(db, **GOOD, labelled_at=value)
    write(db, **GOOD)
    assert turn(db) == InboxCounts(resolved=1, refused=len(times))


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_what_postgresql_refuses_itself(db: Database, plate: int) -> None:
    for more in ({"person": "a\x00b"}, {"drop_number": "three"}, {"drop_number": 2**40}, {"labelled_at": "yesterdy"}):
        with pytest.raises((sa.exc.DBAPIError, ValueError)):
            write(db, **(GOOD | more))
    assert turn(db) == InboxCounts()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_anything_a_client_can_insert(db: Database, plate: int, data: st.DataObject) -> None:
    text = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.just("A1")
    values: dict[str, Any] = {name: data.draw(text, label=name) for name in COLUMNS}
    values |= {"drop_number": data.draw(st.none() | st.integers(-(2**31), 2**31 - 1)), "labelled_at": None}
    values |= data.draw(st.fixed_dictionaries({}, optional={name: st.just(word) for name, word in GOOD.items()}))
    write(db, **values)
    assert turn(db).looked == 1
    assert db.read(lambda c: sum(inbox.counts(c).values())) >= 1


@pytest.mark.slow
def test_rows_are_tried_again_and_at_once_when_the_plate_arrives(
    db: Database, source_id: int, champion: Version
) -> None:
    write(db, **GOOD)
    [(received,)] = rows(db, sa.select(label_inbox.c.received_at))

    def at(hours: float) -> datetime:
        return received + (utc(hours=hours) - utc())

    assert turn(db, at(0.1)) == InboxCounts(waiting=1)
    assert turn(db, at(0.11)) == InboxCounts(waiting=1)
    assert turn(db, at(2)) == InboxCounts(waiting=1)
    assert turn(db, at(2.01)) == InboxCounts()
    assert turn(db, at(2.1)) == InboxCounts(waiting=1)
    assert turn(db, at(30)) == InboxCounts(waiting=1)
    assert turn(db, at(30.5)) == InboxCounts()
    record(db, source_id, sightings(3), at(30.6))
    assert turn(db, at(30.7)) == InboxCounts(resolved=1)
    drain(db, champion)
    assert tuple(shown(db)[0]) == ("Crystals", "lims", True)


def test_a_plate_that_gets_its_barcode_later(db: Database, plate: int) -> None:
    write(db, **(GOOD | {"plate": "late"}))
    [(received,)] = rows(db, sa.select(label_inbox.c.received_at))
    hours = [received + (utc(hours=n) - utc()) for n in (30, 30.1, 30.2)]
    assert [turn(db, now) for now in hours[:2]] == [InboxCounts(waiting=1), InboxCounts()]
    db.write(lambda c: metadata.import_metadata(c, [PlateRecord(1, "imager", "P1", barcode="Late")], "ann", utc()))
    assert turn(db, hours[2]) == InboxCounts(resolved=1)


def test_new_rows_come_first_and_a_turn_is_bounded(db: Database, plate: int) -> None:
    for number in range(4):
        write(db, **(GOOD | {"plate": f"unknown {number}"}))
    assert turn(db, limit=3) == InboxCounts(waiting=3)
    write(db, **GOOD)
    assert turn(db, limit=3) == InboxCounts(resolved=1, waiting=1)
    assert turn(db, NOW + (utc(hours=2) - utc()), limit=3) == InboxCounts(waiting=3)


def test_a_refused_row_is_taken_after_the_vocabulary_changed(db: Database, plate: int) -> None:
    write(db, **(GOOD | {"label": "90"}))
    assert turn(db) == InboxCounts(refused=1)
    assert turn(db) == InboxCounts()
    assert db.write(inbox.retry) == 1
    assert turn(db, vocabulary="hwi") == InboxCounts(resolved=1)
    assert db.read(inbox.counts) == {InboxState.RESOLVED: 1}


def test_the_lims_can_take_back(db: Database, plate: int) -> None:
    write(db, **GOOD)
    turn(db)
    write(db, **(GOOD | {"label": "withdrawn"}), labelled_at="2098-12-31")
    assert turn(db) == InboxCounts(resolved=1)
    assert tuple(shown(db)[0]) == ("Clear", None, False)


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_two_services_share_the_rows(db: Database, plate: int) -> None:
    write(db, **GOOD)
    with db.engine.begin() as one, db.engine.begin() as two:
        found = [inbox.resolve(each, TABLES, "marco", NOW, limit=10) for each in (one, two)]
    assert found == [InboxCounts(resolved=1), InboxCounts()]


def test_a_row_written_twice_is_one_label(db: Database, plate: int) -> None:
    for _ in range(2):
        write(db, **GOOD, labelled_at="2026-01-05 10:00:00")
    assert turn(db) == InboxCounts(resolved=2)
    assert len(rows(db, sa.select(label))) == 1
    assert len(set(rows(db, sa.select(label_inbox.c.label_id)))) == 1


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_plate_of_two_sources_needs_its_source(db: Database, plate: int) -> None:
    other = register_source(db, "second")
    record(db, other, sightings(1))
    write(db, **GOOD)
    write(db, **GOOD, source="second")
    assert turn(db) == InboxCounts(resolved=1, refused=1)
    assert states(db)[0][1] == (
        "several plates answer to 'P1' (imager, second); name the source, with --source or in the column source"
    )


def subject(db: Database, **more: Any) -> recorder.LabelTarget:
    return db.read(lambda c: recorder.Finder(c).find(recorder.DropReference("P1", "A1", **more)))


def test_withdrawing_takes_back_what_a_clock_ahead_said(db: Database, plate: int) -> None:
    where = subject(db)
    later = utc(days=2)
    word = votes.NewLabel(where.drop_id, where.inspection_id, DropClass.CRYSTALS, "ann", later, "test")

    def back(person: str) -> Callable[[sa.Connection], int]:
        return lambda c: recorder.withdraw(c, where, person=person, origin="test", now=utc())

    db.write(lambda c: recorder.add(c, [word], utc()))
    assert db.write(back("bob")) == 0
    assert db.write(back("ann")) == 1
    assert db.write(back("ann")) == 0
    assert tuple(shown(db)[0]) == ("Clear", None, False)


@pytest.mark.slow
def test_withdrawing_takes_back_what_was_said_of_images_too(db: Database, plate: int) -> None:
    image = db.read(lambda c: recorder.Finder(c).find(recorder.DropReference(path="P1/2/visible/A01.jpg")))
    assert image.image_id is not None
    word = votes.NewLabel(
        image.drop_id, image.inspection_id, DropClass.CRYSTALS, "ann", utc(), "test", image_id=image.image_id
    )
    assert db.write(lambda c: recorder.add(c, [word], utc())) == 1
    assert tuple(shown(db)[0]) == ("Crystals", "ann", True)
    assert db.write(lambda c: recorder.withdraw(c, subject(db), person="ann", origin="test", now=utc(9))) == 1
    assert tuple(shown(db)[0]) == ("Clear", None, False)


def test_the_list_tells_what_counts_and_what_is_disputed(db: Database, plate: int) -> None:
    where = subject(db)
    for minute, (person, word) in enumerate([("ann", "CLEAR"), ("ann", "CRYSTALS"), ("bob", "OTHER"), ("cat", None)]):
        meant = DropClass[word] if word else None
        given = votes.NewLabel(where.drop_id, where.inspection_id, meant, person, utc(minutes=minute), "test")
        db.write(lambda c, given=given, minute=minute: recorder.add(c, [given], utc(minutes=minute)))

    def listed(**more: Any) -> list[tuple[str, str | None, bool, bool]]:
        found = db.read(lambda c: votes.listed(c, **more))
        return [(s.person, s.label, s.counts, s.disputed) for s in found]

    assert listed() == [
        ("cat", None, False, False),
        ("bob", "Other", True, True),
        ("ann", "Crystals", True, True),
        ("ann", "Clear", False, False),
    ]
    assert listed(disputed=True, limit=1) == [("bob", "Other", True, True)]
    assert listed(person="ann", since=utc(minutes=1)) == [("ann", "Crystals", True, True)]
    assert listed(plate_ids=[]) == []


def test_a_key_goes_before_the_number_of_another_inspection(db: Database, source_id: int, champion: Version) -> None:
    for key, ordinal in (("5", 1), ("1", 2)):
        record(db, source_id, sightings(1, plate="P9", inspection=key, inspection_ordinal=ordinal))
    found = db.read(lambda c: recorder.Finder(c).find(recorder.DropReference("P9", "A1", inspection="1")))
    key = sa.select(inspection.c.key).where(inspection.c.id == found.inspection_id)
    assert [row[0] for row in rows(db, key)] == ["1"]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_a_spreadsheet_damaged_is_refused_and_a_model_says_nothing(db: Database, plate: int) -> None:
    for more in ({"plate": "4.41312E+11"}, {"inspection": "2.02008E+11"}, {"well": "01-Dec"}, {"person": "MARCO v1"}):
        write(db, **(GOOD | more))
    assert turn(db) == InboxCounts(refused=4)
    reasons = [str(reason) for _, reason in states(db)]
    assert [word in reason for word, reason in zip(("ten", "ten", "date", "model"), reasons, strict=True)] == [True] * 4


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_number_is_a_well_of_the_plates_grid(db: Database, champion: Version) -> None:
    numbers = {"plain": 13, "wide": 25, "hwi": 49, "told": 7, "odd": 7}
    for name, number in numbers.items():
        record(db, register_source(db, name), sightings(13, plate=name), utc())
        write(db, **(GOOD | {"plate": name, "well": str(number)}))
    for statement in (
        "update source set reading = '{\"wells\": 384}' where name = 'wide'",
        "update source set layout = 'hwi' where name = 'hwi'",
        'update source set reading = \'{"wells": 96, "grid": "8x6"}\' where name = \'odd\'',
        "update plate set format_rows = 4, format_columns = 6, format_drops = 1 where key = 'told'",
    ):
        db.write(lambda c, statement=statement: c.exec_driver_sql(statement))
    assert turn(db) == InboxCounts(resolved=5)
    assert rows(db, sa.text("select distinct well from lims_label_v1")) == [("B01",)]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_number_follows_the_plates_own_grid_given_or_inferred(db: Database, champion: Version) -> None:
    for name, wells in (("told", 7), ("inferred", 25)):
        record(db, register_source(db, name), sightings(13, plate=name), utc())
        write(db, **(GOOD | {"plate": name, "well": str(wells)}))
    db.write(lambda c: c.exec_driver_sql("update source set layout = 'formulatrix'"))
    for key, grid in (("told", "8, format_columns = 6, format_drops = 1"), ("inferred", "16, format_columns = 24")):
        statement = f"update plate set format_rows = {grid} where key = '{key}'"
        db.write(lambda c, statement=statement: c.exec_driver_sql(statement))
    assert turn(db) == InboxCounts(resolved=2)
    assert rows(db, sa.text("select distinct well from lims_label_v1")) == [("B01",)]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_wells_outside_the_plate_never_come(db: Database, plate: int) -> None:
    db.write(lambda c: c.exec_driver_sql("update plate set format_rows = 8, format_columns = 12, format_drops = 1"))
    for well in ("97", "0", "I1", "A13", "ZZ99"):
        write(db, **(GOOD | {"well": well}))
    assert turn(db) == InboxCounts(refused=5)
    assert all("outside the plate's 8 x 12" in str(reason) or "of any plate" in str(reason) for _, reason in states(db))
