"""Many windows of one browser on one server, to which a browser has six connections."""

import pytest
from page_crowd import PageCrowd as People
from page_lab import PageLab
from page_people import look, visit
from playwright.sync_api import BrowserContext, Page, Request
from waiting import wait_until

pytestmark = [pytest.mark.web, pytest.mark.timeout(300), pytest.mark.parametrize("backend", ["sqlite"], indirect=True)]
PLATE = "/plate/imager/P1"


class Lines:
    """The lines on which pages of a browser listen, and what they asked for."""

    def __init__(self, context: BrowserContext) -> None:
        self._open: list[Request] = []
        self.asked: list[str] = []
        context.on("request", self._begin)
        context.on("requestfinished", self._end)
        context.on("requestfailed", self._end)

    def _begin(self, request: Request) -> None:
        self.asked.append(request.url)
        if request.url.endswith("/events"):
            self._open.append(request)

    def _end(self, request: Request) -> None:
        if request in self._open:
            self._open.remove(request)

    def of(self) -> list[Page]:
        """Pages that listen now."""
        return [request.frame.page for request in self._open if not request.frame.page.is_closed()]


@pytest.fixture
def lab_of_one_plate(lab: PageLab) -> PageLab:
    lab.plate(12)
    lab.start()
    return lab


def said(page: Page, well: str, person: str) -> None:
    """Wait until a page shows by itself who labelled a drop."""
    page.wait_for_selector(f".tile[data-name='{well}'] .said[title='said by {person}']")


def until(page: Page, lines: Lines, number: int, besides: Page | None = None) -> list[Page]:
    """Wait until so many pages listen, and not one of them."""

    def are() -> bool:
        # Asking the browser anything lets it tell what happened.
        page.evaluate("0")
        return len(lines.of()) == number and besides not in lines.of()

    wait_until(are, f"{number} pages that listen")
    return lines.of()


def test_eight_windows_share_one_line_and_all_hear(lab_of_one_plate: PageLab, person: People) -> None:
    lab = lab_of_one_plate
    first = person()
    lines = Lines(first.context)
    pages = [first, *(first.context.new_page() for _ in range(7))]
    for page in pages:
        visit(page, PLATE)
        page.wait_for_selector(".tile img")
    (listening,) = until(first, lines, 1)
    lab.say("bob", 1, "Clear")
    for page in pages:
        said(page, "A01.1", "bob")
    # Another window takes over, whether that one is closed or only left behind.
    listening.close()
    rest = [page for page in pages if page is not listening]
    (second,) = until(rest[0], lines, 1)
    look(second, away=True)
    until(rest[0], lines, 1, besides=second)
    lab.say("cem", 2, "Clear")
    for page in rest:
        if page is not second:
            said(page, "A02.1", "cem")
    look(second, away=False)
    said(second, "A02.1", "cem")


def test_a_window_that_nobody_looks_at_has_no_line_and_catches_up_at_once(
    lab_of_one_plate: PageLab, person: People
) -> None:
    lab = lab_of_one_plate
    page = person()
    lines = Lines(page.context)
    visit(page, PLATE)
    until(page, lines, 1)
    look(page, away=True)
    until(page, lines, 0)
    lines.asked.clear()
    for drop in (1, 2, 3):
        lab.say("bob", drop, "Clear")
    look(page, away=False)
    for well in ("A01.1", "A02.1", "A03.1"):
        said(page, well, "bob")
    asked = [url for url in lines.asked if url.endswith(PLATE)]
    # Once, and once more where the line took its time.
    assert 1 <= len(asked) <= 2
    until(page, lines, 1)


def test_what_changed_while_the_server_was_down_is_shown(lab_of_one_plate: PageLab, person: People) -> None:
    lab = lab_of_one_plate
    page = person()
    lines = Lines(page.context)
    visit(page, PLATE)
    until(page, lines, 1)
    lab.kill()
    until(page, lines, 0)
    lab.plate(12, (2,))
    lab.start()
    page.wait_for_selector(".tabs a:nth-child(2)")
