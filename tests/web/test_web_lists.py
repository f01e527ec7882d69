"""Lists of plates and hits: every filter, pages that neither miss nor repeat a row, and CSV."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import populated
import pytest
import sqlalchemy as sa
from factories import CLEAR, CRYSTALS, drain, promote, record, register, register_source, sightings, utc
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.database.schema import follow, plate, review_item
from marcod.domain import DropClass, Modality
from marcod.labels import recorder
from marcod.plates import reports
from marcod.store.votes import NewLabel
from marcod.web import hit_list, pages, plate_list, queries
from marcod.web.hit_list import HitFilter, HitRow
from marcod.web.people import User, UserRole
from marcod.web.plate_list import PlateFilter, PlateRow

ANN = User("ann", UserRole.LABELLER)
NOW = utc(days=40)
PLATES = 7


@pytest.fixture(params=["few", "many"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a page: rows of a filter put in order by themselves, and a walk along the whole list."""
    if request.param == "many":
        monkeypatch.setattr(queries, "FEW", -1)
    return str(request.param)


@pytest.fixture
def lab(db: Database) -> None:
    """Plates A0 to A6 of two imagers and three projects, a plate a day, two inspections each; the last is not complete.

    Drop A01 has crystals from the first inspection on, A02 from the second on where the plate's number is odd.
    """
    version = register(db)
    promote(db, version, utc())
    sources = [register_source(db, name, expected_drops=3) for name in ("minstrel", "rock")]
    for number in range(PLATES):
        for ordinal in (1, 2):
            when = utc(days=number, hours=ordinal)
            found = sightings(3, f"A{number}", str(ordinal), barcode=f"Bär{number}", captured_at=when)
            if number == PLATES - 1 and ordinal == 2:
                found = found[:2]
            record(db, sources[number % 2], found, when)
            hits = ("A01", "A02") if ordinal == 2 and number % 2 else ("A01",)
            drain(
                db, version, when + timedelta(minutes=number),
                scores=lambda c, h=hits, n=number: (
                    (0.05, 0.9 - n / 100, 0.02, 0.03 + n / 100) if any(well in c.path for well in h) else CLEAR
                ),
            )  # fmt: skip
    projects = {0: "kinase", 1: "kinase", 2: "lysozyme", 3: "50%_off", 4: None, 5: None, 6: None}
    for number, name in projects.items():
        db.write(
            lambda c, n=number, p=name: c.execute(sa.update(plate).where(plate.c.key == f"A{n}").values(project=p))
        )


def plates_of(db: Database, limit: int = 2, **chosen: object) -> list[PlateRow]:
    """All plates of a filter, by pages of ``limit``."""
    found: list[PlateRow] = []
    at = PlateFilter(**chosen)  # type: ignore[arg-type]
    while True:
        page = db.read(plate_list.plates, ANN, at, NOW, limit)
        assert len(page.rows) <= limit
        found += page.rows
        if page.after is None:
            return found
        assert len(page.rows) == limit
        at = replace(at, after=page.after)


PLATES_OF: Final[list[tuple[dict[str, object], str | None]]] = [
    ({}, "6543210"),
    ({"source": "minstrel"}, "6420"),
    ({"source": "nobody"}, ""),
    ({"project": "kinase"}, "10"),
    ({"text": "a3"}, "3"),
    ({"text": "BÄR"}, "6543210"),
    ({"text": "50%_"}, "3"),
    ({"text": "%"}, "3"),
    ({"text": "KIN"}, "10"),
    ({"text": "none"}, ""),
    ({"since": "36d"}, "654"),
    ({"since": "2026-01-01"}, None),
    ({"since": "soon"}, "6543210"),
    ({"incomplete": True}, "6"),
    ({"incomplete": True, "source": "rock"}, ""),
    ({"new_hits": True}, ""),
    ({"source": "rock", "since": "36d"}, "5"),
    ({"project": "kinase", "text": "a1"}, "1"),
]


def test_plates_pass_their_filters_in_order(db: Database, lab: None, way: str) -> None:
    for chosen, keys in PLATES_OF:
        found = [row.key.removeprefix("A") for row in plates_of(db, **chosen)]
        assert found == sorted(set(found), reverse=True), chosen
        assert keys is None or "".join(found) == keys, chosen


def test_new_hits_are_those_of_the_latest_inspection_within_a_month(db: Database, lab: None, way: str) -> None:
    now = utc(days=5, hours=3)
    page = db.read(plate_list.plates, ANN, PlateFilter(new_hits=True), now)
    assert [(row.key, row.new_hits, row.hits, row.unlabelled_hits) for row in page.rows] == [
        ("A5", 1, 2, 2), ("A3", 1, 2, 2), ("A1", 1, 2, 2),
    ]  # fmt: skip
    late = db.read(plate_list.plates, ANN, PlateFilter(new_hits=True), utc(days=32))
    assert [row.key for row in late.rows] == ["A5", "A3"]


