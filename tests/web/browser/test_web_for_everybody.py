"""Every page for everybody: light and dark, narrow, by touch, by keys alone; and nothing that the browser blocks."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_lab import PageLab
from page_people import ready, saved, visit
from playwright.sync_api import Page

from marcod.domain import Modality

pytestmark = [pytest.mark.web, pytest.mark.timeout(900), pytest.mark.parametrize("backend", ["sqlite"], indirect=True)]
People = Callable[..., Page]

PAGES = [
    "/", "/hits", "/models", "/status", "/review",
    "/plate/imager/P1", "/plate/imager/P1?by=probability&sort=probability", "/plate/imager/P1?by=best",
    "/plate/imager/P1?by=disagreement", "/plate/imager/P1?by=trend&class=hit",
    "/drop/1", "/drop/5?inspection=1&at=2", "/drop/2?from=hits&inspection=2", "/drop/999",
]  # fmt: skip


@pytest.fixture
def full(lab: PageLab) -> PageLab:
    """A plate at two inspections with images in another light, labels and marks."""
    lab.plate(24, (1, 2), drops=2)
    lab.plate(3, (2,), modality=Modality.UV)
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(full: PageLab, person: People, scheme: str) -> None:
    page = person(color_scheme=scheme)
    say_something(page)
    found: dict[str, list[str]] = {}
    for address in PAGES:
        visit(page, address)
        for violation in Axe().run(page).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                where = [node["html"][:150] for node in violation["nodes"][:2]]
                found.setdefault(address, []).append(f"{violation['id']}: {where}")
    assert found == {}


def test_nothing_is_wider_than_360_pixels(full: PageLab, person: People) -> None:
    page = person(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    wide = {}
    for address in PAGES:
        visit(page, address)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 360:
            wide[address] = width
    assert wide == {}


def swipe(page: Page, start: int, end: int) -> None:
    """Move a finger over the image."""
    finger = page.context.new_cdp_session(page)
    y = page.evaluate("document.querySelector('#viewer').getBoundingClientRect().top") + 80
    for kind, x in (("touchStart", start), ("touchMove", (start + end) // 2), ("touchMove", end), ("touchEnd", None)):
        points = [] if x is None else [{"x": x, "y": y}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


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


def test_zoom_stays_when_moving_on_and_z_takes_it_back(full: PageLab, person: People) -> None:
    page = person()
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


def test_inspections_lights_and_two_dates_side_by_side(full: PageLab, person: People) -> None:
    page = person()
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


def test_go_to_a_well_first_and_last(full: PageLab, person: People) -> None:
    page = person()
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


def test_a_new_inspection_appears_by_itself(full: PageLab, person: People) -> None:
    page = person()
    visit(page, "/plate/imager/P1")
    assert len(page.query_selector_all(".tabs a")) == 2
    page.focus(".wells td[data-key] a >> nth=3")
    full.plate(24, (3,), drops=2)
    page.wait_for_selector(".tabs a:nth-child(3)")


def test_a_link_of_the_map_opens_its_drop(full: PageLab, person: People) -> None:
    page = person()
    visit(page, "/plate/imager/P1?class=hit&sort=probability")
    first = page.inner_text(".tile b >> nth=0")
    page.click(".tile a >> nth=0")
    page.wait_for_url("**/drop/**")
    ready(page)
    assert page.inner_text("#name") == first
    assert page.inner_text("#place").startswith("1 of ")


def test_markup_in_names_and_notes_is_text(lab: PageLab, person: People) -> None:
    name = "<img src=x onerror=document.title='owned'>\"'"
    lab.plate(2, plate=name.replace("/", ""), barcode=name)
    lab.start()
    page = person("<b>ann</b>")
    for address in ("/", "/hits", "/drop/1"):
        visit(page, address)
        assert page.title() != "owned"
        assert page.query_selector("img[src=x]") is None
    page.keyboard.press("n")
    page.keyboard.type("<script>document.title='owned'</script>")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel .history >> text=<script>")
    assert page.title() != "owned"
