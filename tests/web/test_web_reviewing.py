"""The review on the page: who is asked what, no score in an audit, and what labels of many drops do not count for."""

import hashlib
import json
import random
from typing import Any

import pytest
import sqlalchemy as sa
from browsing import OnePerson
from factories import drain, record, rows, sightings, utc
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.database.schema import drop, drop_summary, label, review_item
from marcod.review import desk, sampling
from marcod.review.queue import Stream
from marcod.review.sampling import Stratum
from marcod.settings import ReviewSettings, Settings
from marcod.store.versions import Version
from marcod.web.access import User, UserRole

ANN, BOB = User("ann", UserRole.LABELLER), User("bob", UserRole.LABELLER)
SHARES = (0.9, 0.7, 0.52, 0.48, 0.3, 0.1)


@pytest.fixture
def plate(db: Database, champion: Version, source_id: int) -> None:
    record(db, source_id, sightings(len(SHARES)))
    of = {f"A{number:02}": p for number, p in enumerate(SHARES, start=1)}
    drain(
        db,
        champion,
        hashes=lambda c: hashlib.sha256(c.path.encode()).hexdigest(),
        scores=lambda c: (1 - of[c.path[-7:-4]], of[c.path[-7:-4]], 0.0, 0.0),
    )


@pytest.fixture
def audit(db: Database, champion: Version, plate: None) -> None:
    """Every drop is drawn, and nothing else waits."""

    def work(connection: sa.Connection) -> None:
        sampling.start_draw(connection)
        strata = [Stratum(True, 3, 3), Stratum(False, 3, 3)]
        sampling.draw(connection, champion, strata, 1, utc(hours=1))

    db.write(work)


@pytest.fixture
def web_settings(web_settings: Settings) -> Settings:
    """Nothing is drawn by itself."""
    return web_settings.model_copy(update={"review": ReviewSettings(audit_share=0.0, threshold_share=1.0)})


def ask(client: TestClient, *besides: int) -> Any:
    answer = client.post("/api/review/next", json={"besides": list(besides)})
    assert answer.status_code == 200, answer.text
    return answer.json()["item"]


def say(client: TestClient, item: int, word: str, key: str) -> Any:
    return client.post("/api/review/answer", json={"item": item, "answer": word, "key": key})


def test_two_people_get_different_drops_and_each_three_ahead(
    client: TestClient, person: OnePerson, plate: None
) -> None:
    held: list[int] = []
    for who in (ANN, BOB):
        person.user, mine = who, []
        for _ in range(3):
            mine.append(ask(client, *mine)["item"])
        assert ask(client)["item"] in mine, "held before"
        held += mine
    assert len(set(held)) == len(SHARES)
    assert ask(client, *held) is None


def test_an_answer_is_a_label_once_and_can_be_taken_back(client: TestClient, db: Database, plate: None) -> None:
    first = ask(client)
    assert (first["stream"], first["name"], first["inspection_name"]) == ("threshold", "A03.1", "1")
    assert first["probabilities"]["Crystals"] == pytest.approx(0.52)
    assert first["images"][0]["view"].startswith("/image/")
    saved = say(client, first["item"], "Clear", "request-a").json()["saved"]
    assert (saved["state"], saved["now"]["label"], saved["item"]["answer"]) == ("saved", "Clear", "Clear")
    assert say(client, first["item"], "Clear", "request-a").json()["saved"] == saved
    assert rows(db, sa.select(label.c.label, label.c.origin)) == [("Clear", "review")]
    assert ask(client)["item"] != first["item"]
    undone = client.post("/api/review/undo", json={"item": first["item"]}).json()["saved"]
    assert (undone["now"]["person"], undone["item"]["answer"]) == (None, None)
    assert client.post("/api/review/undo", json={"item": first["item"]}).json()["saved"] == undone
    # The first answer comes once more, late: it neither labels nor closes again.
    say(client, first["item"], "Clear", "request-a")
    assert ask(client)["item"] == first["item"]
    assert say(client, first["item"], "skip", "request-b").json()["saved"]["item"]["answer"] == "skip"
    assert client.post("/api/review/undo", json={"item": first["item"]}).status_code == 200


def test_what_is_released_is_offered_to_others(client: TestClient, person: OnePerson, plate: None) -> None:
    first = ask(client)["item"]
    assert client.post("/api/review/release", json={"items": [first]}).json() == {}
    person.user = BOB
    assert ask(client)["item"] == first
    person.user = ANN
    assert say(client, first, "skip", "request-a").status_code == 409
    assert client.post("/api/review/undo", json={"item": first}).status_code == 409
    assert client.post("/api/review/undo", json={"item": 999}).status_code == 404


