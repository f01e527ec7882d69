"""Models, training runs and status on the page."""

import factories
import populated
from finished_runs import NUMBERS, ran
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.store import promotions
from marcod.store.versions import Version


def test_a_run_shows_the_checks_of_the_gate_and_no_secret(client: TestClient, db: Database, champion: Version) -> None:
    reasons = ["recall falls by <4 %>; `marcod train show` says more"]
    number = ran(db, state="refused", candidate="lab:2", reasons=reasons, numbers=NUMBERS)
    listed = client.get("/models").text
    assert f'href="/models/run/{number}"' in listed
    assert "refused" in listed
    shown = client.get(f"/models/run/{number}").text
    assert "40 of 30 drops" in shown
    assert "recall falls by &lt;4 %&gt;; <code>marcod train show</code> says more" in shown
    assert "0.91" in shown
    assert "0.87" in shown
    assert "the token" not in listed + shown
    assert client.get("/models/run/99").status_code == 404
    assert client.get("/models/run/x").status_code == 404


def test_models_are_listed_with_the_champion_first(client: TestClient, db: Database, champion: Version) -> None:
    factories.register(db, "other")
    text = client.get("/models").text
    assert text.index("small:1") < text.index("other:1")
    assert "No audit of small:1 has been drawn yet" in text
    shown = client.get("/models/small:1").text
    assert champion.digest in shown
    assert client.get("/models/none:1").status_code == 404
    assert client.get("/models/nonsense").status_code == 404


def test_who_becomes_champion_is_shown_with_how_far_that_is(
    client: TestClient, db: Database, source_id: int, champion: Version
) -> None:
    factories.record(db, source_id, factories.sightings(2))
    coming = factories.register(db, "other")
    db.write(lambda c: promotions.begin(c, coming, actor="ann", now=factories.utc()))
    assert "becoming champion: 1 of 1 plate<" in client.get("/models").text
    assert "other:1, 1 of 1 plate since 2026-01-01" in client.get("/status").text


def test_the_notice_of_a_bundle_is_one_line_that_can_be_read(client: TestClient) -> None:
    shown = client.get("/models/lite0:1").text
    assert "\ufffd" not in shown
    assert shown.count("photographs and flags") == 1
    assert "<dd>efficientnet-lite0, 224 x 224 pixels</dd>" in shown


def test_without_a_champion_the_pages_answer(client: TestClient) -> None:
    assert client.get("/models").status_code == 200
    text = client.get("/status").text
    assert "Needs attention" in text
    assert "broken" in text


def test_the_status_says_what_the_command_says(client: TestClient, db: Database) -> None:
    populated.populate(db)
    text = client.get("/status").text
    assert "no marcod runs; <code>marcod run</code> starts one" in text
    assert "1 image in quarantine" in text
    assert "rock-imager" in text
