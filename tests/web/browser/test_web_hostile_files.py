"""Files and names that mean harm, as a browser shows them."""

import pytest
from page_crowd import PageCrowd as People
from page_lab import PageLab
from page_museum import BROKEN, HOSTILE_KEY, MARKUP, TURNED
from page_people import ready, visit
from playwright.sync_api import Page
from waiting import wait_until

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]
FIRST = 51
"""The first drop of the plate whose files broke."""


STANDING = """Array.from(document.querySelectorAll(".tile"), (tile) =>
    tile.querySelector("img")?.naturalWidth > 0 || tile.querySelector(".no-image")?.textContent)"""


def test_a_broken_file_is_named_and_hurts_no_other(museum: PageLab, visitor: People) -> None:
    page = visitor()
    for number in range(len(BROKEN)):
        visit(page, f"/drop/{FIRST + number}")
        page.wait_for_selector("#viewer .no-image >> text=this file is no image that can be shown")
        assert page.title().endswith("marcod")
    visit(page, f"/drop/{FIRST + len(BROKEN)}")
    page.wait_for_selector("#viewer .no-image >> text=there is nothing at this address")
    page.keyboard.press("ArrowRight")
    wait_until(lambda: page.evaluate("document.querySelector('#viewer img')?.naturalWidth > 0"), "the next image")
    visit(page, "/plate/imager/broken")
    wait_until(lambda: all(page.evaluate(STANDING)), "every image, or what stands in its place")
    assert page.evaluate(STANDING) == ["cannot be shown"] * (len(BROKEN) + 1) + [True]


def test_a_broken_file_is_not_sent_to_be_saved(museum: PageLab, visitor: People) -> None:
    page = visitor()
    for number in range(len(BROKEN) + 1):
        visit(page, f"/drop/{FIRST + number}")
        address = page.get_attribute("#panel a[download]", "href")
        answer = page.request.get(str(address))
        assert answer.status in (404, 415)
        assert b"nobody may read this" not in answer.body()
        assert b"<script" not in answer.body()


def test_markup_and_turned_writing_in_names_and_notes_are_plain_text(museum: PageLab, visitor: People) -> None:
    page = visitor("<b>ann</b>")
    page.on("dialog", lambda dialog: visitor.faults.append(dialog.message))
    for address in (
        "/",
        "/hits",
        "/hits?text=img",
        "/drop/49",
        "/drop/50?from=hits&inspection=3",
        "/models",
        "/status",
    ):
        visit(page, address)
        plain(page)
    visit(page, "/")
    page.click("th a:has-text('onerror')")
    ready(page)
    plain(page)
    assert MARKUP in page.inner_text("h1")
    page.click(".tile a >> nth=0")
    page.wait_for_url("**/drop/**")
    ready(page)
    page.wait_for_selector("#panel .history >> text=<img src=x")
    plain(page)
    assert HOSTILE_KEY not in page.inner_text("main"), "marks that turn the writing are not shown"
    note = page.inner_text("#panel .history:last-of-type li")
    assert note.startswith(f"{MARKUP}\n2 bob")


def plain(page: Page) -> None:
    """See that nothing of a name is markup, and nothing turns the writing."""
    assert page.title() != "owned"
    assert page.query_selector("img[src=x], .who b") is None
    titles = "Array.from(document.querySelectorAll('[title], [alt]'), (each) => each.title + each.alt).join()"
    read = page.inner_text("body") + page.title() + page.evaluate(titles)
    assert not set(read) & {TURNED[0], TURNED[-1]}


def test_a_note_with_markup_is_shown_as_it_was_typed(museum: PageLab, visitor: People) -> None:
    page = visitor("eve")
    visit(page, "/drop/20")
    page.keyboard.press("n")
    page.keyboard.type("<script>document.title='owned'</script>\n\"second\" line")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel .history >> text=<script>")
    assert '</script>\n"second" line' in page.inner_text("#panel")
    assert page.title() != "owned"
