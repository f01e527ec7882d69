"""Every page for everybody: light and dark, narrow, by touch, by keys alone; and nothing that the browser blocks."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_crowd import PageCrowd as People
from page_lab import PageLab
from page_museum import VIEWER
from page_people import enrol, log_in, ready, saved, visit
from playwright.sync_api import Page

pytestmark = [pytest.mark.web, pytest.mark.timeout(900)]
one_database = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)

PLATE = "/plate/imager/P1"
PAGES = [
    "/", "/?text=none+such", "/hits", "/hits?order=newest", "/models", "/models/small:1", "/models/run/1", "/status",
    "/review", PLATE, f"{PLATE}?by=probability&sort=probability", f"{PLATE}?by=best", f"{PLATE}?by=disagreement",
    f"{PLATE}?by=trend&class=hit", f"{PLATE}?class=failed", "/plate/imager/broken",
    "/drop/1?inspection=1", "/drop/5?inspection=1&at=2", "/drop/2?from=hits&inspection=2",
    "/drop/49", "/drop/51", "/drop/999",
]  # fmt: skip
STATES = {
    "several chosen": (f"{PLATE}?class=Clear", "a", "#chosen:visible"),
    "a question": (f"{PLATE}?class=Clear", "ap", "#question[open]"),
    "the keys of a plate": (PLATE, "?", "#keys[open]"),
    "the keys of a drop": ("/drop/1", "?", "#keys[open]"),
    "a note is written": ("/drop/1", "n", "#note:visible"),
    "two dates": ("/drop/1?from=plate&inspection=2", "b", ".viewer.two .pane:nth-child(2) img"),
    "two dates with heat": ("/drop/1?from=plate&inspection=2", "bh", ".pane-said:has-text('no heat map')"),
    "another light": ("/drop/1?from=plate&inspection=2", "v", "#name"),
    "zoomed": ("/drop/1", "z", ".viewer.zoomed"),
    "to go to a well": ("/drop/1", "g", "#goto[open]"),
}


def serious(page: Page) -> list[str]:
    """Axe's serious findings, in the light and the dark."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        # Only colours differ in the dark.
        options = {"resultTypes": ["violations"]} | ({"runOnly": ["color-contrast"]} if scheme == "dark" else {})
        for violation in Axe().run(page, options=options).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                where = [node["html"][:150] for node in violation["nodes"][:2]]
                found.append(f"{scheme}, {violation['id']}: {where}")
    return found


@pytest.mark.parametrize(("name", "pages"), [("ann", PAGES), (VIEWER, ["/", PLATE, "/drop/1", "/review", "/drop/999"])])
def test_axe_finds_nothing_serious(museum: PageLab, visitor: People, name: str, pages: list[str]) -> None:
    page = visitor(name)
    found = {}
    for address in pages:
        visit(page, address)
        found[address] = serious(page)
    assert {address: each for address, each in found.items() if each} == {}


def test_axe_finds_nothing_serious_while_somebody_works(museum: PageLab, visitor: People) -> None:
    page = visitor()
    found = {}
    for state, (address, typed, shown) in STATES.items():
        visit(page, address)
        page.wait_for_selector("[data-do=light]:not(:disabled)" if typed == "v" else "#main")
        page.keyboard.type(typed)
        page.wait_for_selector(shown)
        found[state] = serious(page)
    assert {state: each for state, each in found.items() if each} == {}


@one_database
def test_axe_finds_nothing_serious_in_the_review(lab: PageLab, person: People) -> None:
    lab.plate(24)
    lab.start()
    page = person()
    visit(page, "/review")
    seen: dict[bool, list[str]] = {}
    while len(seen) < 2:
        page.wait_for_selector("#name:not(:empty)")
        audit = "No score is shown" in page.inner_text("#said")
        if audit not in seen:
            seen[audit] = serious(page)
        page.keyboard.press("s")
    assert seen == {True: [], False: []}


@one_database
def test_axe_finds_nothing_serious_before_and_after_the_login(accounts_lab: PageLab, account: People) -> None:
    enrol(accounts_lab.db, "ann")
    accounts_lab.start()
    page = account(None)
    page.goto("/hits")
    found = [serious(page)]
    log_in(page, "ann", "not the password")
    page.wait_for_selector("[role=alert]")
    found.append(serious(page))
    log_in(page, "ann")
    ready(page)
    assert page.url.endswith("/hits")
    found.append(serious(page))
    assert found == [[], [], []]


def test_axe_finds_nothing_serious_where_nobody_is_known(museum: PageLab, visitor: People) -> None:
    page = visitor(None)
    assert page.goto("/").status == 401  # type: ignore[union-attr]
    assert "does not know who you are" in page.inner_text("main")
    assert serious(page) == []


def test_nothing_is_wider_than_360_pixels(museum: PageLab, visitor: People) -> None:
    page = visitor(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    wide = {}
    for address in PAGES:
        visit(page, address)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 360:
            wide[address] = width
    assert wide == {}


def test_what_the_policy_of_contents_blocks_is_noticed(museum: PageLab, visitor: People) -> None:
    page = visitor()
    visit(page, "/")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">')")
    page.evaluate("document.body.append(Object.assign(new Image(), { src: 'https://elsewhere.example.org/x.png' }))")
    visit(page, "/hits")
    assert {fault.split(" blocks")[0] for fault in visitor.faults} == {
        "Content Security Policy: style-src-attr", "Content Security Policy: img-src",
    }  # fmt: skip
    visitor.faults.clear()


