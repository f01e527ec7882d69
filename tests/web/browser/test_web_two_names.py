"""Labels that wait while the name changes: kept, and stored under the name of who gave them alone."""

import pytest
from page_crowd import PageCrowd as People
from page_lab import HEADER, PageLab
from page_people import enrol, given, log_in, ready, saved, visit
from playwright.sync_api import Page

from marcod.web import accounts

pytestmark = [pytest.mark.web, pytest.mark.timeout(300), pytest.mark.parametrize("backend", ["sqlite"], indirect=True)]

ANNS = [("A01.1", "Crystals", "ann"), ("A02.1", "Precipitate", "ann")]
ANNS_TOO = [("A03.1", "Clear", "ann"), ("A04.1", "Other", "ann")]


def refused(page: Page) -> None:
    """Wait until a page says that it is not its person's any more."""
    page.click("#saving >> text=Try now")
    page.wait_for_selector("#saving.bad >> text=this page is ann's, and you are bob now")


def test_labels_outlive_a_session_and_wait_for_their_own_person(accounts_lab: PageLab, account: People) -> None:
    lab = accounts_lab
    enrol(lab.db, "ann", "bob")
    lab.plate(12)
    lab.start()
    page = account(None)
    page.goto("/drop/1")
    log_in(page, "ann")
    ready(page)
    page.keyboard.type("xp", delay=50)
    saved(page)
    lab.db.write(accounts.log_out_everywhere, "ann", lab.db.now())
    page.keyboard.type("co", delay=50)
    page.wait_for_selector("#saving.bad >> text=2 changes wait, you are not logged in any more")
    # Somebody else logs in by the link, in another tab.
    with page.expect_popup() as opened:
        page.click("#saving >> text=Log in")
    other = opened.value
    log_in(other, "bob")
    ready(other)
    assert other.is_hidden("#saving")
    refused(page)
    visit(other, "/drop/5")
    other.keyboard.press("x")
    saved(other)
    assert given(lab.db) == [*ANNS, ("A05.1", "Crystals", "bob")]
    # Ann's come as soon as she is there again, in any tab.
    other.click("text=Log out")
    log_in(other, "ann")
    ready(other)
    saved(other)
    page.click("#saving >> text=Try now")
    saved(page)
    assert given(lab.db) == [*ANNS, ("A05.1", "Crystals", "bob"), *ANNS_TOO]


def test_labels_wait_while_the_proxy_names_somebody_else(lab: PageLab, person: People) -> None:
    lab.plate(12)
    lab.start()
    page = person("ann")
    visit(page, "/drop/1")
    page.keyboard.type("xp", delay=50)
    saved(page)
    page.context.set_extra_http_headers({HEADER: "bob"})
    page.keyboard.type("co", delay=50)
    page.wait_for_selector("#saving.bad >> text=NOT SAVED: 2 changes wait")
    refused(page)
    # The same browser as bob's: nothing of ann's is sent by it.
    other = page.context.new_page()
    visit(other, "/drop/5")
    assert other.is_hidden("#saving")
    other.keyboard.press("x")
    saved(other)
    other.close()
    page.close()
    assert given(lab.db) == [*ANNS, ("A05.1", "Crystals", "bob")]
    page.context.set_extra_http_headers({HEADER: "ann"})
    again = page.context.new_page()
    visit(again, "/")
    saved(again)
    assert given(lab.db) == [*ANNS, ("A05.1", "Crystals", "bob"), *ANNS_TOO]


def test_a_review_goes_on_under_its_own_name_alone(lab: PageLab, person: People) -> None:
    lab.plate(12)
    lab.start()
    page = person("ann")
    visit(page, "/review")
    page.wait_for_selector("#name:not(:empty)")
    page.context.set_extra_http_headers({HEADER: "bob"})
    page.keyboard.press("c")
    page.wait_for_selector("#saving.bad >> text=this page is ann's, and you are bob now")
    assert given(lab.db) == []
    page.context.set_extra_http_headers({HEADER: "ann"})
    page.click("#saving >> text=Try now")
    saved(page)
    assert [(word, name) for _, word, name in given(lab.db)] == [("Clear", "ann")]