def test_a_row_tells_where_the_plate_stands(db: Database, lab: None) -> None:
    last, *_, first = plates_of(db)
    assert (first.key, first.barcode, first.project, first.inspection_key, first.inspections) == (
        "A0", "Bär0", "kinase", "2", 2,
    )  # fmt: skip
    assert (first.seen, first.scored, first.expected, first.complete, first.failed) == (3, 3, 3, True, 0)
    assert (last.seen, last.scored, last.complete) == (2, 2, False)
    assert last.last_image_at == utc(days=6, hours=2)


def test_the_latest_inspection_is_that_of_the_plates_course(db: Database, lab: None) -> None:
    """An old inspection that comes late brings its plate to the top, with its latest inspection."""
    version = register(db, "other")
    record(db, register_source(db, "third"), sightings(1, "C1", "7"), utc(days=8))
    record(db, 1, sightings(3, "A0", "0", barcode="Bär0"), utc(days=9))
    drain(db, version, utc(days=9))
    rows = plates_of(db)
    assert [row.key for row in rows][:2] == ["A0", "C1"]
    assert (rows[0].inspection_key, rows[0].inspections, rows[0].complete) == ("2", 3, True)


# Hits, beside the view that a LIMS reads.


def hits_of(db: Database, limit: int = 4, now: datetime = NOW, **chosen: object) -> list[HitRow]:
    found: list[HitRow] = []
    at = HitFilter(**chosen)  # type: ignore[arg-type]
    while True:
        page = db.read(hit_list.hits, ANN, at, now, limit)
        found += page.rows
        if not page.after:
            return found
        assert len(page.rows) == limit
        at = replace(at, after=page.after)


HITS_OF: Final[list[tuple[dict[str, object], dict[str, object]]]] = [
    ({}, {}),
    ({"source": "rock"}, {"source_name": "rock"}),
    ({"source": "nobody"}, {"source_name": "nobody"}),
    ({"project": "kinase"}, {"project": "kinase"}),
    ({"new": True}, {"new": True}),
    ({"since": "37d"}, {"since": utc(days=3)}),
    ({"since": "37d", "source": "rock"}, {"since": utc(days=3), "source_name": "rock"}),
]


def test_hits_are_those_of_the_view(db: Database, lab: None, way: str) -> None:
    for chosen, told in HITS_OF:
        by: dict[str, Any] = {"since": None, **told}
        of_view = db.read(lambda c, w=by: reports.hits(c, w.pop("since"), 1000, **w))
        for order in ("best", "newest"):
            found = hits_of(db, order=order, **chosen)
            assert sorted(hit.hit_id for hit in found) == sorted(hit.hit_id for hit in of_view), chosen
            keys = [hit.p_crystals if order == "best" else hit.found_at.timestamp() for hit in found]
            assert keys == sorted(keys, reverse=True), chosen  # type: ignore[type-var]


def test_a_row_is_that_of_the_view(db: Database) -> None:
    populated.populate(db)
    of_view = {hit.hit_id: hit for hit in db.read(lambda c: reports.hits(c, None, 1000))}
    found = {hit.hit_id: hit for hit in hits_of(db)}
    assert found.keys() == of_view.keys()
    for hit_id, hit in of_view.items():
        assert {name: getattr(found[hit_id], name) for name in reports.Hit.__dataclass_fields__} == {
            name: getattr(hit, name) for name in reports.Hit.__dataclass_fields__
        }


def test_crystals_by_label_alone_come_last_and_are_not_repeated(db: Database, client: TestClient, lab: None) -> None:
    record(db, 1, sightings(5, "Z1", "1", modality=Modality.UV), utc(days=9))
    dark = db.read(
        lambda c: c.execute(
            sa.text('select "drop".id, inspection.id from "drop" join plate on plate.id = "drop".plate_id '
                    "join inspection on inspection.plate_id = plate.id where plate.key = 'Z1'")
        ).all()
    )  # fmt: skip
    given = [NewLabel(d, i, DropClass.CRYSTALS, "bob", utc(days=9), "test") for d, i in dark]
    db.write(lambda c: recorder.add(c, given, utc(days=9)))
    of_view = db.read(lambda c: reports.hits(c, None, 1000))
    found = hits_of(db, limit=2)
    assert [hit.p_crystals is None for hit in found] == sorted(hit.p_crystals is None for hit in found)
    assert sorted(hit.hit_id for hit in found) == sorted(hit.hit_id for hit in of_view)
    assert len(hits_of(db, unlabelled=True)) == len([hit for hit in of_view if hit.label_person is None])


