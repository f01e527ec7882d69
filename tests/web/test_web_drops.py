"""Pages of plates and drops: what they tell, and that nothing else can be asked of them."""

from typing import Any

import pytest
import sqlalchemy as sa
from factories import CLEAR, CRYSTALS, drain, record, sightings, utc
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.database.schema import drop, inspection
from marcod.domain import DropClass, Modality
from marcod.labels import recorder
from marcod.store.versions import Version
from marcod.store.votes import NewLabel
from marcod.web.plate_cells import By, legend


def ids(db: Database, table: sa.Table, *order: Any) -> list[int]:
    return list(db.read(lambda c: c.execute(sa.select(table.c.id).order_by(*(order or (table.c.id,)))).scalars().all()))


@pytest.fixture
def plate(db: Database, champion: Version, source_id: int) -> None:
    """Three drops at two inspections: A01 grows crystals, A02 has them always; and one UV image of A01."""
    for number in (1, 2):
        record(db, source_id, sightings(3, inspection=str(number)), utc(hours=number))
        hits = ("A02",) if number == 1 else ("A01", "A02")
        drain(
            db, champion, utc(hours=number), scores=lambda c, h=hits: CRYSTALS if any(w in c.path for w in h) else CLEAR
        )
    record(db, source_id, sightings(1, inspection="2", modality=Modality.UV), utc(hours=3))


def say(db: Database, drop_id: int, inspection_id: int, word: DropClass, person: str = "bob") -> None:
    given = NewLabel(drop_id, inspection_id, word, person, utc(hours=9), "test")
    db.write(lambda c: recorder.add(c, [given], utc(hours=9)))


def test_a_plate_tells_what_each_drop_is(client: TestClient, db: Database, plate: None) -> None:
    first, second = ids(db, inspection)
    shown = client.get("/api/plate/1").json()
    assert shown["inspection"] == second
    assert [(tab["id"], tab["hits"], tab["new"]) for tab in shown["inspections"]] == [(first, 1, 1), (second, 2, 1)]
    assert shown["grid"] == {"rows": 8, "columns": 12, "across": 1, "down": 1}
    assert shown["counts"] == {"hit": 2, "Clear": 1}
    a01, a02, a03 = shown["cells"]
    assert (a01["well"], a01["letter"], a01["style"], a01["trend"], a01["new"]) == (
        "A01",
        "X",
        "hit",
        "appearing",
        True,
    )
    assert (a02["trend"], a02["new"], a02["p"], a02["best"]) == ("steady", False, 0.9, 0.9)
    assert (a03["mark"], a03["hit"], a03["person"]) == ("Clear", False, None)
    assert a01["thumb"].startswith(f"/image/{a01['image']}/thumb/")
    before = client.get(f"/api/plate/1/{first}?by=probability").json()
    assert [cell["letter"] for cell in before["cells"]] == ["0", "9", "0"]
    assert before["cells"][0]["best"] == 0.9


def test_a_label_wins_and_a_disagreement_shows(client: TestClient, db: Database, plate: None) -> None:
    a01, a02, a03 = ids(db, drop)
    second = ids(db, inspection)[1]
    say(db, a01, second, DropClass.PRECIPITATE)
    say(db, a02, second, DropClass.CRYSTALS, "ann")
    cells = client.get("/api/plate/1?by=disagreement").json()["cells"]
    assert [(c["label"], c["person"], c["mine"], c["differs"], c["letter"]) for c in cells] == [
        ("Precipitate", "bob", None, True, "!"),
        ("Crystals", "ann", "Crystals", False, "="),
        ("Clear", None, None, False, ""),
    ]
    shown = client.get("/api/plate/1?class=disagreement&sort=probability").json()
    assert shown["gallery"] == [a01]
    assert client.get("/api/plate/1?class=unlabelled").json()["gallery"] == [a03]


def test_neighbours_stay_when_a_label_takes_the_drop_out_of_the_list(
    client: TestClient, db: Database, plate: None
) -> None:
    a01, a02, a03 = ids(db, drop)
    second = ids(db, inspection)[1]
    address = f"/api/drop/{a02}?from=plate&inspection={second}&class=unlabelled"
    before = client.get(address).json()["neighbours"]
    assert (before["previous"]["drop"], before["next"]["drop"], before["place"], before["total"]) == (a01, a03, 2, 3)
    say(db, a02, second, DropClass.CLEAR)
    after = client.get(address).json()["neighbours"]
    assert (after["previous"]["drop"], after["next"]["drop"]) == (a01, a03)
    assert "class=unlabelled" in after["next"]["address"]


def test_a_drop_tells_its_whole_story(client: TestClient, db: Database, plate: None, champion: Version) -> None:
    a01 = ids(db, drop)[0]
    first, second = ids(db, inspection)
    say(db, a01, first, DropClass.CLEAR)
    shown = client.get(f"/api/drop/{a01}").json()
    assert shown["inspection"] == second
    assert shown["drop"] == {"id": a01, "name": "A01.1", "well": "A01", "row": 1, "column": 1, "number": 1}
    assert [(look["name"], look["label"], look["person"]) for look in shown["looks"]] == [
        ("1", "Clear", "bob"),
        ("2", "Crystals", None),
    ]
    assert [image["modality"] for image in shown["looks"][1]["images"]] == ["visible", "uv"]
    assert shown["looks"][1]["probabilities"]["Crystals"] == 0.9
    assert [score["model"] for score in shown["scores"]] == [str(champion)]
    assert [(given["label"], given["counts"], given["inspection"]) for given in shown["labels"]] == [
        ("Clear", True, first)
    ]
    assert (shown["now"]["trend"], shown["um_per_px"]) == ("appearing", None)


