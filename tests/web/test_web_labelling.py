"""Labels and marks by the page: each once, by the person whom the server knows, and taken back as they were."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from browsing import OnePerson, browser
from factories import CLEAR, CRYSTALS, drain, record, rows, sightings, utc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from marcod.database.engine import Database
from marcod.database.schema import drop, drop_mark, drop_summary, follow, inspection, label
from marcod.domain import DropClass
from marcod.labels import recorder, requests
from marcod.labels.requests import LabelRequest
from marcod.plates import reports
from marcod.settings import Settings
from marcod.store.versions import Version
from marcod.store.votes import NewLabel
from marcod.web.access import User, UserRole

sqlite_alone = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
WORDS = (DropClass.CLEAR, DropClass.CRYSTALS, None)


@pytest.fixture
def plate(db: Database, champion: Version, source_id: int) -> None:
    record(db, source_id, sightings(4))
    drain(db, champion, scores=lambda c: CRYSTALS if "A01" in c.path else CLEAR)


class Pen:
    """A person at the page of the plate's only inspection."""

    def __init__(self, client: TestClient) -> None:
        self.client, self.count = client, 0

    def key(self) -> str:
        self.count += 1
        return f"request-{self.count:04}"

    def send(self, *givens: dict[str, Any], several: bool = False, path: str = "/api/labels") -> Any:
        return self.client.post(path, json={"labels": list(givens), "several": several})

    def say(self, drop_id: int, word: str | None, key: str | None = None, **more: Any) -> Any:
        given = {"drop": drop_id, "inspection": 1, "key": key or self.key(), "label": word} | more
        return self.send(given).json()["saved"][0]

    def take_back(self, drop_id: int, undone: str, key: str | None = None) -> Any:
        return self.send({"drop": drop_id, "inspection": 1, "key": key or self.key(), "undo": undone}).json()["saved"][
            0
        ]


@pytest.fixture
def pen(client: TestClient, plate: None) -> Iterator[Pen]:
    return Pen(client)


def votes(db: Database) -> list[tuple[Any, ...]]:
    columns = (label.c.drop_id, label.c.label, label.c.person, label.c.origin, label.c.request)
    return rows(db, sa.select(*columns).order_by(label.c.labelled_at, label.c.id))


def test_a_label_counts_at_once_and_is_kept_once(pen: Pen, db: Database) -> None:
    first = pen.say(1, "Clear", "request-a")
    assert (first["state"], first["now"]["label"], first["now"]["mine"], first["now"]["hit"]) == (
        "saved", "Clear", "Clear", False,
    )  # fmt: skip
    assert first["now"]["looks"] == {"now": ["\N{MIDDLE DOT}", "clear"], "disagreement": ["!", "differs"]}
    assert pen.say(1, "Clear", "request-a") == first
    assert votes(db) == [(1, "Clear", "ann", "web", "request-a")]
    assert rows(db, sa.select(drop_summary.c.label, drop_summary.c.hit).where(drop_summary.c.drop_id == 1)) == [
        ("Clear", False)
    ]
    other = pen.say(1, "Crystals", "request-a")
    assert (other["state"], other["error"]) == ("refused", "this request was used for another label")
    assert len(votes(db)) == 1


def test_the_person_is_the_one_whom_the_server_knows(
    pen: Pen, client: TestClient, person: OnePerson, db: Database
) -> None:
    forged = {"drop": 1, "inspection": 1, "key": "request-a", "label": "Clear", "person": "bob"}
    assert pen.send(forged).status_code == 400
    person.user = User("cem", UserRole.LABELLER)
    pen.say(1, "Clear", "request-a")
    person.user = User("dan", UserRole.LABELLER)
    assert pen.say(1, "Clear", "request-a")["state"] == "refused", "the request of somebody else"
    assert [row[2] for row in votes(db)] == ["cem"]
    person.user = User("eve", UserRole.VIEWER)
    for path, body in (
        ("/api/labels", {"labels": [{"drop": 1, "inspection": 1, "key": "request-b", "label": "Clear"}]}),
        ("/api/marks", {"kind": "harvested", "drop": 1, "inspection": 1, "key": "request-b"}),
        ("/api/review/next", {}),
        ("/api/review/answer", {"item": 1, "answer": "skip", "key": "request-b"}),
    ):
        assert client.post(path, json=body).status_code == 403
    person.user = None
    assert client.post("/api/labels", json={"labels": []}).status_code == 401
    assert len(votes(db)) == 1


def test_undo_brings_back_what_counted_before(pen: Pen, db: Database) -> None:
    keys = [pen.key() for _ in range(3)]
    pen.say(1, "Precipitate", keys[0])
    pen.say(1, "Clear", keys[1])
    pen.say(2, "Other", keys[2])
    undone = pen.take_back(1, keys[1], "undo-request")
    assert (undone["state"], undone["now"]["label"]) == ("saved", "Precipitate")
    assert pen.take_back(1, keys[1], "undo-request")["now"]["label"] == "Precipitate"
    assert pen.take_back(1, keys[1])["error"] == "you have labelled this drop again since, so nothing was taken back"
    back = pen.take_back(1, keys[0])
    assert (back["now"]["label"], back["now"]["person"], back["now"]["hit"]) == ("Crystals", None, True)
    assert pen.take_back(3, keys[0])["error"] == "there is no such label of yours to take back"
    assert [row[:2] for row in votes(db)] == [
        (1, "Precipitate"), (1, "Clear"), (2, "Other"), (1, "Precipitate"), (1, None),
    ]  # fmt: skip


