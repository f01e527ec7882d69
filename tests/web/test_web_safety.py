"""What the page refuses before any route sees it, and what every route refuses."""

import re

import pytest
from browsing import PAGE
from starlette.routing import Route
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.settings import Settings
from marcod.web import safety
from marcod.web.app import build, routes

sqlite_alone = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@sqlite_alone
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example.org"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"},
        {"Origin": PAGE, "Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example.org", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_a_foreign_page_changes_nothing(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/logout", headers=headers)
    assert answer.status_code == 403
    assert "does not come from a page of this marcod" in answer.text


@sqlite_alone
def test_a_request_without_origin_changes_nothing(db: Database, web_settings: Settings) -> None:
    assert TestClient(build(web_settings, db), base_url=PAGE).post("/logout").status_code == 403


@sqlite_alone
@pytest.mark.parametrize("host", ["elsewhere.example.org", "127.0.0.1.example.org:8750", "[::1", ""])
def test_another_host_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 400


@sqlite_alone
@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:8750"])
def test_names_of_this_machine_are_served(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


HOSTILE = [
    "0", "-1", str(10**18), str(10**40), "abc", "1.0", "1e0", "\u0661", "..", "%2e%2e",
    "%2e%2e%2fetc", "..%5cetc", "%00", "1%00", "%F0%9F%98%80", "%FF", "'; drop table label; --", "x" * 5000,
]  # fmt: skip


@sqlite_alone
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda value: value[:20])
def test_every_route_with_an_id_or_a_key_refuses_what_is_none(client: TestClient, hostile: str) -> None:
    asked = 0
    for route in routes():
        assert isinstance(route, Route)
        names = re.findall(r"\{(\w+)[^}]*\}", route.path)
        for name in names:
            path = re.sub(r"\{(\w+)[^}]*\}", lambda found: hostile if found[1] == name else "1", route.path)  # noqa: B023
            answer = client.get(path)
            # A path that begins again after dots is another one, where everybody may go.
            assert answer.status_code in (400, 404) or (".." in hostile and answer.url.path != path), (path, answer)
            assert "Traceback" not in answer.text
            assert "root:" not in answer.text
            asked += 1
    assert asked >= 12


@sqlite_alone
def test_every_answer_carries_the_headers(client: TestClient) -> None:
    for path in ("/", "/nothing-here", "/static/x/page.css"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in safety.HEADERS} == safety.HEADERS
    assert client.get("/").headers["Cache-Control"] == "no-store"


@sqlite_alone
def test_a_long_body_is_refused_whatever_it_says_of_its_length(client: TestClient) -> None:
    def chunks() -> object:
        for _ in range(safety.BODY_LIMIT // 1024 + 1):
            yield b"x" * 1024

    told = client.post(
        "/api/labels", content=b"x" * (safety.BODY_LIMIT + 1), headers={"Content-Type": "application/json"}
    )
    assert told.status_code == 413
    json = client.post("/api/labels", content=b"{}", headers={"Content-Type": "text/plain"})
    assert json.status_code == 415
