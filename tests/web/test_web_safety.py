"""What the page refuses before any route sees it."""

import pytest
from browsing import PAGE
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.settings import Settings
from marcod.web import safety
from marcod.web.app import build

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
