"""Pages of other sites in the browser of somebody who may label: they change nothing, and see nothing of ours."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest
import sqlalchemy as sa
from foreign_site import foreign_site
from page_crowd import PageCrowd as People
from page_lab import PageLab
from page_people import enrol, log_in, ready, visit
from playwright.sync_api import Page
from starlette.routing import Route
from waiting import wait_until

from marcod.database.engine import Database
from marcod.database.schema import metadata
from marcod.web.app import routes

pytestmark = [pytest.mark.web, pytest.mark.timeout(300), pytest.mark.parametrize("backend", ["sqlite"], indirect=True)]

LABEL: Final = {"drop": 1, "inspection": 1, "key": "forged-label", "label": "Crystals"}
BODIES: Final[dict[str, Any]] = {
    "/api/labels": {"labels": [LABEL]},
    "/api/marks": {"kind": "harvested", "drop": 1, "inspection": 1, "key": "forged-mark"},
    "/api/review/next": {},
    "/api/review/answer": {"item": 1, "answer": "Crystals", "key": "forged-answer"},
    "/api/review/undo": {"item": 1},
    "/api/review/release": {"items": [1]},
    "/login": {},
    "/logout": {},
}
FETCHES: Final = """async ([address, body]) => {
    const send = (type, mode) => fetch(address, {
        method: "POST", mode, credentials: "include", body, headers: { "Content-Type": type },
    }).then((answer) => answer.type, (error) => error.name);
    const image = new Image();
    const seen = new Promise((resolve) => {
        image.onload = () => resolve("seen");
        image.onerror = () => resolve("not");
    });
    image.src = address;
    navigator.sendBeacon(address, new Blob([body], { type: "text/plain" }));
    return [await send("text/plain", "no-cors"), await send("application/json", "no-cors"),
        await send("application/json", "cors"), await seen];
}"""
FORM: Final = """([address, body]) => {
    const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
    const form = make("form", { method: "post", action: address, enctype: "text/plain" });
    form.append(make("input", { type: "hidden", name: body.slice(0, -1), value: "}" }));
    document.body.append(form);
    form.submit();
}"""
LOOKS: Final = """async ({ page, image, data, events }) => {
    const told = (element, at) => new Promise((resolve) => {
        element.onload = () => resolve("seen");
        element.onerror = () => resolve("not");
        Object.assign(element, at);
        document.head.append(element);
    });
    const read = (address, mode) => fetch(address, { mode, credentials: "include" })
        .then((answer) => answer.text(), (error) => error.name);
    const heard = new Promise((resolve) => {
        const stream = new EventSource(events, { withCredentials: true });
        stream.onopen = () => resolve("seen");
        stream.onerror = () => { stream.close(); resolve("not"); };
    });
    return {
        image: await told(new Image(), { src: image }),
        script: await told(document.createElement("script"), { src: data }),
        style: await told(document.createElement("link"), { rel: "stylesheet", href: data }),
        data: await read(data, "cors"), opaque: await read(data, "no-cors"), bytes: await read(image, "no-cors"),
        page: await read(page, "cors"), events: await heard,
    };
}"""


@pytest.fixture
def elsewhere() -> Iterator[list[str]]:
    """A site under another name, and one under the same name that differs by its port alone, to which cookies go."""
    with foreign_site() as port:
        yield [f"http://{name}:{port}/" for name in ("localhost", "127.0.0.1")]


@pytest.fixture
def signed_in(accounts_lab: PageLab, account: People) -> Page:
    """A browser that has a session of a labeller."""
    enrol(accounts_lab.db, "ann")
    accounts_lab.plate(6)
    accounts_lab.start()
    page = account(None)
    page.goto("/review")
    log_in(page, "ann")
    ready(page)
    page.wait_for_selector("#name:not(:empty)")
    return page


def rows(db: Database) -> dict[str, list[str]]:
    """Everything in the database."""
    return {
        table.name: sorted(map(str, db.read(lambda c, table=table: c.execute(sa.select(table)).all())))
        for table in metadata.sorted_tables
    }


def changing() -> list[str]:
    return sorted(route.path for route in routes() if isinstance(route, Route) and "POST" in (route.methods or ()))


WAYS: Final = {"this request does not come from a page of this marcod": 4, "OPTIONS is not served": 1}
"""Two fetches, a beacon and a form, and what a browser asks before it sends JSON."""


def refusals(lab: PageLab, path: str) -> Counter[str]:
    """Reasons for which the server refused an address."""
    lines = (lab.folder / "web.log").read_text().splitlines()
    said = [json.loads(line) for line in lines if line.startswith("{")]
    return Counter(each["reason"] for each in said if each["event"] == "request refused" and each["path"] == path)


def test_another_site_changes_nothing_by_any_way(signed_in: Page, accounts_lab: PageLab, elsewhere: list[str]) -> None:
    assert changing() == sorted(BODIES)
    before = rows(accounts_lab.db)
    page = signed_in.context.new_page()
    for times, site in enumerate(elsewhere, 1):
        for path, body in BODIES.items():
            address = [accounts_lab.url + path, json.dumps(body)]
            page.goto(site)
            assert page.evaluate(FETCHES, address) == ["TypeError", "TypeError", "TypeError", "not"]
            with page.expect_navigation():
                page.evaluate(FORM, address)
            assert page.url == address[0]
            assert "does not come from a page of this marcod" in page.inner_text("body")
            expected = {reason: times * number for reason, number in WAYS.items()}
            wait_until(lambda path=path, are=expected: refusals(accounts_lab, path) == are, f"refusals of {path}")
    assert rows(accounts_lab.db) == before
    # The session is the same as before.
    visit(signed_in, "/")
    assert signed_in.inner_text(".who span") == "ann"


def test_another_site_sees_neither_pages_nor_images_nor_data(
    signed_in: Page, accounts_lab: PageLab, elsewhere: list[str]
) -> None:
    visit(signed_in, "/plate/imager/P1")
    wait_until(lambda: signed_in.evaluate("document.querySelector('.tile img').naturalWidth > 0"), "an image")
    image = signed_in.get_attribute(".tile img", "src")
    paths = {"page": "/", "image": image, "data": "/api/plate/1", "events": "/events"}
    addresses = {name: f"{accounts_lab.url}{path}" for name, path in paths.items()}
    own = signed_in.evaluate(LOOKS, addresses)
    assert (own["image"], own["events"], '"cells"' in own["data"]) == ("seen", "seen", True)
    page = signed_in.context.new_page()
    refused = {"image": "not", "script": "not", "style": "not", "events": "not"}
    for site in elsewhere:
        page.goto(site)
        seen = page.evaluate(LOOKS, addresses)
        assert seen == refused | dict.fromkeys(("data", "opaque", "bytes", "page"), "TypeError")


def test_another_site_frames_no_page_and_holds_none(
    signed_in: Page, accounts_lab: PageLab, account: People, elsewhere: list[str]
) -> None:
    page = signed_in.context.new_page()
    frame = "(at) => document.body.append(Object.assign(document.createElement('iframe'), { src: at }))"
    for site in elsewhere:
        page.goto(site)
        page.evaluate(frame, accounts_lab.url)
        wait_until(lambda: page.evaluate("document.querySelector('iframe').contentDocument === null"), "the frame")
        (_, framed) = page.frames
        framed.wait_for_load_state()
        assert "Plates" not in framed.content()
        with page.expect_popup() as opened:
            page.evaluate("(at) => { window.ours = open(at); }", accounts_lab.url)
        ready(opened.value)
        assert opened.value.evaluate("window.opener") is None
        assert page.evaluate("window.ours.closed") is True
    # The browser tells of the frame that it refused, of nothing else.
    assert all("frame-ancestors" in fault for fault in account.faults)
    account.faults.clear()
