"""Labels by keys alone: in order, each once, whatever happens to the server, the network and the tab."""

import pytest
from page_crowd import PageCrowd as People
from page_lab import PageLab
from page_people import given, ready, saved, visit

from marcod.domain import PLATE_FORMATS, well_name

pytestmark = [pytest.mark.web, pytest.mark.timeout(900)]

one_database = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
KEYS = {"x": "Crystals", "p": "Precipitate", "c": "Clear", "o": "Other"}


def wells(count: int) -> list[str]:
    grid = PLATE_FORMATS[96]
    return [f"{well_name(*grid.position(number))}.1" for number in range(1, count + 1)]


def keys(count: int) -> str:
    return ("xpco" * count)[:count]


def words(typed: str, person: str = "ann", first: int = 0) -> list[tuple[str, str | None, str]]:
    """The labels of what was typed, from a drop on."""
    named = wells(first + len(typed))[first:]
    return [(well, KEYS[key], person) for well, key in zip(named, typed, strict=True)]


def test_fifty_labels_at_a_key_every_20_ms(lab: PageLab, person: People) -> None:
    lab.plate(51)
    lab.start()
    page = person()
    visit(page, "/drop/1")
    page.keyboard.type(keys(50), delay=20)
    page.wait_for_selector("#name:text-is('E03.1')")
    saved(page)
    assert given(lab.db) == words(keys(50))


@one_database
def test_three_hundred_labels_at_a_key_every_100_ms(lab: PageLab, person: People) -> None:
    lab.plate(96, drops=4)
    lab.start()
    page = person()
    visit(page, "/drop/1")
    page.keyboard.type(keys(300), delay=100)
    saved(page)
    rows = given(lab.db)
    assert [word for _, word, _ in rows] == [KEYS[key] for key in keys(300)]
    assert len({name for name, _, _ in rows}) == 300
    assert [name for name, _, _ in rows] == sorted(name for name, _, _ in rows)


@one_database
def test_a_held_key_labels_one_drop_and_a_key_in_a_note_none(lab: PageLab, person: People) -> None:
    lab.plate(5)
    lab.start()
    page = person()
    visit(page, "/drop/1")
    for _ in range(10):
        page.keyboard.down("x")
    page.keyboard.up("x")
    page.keyboard.press("n")
    page.keyboard.type("excellent crop")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+x")
    page.keyboard.press("Alt+c")
    saved(page)
    assert given(lab.db) == [("A01.1", "Crystals", "ann")]


def test_undo_goes_back_and_what_counted_before_counts_again(lab: PageLab, person: People) -> None:
    lab.plate(3)
    lab.start()
    page = person()
    visit(page, "/drop/1")
    page.keyboard.type("cx", delay=50)
    assert page.inner_text("#name") == "A03.1"
    page.keyboard.press("Control+z")
    assert page.inner_text("#name") == "A02.1"
    page.keyboard.press("x")
    page.keyboard.press("Backspace")
    page.keyboard.press("u")
    assert page.inner_text("#name") == "A01.1"
    saved(page)
    told = page.request.get("/api/drop/1", headers={"X-Remote-User": "ann"}).json()
    assert told["now"]["person"] is None
    assert [each["label"] for each in told["labels"]] == [None, "Clear"]
    page.wait_for_selector("#panel .history >> text=taken back")


PEOPLE = ("ann", "bob", "cem", "dan", "eve")


def test_a_server_that_is_killed_under_five_people_loses_and_doubles_nothing(lab: PageLab, person: People) -> None:
    lab.plate(96)
    lab.start()
    shares = {name: words("xpco" * 4, name, first=16 * at) for at, name in enumerate(PEOPLE)}
    pages = {name: person(name) for name in PEOPLE}
    for at, page in enumerate(pages.values()):
        visit(page, f"/drop/{16 * at + 1}")
        page.wait_for_selector(f"#place:text-is('{16 * at + 1} of 96')")
    for start in range(0, 16, 4):
        if start == 8:
            lab.kill()
        for page in pages.values():
            page.keyboard.type("xpco", delay=10)
    for page in pages.values():
        page.wait_for_selector("#saving.bad >> text=NOT SAVED")
    lab.start()
    for page in pages.values():
        if not lab.db.is_sqlite:
            # Here by hand; there the pages try again by themselves.
            page.click("#saving button")
        saved(page)
    rows = given(lab.db)
    assert {name: [row for row in rows if row[2] == name] for name in PEOPLE} == shares
    assert len(rows) == 80


@one_database
def test_a_tab_that_is_closed_with_labels_waiting_loses_none(lab: PageLab, person: People) -> None:
    lab.plate(12)
    lab.start()
    page = person()
    visit(page, "/drop/1")
    page.wait_for_selector("#place:text-is('1 of 12')")
    lab.kill()
    page.keyboard.type(keys(8), delay=10)
    page.wait_for_selector("#saving.bad")
    page.close()
    lab.start()
    again = page.context.new_page()
    visit(again, "/")
    saved(again)
    assert given(lab.db) == words(keys(8))
    other = person("bob")
    visit(other, "/")
    assert {row[2] for row in given(lab.db)} == {"ann"}


@one_database
def test_labels_that_the_server_refuses_are_named_and_the_rest_is_kept(lab: PageLab, person: People) -> None:
    lab.plate(3)
    lab.start()
    page = person()
    visit(page, "/drop/1")
    page.route("**/api/labels", lambda route: route.fulfill(status=409, json={"error": "somebody was quicker"}))
    page.keyboard.press("x")
    page.wait_for_selector("#saving.bad >> text=somebody was quicker")
    page.unroute("**/api/labels")
    page.click("text=Understood")
    page.keyboard.press("c")
    saved(page)
    assert given(lab.db) == [("A02.1", "Clear", "ann")]


@one_database
def test_several_drops_are_labelled_with_one_question(lab: PageLab, person: People) -> None:
    lab.plate(12)
    lab.start()
    page = person()
    visit(page, "/plate/imager/P1?class=Clear")
    page.keyboard.press("a")
    number = len(page.query_selector_all(".tile"))
    assert 1 < number < 12
    page.keyboard.press("p")
    assert page.inner_text("#question-text") == f"Label {number} drops Precipitate?"
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    page.click("#question button.main")
    page.wait_for_selector(f"#saving >> text={number} drops Precipitate · saved")
    assert [word for _, word, _ in given(lab.db)] == ["Precipitate"] * number
    page.wait_for_selector("text=No drop of this inspection is so.")
    page.keyboard.press("u")
    saved(page)
    page.wait_for_selector(".tile")
    assert len(given(lab.db)) == 2 * number


@one_database
def test_the_map_by_keys_alone(lab: PageLab, person: People) -> None:
    lab.plate(24)
    lab.start()
    page = person()
    visit(page, "/plate/imager/P1")
    page.focus(".wells td[data-key] a >> nth=0")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowRight", " "):
        page.keyboard.press(key)
    assert page.inner_text("#chosen-count") == "1 drop chosen"
    page.keyboard.press(" ")
    assert page.inner_text("#chosen-count") == "2 drops chosen"
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_url("**/drop/**")
    ready(page)
    assert page.inner_text("#name") == "B04.1"