def test_an_undo_goes_back_to_a_label_that_came_another_way(pen: Pen, db: Database) -> None:
    given = NewLabel(1, 1, DropClass.OTHER, "ann", utc(hours=1), "csv scores.csv")
    db.write(lambda c: recorder.add(c, [given], utc(hours=1)))
    pen.say(1, "Clear", "request-a")
    assert pen.take_back(1, "request-a")["now"]["label"] == "Other"


def test_drops_chosen_together_are_recorded_as_that(pen: Pen, db: Database) -> None:
    together = [{"drop": n, "inspection": 1, "key": f"several-{n}", "label": "Clear"} for n in (2, 3, 4)]
    answer = pen.send(*together, several=True).json()["saved"]
    assert [each["now"]["label"] for each in answer] == ["Clear"] * 3
    assert pen.send(*together, several=True).json()["saved"] == answer
    assert [row[3] for row in votes(db)] == ["web several"] * 3
    pen.say(2, "Crystals", "request-a")
    pen.take_back(2, "request-a")
    assert [row[3] for row in votes(db)][3:] == ["web", "web several undo"]


def test_two_servers_keep_one_request_once(pen: Pen, db: Database, db_url: str, web_settings: Settings) -> None:
    together = Barrier(2)

    def send(_: int) -> Any:
        own = Database(db_url)
        with browser(web_settings, own, OnePerson()) as client:
            client.get("/")
            together.wait()
            body = [{"drop": n, "inspection": 1, "key": f"request-{n}", "label": "Clear"} for n in (1, 2, 3)]
            answers = [client.post("/api/labels", json={"labels": body}).json()["saved"] for _ in range(3)]
        own.close()
        return answers

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(send, range(2))
    assert one == other
    assert all(each["state"] == "saved" for answer in one for each in answer)
    assert sorted(row[0] for row in votes(db)) == [1, 2, 3]


def test_what_cannot_be_is_named_and_the_rest_is_kept(pen: Pen, db: Database, source_id: int) -> None:
    record(db, source_id, sightings(1, plate="P2"))
    wrong = [
        {"drop": 1, "inspection": 1, "key": "request-a", "label": "Clear"},
        {"drop": 1, "inspection": 2, "key": "request-b", "label": "Clear"},
        {"drop": 99, "inspection": 1, "key": "request-c", "label": "Clear"},
        {"drop": 10**18, "inspection": 1, "key": "request-d", "label": "Clear"},
        {"drop": 1, "inspection": 99, "key": "request-e", "undo": "request-a"},
    ]
    saved = pen.send(*wrong).json()["saved"]
    assert [each["state"] for each in saved] == ["saved", *["refused"] * 4]
    assert len(votes(db)) == 1


@sqlite_alone
@pytest.mark.parametrize(
    "body",
    [
        "", "[]", "{}", "nonsense", '{"labels": []}', '{"labels": [{}]}', "[" * 50_000, "null", '"labels"',
        '{"labels": [{"drop": 0, "inspection": 1, "key": "request-a"}]}',
        '{"labels": [{"drop": -1, "inspection": 1, "key": "request-a"}]}',
        '{"labels": [{"drop": 1.5, "inspection": 1, "key": "request-a"}]}',
        '{"labels": [{"drop": "1", "inspection": 1, "key": "request-a"}]}',
        '{"labels": [{"drop": true, "inspection": 1, "key": "request-a"}]}',
        '{"labels": [{"drop": 9223372036854775808, "inspection": 1, "key": "request-a"}]}',
        '{"labels": [{"drop": 1, "inspection": 1, "key": "short"}]}',
        '{"labels": [{"drop": 1, "inspection": 1, "key": "request a; drop table label"}]}',
        '{"labels": [{"drop": 1, "inspection": 1, "key": "request-a\\n"}]}',
        '{"labels": [{"drop": 1, "inspection": 1, "key": "request-a", "label": "<b>Clear</b>"}]}',
        '{"labels": [{"drop": 1, "inspection": 1, "key": "request-a", "label": ["Clear"]}]}',
        '{"labels": [{"drop": 1, "inspection": 1, "key": "request-a", "label": "Clear"}], "several": "yes please"}',
    ],
)  # fmt: skip
def test_a_body_that_no_page_of_ours_sends_changes_nothing(
    client: TestClient, plate: None, db: Database, body: str
) -> None:
    answer = client.post("/api/labels", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert "Traceback" not in answer.text
    assert votes(db) == []


@sqlite_alone
def test_a_batch_has_at_most_the_drops_of_a_plate(client: TestClient, plate: None, db: Database) -> None:
    many = [{"drop": 1, "inspection": 1, "key": f"key-{n:06}"} for n in range(requests.MOST + 1)]
    answer = client.post(
        "/api/labels", content=json.dumps({"labels": many}), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert votes(db) == []


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["Clear", "Crystals", "none", "undo", "again"]), st.integers(1, 2)), max_size=12
)