@pytest.fixture
def full(lab: PageLab) -> PageLab:
    """A plate at two inspections."""
    lab.plate(24, (1, 2), drops=2)
    lab.start()
    return lab


def say_something(page: Page) -> None:
    visit(page, "/drop/1")
    page.keyboard.type("xpmf", delay=50)
    page.keyboard.press("n")
    page.keyboard.type("looks like salt")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    saved(page)


def swipe(page: Page, start: int, end: int) -> None:
    """Move a finger over the image."""
    finger = page.context.new_cdp_session(page)
    y = page.evaluate("document.querySelector('#viewer').getBoundingClientRect().top") + 80
    for kind, x in (("touchStart", start), ("touchMove", (start + end) // 2), ("touchMove", end), ("touchEnd", None)):
        points = [] if x is None else [{"x": x, "y": y}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


@one_database
def test_a_drop_is_labelled_and_left_by_touch(full: PageLab, person: People) -> None:
    page = person(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    visit(page, "/drop/1")
    page.tap(".tools [data-do=crystals]")
    page.wait_for_selector("#name >> text=A01.2")
    swipe(page, 300, 60)
    page.wait_for_selector("#name >> text=A02.1")
    swipe(page, 60, 300)
    page.wait_for_selector("#name >> text=A01.2")
    page.click(".tools [data-do=undo]")
    page.wait_for_selector("#name >> text=A01.1")
    saved(page)


def test_zoom_stays_when_moving_on_and_z_takes_it_back(museum: PageLab, visitor: People) -> None:
    page = visitor()
    visit(page, "/drop/1")
    page.wait_for_selector(".sheet img")
    where = "document.querySelector('.sheet').style.transform"
    fitted = page.evaluate(where)
    page.mouse.move(400, 300)
    page.mouse.wheel(0, -300)
    page.wait_for_selector(".viewer.zoomed")
    zoomed = page.evaluate(where)
    assert zoomed != fitted
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#name >> text=A01.2")
    assert page.evaluate(where) == zoomed
    page.keyboard.press("z")
    page.wait_for_selector(".viewer:not(.zoomed)")
    assert page.evaluate(where) == fitted


def test_inspections_lights_and_two_dates_side_by_side(museum: PageLab, visitor: People) -> None:
    page = visitor()
    visit(page, "/drop/1?from=plate&inspection=2")
    page.wait_for_selector("#strip li.now >> text=2")
    assert len(page.query_selector_all("#strip li")) == 2
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#strip li.now >> text=1")
    assert "inspection=1" in page.url
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#strip li.now >> text=2")
    page.keyboard.press("b")
    page.wait_for_selector(".viewer.two .pane:nth-child(2) img")
    assert "at=1" in page.url
    page.mouse.move(200, 300)
    page.mouse.wheel(0, -300)
    page.wait_for_selector(".viewer.zoomed")
    first, second = page.evaluate("Array.from(document.querySelectorAll('.sheet'), (s) => s.style.transform)")
    assert first == second
    page.keyboard.press("b")
    page.wait_for_selector(".viewer:not(.two)")
    page.wait_for_selector("[data-do=light]:not(:disabled)")
    page.keyboard.press("v")
    assert "light=uv" in page.url.lower()


def test_go_to_a_well_first_and_last(museum: PageLab, visitor: People) -> None:
    page = visitor()
    visit(page, "/drop/1")
    page.keyboard.press("g")
    page.keyboard.type("b3b")
    page.keyboard.press("Enter")
    assert page.inner_text("#name") == "B03.2"
    page.keyboard.press("g")
    page.keyboard.type("h12")
    page.keyboard.press("Enter")
    assert "is no drop of this list" in page.inner_text("#goto-said")
    page.keyboard.press("Escape")
    page.wait_for_selector("#goto:not([open])", state="attached")
    page.keyboard.press("End")
    assert page.inner_text("#name") == "B12.2"
    page.keyboard.press("Home")
    assert page.inner_text("#name") == "A01.1"
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open] >> text=Precipitate")
    page.keyboard.press("x")
    page.keyboard.press("Escape")
    assert page.is_hidden("#saving")


@one_database
def test_notes_and_marks_are_kept_with_the_person(full: PageLab, person: People) -> None:
    page = person("bob")
    say_something(page)
    visit(page, "/drop/3?inspection=2")
    page.wait_for_selector("#panel >> text=looks like salt")
    page.wait_for_selector("#panel .marks >> text=harvested")
    visit(page, "/plate/imager/P1?class=harvested")
    assert len(page.query_selector_all(".tile")) == 1
    other = person("ann")
    visit(other, "/plate/imager/P1?class=followed")
    assert len(other.query_selector_all(".tile")) == 0


@one_database
def test_a_new_inspection_appears_by_itself(full: PageLab, person: People) -> None:
    page = person()
    visit(page, "/plate/imager/P1")
    assert len(page.query_selector_all(".tabs a")) == 2
    page.focus(".wells td[data-key] a >> nth=3")
    full.plate(24, (3,), drops=2)
    page.wait_for_selector(".tabs a:nth-child(3)")


def test_a_link_of_the_map_opens_its_drop(museum: PageLab, visitor: People) -> None:
    page = visitor()
    visit(page, "/plate/imager/P1?class=hit&sort=probability")
    first = page.inner_text(".tile b >> nth=0")
    page.click(".tile a >> nth=0")
    page.wait_for_url("**/drop/**")
    ready(page)
    assert page.inner_text("#name") == first
    assert page.inner_text("#place").startswith("1 of ")