def test_a_drop_leads_back_to_the_list_that_one_came_from(client: TestClient, db: Database, plate: None) -> None:
    a01, first = ids(db, drop)[0], ids(db, inspection)[0]
    of_plate = client.get(f"/drop/{a01}?from=plate&class=hit&sort=probability&inspection={first}").text
    assert 'href="/plate/imager/P1/1?sort=probability&amp;class=hit" id="plate"' in of_plate
    assert '<a href="/" aria-current="true">Plates</a>' in of_plate
    of_hits = client.get(f"/drop/{a01}?from=hits&order=newest").text
    assert '<a href="/hits?order=newest">hits</a>' in of_hits
    assert 'href="/plate/imager/P1/2" id="plate"' in of_hits
    assert '<a href="/hits" aria-current="true">Hits</a>' in of_hits


def test_an_inspection_of_another_plate_stands_for_the_one_before(
    client: TestClient, db: Database, plate: None
) -> None:
    a01 = ids(db, drop)[0]
    first, second = ids(db, inspection)
    for shown, beside in ((second, first), (first, second)):
        answer = client.get(f"/api/drop/{a01}?inspection={shown}&at=999").json()
        assert (answer["inspection"], answer["beside"]["inspection"]) == (shown, beside)


def test_the_bars_stand_in_the_order_of_the_buttons(client: TestClient, db: Database, plate: None) -> None:
    shown = client.get(f"/api/drop/{ids(db, drop)[0]}").json()
    assert list(shown["looks"][1]["probabilities"]) == ["Crystals", "Precipitate", "Clear", "Other"]


@pytest.mark.parametrize("by", ["now", "disagreement", "trend"])
def test_the_legend_has_every_letter_of_the_map(client: TestClient, db: Database, plate: None, by: By) -> None:
    say(db, ids(db, drop)[0], ids(db, inspection)[1], DropClass.CLEAR)
    cells = client.get(f"/api/plate/1?by={by}").json()["cells"]
    explained = {(entry.letter, entry.style) for entry in legend(by, "")}
    assert {(cell["letter"], cell["style"]) for cell in cells} <= explained


def test_a_map_tells_what_persons_said(client: TestClient, db: Database, plate: None) -> None:
    say(db, ids(db, drop)[0], ids(db, inspection)[1], DropClass.CLEAR)
    assert client.get("/plate/imager/P1").text.count("by-person clear") == 1
    assert "by-person" not in client.get("/plate/imager/P1?by=trend").text


def test_pages_are_found_by_names(client: TestClient, db: Database, plate: None) -> None:
    assert client.get("/plate/imager/P1").status_code == 200
    assert client.get("/plate/imager/P1/1").status_code == 200
    assert client.get(f"/drop/{ids(db, drop)[0]}").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/plate/imager/P2", "/plate/imager/P1/9", "/plate/other/P1", "/plate/imager/../../etc", "/drop/0", "/drop/-1",
        "/drop/999", "/drop/1000000000000000000", "/drop/9999999999999999999", "/drop/1e3", "/drop/x", "/drop/١",
        "/api/plate/1/999", "/api/plate/99", "/api/drop/99", "/api/drop/1?inspection=99", "/api/drop/1?compare=99",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(client: TestClient, plate: None, path: str) -> None:
    assert client.get(path).status_code == 404


def test_names_with_markup_are_text(client: TestClient, db: Database, champion: Version, source_id: int) -> None:
    record(db, source_id, sightings(1, plate="<script>alert(1)</script>", barcode="<img src=x onerror=alert(1)>"))
    drain(db, champion)
    text = client.get("/drop/1").text
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_the_neighbours_of_a_hit_are_those_of_the_gallery(client: TestClient, db: Database, plate: None) -> None:
    a01, a02, a03 = ids(db, drop)
    second = ids(db, inspection)[1]
    query = "from=hits&unlabelled=1"
    listed = client.get(f"/api/order/{a02}?{query}").json()
    assert listed["query"] == query
    assert [entry["drop"] for entry in listed["entries"]] == [a02, a01]
    assert listed["entries"][1]["name"] == "P1 A01.1"
    assert listed["entries"][0]["address"].startswith(f"/drop/{a02}?{query}&inspection=")
    around = client.get(f"/api/drop/{a02}?{query}&inspection={second}").json()["neighbours"]
    assert (around["previous"], around["next"]["drop"], around["place"], around["total"]) == (None, a01, 1, 2)
    # A label takes it out of the list; what came after it still does.
    say(db, a02, second, DropClass.CLEAR)
    assert [e["drop"] for e in client.get(f"/api/order/{a02}?{query}").json()["entries"]] == [a02, a01]
    assert [e["drop"] for e in client.get(f"/api/order/{a03}?{query}").json()["entries"]] == [a03, a01]
    assert client.get(f"/drop/{a02}?{query}").status_code == 200