@sqlite_alone
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_row_of_labels_and_undos_is_a_stack(db: Database, plate: None, steps: list[Step]) -> None:
    """A model of a stack for each drop; every request is sent twice."""
    db.write(lambda c: c.execute(sa.delete(label)))
    stacks: dict[int, list[tuple[str, str | None]]] = {1: [], 2: []}
    for number, (step, drop_id) in enumerate(steps):
        key, stack = f"request-{number:03}", stacks[drop_id]
        if step == "undo":
            asked = LabelRequest(key, drop_id, 1, undo=stack[-1][0] if stack else "request-none")
            refused = not stack
            stack[-1:] = []
        else:
            word = None if step == "none" else "Clear" if step == "again" else step
            asked, refused = LabelRequest(key, drop_id, 1, word and DropClass(word)), False
            stack.append((key, word))
        for _ in range(2):
            said = db.write(requests.give, [asked], person="ann", several=False, now=utc(number))
            assert (key in said) == refused
        for each, expected in stacks.items():
            last = sa.select(label.c.label).where(label.c.drop_id == each)
            found = rows(db, last.order_by(label.c.labelled_at.desc(), label.c.id.desc()).limit(1))
            assert (found[0][0] if found else None) == (expected[-1][1] if expected else None)


def mark(client: TestClient, kind: str, key: str, **more: Any) -> Any:
    return client.post("/api/marks", json={"kind": kind, "drop": 1, "inspection": 1, "key": key} | more)


def test_notes_and_marks_are_appended_with_person_and_time(
    client: TestClient, plate: None, db: Database, person: OnePerson
) -> None:
    note = mark(client, "note", "request-a", text=" in the skin <script>\nsecond line ").json()["saved"]
    assert [(m["kind"], m["text"], m["person"]) for m in note["marks"]] == [
        ("note", "in the skin <script>\nsecond line", "ann")
    ]
    assert mark(client, "note", "request-a", text="in the skin <script>\nsecond line").json()["saved"] == note
    assert mark(client, "note", "request-a", text="another").status_code == 409
    assert mark(client, "harvested", "request-b").json()["saved"]["harvested"] is True
    cell = client.get("/api/plate/1?class=harvested").json()
    assert (cell["gallery"], cell["cells"][0]["notes"]) == ([1], 1)
    person.user = User("bob", UserRole.LABELLER)
    assert mark(client, "unharvested", "request-c", text="wrong drop").json()["saved"]["harvested"] is False
    shown = "select kind, person, counts from lims_drop_mark_v1 order by mark_id"
    assert [(k, p, bool(n)) for k, p, n in rows(db, sa.text(shown))] == [
        ("note", "ann", True), ("harvested", "ann", False), ("unharvested", "bob", False),
    ]  # fmt: skip
    assert len(rows(db, sa.select(drop_mark))) == 3


def test_hits_are_listed_by_what_was_harvested(client: TestClient, plate: None, db: Database) -> None:
    def wells(harvested: bool | None) -> list[tuple[str, bool]]:
        found = db.read(lambda c: reports.hits(c, None, 10, harvested=harvested))
        return [(hit.well, hit.harvested) for hit in found]

    assert (wells(None), wells(False), wells(True)) == ([("A01", False)], [("A01", False)], [])
    mark(client, "harvested", "request-a")
    assert (wells(None), wells(False), wells(True)) == ([("A01", True)], [], [("A01", True)])
    assert db.read(lambda c: reports.count_hits(c, harvested=True)) == 1


def test_everybody_follows_for_themselves(client: TestClient, plate: None, db: Database, person: OnePerson) -> None:
    for _ in range(2):
        assert mark(client, "follow", "request-a").json()["saved"]["followed"] is True
    person.user = User("bob", UserRole.LABELLER)
    assert client.get("/api/drop/1").json()["followed"] is False
    assert mark(client, "unfollow", "request-b").json()["saved"]["followed"] is False
    person.user = User("ann", UserRole.LABELLER)
    assert client.get("/api/drop/1").json()["followed"] is True
    assert mark(client, "unfollow", "request-c").json()["saved"]["followed"] is False
    assert rows(db, sa.select(follow)) == []


@sqlite_alone
def test_marks_that_cannot_be_are_refused(client: TestClient, plate: None, db: Database) -> None:
    assert mark(client, "note", "request-a", text="  ").status_code == 400
    assert mark(client, "note", "request-a", text="x" * 2001).status_code == 400
    assert mark(client, "note", "request-a", text="\x1b[31m").status_code == 400
    assert mark(client, "burnt", "request-a").status_code == 400
    assert mark(client, "harvested", "request-a", drop=99).status_code == 404
    assert mark(client, "harvested", "request-a", inspection=99).status_code == 404
    assert rows(db, sa.select(drop_mark)) == []
    assert len(rows(db, sa.select(drop))) == 4
    assert len(rows(db, sa.select(inspection))) == 1