def numbers_in(value: Any) -> set[float]:
    """Every number that a program could read as a probability."""
    if isinstance(value, dict):
        return set().union(*(numbers_in(each) for each in value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*(numbers_in(each) for each in value)) if value else set()
    return {value} if isinstance(value, float) else set()


def test_a_drop_of_an_audit_shows_no_score_until_answered(client: TestClient, db: Database, audit: None) -> None:
    item = ask(client)
    assert (item["stream"], item["probabilities"], item["model"]) == ("audit", {}, None)
    score = SHARES[item["drop"] - 1]
    of_drop = client.get(f"/api/drop/{item['drop']}").json()
    look = of_drop["looks"][0]
    assert (look["state"], look["p"], look["label"], look["hit"]) == ("audit", None, None, False)
    assert (of_drop["scores"], of_drop["now"]["label"], of_drop["now"]["best"]) == ([], None, None)
    cell = next(c for c in client.get("/api/plate/1").json()["cells"] if c["drop"] == item["drop"])
    assert (cell["state"], cell["p"], cell["best"], cell["trend"], cell["letter"]) == ("audit", None, None, None, "?")
    for told in (item, look, of_drop["now"], cell):
        assert not {n for n in numbers_in(told) if abs(n - score) < 1e-6}
    for page in (f"/drop/{item['drop']}", "/review"):
        assert str(score) not in client.get(page).text
    heat = item["images"][0]["heat"]
    assert "random audit" in client.get(heat).json()["error"]
    saved = say(client, item["item"], "Clear", "request-a").json()["saved"]
    assert saved["item"]["probabilities"]["Crystals"] == pytest.approx(score)


def test_labels_of_several_drops_answer_no_audit(
    client: TestClient, person: OnePerson, db: Database, champion: Version, audit: None
) -> None:
    every = [row[0] for row in rows(db, sa.select(drop.c.id).order_by(drop.c.id))]
    several = [{"drop": n, "inspection": 1, "key": f"several-{n}", "label": "Clear"} for n in every]
    answer = client.post("/api/labels", json={"labels": several, "several": True}).json()["saved"]
    assert all(each["state"] == "saved" for each in answer)
    (drawn,) = db.read(lambda c: sampling.rounds(c, champion))
    assert [(t.answered, t.open) for t in db.read(sampling.tallies, drawn)] == [(0, 3), (0, 3)]
    # The one who labelled them all is asked about each, and says otherwise.
    for number in range(len(every)):
        item = ask(client)
        assert item["stream"] == "audit"
        say(client, item["item"], "Crystals", f"request-{number}")
    assert ask(client) is None or ask(client)["stream"] != "audit"
    assert [(t.answered, t.crystals) for t in db.read(sampling.tallies, drawn)] == [(3, 3), (3, 3)]
    again = [each | {"key": f"again-{each['drop']}"} for each in several]
    client.post("/api/labels", json={"labels": again, "several": True})
    assert [(t.answered, t.crystals) for t in db.read(sampling.tallies, drawn)] == [(3, 3), (3, 3)]
    # A label of one drop counts as ever.
    one = {"drop": every[0], "inspection": 1, "key": "request-one", "label": "Clear"}
    client.post("/api/labels", json={"labels": [one]})
    assert sum(t.crystals for t in db.read(sampling.tallies, drawn)) == 5


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_recall_is_the_same_with_and_without_labels_of_several_drops(
    client: TestClient, db: Database, champion: Version, source_id: int
) -> None:
    """A lab of which a person calls all that the model does not flag clear, at once and unseen."""
    draw = random.Random(7)
    record(db, source_id, sightings(300))
    truth: dict[str, bool] = {}

    def score(claim: Any) -> tuple[float, float, float, float]:
        p = draw.betavariate(0.6, 2.0)
        truth[claim.path[-7:-4].strip("/.")] = draw.random() < p
        return 1 - p, p, 0.0, 0.0

    drain(db, champion, scores=score)
    wells = {row.id: row.well for row in rows(db, sa.select(drop.c.id, drop.c.well))}
    desk.fill(db, ReviewSettings(audit_drops=100), utc(hours=1), new_audit=True)
    drawn = {row[0] for row in rows(db, sa.select(review_item.c.drop_id).where(review_item.c.stream == Stream.AUDIT))}
    assert len(drawn) == 100
    unflagged = [row[0] for row in rows(db, sa.select(drop_summary.c.drop_id).where(~drop_summary.c.hit))]
    several = [{"drop": n, "inspection": 1, "key": f"several-{n}", "label": "Clear"} for n in unflagged]
    client.post("/api/labels", content=json.dumps({"labels": several, "several": True}), headers=JSON)
    assert desk.report(db).recall is None, "nobody has looked"
    answers = [
        {"drop": n, "inspection": 1, "key": f"request-{n}", "label": "Crystals" if truth[wells[n]] else "Clear"}
        for n in sorted(drawn)
    ]
    client.post("/api/labels", json={"labels": answers})
    found = desk.report(db)
    assert (found.answered, found.open) == (100, 0)
    db.write(lambda c: c.execute(sa.delete(label).where(label.c.origin == "web several")))
    without = desk.report(db)
    assert (found.recall, found.low, found.high) == (without.recall, without.low, without.high)
    assert found.crystals_unflagged > 0


JSON = {"Content-Type": "application/json"}