def test_a_person_sees_what_they_follow_and_what_was_harvested(db: Database, client: TestClient, lab: None) -> None:
    hit = hits_of(db)[0]
    for person in ("ann", "bob"):
        row = {"drop_id": hit.drop_id, "person": person, "since": NOW}
        db.write(lambda c, r=row: c.execute(sa.insert(follow).values(r)))
    assert [(one.drop_id, one.followed) for one in hits_of(db, followed=True)] == [(hit.drop_id, True)]
    for number, (kind, count) in enumerate((("harvested", 1), ("unharvested", 0), ("harvested", 1))):
        mark = {"drop_id": hit.drop_id, "inspection_id": hit.inspection_id, "kind": kind, "text": "", "person": "ann"}
        times = {"marked_at": NOW + timedelta(seconds=number)}
        db.write(lambda c, m=mark | times: c.execute(sa.insert(populated.drop_mark).values(m)))
        assert len(hits_of(db, harvested="yes")) == count
        assert len(hits_of(db, harvested="no")) + count == len(hits_of(db))
    assert "harvested" in client.get("/hits").text


def test_a_hit_that_an_audit_asks_about_is_not_shown_before_the_answer(db: Database, lab: None) -> None:
    hit = hits_of(db)[0]
    image_id = db.read(lambda c: c.exec_driver_sql(f"select image_id from hit where id = {hit.hit_id}").scalar_one())
    item = {
        "drop_id": hit.drop_id, "inspection_id": hit.inspection_id, "image_id": image_id, "stream": "audit",
        "reason": "audit", "model_version_id": 1, "rank": 0.0, "proposed_at": NOW, "person": "ann", "shown_at": NOW,
    }  # fmt: skip
    db.write(lambda c: c.execute(sa.insert(review_item).values(item)))
    assert hit.drop_id not in {one.drop_id for one in hits_of(db)}
    other = db.read(hit_list.hits, User("bob", UserRole.LABELLER), HitFilter(), NOW)
    assert hit.drop_id in {one.drop_id for one in other.rows}
    db.write(lambda c: c.execute(sa.update(review_item).values(answered_at=NOW, answer="Crystals")))
    assert hit.drop_id in {one.drop_id for one in hits_of(db)}


# By the browser.


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_all_rows_of_the_filter(
    client: TestClient, db: Database, lab: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plate_list, "CSV_PORTION", 2)
    monkeypatch.setattr(hit_list, "CSV_PORTION", 3)
    answer = client.get("/plates.csv?source=rock&after=1")
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert "plates.csv" in answer.headers["Content-Disposition"]
    rows = table(answer.text)
    assert [row["key"] for row in rows] == ["A5", "A3", "A1"]
    assert set(rows[0]) == set(pages.PLATE_COLUMNS)
    hits = table(client.get("/hits.csv?project=kinase").text)
    assert {(row["plate_key"], row["well"]) for row in hits} == {("A0", "A01"), ("A1", "A01"), ("A1", "A02")}
    assert set(hits[0]) >= set(reports.Hit.__dataclass_fields__)
    db.write(lambda c: c.execute(sa.update(plate).values(project="=1+1")))
    assert {row["project"] for row in table(client.get("/plates.csv").text)} == {"'=1+1"}


CHANGED: Final = (
    "after=x", "after=-1", "after=99999999999999999999", "order=newest&after=2026-01-01_5", "after=nan_x", "after=1_",
    "since=99999999d", "since=%00", "text=%00", "source=%F0%9F%98%80", "project=" + "x" * 5000, "new=2&incomplete=x",
)  # fmt: skip


def test_an_address_that_somebody_changed_is_read_as_far_as_it_goes(
    client: TestClient, db: Database, lab: None
) -> None:
    for path in ("/", "/hits"):
        for query in CHANGED:
            assert client.get(f"{path}?{query}").status_code == 200, (path, query)


def test_names_with_markup_are_text(client: TestClient, db: Database, champion: object, source_id: int) -> None:
    bad = '<img src=x onerror="alert(1)">'
    record(db, source_id, sightings(2, "P1", barcode=bad))
    drain(db, champion, scores=lambda c: CRYSTALS)  # type: ignore[arg-type]
    db.write(lambda c: c.execute(sa.update(plate).values(project="\"'><script>alert(1)</script>")))
    for path in ("/", "/hits", f"/?text={bad}", f"/hits?project={bad}&since={bad}"):
        text = client.get(path).text
        assert "<img src=x" not in text
        assert "<script>" not in text
    assert "&lt;img src=x" in client.get("/").text


def test_a_page_leads_to_the_next_with_its_filters(
    client: TestClient, db: Database, lab: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plate_list.plates, "__defaults__", (2,))
    monkeypatch.setattr(hit_list.hits, "__defaults__", (2,))
    follows: list[tuple[str, Callable[[str], int]]] = [
        ("/?source=minstrel", lambda text: len(re.findall(r'<th scope="row">', text))),
        ("/hits?source=rock&order=newest", lambda text: len(re.findall(r'class="card"', text))),
    ]
    for first, count in follows:
        seen, address = 0, first
        while True:
            text = client.get(address.replace("&amp;", "&")).text
            seen += count(text)
            onward = re.search(r'rel="next" href="([^"]+)"', text)
            if onward is None:
                break
            address = onward[1]
            assert "source=" in address
        assert seen == (4 if first.startswith("/?") else 6)
