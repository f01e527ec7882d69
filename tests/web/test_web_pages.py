"""Pages that only show, on both databases."""

import re

import factories
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.store.versions import Version


def test_an_empty_database_says_what_to_do(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "No plate has arrived yet" in answer.text
    assert "ann" in answer.text


def test_plates_are_listed_with_their_latest_inspection(
    client: TestClient, db: Database, champion: Version, source_id: int
) -> None:
    factories.record(db, source_id, factories.sightings(3))
    factories.drain(db, champion)
    text = client.get("/").text
    assert "P1" in text
    assert "3<small>/3</small>" in text


def test_a_style_sheet_is_kept_under_the_address_of_its_content(client: TestClient) -> None:
    address = re.search(r'href="(/static/[^"]+page\.css)"', client.get("/").text)
    assert address is not None
    answer = client.get(address[1])
    assert answer.status_code == 200
    assert "immutable" in answer.headers["Cache-Control"]
    assert client.get("/static/000000000000/page.css").headers["Location"] == address[1]
    assert client.get("/static/x/..%2f..%2fapp.py").status_code == 404
